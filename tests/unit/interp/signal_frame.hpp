// Reading the registers of user code out of a signal's frame on Linux (x86-64).
#pragma once

#include <ucontext.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace strata::interp::test {

/// Linux's selectors of 64-bit and of 32-bit user code.
inline constexpr std::uint16_t kUser64 = 0x33, kUser32 = 0x23;

/// This process can execute 32-bit code: not every host kernel, or hypervisor below it, offers the
/// segment.
[[nodiscard]] inline bool has_user32() {
  std::uint32_t rights = 0;
  bool present = false;
  asm("lar %2, %0" : "=r"(rights), "=@ccz"(present) : "r"(std::uint32_t{kUser32}));
  return present;
}

/// Where the processor's register order finds its values in the kernel's.
inline constexpr std::array<int, 16> kKernelOrder = {
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

/// The general registers in the processor's order.
inline void read_general(const gregset_t& regs, std::array<std::uint64_t, 16>& out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = static_cast<std::uint64_t>(regs[kKernelOrder[i]]);
  }
}

/// Makes the interrupted code go on at `address` in 64-bit mode, with clean flags.
inline void resume_at(gregset_t& regs, void (*address)()) {
  regs[REG_RIP] = reinterpret_cast<greg_t>(address);
  regs[REG_CSGSFS] = (regs[REG_CSGSFS] & ~greg_t{0xFFFF}) | kUser64;
  regs[REG_EFL] = 0x202;
}

}  // namespace strata::interp::test
