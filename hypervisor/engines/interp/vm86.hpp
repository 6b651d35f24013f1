// Virtual-8086 mode's own rules for interrupts and the interrupt flag: the VME extensions, and PVI,
// their protected-mode sibling (SDM 3B 21.3, 21.4).
#pragma once

#include <cstdint>

#include "engines/interp/segments.hpp"

namespace strata::interp {

/// Whether CLI and STI act on VIF: VME in virtual-8086 mode, PVI at CPL 3, below the IOPL needed.
[[nodiscard]] bool uses_virtual_if(const Core& core) noexcept;

/// The image that PUSHF and redirected interrupts push where VIF stands for IF: IOPL reads as 3.
[[nodiscard]] std::uint64_t virtual_flags(const Core& core) noexcept;

/// POPF and IRET of 16 bits with VIF in IF's place: `after` is what RFLAGS becomes.
Outcome pop_virtual_flags(const Core& core, std::uint64_t image, std::uint64_t& after) noexcept;

/// INT n in virtual-8086 mode with VME: `redirected` if the TSS's bitmap sends it to the guest's
/// own vector table, and then it is delivered.
Outcome redirect_interrupt(Core& core, std::uint8_t vector, std::uint64_t return_ip,
                           bool& redirected);

}  // namespace strata::interp
