// Time that counts instructions: rate, timers at exact counts, idle time skipped, several vCPUs.
#include "devices/instruction_clock.hpp"

#include <gtest/gtest.h>

namespace strata::devices {
namespace {

/// A vCPU that is only a position.
class Counter final : public engine::Vcpu {
 public:
  engine::Exit run() override { return {}; }
  void complete(std::uint64_t) override {}
  void fail() override {}
  void interrupt() noexcept override {}
  void kick() noexcept override {}
  engine::VcpuPosition position() const noexcept override { return {count, 0}; }
  cpu::VcpuState state() const override { return {}; }
  void set_state(const cpu::VcpuState&) override {}
  void memory_written(PA, std::uint64_t) noexcept override {}
  TranslationHolder& holder() noexcept override { std::abort(); }
  engine::VcpuStats stats() const noexcept override { return {}; }
  std::uint64_t count = 0;
};

TEST(InstructionClock, AdvancesAtItsRate) {
  InstructionClock clock{500};
  Counter vcpu;
  vcpu.count = 1'000'000;
  clock.follow(vcpu);
  EXPECT_EQ(clock.now(), 0U) << "what a vCPU ran before does not count";
  vcpu.count += 2500;
  EXPECT_EQ(clock.tsc(), 2500U);
  EXPECT_EQ(clock.now(), 5000U);
  EXPECT_EQ(clock.tsc_khz(), 500'000U);
  EXPECT_EQ(clock.realtime(), InstructionClock::kEpoch + 5000);
}

TEST(InstructionClock, AddsTheTurnsOfAllVcpus) {
  InstructionClock clock{1000};
  Counter a;
  Counter b;
  b.count = 77;
  clock.follow(a);
  a.count += 10;
  clock.follow(b);
  EXPECT_EQ(clock.ticks(), 10U);
  b.count += 5;
  clock.follow(a);
  a.count += 1;
  EXPECT_EQ(clock.ticks(), 16U);
  clock.set_ticks(1000);
  a.count += 1;
  EXPECT_EQ(clock.ticks(), 1001U);
}

/// For rates that do and do not divide a nanosecond: one tick before, the timer is not due.
TEST(InstructionClock, ATimerIsDueAtAnExactCount) {
  for (const std::uint64_t mhz : {1ULL, 3ULL, 7ULL, 1000ULL, 2999ULL, 1'000'000ULL}) {
    InstructionClock clock{mhz};
    Counter vcpu;
    clock.follow(vcpu);
    int fired = 0;
    const auto id = clock.add([&] { ++fired; });
    EXPECT_FALSE(clock.ticks_to_next().has_value());
    clock.arm(id, 12'345);
    const auto ticks = clock.ticks_to_next();
    ASSERT_TRUE(ticks.has_value());
    vcpu.count = *ticks - 1;
    EXPECT_LT(clock.now(), 12'345U);
    clock.run_due();
    EXPECT_EQ(fired, 0) << mhz;
    vcpu.count = *ticks;
    EXPECT_EQ(clock.ticks_to_next(), 0U);
    clock.run_due();
    EXPECT_EQ(fired, 1) << mhz;
    EXPECT_FALSE(clock.ticks_to_next().has_value());
  }
}

TEST(InstructionClock, IdleTimeIsSkipped) {
  InstructionClock clock{1000};
  Counter vcpu;
  clock.follow(vcpu);
  EXPECT_FALSE(clock.skip());
  int fired = 0;
  const auto id = clock.add([&] { ++fired; });
  clock.arm(id, 1'000'000);
  EXPECT_TRUE(clock.skip());
  EXPECT_EQ(clock.now(), 1'000'000U);
  clock.run_due();
  EXPECT_EQ(fired, 1);
  vcpu.count += 3;
  EXPECT_EQ(clock.ticks(), 1'000'003U);
}

}  // namespace
}  // namespace strata::devices
