#include "devices/pci/pci_device.hpp"

#include <gtest/gtest.h>

#include "devices/device_state.hpp"
#include "devices/pci/shared_line.hpp"
#include "devices/virtio/block.hpp"
#include "memory_disk.hpp"
#include "pci_driver.hpp"

namespace strata::devices::virtio::test {
namespace {

constexpr std::uint64_t kBase = PciMachine::kBase;

class PciDeviceTest : public testing::Test {
 protected:
  static std::unique_ptr<Device> block() {
    return std::make_unique<Block>(std::make_unique<MemoryDisk>(1 << 20, DiskKind{}), "test");
  }
  PciMachine machine{block()};
  PciDriver driver{machine};
};

TEST_F(PciDeviceTest, SaysWhatItIs) {
  EXPECT_EQ(machine.config(0), 0x10421AF4U);
  EXPECT_EQ(machine.config(8), 0x01000001U);
  EXPECT_EQ(machine.config(0x2C), 0x10421AF4U);
  EXPECT_EQ(machine.config(0x3D, 1), 1U);
  machine.set_config(0, 0xFFFFFFFF);
  EXPECT_EQ(machine.config(0), 0x10421AF4U) << "read-only";
  machine.set_config(0x3C, 11, 1);
  EXPECT_EQ(machine.config(0x3C, 1), 11U);
}

TEST_F(PciDeviceTest, SizesOfBars) {
  machine.set_config(0x10, 0xFFFFFFFF);
  machine.set_config(0x14, 0xFFFFFFFF);
  machine.set_config(0x18, 0xFFFFFFFF);
  EXPECT_EQ(machine.config(0x10), 0xFFFFC000U);
  EXPECT_EQ(machine.config(0x14), 0xFFFFF000U);
  EXPECT_EQ(machine.config(0x18), 0U) << "there is none";
}

TEST_F(PciDeviceTest, BarsMoveAndGoWithMemoryEnable) {
  EXPECT_TRUE(machine.mmio.claims(kBase));
  machine.set_config(0x10, 0xE0000000);
  EXPECT_FALSE(machine.mmio.claims(kBase));
  EXPECT_TRUE(machine.mmio.claims(0xE0003FFF));
  machine.set_config(4, 0, 2);
  EXPECT_FALSE(machine.mmio.claims(0xE0000000));
  machine.set_config(4, 2, 2);
  EXPECT_TRUE(machine.mmio.claims(0xE0000000));
}

TEST_F(PciDeviceTest, ABarOnTopOfAnotherDeviceWaits) {
  class Other final : public devices::Device {
    std::string_view name() const noexcept override { return "other"; }
    std::uint64_t read(std::uint64_t, unsigned) override { return 0x5A; }
    void write(std::uint64_t, unsigned, std::uint64_t) override {}
  } other;
  ASSERT_TRUE(machine.mmio.add(0xFEC00000, 0x1000, other));
  machine.set_config(0x10, 0xFEC00000);
  EXPECT_EQ(machine.mmio.read(0xFEC00000, 1), 0x5AU);
  EXPECT_FALSE(machine.mmio.claims(kBase));
  machine.set_config(0x10, 0xFEC04000);
  EXPECT_TRUE(machine.mmio.claims(0xFEC04000));
  machine.set_config(0x14, 0xFEC04000);  // its own other BAR
  EXPECT_EQ(machine.mmio.read(0xFEC04000 + 0x12, 2), 1U) << "the registers are still there";
}

TEST_F(PciDeviceTest, MessagesPendWhileMasked) {
  driver.set_message(0, 0x51);
  driver.start(kVersion1, PA{0x1000});
  driver.enable_msix(true);
  DriverQueue queue{machine.memory, PA{0x1000}};
  const auto request = [&] {
    machine.memory.store<std::uint32_t>(PA{0x8000}, 4);  // flush
    queue.add({{PA{0x8000}, 16, false}, {PA{0x8100}, 1, true}});
    driver.notify(0);
  };
  request();
  const std::uint64_t pending = driver.msix_entry(0) + 0x800;
  EXPECT_EQ(machine.mmio.read(pending, 4), 1U);
  EXPECT_EQ(machine.take_interrupt(), std::nullopt);
  driver.enable_msix();
  EXPECT_EQ(machine.take_interrupt(), 0x51);
  EXPECT_EQ(machine.mmio.read(pending, 8), 0U);

  machine.mmio.write(driver.msix_entry(0) + 12, 4, 0xFFFFFFFF);
  EXPECT_EQ(machine.mmio.read(driver.msix_entry(0) + 12, 4), 1U);
  request();
  machine.mmio.write(pending, 4, 0);  // read-only
  EXPECT_EQ(machine.take_interrupt(), std::nullopt);
  machine.mmio.write(driver.msix_entry(0) + 8, 8, 0x52);  // data, and the mask off
  EXPECT_EQ(machine.take_interrupt(), 0x52);
  EXPECT_EQ(machine.take_interrupt(), std::nullopt) << "once";
  EXPECT_FALSE(machine.intx.level);
}

TEST_F(PciDeviceTest, MessagesElsewhereGoNowhere) {
  driver.set_message(0, 0x51);
  machine.mmio.write(driver.msix_entry(0), 4, 0x1000);
  machine.mmio.write(driver.msix_entry(0) + 1, 1, 0xFF);  // not a word: nothing
  EXPECT_EQ(machine.mmio.read(driver.msix_entry(0), 4), 0x1000U);
  pci::Msix msix{"m", machine.apics, 2};
  msix.signal(0);
  msix.control(true, false);
  msix.signal(7);
  EXPECT_EQ(machine.take_interrupt(), std::nullopt);
  machine.mmio.write(driver.msix_entry(40), 4, 0xFFFFFFFF);  // beyond the table
  EXPECT_EQ(machine.mmio.read(driver.msix_entry(40), 4), 0U);
}

TEST_F(PciDeviceTest, SharedLinesAreHighWhileOneIs) {
  Line out;
  pci::SharedLine line{out};
  IrqLine& a = line.connect();
  IrqLine& b = line.connect();
  a.set(true);
  b.set(true);
  a.set(true);
  a.set(false);
  EXPECT_TRUE(out.level);
  b.set(false);
  EXPECT_FALSE(out.level);
}

TEST_F(PciDeviceTest, LoadsWhatADriverWroteAndNothingElse) {
  driver.set_message(1, 0x61);
  machine.set_config(0x10, 0xE0000000);
  machine.set_config(0x3C, 9, 1);
  nlohmann::json state = machine.function->save();
  state["pci"]["bytes"][0] = 0x12U;  // the vendor
  PciMachine other{block()};
  other.function->unmap();
  ASSERT_TRUE(other.function->load(state));
  EXPECT_EQ(other.config(0), 0x10421AF4U);
  EXPECT_EQ(other.config(0x3C, 1), 9U);
  EXPECT_TRUE(other.mmio.claims(0xE0000000));
  EXPECT_FALSE(other.mmio.claims(kBase));
  PciDriver second{other};
  EXPECT_EQ(other.mmio.read(second.msix_entry(1) + 8, 4), 0x61U);
  state["pci"]["bytes"].erase(0);
  EXPECT_FALSE(other.function->load(state));
}

}  // namespace
}  // namespace strata::devices::virtio::test
