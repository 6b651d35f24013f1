#include "boot/memory_map.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "boot/machine_layout.hpp"

namespace strata::boot::test {
namespace {

using namespace layout;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

MemoryMap map_of(std::uint64_t bytes) {
  auto map = MemoryMap::make(bytes);
  EXPECT_TRUE(map) << map.error().message;
  return std::move(map).value();
}

TEST(MemoryMap, SmallMachine) {
  const MemoryMap map = map_of(256 * kMiB);
  EXPECT_THAT(map.e820(), ElementsAre(Region{PA{0}, 0x9FC00, RegionKind::ram},
                                      Region{PA{0x9FC00}, 0x400, RegionKind::reserved},
                                      Region{PA{0xE0000}, 0x20000, RegionKind::reserved},
                                      Region{PA{0x100000}, 255 * kMiB, RegionKind::ram}));
  EXPECT_THAT(map.backed(),
              ElementsAre(Region{PA{0}, 0xA0000, RegionKind::ram},
                          Region{PA{0xE0000}, 256 * kMiB - 0xE0000, RegionKind::ram}));
  EXPECT_EQ(map.low_end(), PA{256 * kMiB});
  EXPECT_EQ(map.end(), PA{256 * kMiB});
}

TEST(MemoryMap, ThreeGiBFitBelowTheHole) {
  const MemoryMap map = map_of(3 * kGiB);
  EXPECT_EQ(map.e820().size(), 4U);
  EXPECT_EQ(map.end(), PA{0xC0000000});
}

TEST(MemoryMap, OnePageMoreGoesAboveFourGiB) {
  const MemoryMap map = map_of(3 * kGiB + kPageSize);
  ASSERT_EQ(map.e820().size(), 5U);
  EXPECT_EQ(map.e820().back(), (Region{PA{0x100000000}, kPageSize, RegionKind::ram}));
  EXPECT_EQ(map.backed().back(), map.e820().back());
  EXPECT_EQ(map.low_end(), PA{0xC0000000});
  EXPECT_EQ(map.end(), PA{0x100001000});
}

TEST(MemoryMap, Limits) {
  EXPECT_TRUE(MemoryMap::make(16 * kMiB));
  EXPECT_TRUE(MemoryMap::make(512 * kGiB));
  for (const std::uint64_t bad :
       {std::uint64_t{0}, 16 * kMiB - kPageSize, 512 * kGiB + kPageSize, ~std::uint64_t{0}}) {
    const auto map = MemoryMap::make(bad);
    ASSERT_FALSE(map) << bad;
    EXPECT_THAT(map.error().message, HasSubstr("16 MiB to 512 GiB"));
  }
  const auto odd = MemoryMap::make(64 * kMiB + 512);
  ASSERT_FALSE(odd);
  EXPECT_THAT(odd.error().message, HasSubstr("multiple of 4 KiB"));
}

TEST(MemoryMap, InvariantsForManySizes) {
  for (std::uint64_t bytes = kMinRam; bytes <= kMaxRam; bytes += bytes / 3 & ~kPageMask) {
    const MemoryMap map = map_of(bytes);
    std::uint64_t end = 0;
    std::uint64_t ram = 0;
    for (const Region& r : map.e820()) {
      EXPECT_GE(r.start.value(), end);
      EXPECT_NE(r.bytes, 0U);
      end = r.end().value();
      if (r.kind == RegionKind::ram) ram += r.bytes;
      const bool in_hole = r.start.value() < kMmioHoleEnd && end > kMmioHoleBase;
      EXPECT_FALSE(in_hole);
    }
    // What is missing is the legacy hole and the EBDA.
    EXPECT_EQ(ram, bytes - (kKernelBase - kEbdaBase));
    for (const Region& r : map.backed()) {
      EXPECT_EQ(r.start.page_offset(), 0U);
      EXPECT_EQ(r.bytes & kPageMask, 0U);
    }
  }
}

TEST(MemoryMap, IsRam) {
  const MemoryMap map = map_of(4 * kGiB);
  EXPECT_TRUE(map.is_ram(PA{0x100000}, 0xBFF00000));
  EXPECT_FALSE(map.is_ram(PA{0x100000}, 0xBFF00001));
  EXPECT_FALSE(map.is_ram(PA{0xFFFFF}, 1));
  EXPECT_FALSE(map.is_ram(PA{0x9FC00}, 1));
  EXPECT_TRUE(map.is_ram(PA{0x100000000}, kGiB));
  EXPECT_FALSE(map.is_ram(PA{0x100000000}, ~std::uint64_t{0}));
  EXPECT_FALSE(map.is_ram(PA{~std::uint64_t{0}}, 2));
}

}  // namespace
}  // namespace strata::boot::test
