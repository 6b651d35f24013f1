#include "devices/pic8259.hpp"

#include <gtest/gtest.h>

#include "support.hpp"

namespace strata::devices {
namespace {

class PicTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(pic.attach(ports));
    init(0x01);
  }
  /// Vectors 20h and 28h, all inputs open.
  void init(unsigned icw4) {
    for (const unsigned base : {0x20U, 0xA0U}) {
      out(base, 0x11);
      out(base + 1, base == 0x20 ? 0x20 : 0x28);
      out(base + 1, base == 0x20 ? 0x04 : 0x02);
      out(base + 1, icw4);
      out(base + 1, 0);
    }
  }
  std::uint8_t in(unsigned port) { return static_cast<std::uint8_t>(ports.read(port, 1)); }
  void out(unsigned port, unsigned value) { ports.write(port, 1, value); }
  void pulse_low(unsigned irq) { pic.set_irq(irq, false); }
  void raise(unsigned irq) { pic.set_irq(irq, true); }
  std::uint8_t isr(unsigned base) {
    out(base, 0x0B);
    return in(base);
  }
  std::uint8_t irr(unsigned base) {
    out(base, 0x0A);
    return in(base);
  }
  Bus ports{16};
  testing::Line intr;
  Pic8259 pic{intr};
};

TEST_F(PicTest, DeliversByPriorityAndNests) {
  raise(4);
  ASSERT_TRUE(intr.level());
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x24);
  EXPECT_FALSE(intr.level());
  raise(5);
  EXPECT_FALSE(intr.level()) << "lower than what is in service";
  raise(1);
  EXPECT_TRUE(intr.level()) << "higher";
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x21);
  EXPECT_EQ(isr(0x20), 0x12);
  out(0x20, 0x20);
  EXPECT_EQ(isr(0x20), 0x10) << "non-specific EOI ends the highest";
  EXPECT_FALSE(intr.level());
  out(0x20, 0x20);
  EXPECT_TRUE(intr.level());
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x25);
}

TEST_F(PicTest, MaskHoldsRequestsBack) {
  out(0x21, 0x10);
  raise(4);
  EXPECT_FALSE(intr.level());
  EXPECT_EQ(irr(0x20), 0x10);
  EXPECT_EQ(in(0x21), 0x10);
  out(0x21, 0);
  EXPECT_TRUE(intr.level());
}

TEST_F(PicTest, CascadeTakesBothAcknowledgesAndBothEois) {
  raise(12);
  ASSERT_TRUE(intr.level());
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x2C);
  EXPECT_EQ(isr(0x20), 0x04);
  EXPECT_EQ(isr(0xA0), 0x10);
  raise(3);
  EXPECT_FALSE(intr.level()) << "the cascade ranks at input 2, above 3";
  raise(1);
  EXPECT_TRUE(intr.level());
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x21);
  out(0x20, 0x20);
  out(0xA0, 0x20);
  out(0x20, 0x20);
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x23);
}

TEST_F(PicTest, ASecondSlaveRequestWaitsForTheMasterEoi) {
  raise(12);
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x2C);
  raise(8);  // higher on the slave, same input on the master
  EXPECT_FALSE(intr.level());
  out(0x20, 0x20);
  EXPECT_TRUE(intr.level());
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x28);
}

TEST_F(PicTest, SpecialFullyNestedModeLetsTheSlaveThrough) {
  init(0x11);
  raise(12);
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x2C);
  raise(8);
  EXPECT_TRUE(intr.level());
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x28);
}

TEST_F(PicTest, SpuriousSevenLeavesNoTrace) {
  raise(4);
  pulse_low(4);  // gone before the acknowledge
  EXPECT_FALSE(intr.level());
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x27);
  EXPECT_EQ(isr(0x20), 0);
}

TEST_F(PicTest, ASlaveRequestThatVanishesIsSpuriousToo) {
  raise(12);
  pulse_low(12);
  EXPECT_FALSE(intr.level()) << "the cascade falls with it";
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x27);
  EXPECT_EQ(isr(0x20), 0);
  EXPECT_EQ(isr(0xA0), 0);
}

TEST_F(PicTest, PollingTheMasterShowsTheCascade) {
  raise(12);
  out(0x20, 0x0C);
  EXPECT_EQ(in(0x20), 0x82);
  EXPECT_EQ(isr(0x20), 0x04);
  out(0xA0, 0x0C);  // and the slave has to be polled itself
  EXPECT_EQ(in(0xA0), 0x84);
  EXPECT_EQ(isr(0xA0), 0x10);
}

TEST_F(PicTest, EdgeNeedsANewEdge) {
  raise(4);
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x24);
  out(0x20, 0x20);
  EXPECT_FALSE(intr.level()) << "still high, but no edge";
  raise(4);
  EXPECT_FALSE(intr.level());
  pulse_low(4);
  raise(4);
  EXPECT_TRUE(intr.level());
}

TEST_F(PicTest, LevelRequestsAgainUntilItFalls) {
  out(0x4D0, 0x20);
  raise(5);
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x25);
  EXPECT_FALSE(intr.level());
  out(0x20, 0x20);
  EXPECT_TRUE(intr.level());
  pulse_low(5);
  EXPECT_FALSE(intr.level());
}

TEST_F(PicTest, ElcrKeepsTheFixedEdgeInputs) {
  out(0x4D0, 0xFF);
  out(0x4D1, 0xFF);
  EXPECT_EQ(in(0x4D0), 0xF8);
  EXPECT_EQ(in(0x4D1), 0xDE);
}

TEST_F(PicTest, SpecificEoiAndRotation) {
  raise(4);
  (void)pic.acknowledge_ext_int();
  raise(1);
  (void)pic.acknowledge_ext_int();
  out(0x20, 0x64);  // specific EOI of 4
  EXPECT_EQ(isr(0x20), 0x02);
  out(0x20, 0xA0);  // rotate on non-specific EOI: 1 becomes lowest
  pulse_low(1);
  raise(1);
  raise(0);
  raise(3);
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x23) << "2, 3 ... 7, 0, 1";
}

TEST_F(PicTest, SetPriorityCommand) {
  out(0x20, 0xC4);  // 4 is lowest: 5 is highest
  raise(0);
  raise(5);
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x25);
}

TEST_F(PicTest, AutoEoiLeavesNothingInService) {
  init(0x03);
  raise(4);
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x24);
  EXPECT_EQ(isr(0x20), 0);
  raise(5);
  EXPECT_TRUE(intr.level());
}

TEST_F(PicTest, AutoEoiOnTheSlaveMakesANewEdgeForTheNextRequest) {
  init(0x03);
  raise(12);
  raise(13);
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x2C);
  ASSERT_TRUE(intr.level());
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x2D);
  EXPECT_FALSE(intr.level());
}

TEST_F(PicTest, RotateOnAutoEoi) {
  init(0x03);
  out(0x20, 0x80);
  raise(4);
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x24);
  raise(3);
  raise(6);
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x26) << "4 is lowest now, 5 highest";
}

TEST_F(PicTest, SpecialMaskModeOpensLowerInputs) {
  raise(2 + 1);
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x23);
  raise(6);
  EXPECT_FALSE(intr.level());
  out(0x21, 0x08);
  EXPECT_FALSE(intr.level());
  out(0x20, 0x68);
  EXPECT_TRUE(intr.level());
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x26);
  out(0x20, 0x48);  // and off again
  pulse_low(7);
  raise(7);
  EXPECT_FALSE(intr.level());
}

TEST_F(PicTest, PollAcknowledges) {
  out(0x20, 0x0C);
  EXPECT_EQ(in(0x20), 0x00) << "nothing to poll";
  raise(6);
  out(0x20, 0x0C);
  EXPECT_EQ(in(0x20), 0x86);
  EXPECT_FALSE(intr.level());
  EXPECT_EQ(isr(0x20), 0x40);
}

TEST_F(PicTest, InitialisationForgetsRequestsAndMasks) {
  raise(4);
  out(0x20, 0x11);
  EXPECT_FALSE(intr.level()) << "silent until the sequence is complete";
  out(0x21, 0x40);
  out(0x21, 0x04);
  out(0x21, 0x01);
  EXPECT_EQ(in(0x21), 0);
  EXPECT_FALSE(intr.level()) << "an edge from before";
  pulse_low(4);
  raise(4);
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x44);
}

TEST_F(PicTest, InputsThatDoNotExistAreIgnored) {
  raise(2);
  raise(16);
  raise(~0U);
  EXPECT_FALSE(intr.level());
}

}  // namespace
}  // namespace strata::devices
