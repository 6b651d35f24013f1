// Which stack pointers code of a test may have on this host.
#pragma once

#include <signal.h>
#include <ucontext.h>

#include <array>
#include <cstdint>

namespace strata::interp::test {

namespace detail {

/// Stack pointers of 48 bits: SDM 1 3.3.7.1.
inline std::uint64_t canonical(std::uint64_t va) noexcept {
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(va << 16) >> 16);
}

/// SIGILL is the probe's UD2; SIGSEGV comes behind it if the kernel can not return.
inline void on_probe(int number, siginfo_t* /*info*/, void* raw) {
  auto& regs = static_cast<ucontext_t*>(raw)->uc_mcontext.gregs;
  constexpr greg_t kUd2Bytes = 2;
  if (number == SIGILL) {
    regs[REG_RIP] += kUd2Bytes;
  } else {
    regs[REG_RSP] = regs[REG_R12];
    regs[REG_R13] = 0;
  }
}

inline bool probe_returns_to_any_rsp() {
  std::array<std::byte, 64U << 10> memory;
  stack_t before_stack{};
  const stack_t stack{.ss_sp = memory.data(), .ss_flags = 0, .ss_size = memory.size()};
  sigaltstack(&stack, &before_stack);
  struct sigaction action {};
  struct sigaction before_ill {};
  struct sigaction before_segv {};
  action.sa_sigaction = on_probe;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGILL, &action, &before_ill);
  sigaction(SIGSEGV, &action, &before_segv);
  std::uint64_t returned = 0;
  asm volatile(
      "mov %%rsp, %%r12\n"
      "mov $1, %%r13d\n"
      "mov %1, %%rsp\n"
      "ud2\n"
      "mov %%r12, %%rsp\n"
      "mov %%r13, %0\n"
      : "=r"(returned)
      : "r"(0x5A5A'0000'0000'0000U)
      : "r12", "r13", "memory");
  sigaction(SIGSEGV, &before_segv, nullptr);
  sigaction(SIGILL, &before_ill, nullptr);
  sigaltstack(&before_stack, nullptr);
  return returned == 1;
}

}  // namespace detail

/// `rsp`, or one like it that the host's kernel can return to after an interrupt. Where a
/// hypervisor below carries IRET out in software, one that is not canonical may be none.
[[nodiscard]] inline std::uint64_t usable_rsp(std::uint64_t rsp) {
  static const bool any = detail::probe_returns_to_any_rsp();
  return any ? rsp : detail::canonical(rsp);
}

}  // namespace strata::interp::test
