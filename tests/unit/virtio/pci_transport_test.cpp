#include "devices/virtio/pci_transport.hpp"

#include <gtest/gtest.h>

#include "pci_driver.hpp"

namespace strata::devices::virtio::test {
namespace {

/// Two queues, and a note of everything that the transport does.
class Probe final : public Device {
 public:
  [[nodiscard]] std::string_view name() const noexcept override { return "probe"; }
  [[nodiscard]] DeviceType type() const noexcept override { return DeviceType::entropy; }
  [[nodiscard]] std::uint64_t features() const noexcept override { return 0x5; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const noexcept override {
    return sizes;
  }
  void read_config(unsigned offset, std::span<std::byte> out) override {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>(offset + i);
  }
  void write_config(unsigned offset, std::span<const std::byte> in) override {
    written = {offset, static_cast<unsigned>(in.size())};
  }
  void activate(Transport& t, std::uint64_t f, std::span<Queue* const> q) override {
    transport = &t;
    negotiated = f;
    queues.assign(q.begin(), q.end());
  }
  void notify(unsigned index) override { notified.push_back(index); }
  void reset() override {
    ++resets;
    queues.clear();
  }
  void quiesce() override {}

  static constexpr std::array<std::uint16_t, 2> sizes{8, 16};
  Transport* transport = nullptr;
  std::uint64_t negotiated = 0;
  std::vector<Queue*> queues;
  std::vector<unsigned> notified;
  std::pair<unsigned, unsigned> written{};
  int resets = 0;
};

constexpr PA kQueue{0x1000}, kSecond{0x2000};

class PciTransportTest : public testing::Test {
 protected:
  Probe* probe = new Probe;  // the machine's
  PciMachine machine{std::unique_ptr<Device>{probe}};
  PciDriver driver{machine};
};

TEST_F(PciTransportTest, OffersFeaturesInHalves) {
  EXPECT_EQ(driver.offered(), 0x5ULL | kRingIndirectDesc | kRingEventIdx | kVersion1);
  driver.write(0, 4, 2);
  EXPECT_EQ(driver.read(4, 4), 0U);
  EXPECT_EQ(driver.read(0x12, 2), 2U) << "queues";
}

TEST_F(PciTransportTest, NegotiatesOnlyWhatItOffers) {
  EXPECT_FALSE(driver.negotiate(0x1)) << "without VERSION_1";
  EXPECT_FALSE(driver.negotiate(kVersion1 | 0x2)) << "a feature that was not offered";
  driver.set_status(15);
  EXPECT_EQ(driver.status() & 4, 0) << "not without FEATURES_OK";
  EXPECT_EQ(probe->transport, nullptr);
  EXPECT_TRUE(driver.negotiate(kVersion1 | 0x4));
  driver.accept(kVersion1);
  driver.set_status(15);
  EXPECT_EQ(probe->negotiated, kVersion1 | 0x4) << "fixed once FEATURES_OK is set";
}

TEST_F(PciTransportTest, StatusBitsAreNotTakenBack) {
  ASSERT_TRUE(driver.negotiate(kVersion1));
  driver.set_status(1);
  EXPECT_EQ(driver.status(), 11);
  driver.set_status(0xFF);
  EXPECT_EQ(driver.status(), 0x8F) << "DEVICE_NEEDS_RESET is the device's";
}

TEST_F(PciTransportTest, QueuesAreWhereTheDriverPutThem) {
  ASSERT_TRUE(driver.negotiate(kVersion1));
  driver.write(0x16, 2, 1);
  EXPECT_EQ(driver.read(0x18, 2), 16U);
  EXPECT_EQ(driver.read(0x1E, 2), 1U);
  driver.enable_queue(1, kSecond);
  driver.write(0x20, 8, 0x9000);
  driver.write(0x18, 2, 2);
  EXPECT_EQ(driver.read(0x20, 4), kSecond.value()) << "fixed once enabled";
  EXPECT_EQ(driver.read(0x18, 2), 8U);
  driver.write(0x16, 2, 2);
  EXPECT_EQ(driver.read(0x18, 2), 0U) << "no such queue";
  driver.write(0x1C, 2, 1);
  driver.set_status(15);
  ASSERT_EQ(probe->queues.size(), 2U);
  EXPECT_EQ(probe->queues[0], nullptr);
  ASSERT_NE(probe->queues[1], nullptr);
  driver.notify(0);
  driver.notify(1);
  driver.notify(2);
  EXPECT_EQ(probe->notified, std::vector<unsigned>{1}) << "only of queues that are there";
}

TEST_F(PciTransportTest, NothingIsNotifiedBeforeDriverOk) {
  ASSERT_TRUE(driver.negotiate(kVersion1));
  driver.enable_queue(0, kQueue);
  driver.notify(0);
  EXPECT_TRUE(probe->notified.empty());
}

TEST_F(PciTransportTest, AQueueThatCanNotBeNeedsAReset) {
  ASSERT_TRUE(driver.negotiate(kVersion1));
  driver.enable_queue(0, PA{0x1001});
  EXPECT_EQ(driver.status() & 0x40, 0x40);
  EXPECT_EQ(driver.read(0x1C, 2), 0U);
  driver.set_status(0);
  EXPECT_EQ(driver.status(), 0);
  driver.start(kVersion1, kQueue);
  probe->transport->failed();
  EXPECT_EQ(driver.status(), 0x4F);
  EXPECT_EQ(driver.isr(), 2U) << "a change of the configuration";
  driver.notify(0);
  EXPECT_TRUE(probe->notified.empty());
}

TEST_F(PciTransportTest, ResetForgetsEverything) {
  driver.start(kVersion1, kQueue);
  driver.write(0x10, 2, 1);
  const int before = probe->resets;
  driver.set_status(0);
  EXPECT_EQ(probe->resets, before + 1);
  EXPECT_EQ(driver.read(0x10, 2), 0xFFFFU);
  driver.write(0x16, 2, 0);
  EXPECT_EQ(driver.read(0x1C, 2), 0U);
  EXPECT_EQ(driver.read(0x20, 8), 0U);
  driver.notify(0);
  EXPECT_TRUE(probe->notified.empty());
}

TEST_F(PciTransportTest, IntxFollowsIsr) {
  driver.start(kVersion1, kQueue);
  probe->transport->used(0);
  EXPECT_TRUE(machine.intx.level);
  EXPECT_EQ(machine.config(6, 1) & 8, 8U);
  machine.set_config(4, 0x402, 2);
  EXPECT_FALSE(machine.intx.level) << "disabled by the command register";
  machine.set_config(4, 2, 2);
  EXPECT_TRUE(machine.intx.level);
  probe->transport->config_changed();
  EXPECT_EQ(driver.isr(), 3U);
  EXPECT_FALSE(machine.intx.level);
  EXPECT_EQ(driver.isr(), 0U);
  EXPECT_EQ(driver.read(0x15, 1), 1U) << "generation";
}

TEST_F(PciTransportTest, VectorsOfQueuesAndConfiguration) {
  driver.set_message(0, 0x50);
  driver.set_message(2, 0x52);
  driver.enable_msix();
  driver.start(kVersion1, kQueue);
  driver.write(0x10, 2, 2);
  probe->transport->used(0);
  EXPECT_EQ(machine.take_interrupt(), 0x50);
  probe->transport->config_changed();
  EXPECT_EQ(machine.take_interrupt(), 0x52);
  EXPECT_FALSE(machine.intx.level);
  driver.write(0x10, 2, 3);
  EXPECT_EQ(driver.read(0x10, 2), 0xFFFFU) << "no such vector";
  driver.write(0x1A, 2, 0xFFFF);
  probe->transport->used(0);
  EXPECT_EQ(machine.take_interrupt(), std::nullopt);
}

TEST_F(PciTransportTest, DeviceConfiguration) {
  EXPECT_EQ(driver.device_config(4, 4), 0x07060504U);
  EXPECT_EQ(driver.device_config(0, 8), 0x0706050403020100U);
}

TEST_F(PciTransportTest, ConfigurationSpaceReachesTheRegistersToo) {
  const unsigned at = driver.access;
  ASSERT_NE(at, 0U);
  const auto aim = [&](std::uint32_t bar, std::uint32_t offset, std::uint32_t length) {
    machine.set_config(at + 4, bar, 1);
    machine.set_config(at + 8, offset);
    machine.set_config(at + 12, length);
  };
  aim(0, 0x12, 2);
  EXPECT_EQ(machine.config(at + 16, 2), 2U);
  aim(0, 0x14, 1);
  machine.set_config(at + 16, 1, 1);
  EXPECT_EQ(driver.status(), 1);
  for (const auto& [bar, offset, length] : {std::array<std::uint32_t, 3>{1, 0x14, 1},
                                            {0, 0x4000, 1},
                                            {0, 0x14, 3},
                                            {0, 0x13, 2},
                                            {0, 0xFFFFFFFF, 1},
                                            {0, 0x14, 0}}) {
    aim(bar, offset, length);
    EXPECT_EQ(machine.config(at + 16, 1), 0U);
    machine.set_config(at + 16, 3, 1);
  }
  EXPECT_EQ(driver.status(), 1);
}

TEST_F(PciTransportTest, LoadsAnActiveDevice) {
  driver.start(kVersion1 | 0x1, kQueue);
  DriverQueue queue{machine.memory, kQueue};
  queue.add({{PA{0x8000}, 16, false}});
  Chain chain;
  ASSERT_EQ(probe->queues[0]->pop(chain), Queue::Popped::chain);
  probe->queues[0]->push(chain.head(), 0);
  probe->transport->used(0);
  const nlohmann::json state = machine.function->save();

  auto* other_probe = new Probe;
  PciMachine other{std::unique_ptr<Device>{other_probe}};
  ASSERT_TRUE(other.function->load(state));
  EXPECT_EQ(other_probe->negotiated, kVersion1 | 0x1);
  EXPECT_EQ(other_probe->queues[0]->position().available, 1);
  EXPECT_EQ(other_probe->queues[0]->position().used, 1);
  EXPECT_TRUE(other.intx.level);
  PciDriver second{other};
  EXPECT_EQ(second.status(), 15);
  EXPECT_EQ(second.isr(), 1U);
}

TEST_F(PciTransportTest, RefusesStatesThatCanNotBe) {
  driver.start(kVersion1, kQueue);
  const nlohmann::json good = machine.function->save();
  const auto loads = [](const nlohmann::json& state) {
    PciMachine other{std::make_unique<Probe>()};
    return other.function->load(state).has_value();
  };
  EXPECT_TRUE(loads(good));
  const auto with = [&](const char* pointer, const nlohmann::json& value) {
    nlohmann::json state = good;
    state[nlohmann::json::json_pointer{pointer}] = value;
    return loads(state);
  };
  EXPECT_FALSE(with("/status", 0x4FU));
  EXPECT_FALSE(with("/status", 7U)) << "DRIVER_OK without FEATURES_OK";
  EXPECT_FALSE(with("/driver_features", 2U));
  EXPECT_FALSE(with("/type", 2U));
  EXPECT_FALSE(with("/isr", 4U));
  EXPECT_FALSE(with("/queues", nlohmann::json::array()));
  EXPECT_FALSE(with("/queues/0/registers/size", 3U));
  EXPECT_FALSE(with("/queues/0/registers/descriptors", 1U));
  EXPECT_FALSE(with("/vectors", nlohmann::json::array({1U})));
  EXPECT_FALSE(with("/pci", nullptr));
  nlohmann::json incomplete = good;
  incomplete.erase("device");
  EXPECT_FALSE(loads(incomplete));
}

}  // namespace
}  // namespace strata::devices::virtio::test
