#include "mmu/expected.hpp"

#include <gtest/gtest.h>

#include <memory>

namespace strata {
namespace {

enum class Why { small, large };

Expected<int, Why> half(int n) {
  if (n % 2 != 0) return Unexpected{Why::small};
  return n / 2;
}

TEST(Expected, holds_a_value_or_an_error) {
  const auto good = half(4);
  ASSERT_TRUE(good.has_value());
  EXPECT_EQ(*good, 2);
  const auto bad = half(3);
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error(), Why::small);
}

TEST(Expected, value_and_error_of_one_type_stay_apart) {
  const Expected<int, int> value{7};
  const Expected<int, int> error{Unexpected{7}};
  EXPECT_TRUE(value);
  EXPECT_FALSE(error);
}

TEST(Expected, moves_what_only_moves) {
  Expected<std::unique_ptr<int>, Why> owner{std::make_unique<int>(5)};
  const std::unique_ptr<int> taken = *std::move(owner);
  EXPECT_EQ(*taken, 5);
}

TEST(Expected, of_void) {
  const Expected<void, Why> good;
  const Expected<void, Why> bad{Unexpected{Why::large}};
  EXPECT_TRUE(good);
  EXPECT_EQ(bad.error(), Why::large);
}

}  // namespace
}  // namespace strata
