#include "devices/virtio/net.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "small_driver.hpp"

namespace strata::devices::virtio::test {
namespace {

constexpr PA kReceiveQueue{0x1000}, kTransmitQueue{0x2000}, kData{0x10000};
constexpr std::uint64_t kMemoryEnd = 8 << 20;
constexpr std::size_t kHeader = 12;
constexpr network::MacAddress kMac{{0x52, 0x54, 0, 1, 2, 3}};

class TestLink final : public network::Link {
 public:
  void start(network::Receiver& receiver) override { receiver_ = &receiver; }
  void send(std::span<const iovec> frame) noexcept override {
    std::string text;
    for (const iovec& piece : frame) {
      text.append(static_cast<const char*>(piece.iov_base), piece.iov_len);
    }
    sent.push_back(text);
  }
  void resume() noexcept override { ++resumed; }
  bool deliver(std::string_view text) { return receiver_->receive(std::as_bytes(std::span{text})); }

  std::vector<std::string> sent;
  int resumed = 0;

 private:
  network::Receiver* receiver_ = nullptr;
};

class NetTest : public testing::Test {
 protected:
  NetTest() {
    device_.start();
    activate();
  }
  void activate() {
    const std::array<Queue*, 2> queues{receive_.device_side(), transmit_.device_side()};
    device_.activate(transport_, device_.features(), queues);
  }
  void put(std::string_view text) { put_text(machine_, kData, text); }
  static std::string message(std::size_t frame) {
    return std::string(kHeader, '\0') + std::string(frame, 'f');
  }

  machine::test::TestMachine machine_{8};
  DriverQueue receive_{machine_, kReceiveQueue};
  DriverQueue transmit_{machine_, kTransmitQueue};
  RecordingTransport transport_;
  TestLink* const link_ = new TestLink;
  Net device_{std::unique_ptr<network::Link>{link_}, kMac, false};
};

TEST_F(NetTest, SaysItsAddressAndThatTheLinkIsUp) {
  std::array<std::byte, 12> config{};
  device_.read_config(0, config);
  for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(std::to_integer<int>(config[i]), kMac.bytes[i]);
  EXPECT_EQ(config[6], std::byte{1});
  EXPECT_EQ(config[8], std::byte{0});
  EXPECT_EQ(device_.features(), 1U << 5 | 1U << 16);
}

TEST_F(NetTest, SendsFramesInPieces) {
  put(message(60));
  transmit_.add({{kData, kHeader, false}, {kData + kHeader, 40, false}, {kData + 52, 20, false}});
  transmit_.add({{kData, kHeader + 14, false}});
  device_.notify(Net::kTransmit);
  ASSERT_EQ(link_->sent.size(), 2U);
  EXPECT_EQ(link_->sent[0], std::string(60, 'f'));
  EXPECT_EQ(link_->sent[1], std::string(14, 'f'));
  EXPECT_EQ(transmit_.take_used().size(), 2U);
  EXPECT_EQ(transport_.interrupts[Net::kTransmit], 1);
}

TEST_F(NetTest, SendsNothingThatIsNoFrame) {
  put(message(2000));
  transmit_.add({{kData, 5, false}});
  transmit_.add({{kData, kHeader + 13, false}});
  transmit_.add({{kData, kHeader + network::kMaxFrameBytes + 1, false}});
  transmit_.add({{kData, 0xFFFF'0000, false}});
  transmit_.add({{PA{kMemoryEnd}, 100, false}});
  transmit_.add({{kData, 100, true}});
  device_.notify(Net::kTransmit);
  put(std::string(1, 1) + message(60));
  transmit_.add({{kData, 72, false}});  // NEEDS_CSUM
  device_.notify(Net::kTransmit);
  EXPECT_TRUE(link_->sent.empty());
  EXPECT_EQ(transmit_.take_used().size(), 7U);
  EXPECT_EQ(transport_.failures, 0);
}

TEST_F(NetTest, ReceivesIntoBuffers) {
  receive_.add({{kData, kHeader, true}, {kData + 0x1000, 1600, true}});
  EXPECT_TRUE(link_->deliver(std::string(100, 'r')));
  const auto used = receive_.take_used();
  ASSERT_EQ(used.size(), 1U);
  EXPECT_EQ(used[0].written, kHeader + 100);
  EXPECT_EQ(text_at(machine_, kData, kHeader), std::string(10, '\0') + std::string("\1\0", 2));
  EXPECT_EQ(text_at(machine_, kData + 0x1000, 101), std::string(100, 'r') + '\0');
  EXPECT_EQ(transport_.interrupts[Net::kReceive], 1);
}

TEST_F(NetTest, RefusesUntilThereAreBuffers) {
  EXPECT_FALSE(link_->deliver(std::string(100, 'r')));
  receive_.add({{kData, 1600, true}});
  device_.notify(Net::kReceive);
  EXPECT_EQ(link_->resumed, 1);
  EXPECT_TRUE(link_->deliver(std::string(100, 'r')));
  EXPECT_EQ(receive_.take_used().size(), 1U);
}

TEST_F(NetTest, FramesWithoutRoomOrMemoryAreLost) {
  receive_.add({{kData, kHeader + 99, true}});
  receive_.add({{PA{kMemoryEnd}, 1600, true}});
  receive_.add({{kData, 1600, false}});
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(link_->deliver(std::string(100, 'r')));
  const auto used = receive_.take_used();
  ASSERT_EQ(used.size(), 3U);
  for (const Used& one : used) EXPECT_EQ(one.written, 0U);
  EXPECT_EQ(text_at(machine_, kData, 1), std::string(1, '\0'));
}

TEST_F(NetTest, NothingReachesMemoryAfterReset) {
  receive_.add({{kData, 1600, true}});
  device_.reset();
  EXPECT_TRUE(link_->deliver(std::string(100, 'r')));
  EXPECT_TRUE(receive_.take_used().empty());
  EXPECT_EQ(link_->resumed, 1);
  activate();
  EXPECT_TRUE(link_->deliver(std::string(100, 'r')));
  EXPECT_EQ(receive_.take_used().size(), 1U);
}

TEST_F(NetTest, NothingArrivesWhileItIsQuiet) {
  receive_.add({{kData, 1600, true}});
  device_.quiesce();
  EXPECT_FALSE(link_->deliver(std::string(100, 'r')));
  EXPECT_TRUE(receive_.take_used().empty());
  device_.resume();
  EXPECT_EQ(link_->resumed, 1);
  EXPECT_TRUE(link_->deliver(std::string(100, 'r')));
}

TEST_F(NetTest, BrokenQueuesAreLeftAlone) {
  receive_.make_available(DriverQueue::kSize);
  EXPECT_TRUE(link_->deliver(std::string(100, 'r')));
  EXPECT_TRUE(link_->deliver(std::string(100, 'r')));
  EXPECT_EQ(transport_.failures, 1);
  transmit_.make_available(DriverQueue::kSize);
  device_.notify(Net::kTransmit);
  device_.notify(Net::kTransmit);
  EXPECT_EQ(transport_.failures, 2);
}

TEST_F(NetTest, DriversMayEnableNoQueue) {
  device_.reset();
  const std::array<Queue*, 2> none{};
  device_.activate(transport_, 0, none);
  EXPECT_TRUE(link_->deliver(std::string(100, 'r')));
  device_.notify(Net::kTransmit);
  device_.notify(Net::kReceive);
}

TEST_F(NetTest, TheAddressIsSavedUnlessOneWasGiven) {
  const nlohmann::json state = device_.save();
  const network::MacAddress other{{0x02, 9, 9, 9, 9, 9}};
  Net taken{std::make_unique<TestLink>(), other, false};
  ASSERT_TRUE(taken.load(state));
  EXPECT_EQ(taken.mac(), kMac);
  Net kept{std::make_unique<TestLink>(), other, true};
  ASSERT_TRUE(kept.load(state));
  EXPECT_EQ(kept.mac(), other);
  for (const char* text : {R"({})", R"({"mac":[1,2,3,4,5,6]})", R"({"mac":[0,0,0,0,0,0]})",
                           R"({"mac":[2,2,3,4,5]})", R"({"mac":"52:54:00:01:02:03"})"}) {
    EXPECT_FALSE(taken.load(nlohmann::json::parse(text))) << text;
    EXPECT_EQ(taken.mac(), kMac);
  }
}

TEST_F(NetTest, FramesArriveWhileTheDriverComesAndGoes) {
  std::atomic<bool> stop{false};
  std::thread arrivals{[&] {
    while (!stop) (void)link_->deliver(std::string(1500, 'r'));
  }};
  for (int i = 0; i < 2000; ++i) {
    receive_.add({{kData, 1600, true}});
    device_.reset();
    const auto used = receive_.take_used();
    EXPECT_TRUE(receive_.take_used().empty());
    activate();
  }
  stop = true;
  arrivals.join();
}

}  // namespace
}  // namespace strata::devices::virtio::test
