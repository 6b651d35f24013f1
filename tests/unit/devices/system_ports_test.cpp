#include "devices/system_ports.hpp"

#include <gtest/gtest.h>

#include "support.hpp"

namespace strata::devices {
namespace {

class SystemPortsTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(system.attach(ports)); }
  std::uint64_t in(std::uint64_t port) { return ports.read(port, 1); }
  Bus ports{16};
  testing::Control control;
  SystemPorts system{{.keyboard_controller = true, .debug_exit_port = std::uint16_t{0xF4}},
                     control};
};

TEST_F(SystemPortsTest, KeyboardControllerEndsLinuxProbing) {
  // i8042_flush(): gives up after 16 reads with the output buffer still full.
  unsigned count = 0;
  while ((in(0x64) & 1) != 0 && count < 17) {
    (void)in(0x60);
    ++count;
  }
  EXPECT_EQ(count, 17U);
  EXPECT_EQ(in(0x64) & 2, 0U) << "kb_wait() of the reboot code does not wait";
}

TEST_F(SystemPortsTest, KeyboardPulseResets) {
  ports.write(0x64, 1, 0xAA);
  ports.write(0x60, 1, 0xFE);
  EXPECT_EQ(control.resets, 0);
  ports.write(0x64, 1, 0xFE);
  EXPECT_EQ(control.resets, 1);
}

TEST_F(SystemPortsTest, Port92KeepsA20AndResets) {
  ports.write(0x92, 1, 0);
  EXPECT_EQ(in(0x92), 2U);
  EXPECT_EQ(control.resets, 0);
  ports.write(0x92, 1, 3);
  EXPECT_EQ(control.resets, 1);
}

TEST_F(SystemPortsTest, PostCodesAreKept) {
  ports.write(0x80, 1, 0xA5);
  EXPECT_EQ(system.post_code(), 0xA5);
}

TEST_F(SystemPortsTest, DebugExitTakesAnyWidth) {
  ports.write(0xF4, 1, 0x12);
  EXPECT_EQ(control.exit_value, 0x12);
  ports.write(0xF4, 4, 0x12345);
  EXPECT_EQ(control.exit_value, 0x12345);
  ports.write(0xF5, 1, 7);
  EXPECT_EQ(control.exit_value, 0x12345) << "only the first port";
}

TEST_F(SystemPortsTest, WithoutThemThePortsAreNobodys) {
  Bus other{16};
  SystemPorts bare{{.keyboard_controller = false, .debug_exit_port = std::nullopt}, control};
  ASSERT_TRUE(bare.attach(other));
  EXPECT_FALSE(other.claims(0xF4));
  EXPECT_FALSE(other.claims(0x64));
  EXPECT_TRUE(other.claims(0x92));
}

}  // namespace
}  // namespace strata::devices
