// A Machine with a GDT, an IDT and a TSS, so that faults and interrupts can be seen where a guest
// would see them: every vector has a handler that is one HLT.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <vector>

#include "test_support.hpp"

namespace strata::interp::test {

using Bytes = std::vector<std::uint8_t>;

/// Concatenates code.
inline Bytes operator+(Bytes a, const Bytes& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Which environment code runs in.
enum class Env { long64, compat32, legacy32 };

/// Descriptor bits as tests write them.
namespace desc {
inline constexpr std::uint64_t kAccessed = 1, kReadWrite = 2, kDown = 4, kConforming = 4, kCode = 8,
                               kOrdinary = 0x10, kPresent = 0x80;
/// `type` 4 bits and S; `flags` bits 55:52 (AVL, L, D, G).
constexpr std::uint64_t make(std::uint32_t base, std::uint32_t limit, unsigned type_s, unsigned dpl,
                             bool present = true, unsigned flags = 0xC) {
  return (limit & 0xFFFF) | static_cast<std::uint64_t>(base & 0xFFFFFF) << 16 |
         static_cast<std::uint64_t>(type_s | dpl << 5 | (present ? 0x80U : 0U)) << 40 |
         static_cast<std::uint64_t>(limit >> 16 & 0xF) << 48 |
         static_cast<std::uint64_t>(flags) << 52 | static_cast<std::uint64_t>(base >> 24) << 56;
}
constexpr std::uint64_t gate(std::uint16_t selector, std::uint32_t offset, unsigned type,
                             unsigned dpl, bool present = true, unsigned ist_or_count = 0) {
  return (offset & 0xFFFF) | static_cast<std::uint64_t>(selector) << 16 |
         static_cast<std::uint64_t>(ist_or_count) << 32 |
         static_cast<std::uint64_t>(type | dpl << 5 | (present ? 0x80U : 0U)) << 40 |
         static_cast<std::uint64_t>(offset >> 16) << 48;
}
}  // namespace desc

/// What a run ended with: a HLT of its own, or a vector's handler and what it was pushed.
struct Ending {
  bool halted = false;  ///< at CPL 0, in the code itself
  int vector = -1;
  std::optional<std::uint32_t> error{};
  std::uint64_t rip = 0, cs = 0, rflags = 0, rsp = 0, ss = 0;  ///< as pushed; rsp, ss if pushed
  engine::ExitKind exit = engine::ExitKind::halt;
  cpu::VcpuState state{};  ///< in the handler, or after the HLT
};

class SystemMachine : public Machine {
 public:
  static constexpr std::uint64_t kGdt = 0x2000, kIdt = 0x3000, kTss = 0x5000, kLdt = 0x6000,
                                 kHandlers = 0x8000, kStack0 = 0x70000, kIst1 = 0x60000,
                                 kUserStack = 0x90000;
  static constexpr std::uint16_t kCode64 = 0x08, kData0 = 0x10, kCode32 = 0x18, kUserCode32 = 0x2B,
                                 kUserData = 0x33, kUserCode64 = 0x3B, kTssSelector = 0x40,
                                 kFree = 0x50;  ///< 0x50-0xF8 are for the test
  static constexpr std::uint32_t kGdtLimit = 0xFF;

  explicit SystemMachine(Env environment = Env::long64, std::string_view model_name = "default")
      : Machine(4U << 20, model_name), env{environment} {
    using namespace desc;
    descriptor(kCode64, make(0, 0xFFFFF, 0x1B, 0, true, 0xA));
    descriptor(kData0, make(0, 0xFFFFF, 0x13, 0));
    descriptor(kCode32, make(0, 0xFFFFF, 0x1B, 0));
    descriptor(kUserCode32, make(0, 0xFFFFF, 0x1B, 3));
    descriptor(kUserData, make(0, 0xFFFFF, 0x13, 3));
    descriptor(kUserCode64, make(0, 0xFFFFF, 0x1B, 3, true, 0xA));
    descriptor(kTssSelector, make(kTss, 0x1FFF, 11, 0, true, 0));
    for (unsigned v = 0; v < 256; ++v) {
      poke<std::uint8_t>(kHandlers + v * 16, 0xF4);
      set_gate(v, 0xE, 3);
    }
    if (is_long()) {
      poke<std::uint64_t>(kTss + 4, kStack0);
      poke<std::uint64_t>(kTss + 36, kIst1);
    } else {
      poke<std::uint32_t>(kTss + 4, kStack0);
      poke<std::uint32_t>(kTss + 8, kData0);
    }
    poke<std::uint16_t>(kTss + 102, 0x68);
    for (unsigned i = 0x68; i < 0x1FFF; ++i) poke<std::uint8_t>(kTss + i, 0xFF);
  }

  [[nodiscard]] bool is_long() const { return env != Env::legacy32; }
  void descriptor(std::uint16_t selector, std::uint64_t value) {
    poke(kGdt + (selector & 0xFFF8U), value);
  }
  [[nodiscard]] std::uint64_t descriptor(std::uint16_t selector) const {
    return read<std::uint64_t>(kGdt + (selector & 0xFFF8U));
  }
  /// The vector's gate: to its handler unless told otherwise.
  void set_gate(unsigned v, unsigned type, unsigned dpl, bool present = true, unsigned ist = 0,
                std::optional<std::uint16_t> selector = {},
                std::optional<std::uint64_t> offset = {}) {
    const std::uint64_t to = offset.value_or(kHandlers + v * 16);
    const std::uint16_t cs = selector.value_or(is_long() ? kCode64 : kCode32);
    const std::uint64_t low =
        desc::gate(cs, static_cast<std::uint32_t>(to), type, dpl, present, ist);
    if (is_long()) {
      poke(kIdt + v * 16, low);
      poke(kIdt + v * 16 + 8, to >> 32);
    } else {
      poke(kIdt + v * 8, low);
    }
  }

  [[nodiscard]] static cpu::Segment flat(unsigned selector, std::uint32_t attributes) {
    return {0, 0xFFFFFFFF, static_cast<std::uint16_t>(selector), attributes | (selector & 3U) << 5};
  }
  /// Ready to run in `env` at `cpl`, interrupts off.
  [[nodiscard]] cpu::VcpuState state(unsigned cpl = 0) const {
    cpu::VcpuState s = long_mode_state();
    const bool user = cpl == 3;
    const auto rpl = static_cast<std::uint16_t>(user ? 0 : cpl);
    if (env == Env::legacy32) {
      s.efer = 0;
      s.cr4 &= ~cpu::cr4::PAE;
      s.cr0 &= ~cpu::cr0::PG;
    }
    if (env == Env::long64) {
      s.segment[cpu::CS] = flat((user ? kUserCode64 : kCode64) | rpl, 0xA09B);
    } else {
      s.segment[cpu::CS] = flat((user ? kUserCode32 : kCode32) | rpl, 0xC09B);
    }
    for (const auto name : {cpu::ES, cpu::SS, cpu::DS, cpu::FS, cpu::GS}) {
      s.segment[name] = flat((user ? kUserData : kData0) | rpl, 0xC093);
    }
    s.gdtr = {kGdt, kGdtLimit};
    s.idtr = {kIdt, 0xFFF};
    s.tr = {kTss, 0x1FFF, kTssSelector, 0x8B};
    s.gpr[cpu::RSP] = user ? kUserStack : kStack;
    return s;
  }

  /// Runs `code` (a HLT is put behind it) from `s` until the first HLT or other exit.
  Ending go(const Bytes& code, const cpu::VcpuState& s, std::uint64_t at = kCode) {
    Bytes all = code;
    all.push_back(0xF4);
    write(at, all);
    core->set_state(s);
    return go_on();
  }
  Ending go(const Bytes& code, unsigned cpl = 0) { return go(code, state(cpl)); }
  /// Continues after an exit.
  Ending go_on() {
    Ending o;
    last_exit = core->run();
    o.exit = last_exit.kind;
    o.state = core->state();
    if (o.exit != engine::ExitKind::halt) return o;
    const std::uint64_t rip = o.state.rip - 1;
    const bool in_handler = rip >= kHandlers && rip < kHandlers + 256 * 16 && rip % 16 == 0;
    o.halted = !in_handler;
    if (in_handler) read_frame(o, static_cast<int>((rip - kHandlers) / 16));
    return o;
  }

  [[nodiscard]] static bool pushes_error(int v) {
    return v == 8 || (v >= 10 && v <= 14) || v == 17;
  }

  Env env;
  engine::Exit last_exit{};
  bool external = false;  ///< the next frame is of an interrupt: no error code whatever the vector

 private:
  void read_frame(Ending& o, int v) const {
    const unsigned slot = is_long() ? 8 : 4;
    std::uint64_t at = o.state.gpr[cpu::RSP];
    const auto pop = [&] {
      const std::uint64_t x = slot == 8 ? read<std::uint64_t>(at) : read<std::uint32_t>(at);
      at += slot;
      return x;
    };
    o.vector = v;
    if (pushes_error(v) && !external) o.error = static_cast<std::uint32_t>(pop());
    o.rip = pop();
    o.cs = pop();
    o.rflags = pop();
    o.rsp = at;
    if (is_long() || (o.cs & 3) != 0) {
      o.rsp = pop();
      o.ss = pop();
    }
  }
};

/// `vector` was delivered with `error` from the instruction at kCode, which changed no register.
inline void expect_fault(const Ending& o, const cpu::VcpuState& before, int vector,
                         std::optional<std::uint32_t> error, std::uint64_t rip = Machine::kCode) {
  EXPECT_FALSE(o.halted);
  EXPECT_EQ(o.vector, vector);
  EXPECT_EQ(o.error, error);
  EXPECT_EQ(o.rip, rip);
  EXPECT_EQ(o.cs, before.segment[cpu::CS].selector);
  EXPECT_EQ(o.rflags & ~cpu::rflags::RF, before.rflags);
  auto gpr = o.state.gpr;
  gpr[cpu::RSP] = o.rsp;
  EXPECT_EQ(gpr, before.gpr);
  if (o.ss != 0) {
    EXPECT_EQ(o.ss, before.segment[cpu::SS].selector);
  }
}

}  // namespace strata::interp::test
