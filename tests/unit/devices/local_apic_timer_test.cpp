#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "devices/local_apic.hpp"
#include "devices/manual_clock.hpp"

namespace strata::devices {
namespace {

class ApicTimerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    apic.set_callbacks({[this] { ++wakes; }, {}, {}});
    write(kApicSvr, 0x1FF);
    write(kApicDivide, 0xB);  // divide by 1: 1 ns a tick
  }
  std::uint32_t read(std::uint32_t reg) {
    return static_cast<std::uint32_t>(apic.mmio_read(PA{kApicDefaultBase + reg}, 4));
  }
  void write(std::uint32_t reg, std::uint32_t value) {
    apic.mmio_write(PA{kApicDefaultBase + reg}, 4, value);
  }
  /// Takes and ends one interrupt; 0: none.
  unsigned take() {
    const auto v = apic.acknowledge();
    if (v) write(kApicEoi, 0);
    return v.value_or(0);
  }
  bool set_deadline(std::uint64_t tsc) { return apic.write_msr(kMsrTscDeadline, tsc); }
  static constexpr std::uint32_t kPeriodic = 1U << 17, kDeadline = 2U << 17, kMasked = 1U << 16;

  ManualClock clock{2'000'000};  // 2 ticks a nanosecond
  ApicBus bus;
  LocalApic apic{{0, true}, bus, clock, clock};
  int wakes = 0;
};

TEST_F(ApicTimerTest, OneShotFiresOnce) {
  write(kApicLvtTimer, 0xEF);
  write(kApicInitialCount, 1'000'000);
  clock.advance(400'000);
  EXPECT_EQ(read(kApicCurrentCount), 600'000U);
  clock.advance(599'999);
  EXPECT_EQ(take(), 0U);
  wakes = 0;
  clock.advance(1);
  EXPECT_EQ(wakes, 1);
  EXPECT_EQ(take(), 0xEFU);
  EXPECT_EQ(read(kApicCurrentCount), 0U);
  EXPECT_EQ(read(kApicInitialCount), 1'000'000U);
  clock.advance(10'000'000);
  EXPECT_EQ(take(), 0U);
}

TEST_F(ApicTimerTest, EveryDivider) {
  const std::pair<unsigned, unsigned> dividers[] = {{0x0, 2},  {0x1, 4},  {0x2, 8},   {0x3, 16},
                                                    {0x8, 32}, {0x9, 64}, {0xA, 128}, {0xB, 1}};
  write(kApicLvtTimer, 0xEF);
  for (const auto& [code, divisor] : dividers) {
    write(kApicDivide, code);
    write(kApicInitialCount, 100'000);
    clock.advance(divisor * 99'999);
    EXPECT_EQ(read(kApicCurrentCount), 1U) << code;
    EXPECT_EQ(take(), 0U) << code;
    clock.advance(divisor);
    EXPECT_EQ(take(), 0xEFU) << code;
  }
}

TEST_F(ApicTimerTest, PeriodicKeepsItsPhase) {
  write(kApicLvtTimer, kPeriodic | 0xEF);
  write(kApicInitialCount, 100'000);
  for (int i = 0; i < 10; ++i) {
    clock.advance(99'999);
    EXPECT_EQ(take(), 0U);
    clock.advance(1);
    EXPECT_EQ(take(), 0xEFU);
  }
  clock.advance(30'000);
  EXPECT_EQ(read(kApicCurrentCount), 70'000U);
}

TEST_F(ApicTimerTest, MissedPeriodsBecomeOneInterruptInPhase) {
  write(kApicLvtTimer, kPeriodic | 0xEF);
  write(kApicInitialCount, 100'000);
  clock.jump(1'050'000);
  clock.run_due();
  EXPECT_EQ(take(), 0xEFU);
  EXPECT_EQ(take(), 0U);
  EXPECT_EQ(clock.next_deadline(), 1'100'000U);
  EXPECT_EQ(apic.stats().timer_interrupts, 1U);
}

TEST_F(ApicTimerTest, TinyPeriodsAreClamped) {
  write(kApicLvtTimer, kPeriodic | 0xEF);
  write(kApicInitialCount, 1);
  clock.advance(10'000'000);
  EXPECT_GT(apic.stats().timer_interrupts, 400U);
  EXPECT_LE(apic.stats().timer_interrupts, 10'000'000 / kShortestPeriod + 1);
}

TEST_F(ApicTimerTest, MaskedTimerCountsInSilence) {
  write(kApicLvtTimer, kMasked | 0xEF);
  write(kApicInitialCount, 100'000);
  clock.advance(50'000);
  EXPECT_EQ(read(kApicCurrentCount), 50'000U);
  clock.advance(100'000);
  EXPECT_EQ(take(), 0U);
}

TEST_F(ApicTimerTest, ZeroStops) {
  write(kApicLvtTimer, kPeriodic | 0xEF);
  write(kApicInitialCount, 100'000);
  write(kApicInitialCount, 0);
  clock.advance(1'000'000);
  EXPECT_EQ(take(), 0U);
  EXPECT_EQ(clock.next_deadline(), kNever);
}

TEST_F(ApicTimerTest, ChangingTheDividerKeepsTheCount) {
  write(kApicLvtTimer, 0xEF);
  write(kApicInitialCount, 1'000'000);
  clock.advance(250'000);
  write(kApicDivide, 0x0);  // by 2
  EXPECT_EQ(read(kApicCurrentCount), 750'000U);
  clock.advance(1'499'999);
  EXPECT_EQ(take(), 0U);
  clock.advance(1);
  EXPECT_EQ(take(), 0xEFU);
}

TEST_F(ApicTimerTest, DeadlineFiresWhenTheTscIsThere) {
  write(kApicLvtTimer, kDeadline | 0xEF);
  EXPECT_TRUE(set_deadline(2'000'000));  // at 1 ms
  EXPECT_EQ(apic.read_msr(kMsrTscDeadline), 2'000'000U);
  clock.advance(999'999);
  EXPECT_EQ(take(), 0U);
  clock.advance(10);
  EXPECT_EQ(take(), 0xEFU);
  EXPECT_EQ(apic.read_msr(kMsrTscDeadline), 0U) << "disarmed";
  clock.advance(10'000'000);
  EXPECT_EQ(take(), 0U);
}

TEST_F(ApicTimerTest, DeadlineInThePastFiresAtOnce) {
  clock.advance(1'000'000);
  write(kApicLvtTimer, kDeadline | 0xEF);
  wakes = 0;
  EXPECT_TRUE(set_deadline(1));
  EXPECT_TRUE(apic.pending());
  EXPECT_EQ(wakes, 1);
  EXPECT_EQ(apic.read_msr(kMsrTscDeadline), 0U);
  EXPECT_EQ(take(), 0xEFU);
  EXPECT_TRUE(set_deadline(clock.tsc()));
  EXPECT_EQ(take(), 0xEFU) << "now is not the future";
}

TEST_F(ApicTimerTest, DeadlineZeroDisarmsAndALaterOneReplaces) {
  write(kApicLvtTimer, kDeadline | 0xEF);
  set_deadline(2'000'000);
  set_deadline(0);
  clock.advance(2'000'000);
  EXPECT_EQ(take(), 0U);
  set_deadline(clock.tsc() + 100);
  set_deadline(clock.tsc() + 2'000'000);
  clock.advance(999'999);
  EXPECT_EQ(take(), 0U);
  clock.advance(2);
  EXPECT_EQ(take(), 0xEFU);
  set_deadline(~0ULL);
  clock.advance(kNanosecondsPerSecond);
  EXPECT_EQ(take(), 0U) << "the end of time";
}

TEST_F(ApicTimerTest, DeadlineIsIgnoredInOtherModesAndTheCountInThis) {
  write(kApicLvtTimer, 0xEF);
  EXPECT_TRUE(set_deadline(1));
  EXPECT_EQ(apic.read_msr(kMsrTscDeadline), 0U);
  EXPECT_EQ(take(), 0U);
  write(kApicLvtTimer, kDeadline | 0xEF);
  write(kApicInitialCount, 1000);
  EXPECT_EQ(read(kApicInitialCount), 0U);
  EXPECT_EQ(read(kApicCurrentCount), 0U);
  clock.advance(1'000'000);
  EXPECT_EQ(take(), 0U);
}

TEST_F(ApicTimerTest, ChangingIntoDeadlineModeAndOutDisarms) {
  write(kApicLvtTimer, 0xEF);
  write(kApicInitialCount, 1'000'000);
  write(kApicLvtTimer, kDeadline | 0xEF);
  clock.advance(2'000'000);
  EXPECT_EQ(take(), 0U);
  set_deadline(clock.tsc() + 1000);
  write(kApicLvtTimer, 0xEF);
  clock.advance(2'000'000);
  EXPECT_EQ(take(), 0U);
  write(kApicLvtTimer, kDeadline | 0xEF);
  EXPECT_EQ(apic.read_msr(kMsrTscDeadline), 0U);
}

/// Timers that fire when the test says so: the timer thread may be on its way into the callback
/// while the guest arms the timer anew.
class HandTimers final : public Timers {
 public:
  Id add(Callback callback) override {
    callback_ = std::move(callback);
    return 0;
  }
  void arm(Id, Nanoseconds when) override { deadline = when; }
  void cancel(Id) override { deadline = kNever; }
  void remove(Id) override {}
  [[nodiscard]] std::vector<Nanoseconds> deadlines() const override { return {deadline}; }
  void fire() { callback_(); }
  Nanoseconds deadline = kNever;

 private:
  Callback callback_;
};

TEST_F(ApicTimerTest, ALateCallbackForAnOlderDeadlineDoesNothing) {
  HandTimers hand;
  LocalApic other{{1, true}, bus, clock, hand};
  const auto put = [&](std::uint32_t reg, std::uint32_t v) {
    other.mmio_write(PA{kApicDefaultBase + reg}, 4, v);
  };
  put(kApicSvr, 0x1FF);
  put(kApicDivide, 0xB);
  for (const std::uint32_t mode : {0U, kPeriodic}) {
    put(kApicLvtTimer, mode | 0xEF);
    put(kApicInitialCount, 1'000'000);
    clock.jump(999'999);
    put(kApicInitialCount, 5'000'000);
    clock.jump(1);
    hand.fire();
    EXPECT_FALSE(other.pending());
    EXPECT_EQ(hand.deadline, clock.now() + 4'999'999) << "armed for the new one";
    put(kApicInitialCount, 0);
    hand.fire();
    EXPECT_FALSE(other.pending()) << "stopped";
  }
  put(kApicLvtTimer, kDeadline | 0xEF);
  ASSERT_TRUE(other.write_msr(kMsrTscDeadline, clock.tsc() + 2'000'000));
  hand.fire();
  EXPECT_FALSE(other.pending());
  EXPECT_GE(hand.deadline, clock.now() + 1'000'000);
  ASSERT_TRUE(other.write_msr(kMsrTscDeadline, 0));
  hand.fire();
  EXPECT_FALSE(other.pending()) << "disarmed";
}

// The guest is quicker than the timer thread: what a register shows has happened all the same.

TEST_F(ApicTimerTest, AOneShotCountThatReadsZeroHasExpired) {
  write(kApicLvtTimer, 0xEF);
  write(kApicInitialCount, 1'000'000);
  clock.jump(1'000'000);
  wakes = 0;
  EXPECT_EQ(read(kApicCurrentCount), 0U);
  EXPECT_GT(wakes, 0);
  EXPECT_EQ(take(), 0xEFU);
  clock.run_due();
  EXPECT_EQ(take(), 0U) << "once";
}

TEST_F(ApicTimerTest, AnExpiredCountDoesNotBecomePeriodic) {
  write(kApicLvtTimer, 0xEF);
  write(kApicInitialCount, 1'000'000);
  clock.jump(1'200'000);
  write(kApicLvtTimer, kPeriodic | 0xEE);
  EXPECT_EQ(read(kApicCurrentCount), 0U);
  EXPECT_EQ(take(), 0xEFU) << "with the vector of when it expired";
  clock.run_due();
  clock.advance(5'000'000);
  EXPECT_EQ(take(), 0U);
}

TEST_F(ApicTimerTest, APeriodThatHasEndedIsNotTheOneShotCount) {
  write(kApicLvtTimer, kPeriodic | 0xEF);
  write(kApicInitialCount, 1'000'000);
  clock.jump(1'200'000);
  write(kApicLvtTimer, 0xEF);
  EXPECT_EQ(read(kApicCurrentCount), 800'000U);
  EXPECT_EQ(take(), 0xEFU);
  clock.run_due();
  EXPECT_EQ(take(), 0U);
  clock.advance(800'000);
  EXPECT_EQ(take(), 0xEFU);
}

TEST_F(ApicTimerTest, AnExpiredCountsInterruptIsNotLostToANewOne) {
  for (const std::uint32_t reg : {kApicInitialCount, kApicDivide, kApicSvr}) {
    write(kApicSvr, 0x1FF);
    write(kApicDivide, 0xB);
    write(kApicLvtTimer, 0xEF);
    write(kApicInitialCount, 1'000'000);
    clock.jump(1'000'000);
    write(reg, reg == kApicSvr ? 0xFF : 0xA);
    EXPECT_EQ(take(), 0xEFU) << reg;
    write(kApicInitialCount, 0);
  }
}

TEST_F(ApicTimerTest, ADeadlineThatHasPassedReadsAsZero) {
  write(kApicLvtTimer, kDeadline | 0xEF);
  set_deadline(clock.tsc() + 2000);
  clock.jump(1000);
  EXPECT_EQ(apic.read_msr(kMsrTscDeadline), 0U);
  EXPECT_EQ(take(), 0xEFU);
  set_deadline(clock.tsc() + 2000);
  clock.jump(1000);
  set_deadline(clock.tsc() + 2'000'000);
  EXPECT_EQ(take(), 0xEFU) << "the earlier one's";
  clock.run_due();
  EXPECT_EQ(take(), 0U);
}

TEST_F(ApicTimerTest, X2ApicCountThatReadsZeroHasExpired) {
  ASSERT_TRUE(apic.write_msr(kMsrApicBase, *apic.read_msr(kMsrApicBase) | 1U << 10));
  ASSERT_TRUE(apic.write_msr(0x832, 0xEF));
  ASSERT_TRUE(apic.write_msr(0x838, 1'000'000));
  clock.jump(1'000'000);
  wakes = 0;
  EXPECT_EQ(apic.read_msr(0x839), 0U);
  EXPECT_GT(wakes, 0);
  EXPECT_EQ(apic.acknowledge(), 0xEF);
}

TEST_F(ApicTimerTest, IllegalVectorIsAnError) {
  write(kApicLvtTimer, 0x05);
  write(kApicInitialCount, 1000);
  clock.advance(1000);
  write(kApicEsr, 0);
  EXPECT_EQ(read(kApicEsr), 0x40U);
  EXPECT_FALSE(apic.pending());
}

TEST_F(ApicTimerTest, DeadlineRoundingNeverFiresEarly) {
  ManualClock odd{2'345'678};
  LocalApic other{{1, true}, bus, odd, odd};
  const auto put = [&](std::uint32_t reg, std::uint32_t v) {
    other.mmio_write(PA{kApicDefaultBase + reg}, 4, v);
  };
  put(kApicSvr, 0x1FF);
  put(kApicLvtTimer, kDeadline | 0xEF);
  for (std::uint64_t step = 3; step < 2'000'000; step = step * 3 + 1) {
    const std::uint64_t deadline = odd.tsc() + step;
    ASSERT_TRUE(other.write_msr(kMsrTscDeadline, deadline));
    ASSERT_FALSE(other.pending());
    while (!other.pending()) odd.advance(odd.next_deadline() - odd.now());
    EXPECT_GE(odd.tsc(), deadline);
    EXPECT_LE(odd.tsc(), deadline + 6);
    (void)other.acknowledge();
    put(kApicEoi, 0);
  }
}

}  // namespace
}  // namespace strata::devices
