#include "devices/random_bytes.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

namespace strata::devices::test {
namespace {

using Block = std::array<std::byte, 61>;

template <class Source>
Block draw(Source& source) {
  Block block{};
  source.fill(block);
  return block;
}

TEST(RandomBytesTest, TheHostsDiffer) {
  HostRandomBytes source;
  EXPECT_NE(draw(source), draw(source));
  EXPECT_EQ(source.save(), nullptr);
}

TEST(RandomBytesTest, SeededOnesRepeatInAnotherRun) {
  SeededRandomBytes one, other;
  const Block first = draw(one);
  EXPECT_EQ(draw(other), first);
  EXPECT_NE(draw(one), first);
  EXPECT_NE(std::count(first.begin(), first.end(), std::byte{0}), 61);
}

TEST(RandomBytesTest, ASavedSequenceGoesOn) {
  SeededRandomBytes one, other;
  (void)draw(one);
  ASSERT_TRUE(other.load(one.save()));
  EXPECT_EQ(draw(other), draw(one));
  EXPECT_FALSE(other.load(nlohmann::json::object()));
  EXPECT_FALSE(other.load({{"draws", "many"}}));
}

}  // namespace
}  // namespace strata::devices::test
