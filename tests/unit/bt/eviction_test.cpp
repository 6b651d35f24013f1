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
  void run_at(std::uint64_t va) {
    cpu::VcpuState s = Machine::long_mode_state();
    s.rip = va;
    s.gpr[cpu::RBX] = Machine::kData;
    s.gpr[cpu::RCX] = 10;
    machine_.core->set_state(s);
    ASSERT_EQ(machine_.core->run().kind, engine::ExitKind::halt);
  }
  [[nodiscard]] engine::VcpuStats stats() const { return machine_.core->stats(); }
  void run_cold_until_evicted() {
    const std::uint64_t before = stats().code_evictions;
    for (unsigned runs = 0; stats().code_evictions == before; ++runs) {
      ASSERT_LT(runs, 10'000U);
      const unsigned n = cold_++ % 4096;
      write_cold(n);
      run_at(kCold + n * kColdBytes);
    }
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

}  // namespace
}  // namespace strata::interp::test
