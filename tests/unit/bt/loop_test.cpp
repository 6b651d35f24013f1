// Short loops, of which a block holds several rounds: whatever the number of rounds, what they do,
// where they can be stopped, and what an access in a later round leads to.
#include <gtest/gtest.h>

#include <vector>

#include "test_support.hpp"

namespace strata::interp::test {
namespace {

using engine::ExitKind;
using engine::VcpuPosition;

class LoopTest : public ::testing::Test {
 protected:
  void start(const std::vector<std::uint8_t>& code, std::uint64_t rounds, std::uint64_t at) {
    machine_.write(Machine::kCode, code);
    cpu::VcpuState s = Machine::long_mode_state();
    s.gpr[cpu::RBX] = at;
    s.gpr[cpu::RCX] = rounds;
    machine_.core->set_state(s);
    machine_.core->set_instructions(0);
  }
  [[nodiscard]] std::uint64_t reg(unsigned n) const { return machine_.core->state().gpr[n]; }

  // l: add rax, 3; mov [rbx], rax; add rbx, 8; dec ecx; jnz l; sete dl; hlt
  const std::vector<std::uint8_t> store_loop_{0x48, 0x83, 0xC0, 0x03, 0x48, 0x89, 0x03,
                                              0x48, 0x83, 0xC3, 0x08, 0xFF, 0xC9, 0x75,
                                              0xF1, 0x0F, 0x94, 0xC2, 0xF4};
  static constexpr std::uint64_t kPerRound = 5;
  Machine machine_;
};

TEST_F(LoopTest, AnyNumberOfRounds) {
  for (std::uint64_t rounds = 1; rounds <= 20; ++rounds) {
    start(store_loop_, rounds, Machine::kData);
    ASSERT_EQ(machine_.core->run().kind, ExitKind::halt);
    EXPECT_EQ(reg(cpu::RAX), 3 * rounds);
    EXPECT_EQ(reg(cpu::RBX), Machine::kData + 8 * rounds);
    EXPECT_EQ(reg(cpu::RDX) & 0xFF, 1U) << "DEC's flags outlive the loop";
    EXPECT_EQ(machine_.core->position().instructions, kPerRound * rounds + 2);
    for (std::uint64_t n = 0; n < rounds; ++n) {
      EXPECT_EQ(machine_.read<std::uint64_t>(Machine::kData + 8 * n), 3 * (n + 1));
    }
  }
}

TEST_F(LoopTest, StopsInAnyRound) {
  constexpr std::uint64_t kRounds = 11;
  for (std::uint64_t at = 1; at <= kPerRound * kRounds; ++at) {
    start(store_loop_, kRounds, Machine::kData);
    machine_.core->stop_at({at, 0});
    ASSERT_EQ(machine_.core->run().kind, ExitKind::interrupted) << at;
    EXPECT_EQ(machine_.core->position(), (VcpuPosition{at, 0}));
    EXPECT_EQ(reg(cpu::RAX), 3 * ((at + kPerRound - 1) / kPerRound)) << at;
    EXPECT_EQ(reg(cpu::RCX), kRounds - (at + 1) / kPerRound) << at;
  }
}

/// The accesses of several rounds share a check; a page's end comes in each of them once.
TEST_F(LoopTest, AnAccessOfALaterRoundLeavesItsPage) {
  constexpr std::uint64_t kRounds = 9;
  for (std::uint64_t before = 0; before <= kRounds; ++before) {
    for (const std::uint64_t odd : {0U, 3U}) {
      const std::uint64_t at = Machine::kData + kPageSize - 8 * before - odd;
      start(store_loop_, kRounds, at);
      ASSERT_EQ(machine_.core->run().kind, ExitKind::halt);
      for (std::uint64_t n = 0; n < kRounds; ++n) {
        EXPECT_EQ(machine_.read<std::uint64_t>(at + 8 * n), 3 * (n + 1)) << before << ' ' << odd;
      }
    }
  }
}

/// Code that a loop changes takes effect in the next round.
TEST_F(LoopTest, ARoundChangesTheNext) {
  // l: add rax, 3; inc byte [rbx]; dec ecx; jnz l; hlt, with RBX at the 3.
  const std::vector<std::uint8_t> code{0x48, 0x83, 0xC0, 0x03, 0xFE, 0x03,
                                       0xFF, 0xC9, 0x75, 0xF6, 0xF4};
  start(code, 6, Machine::kCode + 3);
  ASSERT_EQ(machine_.core->run().kind, ExitKind::halt);
  EXPECT_EQ(reg(cpu::RAX), 3U + 4 + 5 + 6 + 7 + 8);
}

/// The upper halves of vector registers are as they were, whoever was called in between: each load
/// is the first one of its page.
TEST_F(LoopTest, UpperHalvesStay) {
  // vmovdqu ymm1, [rsi]; mov eax, [rsi + 4096]; addps xmm1, xmm1; mov eax, [rsi + 8192];
  // vmovdqu [rsi + 32], ymm1; vzeroupper; mov eax, [rsi + 12288]; vmovdqu [rsi + 64], ymm1; hlt
  const std::vector<std::uint8_t> code{0xC5, 0xFE, 0x6F, 0x0E, 0x8B, 0x86, 0x00, 0x10, 0x00, 0x00,
                                       0x0F, 0x58, 0xC9, 0x8B, 0x86, 0x00, 0x20, 0x00, 0x00, 0xC5,
                                       0xFE, 0x7F, 0x4E, 0x20, 0xC5, 0xF8, 0x77, 0x8B, 0x86, 0x00,
                                       0x30, 0x00, 0x00, 0xC5, 0xFE, 0x7F, 0x4E, 0x40, 0xF4};
  for (const std::uint64_t upper : {0x1122334455667788ULL, 0ULL}) {
    machine_.core->flush_tlb(FlushScope::all, 0, VA{});
    machine_.write(Machine::kCode, code);
    cpu::VcpuState s = Machine::long_mode_state();
    s.gpr[cpu::RSI] = Machine::kData;
    for (unsigned n = 0; n < 4; ++n) machine_.poke(Machine::kData + 8 * n, n == 3 ? upper : 0ULL);
    machine_.core->set_state(s);
    ASSERT_EQ(machine_.core->run().kind, ExitKind::halt);
    EXPECT_EQ(machine_.read<std::uint64_t>(Machine::kData + 32 + 24), upper);
    EXPECT_EQ(machine_.read<std::uint64_t>(Machine::kData + 64 + 24), 0U);
  }
}

/// Interrupts are noticed where a slice of the budget ends. Each round asks the VMM for something,
/// and goes on with a new one.
TEST_F(LoopTest, RoundsThatMissTheTlbAreInterruptedToo) {
  constexpr std::uint64_t kAlias = kTlbEntries * kPageSize;  // the same place in the TLB
  Machine m{kAlias + (4U << 20)};
  // l: mov rax, [rsi]; mov rdx, [rdi]; jmp l
  m.write(Machine::kCode,
          std::vector<std::uint8_t>{0x48, 0x8B, 0x06, 0x48, 0x8B, 0x17, 0xEB, 0xF8});
  cpu::VcpuState s = Machine::long_mode_state();
  s.gpr[cpu::RSI] = Machine::kData;
  s.gpr[cpu::RDI] = Machine::kData + kAlias;
  m.core->set_state(s);
  m.core->set_instructions(0);
  m.core->stop_at({1'000'000, 0});
  unsigned misses = 0;
  m.mmu.on_translate = [&](VA) {
    if (++misses == 100) m.core->kick();
  };
  ASSERT_EQ(m.core->run().kind, ExitKind::interrupted);
  EXPECT_GE(misses, 100U);
  EXPECT_LT(m.core->position().instructions, 1000U);
}

}  // namespace
}  // namespace strata::interp::test
