#include "devices/rtc_cmos.hpp"

#include <gtest/gtest.h>

#include "devices/manual_clock.hpp"
#include "support.hpp"

namespace strata::devices {
namespace {

// 2026-11-22 09:53:31 UTC, a Sunday.
constexpr std::int64_t kStart = 1'795'341'211LL * 1'000'000'000;

class RtcTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(rtc.attach(ports)); }
  std::uint8_t in(unsigned index) {
    ports.write(0x70, 1, index);
    return static_cast<std::uint8_t>(ports.read(0x71, 1));
  }
  void out(unsigned index, unsigned value) {
    ports.write(0x70, 1, index);
    ports.write(0x71, 1, value);
  }
  void seconds(std::uint64_t n) { clock.advance(n * kNanosecondsPerSecond); }
  ManualClock clock{1'000'000, 0, kStart};
  Bus ports{16};
  testing::Line irq;
  RtcCmos rtc{clock, clock, irq};
};

TEST_F(RtcTest, ShowsUtcInBcd) {
  EXPECT_EQ(in(0x32), 0x20);
  EXPECT_EQ(in(9), 0x26);
  EXPECT_EQ(in(8), 0x11);
  EXPECT_EQ(in(7), 0x22);
  EXPECT_EQ(in(6), 1) << "Sunday";
  EXPECT_EQ(in(4), 0x09);
  EXPECT_EQ(in(2), 0x53);
  EXPECT_EQ(in(0), 0x31);
  seconds(29);
  EXPECT_EQ(in(0), 0x00);
  EXPECT_EQ(in(2), 0x54);
}

TEST_F(RtcTest, BinaryAndTwelveHourModes) {
  out(11, 0x06);
  EXPECT_EQ(in(2), 53);
  out(11, 0x00);
  EXPECT_EQ(in(4), 0x09);
  seconds(3 * 3600);
  EXPECT_EQ(in(4), 0x80 | 0x12) << "12 PM";
  seconds(12 * 3600);
  EXPECT_EQ(in(4), 0x12) << "12 AM is midnight";
  seconds(13 * 3600);
  EXPECT_EQ(in(4), 0x81);
}

TEST_F(RtcTest, StatusRegisters) {
  EXPECT_EQ(in(10), 0x26);
  EXPECT_EQ(in(11), 0x02);
  EXPECT_EQ(in(13), 0x80);
  out(13, 0);
  EXPECT_EQ(in(13), 0x80);
  clock.advance(kNanosecondsPerSecond - 2'000'000);
  EXPECT_EQ(in(10), 0xA6) << "an update is due within 2.2 ms";
  clock.advance(2'000'000);
  EXPECT_EQ(in(10), 0x26);
}

TEST_F(RtcTest, SettingTheTimeAsLinuxDoes) {
  const unsigned control = in(11);
  const unsigned rate = in(10);
  out(11, control | 0x80);
  out(10, rate | 0x70);  // divider reset
  out(9, 0x30);
  out(8, 0x02);
  out(7, 0x28);
  out(4, 0x23);
  out(2, 0x59);
  out(0, 0x58);
  out(0x32, 0x20);
  seconds(100);
  EXPECT_EQ(in(0), 0x58) << "stands still";
  out(11, control);
  out(10, rate);
  clock.advance(499'000'000);
  EXPECT_EQ(in(0), 0x58);
  clock.advance(2'000'000);
  EXPECT_EQ(in(0), 0x59) << "half a second after the divider's release";
  seconds(1);
  EXPECT_EQ(in(8), 0x03);
  EXPECT_EQ(in(7), 0x01) << "2030 is no leap year";
  EXPECT_EQ(in(9), 0x30);
}

TEST_F(RtcTest, SetHoldsUpdatesAndKeepsThePhase) {
  clock.advance(300'000'000);
  out(11, 0x82);
  out(0, 0x10);
  seconds(5);
  out(11, 0x02);
  EXPECT_EQ(in(0), 0x10);
  clock.advance(699'000'000);
  EXPECT_EQ(in(0), 0x10);
  clock.advance(2'000'000);
  EXPECT_EQ(in(0), 0x11);
}

TEST_F(RtcTest, NonsenseIsBroughtIntoRange) {
  out(11, 0x82);
  for (const unsigned index : {0U, 2U, 4U, 7U, 8U, 9U, 0x32U}) out(index, 0xFF);
  out(11, 0x02);
  EXPECT_EQ(in(0), 0x59);
  EXPECT_EQ(in(2), 0x59);
  EXPECT_EQ(in(4), 0x23);
  EXPECT_EQ(in(8), 0x12);
  EXPECT_EQ(in(7), 0x31);
}

TEST_F(RtcTest, UpdateInterruptEverySecond) {
  out(11, 0x12);
  clock.advance(999'999'999);
  EXPECT_FALSE(irq.level());
  clock.advance(1);
  EXPECT_TRUE(irq.level());
  EXPECT_EQ(in(12), 0xD0) << "IRQF, update, and the periodic flag nobody enabled";
  EXPECT_FALSE(irq.level());
  EXPECT_EQ(in(12), 0x00) << "reading clears";
  seconds(3);
  EXPECT_EQ(irq.rises(), 2) << "unread: stays high";
}

TEST_F(RtcTest, AlarmWithWildcards) {
  out(1, 0x35);
  out(3, 0xFF);
  out(5, 0xC0);
  out(11, 0x22);
  seconds(3);
  EXPECT_FALSE(irq.level());
  seconds(1);
  EXPECT_TRUE(irq.level());
  EXPECT_EQ(in(12), 0xF0) << "alarm; the other flags are set as well";
  seconds(59);
  EXPECT_FALSE(irq.level());
  seconds(1);
  EXPECT_TRUE(irq.level());
}

TEST_F(RtcTest, AlarmAtATimeOfDay) {
  out(1, 0x00);
  out(3, 0x55);
  out(5, 0x09);
  out(11, 0x22);
  seconds(88);
  EXPECT_FALSE(irq.level());
  seconds(1);
  EXPECT_TRUE(irq.level());
}

TEST_F(RtcTest, PeriodicInterruptRates) {
  out(10, 0x2F);  // 2 Hz
  out(11, 0x42);
  clock.advance(499'999'999);
  EXPECT_FALSE(irq.level());
  clock.advance(1);
  EXPECT_TRUE(irq.level());
  EXPECT_EQ(in(12) & 0xC0, 0xC0);
  out(10, 0x26);  // 1024 Hz
  int seen = 0;
  for (int i = 0; i < 1024; ++i) {
    clock.advance(976'563);
    seen += (in(12) & 0x40) != 0 ? 1 : 0;
  }
  EXPECT_EQ(seen, 1024);
  out(10, 0x20);  // off
  (void)in(12);
  seconds(2);
  EXPECT_EQ(in(12) & 0x40, 0);
}

TEST_F(RtcTest, FlagsWithoutEnablesAreQuiet) {
  seconds(2);
  EXPECT_FALSE(irq.level());
  EXPECT_EQ(in(12), 0x50) << "update and periodic, no IRQF";
  EXPECT_EQ(clock.next_deadline(), kNever) << "and cost no timer";
}

TEST_F(RtcTest, CmosRamAndNmiMask) {
  rtc.set_ram(0x15, 0x80);
  rtc.set_ram(0x0D, 0x12);  // status D is no RAM
  EXPECT_EQ(in(0x15), 0x80);
  EXPECT_EQ(in(0x0D), 0x80);
  out(0x7F, 0x5A);
  EXPECT_EQ(in(0x7F), 0x5A);
  EXPECT_FALSE(rtc.nmi_masked());
  EXPECT_EQ(in(0xFF), 0x5A) << "bit 7 is not part of the index";
  EXPECT_TRUE(rtc.nmi_masked());
  EXPECT_EQ(ports.read(0x70, 1), 0xFFU) << "the index is write-only";
}

TEST_F(RtcTest, SurvivesTheHostClockGoingBack) {
  out(11, 0x12);
  clock.set_epoch(kStart - 3600LL * 1'000'000'000);
  seconds(2);
  EXPECT_EQ(in(4), 0x08);
  (void)in(12);
  seconds(1);
  EXPECT_EQ(in(12) & 0x10, 0x10);
}

}  // namespace
}  // namespace strata::devices
