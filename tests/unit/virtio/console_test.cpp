#include "devices/virtio/console.hpp"

#include <gtest/gtest.h>

#include <thread>
#include <tuple>
#include <utility>

#include "small_driver.hpp"

namespace strata::devices::virtio::test {
namespace {

constexpr PA kReceiveQueue{0x1000}, kTransmitQueue{0x2000}, kData{0x10000};
constexpr std::uint64_t kMemoryEnd = 8 << 20;

class TextSink final : public CharSink {
 public:
  void put(std::span<const std::uint8_t> bytes) override {
    text.append(bytes.begin(), bytes.end());
  }
  [[nodiscard]] TerminalSize size() const noexcept override { return {.columns = 132, .rows = 43}; }
  std::string text;
};

class ConsoleTest : public testing::Test {
 protected:
  ConsoleTest() { activate(); }
  void activate() {
    const std::array<Queue*, 2> queues{receive_.device_side(), transmit_.device_side()};
    device_.activate(transport_, 1, queues);
  }
  std::size_t type(std::string_view text) {
    return device_.receive({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
  }
  [[nodiscard]] std::string at(PA pa, std::size_t length) { return text_at(machine_, pa, length); }

  machine::test::TestMachine machine_{8};
  DriverQueue receive_{machine_, kReceiveQueue};
  DriverQueue transmit_{machine_, kTransmitQueue};
  RecordingTransport transport_;
  TextSink sink_;
  Console device_{sink_};
};

TEST_F(ConsoleTest, PutsOutWhatIsSentInOrder) {
  put_text(machine_, kData, "Hello, ");
  put_text(machine_, kData + 0x3000, "world");
  transmit_.add({{kData, 7, false}});
  transmit_.add({{kData + 0x3000, 3, false}, {kData + 0x3003, 2, false}});
  device_.notify(Console::kTransmit);
  EXPECT_EQ(sink_.text, "Hello, world");
  const auto used = transmit_.take_used();
  ASSERT_EQ(used.size(), 2U);
  EXPECT_EQ(used[1].head, 1U);
  EXPECT_EQ(used[1].written, 0U);
  EXPECT_EQ(transport_.interrupts[Console::kTransmit], 1);
  EXPECT_EQ(transport_.interrupts[Console::kReceive], 0);
}

TEST_F(ConsoleTest, PutsOutABoundedPartOfHugeRequests) {
  std::vector<Buffer> buffers(8, {kData, 4 << 20, false});
  transmit_.add(buffers);
  device_.notify(Console::kTransmit);
  EXPECT_EQ(sink_.text.size(), Console::kMostOutput);
  EXPECT_EQ(transmit_.take_used().size(), 1U);
}

TEST_F(ConsoleTest, PutsOutNothingThatIsNoMemory) {
  transmit_.add({{PA{kMemoryEnd}, 5, false}});
  transmit_.add({{kData, 5, true}});
  device_.notify(Console::kTransmit);
  EXPECT_EQ(sink_.text, "");
  EXPECT_EQ(transmit_.take_used().size(), 2U);
  EXPECT_EQ(transport_.failures, 0);
}

TEST_F(ConsoleTest, GivesInputToBuffersThatWait) {
  receive_.add({{kData, 4, true}});
  receive_.add({{kData + 0x1000, 2, true}, {kData + 0x2000, 10, true}});
  device_.notify(Console::kReceive);
  EXPECT_TRUE(receive_.take_used().empty());
  EXPECT_EQ(type("abcdefgh"), 8U);
  const auto used = receive_.take_used();
  ASSERT_EQ(used.size(), 2U);
  EXPECT_EQ(used[0].written, 4U);
  EXPECT_EQ(used[1].written, 4U);
  EXPECT_EQ(at(kData, 4), "abcd");
  EXPECT_EQ(at(kData + 0x1000, 2), "ef");
  EXPECT_EQ(at(kData + 0x2000, 3), std::string("gh\0", 3));
  EXPECT_EQ(transport_.interrupts[Console::kReceive], 1);
}

TEST_F(ConsoleTest, KeepsInputUntilThereAreBuffers) {
  EXPECT_EQ(type("abc"), 3U);
  receive_.add({{kData, 64, true}});
  device_.notify(Console::kReceive);
  EXPECT_EQ(at(kData, 4), std::string("abc\0", 4));
  EXPECT_EQ(receive_.take_used().size(), 1U);
}

TEST_F(ConsoleTest, SaysWhenThereIsRoomAgain) {
  int rooms = 0;
  device_.on_room([&] { ++rooms; });
  const std::string much(Console::kInputQueue + 100, 'x');
  EXPECT_EQ(type(much), Console::kInputQueue);
  EXPECT_EQ(type("y"), 0U);
  receive_.add({{kData, 100, true}});
  device_.notify(Console::kReceive);
  EXPECT_EQ(rooms, 0);
  receive_.add({{kData, 3000, true}});
  device_.notify(Console::kReceive);
  EXPECT_EQ(rooms, 1);
  receive_.add({{kData, 100, true}});
  device_.notify(Console::kReceive);
  EXPECT_EQ(rooms, 1);
}

TEST_F(ConsoleTest, BuffersThatWaitMakeRoomAtOnce) {
  for (unsigned i = 0; i < 3; ++i) receive_.add({{kData + 0x2000 * i, 4000, true}});
  const std::string much(Console::kInputQueue + 1000, 'x');
  EXPECT_EQ(type(much), much.size());
}

TEST_F(ConsoleTest, InputWithoutADriverWaitsForIt) {
  device_.reset();
  EXPECT_EQ(type("abc"), 3U);
  activate();
  receive_.add({{kData, 64, true}});
  device_.notify(Console::kReceive);
  EXPECT_EQ(at(kData, 3), "abc");
}

TEST_F(ConsoleTest, BrokenQueuesAreLeftAlone) {
  receive_.make_available(DriverQueue::kSize);
  EXPECT_EQ(type("abc"), 3U);
  EXPECT_EQ(type("def"), 3U);
  device_.notify(Console::kTransmit);
  EXPECT_EQ(transport_.failures, 1);
}

TEST_F(ConsoleTest, BuffersWithoutRoomOrMemoryLoseOnlyWhatTheyWereGiven) {
  receive_.add({{kData, 4, false}});
  receive_.add({{PA{kMemoryEnd}, 2, true}});
  receive_.add({{kData + 0x1000, 10, true}});
  EXPECT_EQ(type("abcdef"), 6U);
  const auto used = receive_.take_used();
  ASSERT_EQ(used.size(), 3U);
  EXPECT_EQ(used[0].written, 0U);
  EXPECT_EQ(used[1].written, 0U);
  EXPECT_EQ(used[2].written, 4U);
  EXPECT_EQ(at(kData + 0x1000, 4), "cdef");
}

TEST_F(ConsoleTest, TouchesNothingWhileTheVmIsSaved) {
  receive_.add({{kData, 64, true}});
  device_.quiesce();
  EXPECT_EQ(type("abc"), 3U);
  EXPECT_TRUE(receive_.take_used().empty());
  TextSink sink;
  Console other{sink};
  ASSERT_TRUE(other.load(device_.save()));
  device_.resume();
  EXPECT_EQ(receive_.take_used().size(), 1U);

  device_.reset();
  const std::array<Queue*, 2> queues{receive_.device_side(), transmit_.device_side()};
  other.activate(transport_, 0, queues);
  receive_.add({{kData + 0x1000, 64, true}});
  other.notify(Console::kReceive);
  EXPECT_EQ(at(kData + 0x1000, 3), "abc");
}

TEST_F(ConsoleTest, RefusesHostileState) {
  EXPECT_FALSE(device_.load(nlohmann::json::object()));
  EXPECT_FALSE(device_.load({{"input", "text"}}));
  EXPECT_FALSE(device_.load(
      {{"input", nlohmann::json::binary(std::vector<std::uint8_t>(Console::kInputQueue + 1))}}));
}

TEST_F(ConsoleTest, OffersTheSizeOfItsTerminal) {
  EXPECT_EQ(device_.features(), 1U);
  std::array<std::byte, 8> bytes{};
  bytes.fill(std::byte{1});
  device_.read_config(0, bytes);
  EXPECT_EQ(bytes[0], std::byte{132});
  EXPECT_EQ(bytes[2], std::byte{43});
  EXPECT_EQ(bytes[4], std::byte{0});
  std::array<std::byte, 2> one{};
  device_.read_config(2, one);
  EXPECT_EQ(one[0], std::byte{43});
  device_.read_config(~0U, one);
  EXPECT_EQ(one[0], std::byte{0});
}

TEST_F(ConsoleTest, TakesInputWhileTheDriverWorks) {
  std::thread typist{[&] {
    for (int i = 0; i < 500; ++i) std::ignore = type("x");
  }};
  put_text(machine_, kData, "o");
  std::size_t got = 0;
  bool waiting = false;
  const auto take = [&] {
    for (const Used& used : receive_.take_used()) {
      got += used.written;
      waiting = false;
    }
  };
  for (int i = 0; i < 300; ++i) {
    transmit_.add({{kData, 1, false}});
    device_.notify(Console::kTransmit);
    if (!std::exchange(waiting, true)) receive_.add({{kData + 0x1000, 1, true}});
    device_.notify(Console::kReceive);
    take();
  }
  typist.join();
  while (got < 500) {
    if (!std::exchange(waiting, true)) receive_.add({{kData + 0x1000, 16, true}});
    device_.notify(Console::kReceive);
    take();
  }
  EXPECT_EQ(sink_.text, std::string(300, 'o'));
  EXPECT_EQ(got, 500U);
  EXPECT_EQ(transport_.failures, 0);
}

}  // namespace
}  // namespace strata::devices::virtio::test
