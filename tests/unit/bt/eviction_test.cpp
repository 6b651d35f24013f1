// A translator with so little room that something has to go all the time.
#include <gtest/gtest.h>

#include "test_support.hpp"

namespace strata::interp::test {
namespace {

class EvictionTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kBudget = 384U << 10;
  static constexpr std::uint64_t kHot = Machine::kCode, kCold = 0x200000, kColdBytes = 256;

  /// Loads from many pages, which makes much code; then HLT.
  void write_cold(unsigned n) {
    std::vector<std::uint8_t> code;
    for (unsigned i = 0; i < 20; ++i) {
      // mov eax, [rbx + rsi + i * 8]
      for (const unsigned b : {0x8BU, 0x84U, 0x33U, i * 8, 0U, 0U, 0U}) {
        code.push_back(static_cast<std::uint8_t>(b));
      }
    }
    code.push_back(0xF4);
    machine_.write(kCold + n * kColdBytes, code);
  }
  void run_at(std::uint64_t va, std::uint64_t rcx = 10, std::uint64_t rdx = 0) {
    cpu::VcpuState s = Machine::long_mode_state();
    s.rip = va;
    s.gpr[cpu::RBX] = Machine::kData;
    s.gpr[cpu::RCX] = rcx;
    s.gpr[cpu::RDX] = rdx;
    machine_.core->set_state(s);
    ASSERT_EQ(machine_.core->run().kind, engine::ExitKind::halt);
  }
  [[nodiscard]] engine::VcpuStats stats() const { return machine_.core->stats(); }
  void run_cold() {
    const unsigned n = cold_++ % 4096;
    write_cold(n);
    run_at(kCold + n * kColdBytes);
  }
  /// Returns how many runs that took.
  unsigned run_cold_until_evicted() {
    unsigned runs = 0;
    for (const std::uint64_t before = stats().code_evictions; stats().code_evictions == before;) {
      run_cold();
      ++runs;
    }
    return runs;
  }

  Machine machine_{4U << 20, "default", kBudget};
  unsigned cold_ = 0;
};

TEST_F(EvictionTest, HotCodeSurvivesTheEvictionOfOldCode) {
  // l: inc rax; dec ecx; jnz l; hlt
  machine_.write(kHot, std::array<std::uint8_t, 8>{0x48, 0xFF, 0xC0, 0xFF, 0xC9, 0x75, 0xF9, 0xF4});
  for (unsigned i = 0; i < 12; ++i) run_cold_until_evicted();
  run_at(kHot);
  const std::uint64_t blocks = stats().blocks_translated;
  run_at(kHot);
  EXPECT_EQ(stats().blocks_translated, blocks);
  for (unsigned i = 0; i < 6; ++i) {
    run_cold_until_evicted();
    const std::uint64_t before = stats().blocks_translated;
    run_at(kHot);
    EXPECT_EQ(stats().blocks_translated, before) << i;
    EXPECT_EQ(machine_.core->state().gpr[cpu::RAX], 10U);
  }
  // Its own turn comes too.
  for (unsigned i = 0; i < 2; ++i) run_cold_until_evicted();
  const std::uint64_t before = stats().blocks_translated;
  run_at(kHot);
  EXPECT_GT(stats().blocks_translated, before);
  EXPECT_EQ(machine_.core->state().gpr[cpu::RAX], 10U);
  EXPECT_EQ(stats().code_flushes, 0U);
}

TEST_F(EvictionTest, CountsAsOverheadWithinTheBudget) {
  const std::uint64_t without = stats().overhead_bytes;
  run_cold_until_evicted();
  const std::uint64_t first = stats().overhead_bytes;
  EXPECT_GT(first, without + kBudget / 4);
  for (unsigned i = 0; i < 20; ++i) run_cold_until_evicted();
  EXPECT_LT(stats().overhead_bytes, first + kBudget / 4);
}

/// Code whose unit goes while something is done on its behalf.
class OldestUnitTest : public EvictionTest {
 protected:
  static constexpr std::uint64_t kCaller = kHot, kTarget = kHot + 0x200, kTiny = kHot + 0x1000;
  static constexpr unsigned kAdds = 28;

  /// cmp ecx, 1; je kTarget; jb out; jmp rdx; out: hlt. Adds a table's numbers up at kTarget.
  void write_hot() {
    machine_.write(kCaller, std::array<std::uint8_t, 14>{0x83, 0xF9, 1, 0x0F, 0x84, 0xF7, 1, 0, 0,
                                                         0x72, 2, 0xFF, 0xE2, 0xF4});
    write_target();
    for (unsigned i = 0; i < kAdds; ++i) {
      machine_.poke(Machine::kData + i * 8, std::uint64_t{1} << i);
    }
  }
  void write_target() {
    std::vector<std::uint8_t> code;
    for (unsigned i = 0; i < kAdds; ++i) {
      // add rax, [rbx + rsi + i * 8]
      for (const unsigned b : {0x48U, 0x03U, 0x84U, 0x33U, i * 8, 0U, 0U, 0U}) {
        code.push_back(static_cast<std::uint8_t>(b));
      }
    }
    code.push_back(0xF4);
    machine_.write(kTarget, code);
  }
  /// Puts the caller at a unit's beginning, with or without its target.
  void make_caller(std::uint64_t rcx) {
    write_hot();
    for (unsigned i = 0; i < 3; ++i) run_cold_until_evicted();
    blocks_a_unit_ = run_cold_until_evicted();
    for (unsigned n = 1; n < blocks_a_unit_; ++n) run_cold();
    const std::uint64_t evictions = stats().code_evictions;
    machine_.write(kTiny, std::array<std::uint8_t, 1>{0xF4});
    run_at(kTiny);
    ASSERT_EQ(stats().code_evictions, evictions + 1);
    run_at(kCaller, rcx);
  }
  /// Makes its unit the one that the next block evicts.
  void age() {
    for (unsigned i = 1; i < bt::CodeCache::kMaxUnits; ++i) run_cold_until_evicted();
    const std::uint64_t evictions = stats().code_evictions;
    for (unsigned n = 1; n < blocks_a_unit_; ++n) run_cold();
    ASSERT_EQ(stats().code_evictions, evictions);
  }
  void expect_sum(std::uint64_t sum) { EXPECT_EQ(machine_.core->state().gpr[cpu::RAX], sum); }

  unsigned blocks_a_unit_ = 0;
};

TEST_F(OldestUnitTest, IsNotLinkedToWhatIsInItsPlace) {
  make_caller(0);
  age();
  const std::uint64_t evictions = stats().code_evictions;
  for (unsigned i = 0; i < 3; ++i) {
    run_at(kCaller, 1);
    expect_sum((1U << kAdds) - 1);
  }
  EXPECT_EQ(stats().code_evictions, evictions + 1);
}

TEST_F(OldestUnitTest, IsNotRedirectedToWhatIsInItsPlace) {
  make_caller(1);
  expect_sum((1U << kAdds) - 1);
  age();
  // The first number twice, and not the second. The caller looked for flags at what comes before.
  machine_.write(kTarget + 8 + 4, std::array<std::uint8_t, 1>{0});
  const std::uint64_t evictions = stats().code_evictions;
  for (unsigned i = 0; i < 3; ++i) {
    run_at(kCaller, 1);
    expect_sum((1U << kAdds) - 2);
  }
  EXPECT_EQ(stats().code_evictions, evictions + 1);
}

TEST_F(OldestUnitTest, IsNotReturnedToForAnIndirectJump) {
  make_caller(0);
  age();
  const std::uint64_t evictions = stats().code_evictions;
  for (unsigned i = 0; i < 3; ++i) {
    run_at(kCaller, 2, kTarget);
    expect_sum((1U << kAdds) - 1);
  }
  EXPECT_EQ(stats().code_evictions, evictions + 1);
}

}  // namespace
}  // namespace strata::interp::test
