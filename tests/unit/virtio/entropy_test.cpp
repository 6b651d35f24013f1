#include "devices/virtio/entropy.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "small_driver.hpp"

namespace strata::devices::virtio::test {
namespace {

constexpr PA kQueue{0x1000}, kData{0x10000};
constexpr std::uint64_t kMemoryEnd = 8 << 20;

class EntropyTest : public testing::Test {
 protected:
  EntropyTest() { activate(); }
  void activate() {
    const std::array<Queue*, 1> queues{requests_.device_side()};
    device_.activate(transport_, 0, queues);
  }
  [[nodiscard]] std::string at(PA pa, std::size_t length) { return text_at(machine_, pa, length); }

  machine::test::TestMachine machine_{8};
  DriverQueue requests_{machine_, kQueue};
  RecordingTransport transport_;
  SeededRandomBytes random_;
  Entropy device_{random_};
};

TEST_F(EntropyTest, FillsBuffersAndNothingElse) {
  requests_.add({{kData, 64, true}});
  requests_.add({{kData + 0x1000, 3, true}, {kData + 0x2000, 5, true}});
  device_.notify(0);
  const auto used = requests_.take_used();
  ASSERT_EQ(used.size(), 2U);
  EXPECT_EQ(used[0].written, 64U);
  EXPECT_EQ(used[1].head, 1U);
  EXPECT_EQ(used[1].written, 8U);
  EXPECT_NE(at(kData, 64), std::string(64, '\0'));
  EXPECT_EQ(at(kData + 64, 16), std::string(16, '\0'));
  EXPECT_NE(at(kData + 0x1000, 3), std::string(3, '\0'));
  EXPECT_EQ(at(kData + 0x1003, 5), std::string(5, '\0'));
  EXPECT_NE(at(kData + 0x2000, 5), std::string(5, '\0'));
  EXPECT_EQ(transport_.interrupts[0], 1);
}

TEST_F(EntropyTest, GivesEachRequestOtherBytes) {
  requests_.add({{kData, 64, true}});
  requests_.add({{kData + 0x1000, 64, true}});
  device_.notify(0);
  EXPECT_NE(at(kData, 64), at(kData + 0x1000, 64));
}

TEST_F(EntropyTest, GivesALargeBufferABoundedPart) {
  requests_.add({{kData, 1 << 20, true}});
  device_.notify(0);
  const auto used = requests_.take_used();
  ASSERT_EQ(used.size(), 1U);
  EXPECT_EQ(used[0].written, Entropy::kMostBytes);
  EXPECT_EQ(at(kData + Entropy::kMostBytes, 64), std::string(64, '\0'));
}

TEST_F(EntropyTest, GivesNothingWhereThereIsNoMemoryOrNoRoom) {
  requests_.add({{PA{kMemoryEnd}, 64, true}});
  requests_.add({{kData, 64, false}});
  device_.notify(0);
  const auto used = requests_.take_used();
  ASSERT_EQ(used.size(), 2U);
  EXPECT_EQ(used[0].written, 0U);
  EXPECT_EQ(used[1].written, 0U);
  EXPECT_EQ(at(kData, 64), std::string(64, '\0'));
  EXPECT_EQ(transport_.failures, 0);
}

TEST_F(EntropyTest, ABrokenQueueIsLeftAlone) {
  requests_.make_available(DriverQueue::kSize);
  device_.notify(0);
  device_.notify(0);
  EXPECT_EQ(transport_.failures, 1);
  EXPECT_TRUE(requests_.take_used().empty());
}

TEST_F(EntropyTest, TouchesNothingAfterReset) {
  requests_.add({{kData, 64, true}});
  device_.reset();
  device_.notify(0);
  EXPECT_TRUE(requests_.take_used().empty());
  activate();
  device_.notify(0);
  EXPECT_EQ(requests_.take_used().size(), 1U);
}

TEST_F(EntropyTest, HasAnEmptyConfiguration) {
  std::array<std::byte, 4> bytes{std::byte{1}, std::byte{1}, std::byte{1}, std::byte{1}};
  device_.read_config(0, bytes);
  EXPECT_EQ(bytes, (std::array<std::byte, 4>{}));
  EXPECT_EQ(device_.features(), 0U);
}

TEST_F(EntropyTest, ASavedOneGoesOnWithTheSequence) {
  SeededRandomBytes random;
  Entropy other{random};
  requests_.add({{kData, 64, true}});
  device_.notify(0);
  ASSERT_TRUE(other.load(device_.save()));
  std::array<std::byte, 16> one{}, two{};
  random_.fill(one);
  random.fill(two);
  EXPECT_EQ(one, two);
  EXPECT_FALSE(other.load(nlohmann::json::object()));
  EXPECT_FALSE(other.load(nlohmann::json::array()));
}

}  // namespace
}  // namespace strata::devices::virtio::test
