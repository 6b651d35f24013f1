// Bits of the formats that no table built by others shows: what entries can say, and what they must
// not.
#include "machine/formats.hpp"

#include <gtest/gtest.h>

#include <cstdint>

namespace strata::machine {
namespace {

/// Bits 20:13 of a 4 MiB entry are bits 39:32 of the address (SDM 3A table 4-4).
TEST(I386Formats, pse36_addresses_survive_the_way_into_an_entry_and_back) {
  for (unsigned bit = 22; bit < 40; ++bit) {
    const std::uint64_t address = 1ULL << bit;
    const std::uint32_t e = I386Format::make_leaf(address, Rights{}, 2);
    EXPECT_EQ(I386Format::page_address(e, 2), address) << bit;
    EXPECT_EQ(e >> (bit < 32 ? bit : bit - 19) & 1, 1U) << bit;
  }
  const std::uint32_t all = I386Format::make_leaf(~0ULL, Rights{}, 2);
  EXPECT_EQ(I386Format::page_address(all, 2), 0xFF'FFC0'0000U);
}

/// Bit 21 of a 4 MiB entry is reserved, whatever address the entry was made for.
TEST(I386Formats, an_address_beyond_40_bits_sets_no_reserved_bit) {
  WalkControls c;
  c.pse = true;
  c.maxphyaddr = 52;
  for (unsigned bit = 22; bit < 52; ++bit) {
    const std::uint32_t e = I386Format::make_leaf(1ULL << bit, Rights{}, 2);
    EXPECT_EQ(e & I386Format::reserved(e, 2, c), 0U) << bit;
  }
}

/// SDM 3A table 4-4: with M = min(40, MAXPHYADDR), bits 21:(M - 19) are reserved.
TEST(I386Formats, reserved_bits_follow_maxphyaddr) {
  WalkControls c;
  c.pse = true;
  for (unsigned max = 32; max <= 52; ++max) {
    c.maxphyaddr = static_cast<std::uint8_t>(max);
    std::uint64_t expected = 0;
    for (unsigned bit = 13; bit <= 21; ++bit) {
      if (bit + 19 >= max || bit == 21) expected |= 1ULL << bit;
    }
    EXPECT_EQ(I386Format::reserved(I386Format::kLarge, 2, c), expected) << max;
  }
  EXPECT_EQ(I386Format::reserved(0, 2, c), 0U) << "an entry that leads to a table has none";
  c.pse = false;
  EXPECT_EQ(I386Format::reserved(I386Format::kLarge, 2, c), 0U) << "PS is ignored";
}

}  // namespace
}  // namespace strata::machine
