#include "devices/test_device.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "support.hpp"

namespace strata::devices {
namespace {

class TestDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(device.attach(ports, mmio));
    ASSERT_TRUE(ioapic.attach(mmio));
  }
  /// An IOAPIC's input can not be read; what the PIC latched can.
  bool pic_requests(unsigned irq) {
    ports.write(irq < 8 ? 0x20 : 0xA0, 1, 0x0A);  // OCW3: read IRR
    return (ports.read(irq < 8 ? 0x20 : 0xA0, 1) >> (irq & 7) & 1) != 0;
  }

  Bus ports{16};
  Bus mmio{64};
  testing::Line intr;
  ApicBus apic_bus;
  Pic8259 pic{intr};
  IoApic ioapic{apic_bus, 0};
  IrqRouter irqs{pic, ioapic};
  std::vector<std::uint64_t> flushed;
  TestDevice device{irqs, [this](PA pa) { flushed.push_back(pa.value()); }};
};

TEST_F(TestDeviceTest, StorageTakesEveryWidth) {
  ports.write(0xE0, 4, 0x11223344);
  EXPECT_EQ(ports.read(0xE0, 4), 0x11223344U);
  EXPECT_EQ(ports.read(0xE2, 2), 0x1122U);
  ports.write(0xE1, 1, 0xAA);
  EXPECT_EQ(ports.read(0xE0, 4), 0x1122AA44U);
  EXPECT_EQ(ports.read(0xE9, 1), 0xAAU) << "the byte window is the same storage";
}

TEST_F(TestDeviceTest, LinesDriveTheControllers) {
  ASSERT_TRUE(pic.attach(ports));
  for (const std::uint64_t base : {0x20U, 0xA0U}) {  // ICW1 to ICW4: edge, cascade, 8086
    ports.write(base, 1, 0x11);
    ports.write(base + 1U, 1, 0x20);
    ports.write(base + 1U, 1, base == 0x20U ? 4 : 2);
    ports.write(base + 1U, 1, 1);
  }
  EXPECT_FALSE(pic_requests(14));
  ports.write(0x200E, 1, 1);
  EXPECT_TRUE(pic_requests(14));
  ports.write(0x200E, 1, 0);
  EXPECT_FALSE(pic_requests(14));
}

TEST_F(TestDeviceTest, FlushNamesAPage) {
  ports.write(0xE4, 4, 0x12345678);
  ports.write(0xE4, 1, 0x99);
  EXPECT_EQ(flushed, std::vector<std::uint64_t>{0x12345678});
}

TEST_F(TestDeviceTest, MemoryIsMemory) {
  mmio.write(0xFF00FFF8, 8, 0x1122334455667788);
  EXPECT_EQ(mmio.read(0xFF00FFF8, 8), 0x1122334455667788U);
  EXPECT_EQ(mmio.read(0xFF00FFFC, 4), 0x11223344U);
  EXPECT_FALSE(mmio.claims(0xFF010000));
}

}  // namespace
}  // namespace strata::devices
