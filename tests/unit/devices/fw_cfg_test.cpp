#include "devices/fw_cfg.hpp"

#include <gtest/gtest.h>

namespace strata::devices {
namespace {

class FwCfgTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(fw_cfg.attach(ports)); }
  std::uint64_t item(std::uint16_t key, unsigned bytes) {
    ports.write(0x510, 2, key);
    std::uint64_t value = 0;
    for (unsigned i = 0; i < bytes; ++i) value |= ports.read(0x511, 1) << (8 * i);
    return value;
  }
  Bus ports{16};
  FwCfg fw_cfg{{.cpus = 3, .ram_bytes = 0x1'2345'6000}};
};

TEST_F(FwCfgTest, SaysWhatTheMachineIs) {
  EXPECT_EQ(item(0x00, 4), 0x554D4551U);
  EXPECT_EQ(item(0x01, 4), 1U);
  EXPECT_EQ(item(0x03, 8), 0x1'2345'6000U);
  EXPECT_EQ(item(0x05, 2), 3U);
  EXPECT_EQ(item(0x0F, 2), 3U);
}

TEST_F(FwCfgTest, SelectingRewinds) {
  EXPECT_EQ(item(0x00, 2), 0x4551U);
  EXPECT_EQ(ports.read(0x511, 1), 0x4DU) << "goes on after two bytes";
  EXPECT_EQ(item(0x00, 1), 0x51U);
}

TEST_F(FwCfgTest, EndsAndUnknownItemsReadZero) {
  EXPECT_EQ(item(0x05, 8), 3U);
  EXPECT_EQ(item(0x4321, 4), 0U);
}

TEST_F(FwCfgTest, OnlyTheRegistersOwnWidthsCount) {
  ports.write(0x510, 2, 0x05);
  ports.write(0x510, 1, 0x03);
  ports.write(0x511, 1, 0x77);
  EXPECT_EQ(ports.read(0x511, 1), 3U);
}

}  // namespace
}  // namespace strata::devices
