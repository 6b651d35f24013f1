#include "devices/pci_host.hpp"

#include <gtest/gtest.h>

#include "support.hpp"

namespace strata::devices {
namespace {

class Probe final : public PciFunction {
 public:
  std::uint32_t read_config(unsigned offset, unsigned size) override {
    last_offset = offset;
    last_size = size;
    return 0x44332211;
  }
  void write_config(unsigned offset, unsigned size, std::uint32_t value) override {
    last_offset = offset;
    last_size = size;
    last_value = value;
  }
  unsigned last_offset = 0, last_size = 0;
  std::uint32_t last_value = 0;
};

class PciHostTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(host.attach(ports)); }
  std::uint32_t config(unsigned bus, unsigned device, unsigned function, unsigned offset) {
    ports.write(0xCF8, 4, 1U << 31 | bus << 16 | device << 11 | function << 8 | offset);
    return static_cast<std::uint32_t>(ports.read(0xCFC, 4));
  }
  Bus ports{16};
  testing::Control control;
  PciHost host{control};
};

TEST_F(PciHostTest, MechanismOneIsThereWithoutDevices) {
  ports.write(0xCF8, 4, 0x80000000);  // Linux's pci_check_type1()
  EXPECT_EQ(ports.read(0xCF8, 4), 0x80000000U);
  for (unsigned device = 0; device < 32; ++device) {
    EXPECT_EQ(config(0, device, 0, 0), 0xFFFFFFFFU);
  }
  ports.write(0xCF8, 4, 0xFFFFFFFF);
  EXPECT_EQ(ports.read(0xCF8, 4), 0x80FFFFFCU) << "reserved bits read 0";
}

TEST_F(PciHostTest, HostBridge) {
  PciHostBridge bridge;
  ASSERT_TRUE(host.add(0, bridge));
  EXPECT_EQ(config(0, 0, 0, 0) & 0xFFFF, 0x8086U);
  EXPECT_EQ(config(0, 0, 0, 8) >> 16, 0x0600U);
  EXPECT_EQ(ports.read(0xCFE, 2), 0x0600U);
  EXPECT_EQ(config(0, 0, 0, 0x0C), 0U) << "single function, no BARs";
  EXPECT_EQ(config(0, 0, 1, 0), 0xFFFFFFFFU);
  EXPECT_EQ(config(1, 0, 0, 0), 0xFFFFFFFFU);
}

TEST_F(PciHostTest, PassesOffsetsAndSizes) {
  Probe probe;
  ASSERT_TRUE(host.add(3, probe));
  EXPECT_FALSE(host.add(3, probe)) << "taken";
  EXPECT_FALSE(host.add(32, probe));
  (void)config(0, 3, 0, 0x40);
  EXPECT_EQ(ports.read(0xCFE, 1), 0x11U);
  EXPECT_EQ(probe.last_offset, 0x42U);
  ports.write(0xCFE, 2, 0xABCD);
  EXPECT_EQ(probe.last_offset, 0x42U);
  EXPECT_EQ(probe.last_size, 2U);
  EXPECT_EQ(probe.last_value, 0xABCDU);
  ports.write(0xCF8, 4, 3U << 11);  // not enabled
  ports.write(0xCFC, 4, 1);
  EXPECT_EQ(probe.last_value, 0xABCDU);
  EXPECT_EQ(ports.read(0xCFC, 4), 0xFFFFFFFFU);
}

TEST_F(PciHostTest, ResetControlIsAByteInTheMiddle) {
  ports.write(0xCF8, 4, 0x80000600);
  EXPECT_EQ(control.resets, 0) << "a double word is the address register";
  ports.write(0xCF9, 1, 0x02);
  EXPECT_EQ(ports.read(0xCF9, 1), 2U);
  EXPECT_EQ(control.resets, 0);
  ports.write(0xCF9, 1, 0x06);
  EXPECT_EQ(control.resets, 1);
  ports.write(0xCF8, 1, 0x06);
  EXPECT_EQ(control.resets, 1);
  EXPECT_EQ(ports.read(0xCF8, 4), 0x80000600U);
}

}  // namespace
}  // namespace strata::devices
