// A Machine in real mode: an interrupt vector table whose handlers are one HLT each.
#pragma once

#include <cstdint>

#include "system_support.hpp"

namespace strata::interp::test {

class RealMachine : public Machine {
 public:
  /// Where handler v's HLT is: kHandlerSelector:v.
  static constexpr std::uint16_t kHandlerSelector = 0x0800, kCodeSelector = 0x1000,
                                 kDataSelector = 0x2000, kStackSelector = 0x3000;
  static constexpr std::uint32_t kCodeBase = 0x10000, kDataBase = 0x20000, kStackBase = 0x30000;
  static constexpr std::uint64_t kGdt = 0x6000;

  RealMachine() {
    for (std::uint32_t v = 0; v < 256; ++v) {
      poke<std::uint32_t>(v * 4, std::uint32_t{kHandlerSelector} << 16 | v);
      poke<std::uint8_t>(0x8000 + v, 0xF4);
    }
  }

  [[nodiscard]] static cpu::Segment segment(std::uint16_t selector, std::uint32_t attributes) {
    return {std::uint64_t{selector} << 4, 0xFFFF, selector, attributes};
  }
  /// At kCodeSelector:ip with SP 0x1000, interrupts off.
  [[nodiscard]] static cpu::VcpuState state(std::uint16_t ip = 0) {
    cpu::VcpuState s;
    s.cr0 = cpu::cr0::ET;
    s.rip = ip;
    for (auto& seg : s.segment) seg = segment(kDataSelector, 0x93);
    s.segment[cpu::CS] = segment(kCodeSelector, 0x9B);
    s.segment[cpu::SS] = segment(kStackSelector, 0x93);
    s.idtr = {0, 0x3FF};
    s.gdtr = {0, 0xFFFF};
    s.gpr[cpu::RSP] = 0x1000;
    return s;
  }
  /// Puts `code` and a HLT where `s` points and runs it to a HLT.
  cpu::VcpuState go(const Bytes& code, const cpu::VcpuState& s = state()) {
    Bytes all = code;
    all.push_back(0xF4);
    write(s.segment[cpu::CS].base + s.rip, all);
    core->set_state(s);
    last_exit = core->run();
    EXPECT_EQ(last_exit.kind, engine::ExitKind::halt);
    return core->state();
  }
  /// The vector whose handler `s` halted in, or -1.
  [[nodiscard]] static int vector_of(const cpu::VcpuState& s) {
    const bool there = s.segment[cpu::CS].selector == kHandlerSelector;
    return there ? static_cast<int>(s.rip) - 1 : -1;
  }
  /// The n-th word on the stack of `s`.
  [[nodiscard]] std::uint16_t word(const cpu::VcpuState& s, unsigned n) const {
    const auto sp = static_cast<std::uint16_t>(s.gpr[cpu::RSP] + 2 * n);
    return read<std::uint16_t>(s.segment[cpu::SS].base + sp);
  }

  engine::Exit last_exit{};
};

}  // namespace strata::interp::test
