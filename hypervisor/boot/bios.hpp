// What a PC's firmware leaves in memory for a kernel that goes back to real mode.
//
// Multiboot 0.6.96, 3.2, has the machine "as initialized by the BIOS", the 8259s with the BIOS's
// vectors: a kernel may return to real mode, load an IDTR of base 0 and limit 3FFh, and set IF.
// Here lie the vector table, handlers that end each interrupt, and the fields of the BIOS data area
// that say what the machine has; Platform::enter_bios_state() is the devices' part. There is no
// more of a BIOS than that: no calls for disk, screen or memory map (Multiboot's own structures
// hold the latter), and those that can say so return an error.
#pragma once

#include <cstdint>

#include "boot/error.hpp"
#include "boot/memory_sink.hpp"

namespace strata::boot {

/// Vectors of the 8259s' first inputs.
inline constexpr std::uint8_t kBiosMasterVector = 0x08, kBiosSlaveVector = 0x70;

/// Writes the vector table, the data area, the EBDA's size and the handlers.
[[nodiscard]] Result<void> write_bios(MemorySink& sink);

}  // namespace strata::boot
