#include "devices/acpi_pm.hpp"

#include <gtest/gtest.h>

#include "devices/manual_clock.hpp"
#include "support.hpp"

namespace strata::devices {
namespace {

class AcpiPmTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(pm.attach(ports)); }
  std::uint32_t in(unsigned port, unsigned size) {
    return static_cast<std::uint32_t>(ports.read(0x600 + port, size));
  }
  void out(unsigned port, unsigned size, std::uint32_t value) {
    ports.write(0x600 + port, size, value);
  }
  static constexpr unsigned kStatus = 0, kEnable = 2, kControl = 4, kTimer = 8, kGpeStatus = 0x20,
                            kGpeEnable = 0x22;
  ManualClock clock;
  Bus ports{16};
  testing::Line sci;
  testing::Control control;
  AcpiPm pm{{}, clock, clock, sci, control};
};

TEST_F(AcpiPmTest, TimerRunsAt3579545Hz) {
  EXPECT_EQ(in(kTimer, 4), 0U);
  clock.advance(kNanosecondsPerSecond);
  EXPECT_EQ(in(kTimer, 4), 3'579'545U);
  clock.advance(1200 * kNanosecondsPerSecond);
  EXPECT_EQ(in(kTimer, 4), static_cast<std::uint32_t>(1201ULL * 3'579'545));
  out(kTimer, 4, 0);
  EXPECT_NE(in(kTimer, 4), 0U) << "read-only";
}

TEST_F(AcpiPmTest, Timer24Bit) {
  AcpiPm narrow{{.base = 0x700, .timer_32_bit = false}, clock, clock, sci, control};
  ASSERT_TRUE(narrow.attach(ports));
  clock.advance(10 * kNanosecondsPerSecond);
  EXPECT_EQ(ports.read(0x708, 4), 35'795'450U & 0xFFFFFF);
}

TEST_F(AcpiPmTest, TimerCarrySetsStatusAndInterrupts) {
  out(kEnable, 2, 1);
  clock.advance(599 * kNanosecondsPerSecond);
  EXPECT_EQ(in(kStatus, 2), 0U);
  clock.advance(kNanosecondsPerSecond);  // bit 31 changes at 599.93 s
  EXPECT_TRUE(sci.level());
  EXPECT_EQ(in(kStatus, 2), 1U);
  out(kStatus, 2, 1);
  EXPECT_FALSE(sci.level());
  EXPECT_EQ(in(kStatus, 2), 0U);
  clock.advance(600 * kNanosecondsPerSecond);
  EXPECT_TRUE(sci.level()) << "the next change";
}

TEST_F(AcpiPmTest, SleepTypeFiveWithSleepEnablePowersOff) {
  EXPECT_EQ(in(kControl, 2), 1U) << "ACPI mode";
  out(kControl, 2, 5U << 10);
  EXPECT_EQ(control.power_offs, 0);
  out(kControl, 2, 1U << 13 | 3U << 10);
  EXPECT_EQ(control.power_offs, 0) << "not S5";
  out(kControl, 2, 1U << 13 | 5U << 10);
  EXPECT_EQ(control.power_offs, 1);
  EXPECT_EQ(in(kControl, 2), 5U << 10 | 1U) << "SLP_EN reads 0, SCI_EN stays";
}

TEST_F(AcpiPmTest, ByteWritesPowerOffToo) {
  out(kControl + 1, 1, 1U << 5 | 5U << 2);
  EXPECT_EQ(control.power_offs, 1);
}

TEST_F(AcpiPmTest, PowerButtonRaisesTheSciUntilCleared) {
  pm.press_power_button();
  EXPECT_FALSE(sci.level()) << "not enabled";
  out(kEnable, 2, 1U << 8);
  EXPECT_TRUE(sci.level());
  EXPECT_EQ(in(kStatus, 2), 1U << 8);
  out(kStatus, 2, 1);
  EXPECT_TRUE(sci.level()) << "another bit";
  out(kStatus, 2, 1U << 8);
  EXPECT_FALSE(sci.level());
  EXPECT_EQ(in(kEnable, 2), 1U << 8);
  out(kEnable, 2, 0xFFFF);
  EXPECT_EQ(in(kEnable, 2), 0x0721U);
}

TEST_F(AcpiPmTest, Gpe) {
  pm.raise_gpe(9);
  pm.raise_gpe(16);
  EXPECT_EQ(in(kGpeStatus, 2), 1U << 9);
  EXPECT_FALSE(sci.level());
  out(kGpeEnable, 2, 1U << 9);
  EXPECT_EQ(in(kGpeEnable, 2), 1U << 9);
  EXPECT_TRUE(sci.level());
  out(kGpeStatus, 1, 0xFF);
  EXPECT_TRUE(sci.level()) << "the low byte is not the high one";
  out(kGpeStatus + 1, 1, 1U << 1);
  EXPECT_FALSE(sci.level());
}

TEST_F(AcpiPmTest, GapsReadZero) {
  EXPECT_EQ(in(0x0C, 4), 0U);
  EXPECT_EQ(in(0x06, 2), 0U);
  EXPECT_EQ(in(0x24, 1), 0xFFU) << "past the block: nobody's";
}

}  // namespace
}  // namespace strata::devices
