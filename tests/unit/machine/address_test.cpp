#include "mmu/address.hpp"

#include <gtest/gtest.h>

#include <type_traits>
#include <unordered_set>

namespace strata {
namespace {

// Mixing two spaces must not compile.
static_assert(!std::is_convertible_v<VA, PA>);
static_assert(!std::is_convertible_v<PA, MA>);
static_assert(!std::is_constructible_v<PA, VA>);
static_assert(!std::is_assignable_v<PA&, MA>);
static_assert(!std::is_convertible_v<std::uint64_t, PA>);
static_assert(!std::is_convertible_v<PA, std::uint64_t>);
static_assert(!std::is_constructible_v<PPN, MPN>);
static_assert(!std::is_constructible_v<PPN, PA>);
static_assert(!std::is_invocable_v<std::equal_to<>, PA, MA>);
static_assert(!std::is_invocable_v<std::minus<>, PA, MA>);

TEST(Address, splits_into_page_and_offset) {
  constexpr PA pa{0x12345678};
  EXPECT_EQ(pa.page_offset(), 0x678U);
  EXPECT_EQ(pa.page_base(), PA{0x12345000});
  EXPECT_EQ(page_of(pa), PPN{0x12345});
  EXPECT_EQ(address_of(page_of(pa)), pa.page_base());
}

TEST(Address, arithmetic_counts_bytes_and_pages) {
  EXPECT_EQ(PA{0x1000} + 0x20, PA{0x1020});
  EXPECT_EQ(PA{0x3000} - PA{0x1000}, 0x2000U);
  EXPECT_EQ(PPN{5} + 3, PPN{8});
  EXPECT_LT(VA{1}, VA{2});
}

TEST(Address, range_contains_its_pages_only) {
  constexpr PpnRange range{PPN{10}, 3};
  EXPECT_FALSE(range.contains(PPN{9}));
  EXPECT_TRUE(range.contains(PPN{10}));
  EXPECT_TRUE(range.contains(PPN{12}));
  EXPECT_FALSE(range.contains(PPN{13}));
  EXPECT_FALSE((PpnRange{PPN{10}, 0}.contains(PPN{10})));
}

TEST(Address, hash_spreads_neighbours) {
  std::unordered_set<std::size_t> top;
  for (std::uint64_t i = 0; i < 256; ++i) top.insert(std::hash<PPN>{}(PPN{i}) >> 52);
  EXPECT_GT(top.size(), 200U);
}

}  // namespace
}  // namespace strata
