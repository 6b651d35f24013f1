#include "devices/pit8254.hpp"

#include <gtest/gtest.h>

#include "devices/manual_clock.hpp"
#include "support.hpp"

namespace strata::devices {
namespace {

/// The first nanosecond at which the input clock has made `ticks` ticks.
constexpr Nanoseconds at_tick(std::uint64_t ticks) {
  return (ticks * kNanosecondsPerSecond + kPitHz - 1) / kPitHz;
}

class PitTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(pit.attach(ports)); }
  std::uint8_t in(unsigned port) { return static_cast<std::uint8_t>(ports.read(port, 1)); }
  void out(unsigned port, unsigned value) { ports.write(port, 1, value); }
  void program(unsigned counter, unsigned mode, unsigned count) {
    out(0x43, counter << 6 | 0x30 | mode << 1);
    out(0x40 + counter, count & 0xFF);
    out(0x40 + counter, count >> 8);
  }
  unsigned latched(unsigned counter) {
    out(0x43, counter << 6);
    const unsigned low = in(0x40 + counter);
    return low | unsigned{in(0x40 + counter)} << 8;
  }
  void until_tick(std::uint64_t ticks) {
    const Nanoseconds target = at_tick(ticks);
    if (target > clock.now()) clock.advance(target - clock.now());
  }
  ManualClock clock;
  Bus ports{16};
  testing::Line irq;
  Pit8254 pit{clock, clock, irq};
};

TEST_F(PitTest, Mode0CountsDownAndInterruptsOnce) {
  program(0, 0, 1000);
  EXPECT_FALSE(irq.level());
  until_tick(400);
  EXPECT_EQ(latched(0), 600U);
  until_tick(999);
  EXPECT_FALSE(irq.level());
  until_tick(1001);
  EXPECT_TRUE(irq.level());
  EXPECT_EQ(irq.rises(), 1);
  until_tick(1010);
  EXPECT_EQ(latched(0), 0x10000U - 10) << "counts on through zero";
  until_tick(200'000);
  EXPECT_EQ(irq.rises(), 1);
}

TEST_F(PitTest, Mode2InterruptsEveryPeriod) {
  program(0, 2, 11932);
  until_tick(11932 * 10 + 5);
  EXPECT_EQ(irq.rises(), 10);
  EXPECT_EQ(latched(0), 11932U - 5);
  EXPECT_TRUE(irq.level()) << "high but for an instant: no acknowledge is too late";
}

TEST_F(PitTest, Mode3CountsByTwo) {
  program(0, 3, 1000);
  until_tick(100);
  EXPECT_EQ(latched(0), 800U);
  until_tick(600);
  EXPECT_EQ(latched(0), 800U) << "second half";
  until_tick(5005);
  EXPECT_EQ(irq.rises(), 5);
}

TEST_F(PitTest, Mode4StrobesOneClockAfterZero) {
  program(0, 4, 50);
  until_tick(50);
  EXPECT_EQ(irq.rises(), 0);
  until_tick(52);
  EXPECT_EQ(irq.rises(), 1);
  until_tick(100'000);
  EXPECT_EQ(irq.rises(), 1);
  program(0, 4, 50);  // Linux arms its one-shot so
  until_tick(100'060);
  EXPECT_EQ(irq.rises(), 2);
}

TEST_F(PitTest, ZeroIsTheLargestCount) {
  program(0, 2, 0);
  until_tick(65535);
  EXPECT_EQ(irq.rises(), 0);
  until_tick(65537);
  EXPECT_EQ(irq.rises(), 1);
}

TEST_F(PitTest, BcdCounts) {
  out(0x43, 0x31);  // counter 0, both bytes, mode 0, BCD
  out(0x40, 0x00);
  out(0x40, 0x10);  // 1000
  until_tick(1);
  EXPECT_EQ(latched(0), 0x0999U);
  until_tick(1001);
  EXPECT_EQ(latched(0), 0x9999U);
}

TEST_F(PitTest, OneByteAccessModes) {
  out(0x43, 0x90);  // counter 2, low byte, mode 0
  out(0x61, 1);
  out(0x42, 200);
  until_tick(50);
  EXPECT_EQ(in(0x42), 150);
  EXPECT_EQ(in(0x42), 150) << "low byte every time";
  out(0x43, 0xA0);  // high byte
  out(0x42, 2);
  EXPECT_EQ(in(0x42), 2);
}

TEST_F(PitTest, LatchHoldsUntilReadAndIsNotOverwritten) {
  program(0, 2, 0x1234);
  until_tick(0x10);
  out(0x43, 0x00);
  until_tick(0x100);
  out(0x43, 0x00);
  EXPECT_EQ(in(0x40), 0x24);
  EXPECT_EQ(in(0x40), 0x12);
  EXPECT_EQ(in(0x40), 0x34);
  EXPECT_EQ(in(0x40), 0x11) << "live again";
}

TEST_F(PitTest, ReadBackGivesStatusThenCount) {
  program(0, 2, 1000);
  until_tick(100);
  out(0x43, 0xC2);  // count and status of counter 0
  EXPECT_EQ(in(0x40), 0x80 | 0x30 | 2 << 1);
  EXPECT_EQ(in(0x40), 900 & 0xFF);
  EXPECT_EQ(in(0x40), 900 >> 8);
  out(0x43, 0x34);  // a control word alone: no count yet
  out(0x43, 0xE2);
  EXPECT_EQ(in(0x40), 0x80 | 0x40 | 0x30 | 2 << 1);
}

TEST_F(PitTest, ANewRateTakesOverAtTheEndOfThePeriod) {
  program(0, 2, 1000);
  until_tick(100);
  out(0x40, 500 & 0xFF);
  out(0x40, 500 >> 8);
  EXPECT_EQ(latched(0), 900U);
  until_tick(1001);
  EXPECT_EQ(irq.rises(), 1);
  until_tick(1250);
  EXPECT_EQ(latched(0), 250U);
  until_tick(2001);
  EXPECT_EQ(irq.rises(), 3);
}

TEST_F(PitTest, Mode0StopsBetweenItsTwoBytes) {
  program(0, 0, 100);
  until_tick(50);
  out(0x40, 10);
  until_tick(1000);
  EXPECT_EQ(irq.rises(), 0);
  out(0x40, 0);
  until_tick(1012);
  EXPECT_EQ(irq.rises(), 1);
}

TEST_F(PitTest, GateHoldsCounter2) {
  out(0x61, 0);
  program(2, 0, 1000);
  until_tick(5000);
  EXPECT_EQ(latched(2), 1000U);
  EXPECT_EQ(in(0x61) & 0x21, 0);
  out(0x61, 1);
  until_tick(5400);
  EXPECT_NEAR(latched(2), 600U, 1);
  out(0x61, 0);
  until_tick(9000);
  EXPECT_NEAR(latched(2), 600U, 1) << "held";
  out(0x61, 1);
  until_tick(9602);
  EXPECT_EQ(in(0x61) & 0x21, 0x21);
}

TEST_F(PitTest, GateStartsMode1AndRestartsMode3) {
  out(0x61, 0);
  program(2, 1, 100);
  until_tick(1000);
  EXPECT_EQ(in(0x61) & 0x20, 0x20) << "waits for its trigger, high";
  out(0x61, 1);
  until_tick(1050);
  EXPECT_EQ(in(0x61) & 0x20, 0);
  until_tick(1102);
  EXPECT_EQ(in(0x61) & 0x20, 0x20);
  program(2, 3, 1000);
  until_tick(1900);
  EXPECT_EQ(in(0x61) & 0x20, 0);
  out(0x61, 0);
  EXPECT_EQ(in(0x61) & 0x20, 0x20) << "high while stopped";
  out(0x61, 1);
  until_tick(2100);
  EXPECT_EQ(in(0x61) & 0x20, 0x20) << "from the period's start";
}

TEST_F(PitTest, GatesOfCounters0And1AreTied) {
  out(0x61, 0);
  program(0, 2, 1000);
  until_tick(1001);
  EXPECT_EQ(irq.rises(), 1);
}

/// pit_calibrate_tsc() of Linux: 50 ms in mode 0 on counter 2, then wait for OUT in port 61h.
TEST_F(PitTest, LinuxCalibratesTheTsc) {
  out(0x61, (in(0x61) & ~0x02U) | 0x01U);
  out(0x43, 0xB0);
  constexpr unsigned kLatch = kPitHz / 20;
  out(0x42, kLatch & 0xFF);
  out(0x42, kLatch >> 8);
  const std::uint64_t start = clock.tsc();
  unsigned polls = 0;
  while ((in(0x61) & 0x20) == 0) {
    clock.advance(1000);
    ASSERT_LT(++polls, 100'000U);
  }
  const std::uint64_t khz = (clock.tsc() - start) / 50;
  EXPECT_NEAR(static_cast<double>(khz), 1'000'000, 100) << "the manual clock's 1 GHz";
  EXPECT_GT(polls, 1000U);
}

/// quick_pit_calibrate() of Linux watches the high byte of a free-running counter fall.
TEST_F(PitTest, LinuxQuickCalibrationSeesTheHighByteFall) {
  out(0x61, (in(0x61) & ~0x02U) | 0x01U);
  out(0x43, 0xB0);
  out(0x42, 0xFF);
  out(0x42, 0xFF);
  std::uint8_t expected = 0xFF;
  for (int i = 0; i < 3000; ++i) {
    (void)in(0x42);
    const std::uint8_t high = in(0x42);
    ASSERT_TRUE(high == expected || high == expected - 1);
    expected = high;
    clock.advance(2000);
  }
  EXPECT_LT(expected, 0xFF - 20);
}

TEST_F(PitTest, TinyPeriodsAreThinnedOut) {
  program(0, 2, 1);
  clock.advance(10'000'000);
  EXPECT_GT(irq.rises(), 300);
  EXPECT_LE(irq.rises(), static_cast<int>(10'000'000 / kShortestPeriod) + 1);
}

TEST_F(PitTest, ALongPauseDoesNotEndInABurst) {
  program(0, 2, 1193);
  clock.jump(10 * kNanosecondsPerSecond);
  clock.run_due();
  EXPECT_LE(irq.rises(), 2);
  EXPECT_GT(clock.next_deadline(), clock.now());
}

TEST_F(PitTest, TheControlWordIsNotReadable) { EXPECT_EQ(in(0x43), 0xFF); }

}  // namespace
}  // namespace strata::devices
