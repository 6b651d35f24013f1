// What far CALL, JMP, RET and IRET share.
#pragma once

#include <cstdint>

#include "engines/interp/core.hpp"
#include "engines/interp/segments.hpp"

namespace strata::interp {

/// RFLAGS after IRET or POPF popped `image` of `size` bytes (SDM 2A, IRET; SDM 2B, POPF): IF needs
/// CPL <= IOPL, IOPL itself CPL 0. RF, VM, VIF and VIP stay.
[[nodiscard]] std::uint64_t popped_flags(const Core& core, std::uint64_t image,
                                         unsigned size) noexcept;

/// The far pointer a return takes off the stack, checked.
struct FarReturn {
  std::uint64_t ip = 0, sp = 0;
  std::uint16_t cs = 0, ss = 0;
  Descriptor code{};
  cpu::Segment stack{};
  [[nodiscard]] unsigned level() const noexcept { return rpl_of(cs); }
};
/// The code segment a return goes to: RPL not below CPL, DPL to match.
Outcome check_return_code(Core& core, FarReturn& ret);
/// The instruction pointer against the code segment it goes into.
Outcome check_code_offset(const Core& core, const Descriptor& code, std::uint64_t ip) noexcept;
/// The stack of a return that pops SS, into `ret.stack`.
Outcome check_return_stack(Core& core, FarReturn& ret);
/// Loads SS and RSP that a return popped; code segment and CPL are already the new ones.
void put_return_stack(Core& core, const FarReturn& ret, unsigned bytes_released) noexcept;
[[nodiscard]] inline bool to_long_mode(const Core& core, const Descriptor& code) noexcept {
  return ia32e(core) && code.long_code();
}

const Uop* far_return(Core& core, const Uop* u);
const Uop* interrupt_return(Core& core, const Uop* u);

}  // namespace strata::interp
