#include "devices/serial8250.hpp"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "support.hpp"

namespace strata::devices {
namespace {

class TextSink final : public CharSink {
 public:
  void put(std::span<const std::uint8_t> bytes) override {
    text.append(bytes.begin(), bytes.end());
  }
  std::string text;
};

class SerialTest : public ::testing::Test {
 protected:
  std::uint8_t in(unsigned reg) { return static_cast<std::uint8_t>(uart.read(reg, 1)); }
  void out(unsigned reg, unsigned value) { uart.write(reg, 1, value); }
  std::size_t type(const std::string& text) {
    return uart.receive({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
  }
  static constexpr unsigned kRbr = 0, kThr = 0, kIer = 1, kIir = 2, kFcr = 2, kLcr = 3, kMcr = 4,
                            kLsr = 5, kMsr = 6, kScr = 7;
  TextSink sink;
  testing::Line irq;
  Serial8250 uart{sink, irq};
};

TEST_F(SerialTest, ResetState) {
  EXPECT_EQ(in(kIer), 0);
  EXPECT_EQ(in(kIir), 0x01);
  EXPECT_EQ(in(kLcr), 0);
  EXPECT_EQ(in(kMcr), 0);
  EXPECT_EQ(in(kLsr), 0x60);
  EXPECT_EQ(in(kMsr), 0xB0);
}

TEST_F(SerialTest, TransmitsInOrder) {
  for (const char c : std::string{"hello"}) out(kThr, static_cast<unsigned char>(c));
  EXPECT_EQ(sink.text, "hello");
  EXPECT_EQ(in(kLsr), 0x60);
}

TEST_F(SerialTest, DivisorLatchHidesDataAndIer) {
  out(kIer, 0x0F);
  out(kLcr, 0x83);
  out(0, 0x34);
  out(1, 0x12);
  EXPECT_EQ(in(0), 0x34);
  EXPECT_EQ(in(1), 0x12);
  EXPECT_EQ(sink.text, "");
  out(kLcr, 0x03);
  EXPECT_EQ(in(kIer), 0x0F);
}

/// What Linux's 8250 driver does to find out what it has (autoconfig in 8250_port.c).
TEST_F(SerialTest, LinuxAutoconfigFindsA16550A) {
  out(kIer, 0);
  EXPECT_EQ(in(kIer)&0x0F, 0);
  out(kIer, 0xFF);
  EXPECT_EQ(in(kIer), 0x0F) << "no XScale UUE bit";
  out(kIer, 0);
  out(kMcr, 0x10 | 0x0A);
  EXPECT_EQ(in(kMsr)&0xF0, 0x90);
  out(kMcr, 0);
  EXPECT_EQ(in(kIir) >> 6, 0);
  out(kFcr, 1);
  EXPECT_EQ(in(kIir) >> 6, 3);
  out(kScr, 0x5A);
  EXPECT_EQ(in(kScr), 0x5A);
}

TEST_F(SerialTest, LoopbackReturnsDataAndModemLines) {
  out(kMcr, 0x10);
  EXPECT_EQ(in(kMsr)&0xF0, 0);
  for (const auto& [mcr, msr] : {std::pair{1U, 0x20}, {2U, 0x10}, {4U, 0x40}, {8U, 0x80}}) {
    out(kMcr, 0x10 | mcr);
    EXPECT_EQ(in(kMsr)&0xF0, msr) << mcr;
  }
  out(kThr, 'x');
  EXPECT_EQ(sink.text, "") << "nothing leaves";
  EXPECT_EQ(in(kLsr)&1, 1);
  EXPECT_EQ(in(kRbr), 'x');
  EXPECT_EQ(in(kLsr)&1, 0);
}

TEST_F(SerialTest, LoopbackOverrunKeepsTheFifoAndSaysSo) {
  out(kFcr, 1);
  out(kMcr, 0x10);
  for (unsigned i = 0; i < 17; ++i) out(kThr, i);
  EXPECT_EQ(in(kLsr), 0x63);
  EXPECT_EQ(in(kLsr), 0x61) << "reading clears the error";
  for (unsigned i = 0; i < 16; ++i) EXPECT_EQ(in(kRbr), i);
  EXPECT_EQ(in(kLsr)&1, 0);
}

TEST_F(SerialTest, ModemDeltasAreClearedByReading) {
  out(kMcr, 0x10);
  (void)in(kMsr);
  out(kMcr, 0x10 | 4);
  EXPECT_EQ(in(kMsr), 0x40) << "RI going up is no delta";
  out(kMcr, 0x10 | 2);
  EXPECT_EQ(in(kMsr), 0x10 | 0x04 | 0x01) << "trailing edge of RI, change of CTS";
  EXPECT_EQ(in(kMsr), 0x10);
}

TEST_F(SerialTest, ThreInterruptArmsOnEnableAndOnEveryByte) {
  out(kMcr, 8);
  out(kIer, 2);
  EXPECT_TRUE(irq.level()) << "enabled while empty";
  EXPECT_EQ(in(kIir), 0x02);
  EXPECT_FALSE(irq.level()) << "reading IIR took it";
  EXPECT_EQ(in(kIir), 0x01);
  out(kIer, 2);
  EXPECT_FALSE(irq.level()) << "no change of the enable bit";
  out(kThr, 'a');
  EXPECT_TRUE(irq.level()) << "empty again";
  out(kIer, 0);
  EXPECT_FALSE(irq.level());
  (void)in(kIir);
  out(kIer, 2);
  EXPECT_TRUE(irq.level()) << "enabled anew";
}

TEST_F(SerialTest, IirReportsByPriorityAndKeepsThreForLater) {
  out(kMcr, 8);
  out(kFcr, 1);
  out(kIer, 0x0F);
  type("z");
  EXPECT_EQ(in(kIir)&0x0F, 0x04) << "data before THRE";
  EXPECT_EQ(in(kIir)&0x0F, 0x04) << "reading does not clear it";
  EXPECT_EQ(in(kRbr), 'z');
  EXPECT_EQ(in(kIir)&0x0F, 0x02) << "THRE was not lost";
  EXPECT_EQ(in(kIir)&0x0F, 0x01);
}

TEST_F(SerialTest, LineStatusComesFirstAndModemLast) {
  out(kMcr, 0x10);
  (void)in(kMsr);
  out(kIer, 0x0F);
  (void)in(kIir);
  out(kMcr, 0x12);
  EXPECT_EQ(in(kIir), 0x00) << "modem status";
  out(kThr, 1);
  out(kThr, 2);
  EXPECT_EQ(in(kIir), 0x06) << "overrun";
  (void)in(kLsr);
  EXPECT_EQ(in(kIir), 0x04);
  EXPECT_EQ(in(kRbr), 2) << "without FIFO the new byte replaces the old";
  EXPECT_EQ(in(kIir), 0x02);
  EXPECT_EQ(in(kIir), 0x00);
  (void)in(kMsr);
  EXPECT_EQ(in(kIir), 0x01);
}

TEST_F(SerialTest, TriggerLevelAndTimeout) {
  out(kMcr, 8);
  out(kFcr, 0x81);  // trigger at 8
  out(kIer, 1);
  type("1234567");
  EXPECT_EQ(in(kIir)&0x0F, 0x0C) << "under the trigger: character timeout";
  type("8");
  EXPECT_EQ(in(kIir)&0x0F, 0x04);
  EXPECT_TRUE(irq.level());
  for (int i = 0; i < 8; ++i) (void)in(kRbr);
  EXPECT_FALSE(irq.level());
}

TEST_F(SerialTest, Out2GatesTheInterruptLine) {
  out(kIer, 1);
  type("x");
  EXPECT_FALSE(irq.level());
  EXPECT_EQ(in(kIir), 0x04);
  out(kMcr, 8);
  EXPECT_TRUE(irq.level());
  out(kMcr, 0x18);
  EXPECT_FALSE(irq.level()) << "loopback takes OUT2 away";
}

TEST_F(SerialTest, InputQueueIsBoundedAndReportsRoom) {
  int room = 0;
  uart.on_room([&] { ++room; });
  const std::string much(Serial8250::kInputQueue + 100, 'q');
  EXPECT_EQ(type(much), Serial8250::kInputQueue);
  EXPECT_EQ(type("r"), 1U) << "one byte moved to the holding register";
  EXPECT_EQ(type("s"), 0U);
  EXPECT_EQ(room, 0);
  for (std::size_t i = 0; i < Serial8250::kInputQueue / 2 - 1; ++i) (void)in(kRbr);
  EXPECT_EQ(room, 0);
  (void)in(kRbr);
  EXPECT_EQ(room, 1);
  (void)in(kRbr);
  EXPECT_EQ(room, 1) << "once for a refusal";
}

TEST_F(SerialTest, ClearingTheFifoLeavesTypedAheadInput) {
  out(kFcr, 1);
  type(std::string(16, 'a') + "b");
  out(kFcr, 3);
  EXPECT_EQ(in(kRbr), 'b');
  EXPECT_EQ(in(kLsr)&1, 0);
}

TEST_F(SerialTest, LoopbackHoldsHostInputBack) {
  out(kMcr, 0x10);
  type("h");
  EXPECT_EQ(in(kLsr)&1, 0);
  out(kMcr, 0);
  EXPECT_EQ(in(kRbr), 'h');
}

TEST_F(SerialTest, AttachesToEightPorts) {
  Bus ports{16};
  ASSERT_TRUE(uart.attach(ports));
  ports.write(0x3FF, 1, 0x77);
  EXPECT_EQ(ports.read(0x3FF, 1), 0x77U);
  EXPECT_FALSE(ports.claims(0x400));
  EXPECT_FALSE(ports.claims(0x3F7));
}

}  // namespace
}  // namespace strata::devices
