// One window: what is mapped in it, seen through the host's MMU and through the slice table.
#include "engines/bt/window.hpp"

#include <gtest/gtest.h>

#include "process_maps.hpp"
#include "shared_memory.hpp"

namespace strata::bt::test {
namespace {

constexpr std::uint64_t kPages = 64;

class WindowTest : public ::testing::Test {
 protected:
  WindowTest() {
    for (std::size_t n = 0; n < kSlices; ++n) table[n] = no_window(n);
  }
  /// Maps memory's pages from `number` on at `va`; guest-physical numbers are 100 more.
  bool map(std::uint64_t va, std::uint64_t number, std::uint64_t pages, bool write = true,
           std::uint8_t shift = kPageShift) {
    const bool done = window.map(VA{va}, {.pages = pages,
                                          .first = PPN{100 + number},
                                          .host = memory.page(number),
                                          .write = write,
                                          .page_shift = shift});
    window.enter(table);
    return done;
  }
  /// Where translated code goes for `va`.
  [[nodiscard]] std::uint64_t host(std::uint64_t va) const { return va + table[slice_of(va)]; }
  [[nodiscard]] std::string rights(std::uint64_t va) const { return rights_at(host(va)); }
  /// By what the window says and by what the host does.
  void expect(std::uint64_t va, const std::string& wanted) const {
    EXPECT_EQ(rights(va), wanted) << std::hex << va;
    EXPECT_EQ(window.allows(VA{va}, false), wanted != "---") << std::hex << va;
    EXPECT_EQ(window.allows(VA{va}, true), wanted == "rw-") << std::hex << va;
  }

  SlicePool pool;
  SharedMemory memory{kPages};
  Window window{pool};
  SliceTable table{};
};

constexpr std::uint64_t kUser = 0x7F12'3456'7000, kKernel = 0xFFFF'8880'0001'0000;

TEST_F(WindowTest, MapsPagesOfBothHalvesOfTheAddressSpace) {
  ASSERT_TRUE(map(kUser, 5, 3));
  ASSERT_TRUE(map(kKernel, 9, 1, false));
  for (std::uint64_t n = 0; n < 3; ++n) {
    expect(kUser + n * kPageSize + 0x123, "rw-");
    EXPECT_EQ(page_number_at(host(kUser + n * kPageSize)), 5 + n);
  }
  expect(kUser - 1, "---");
  expect(kUser + 3 * kPageSize, "---");
  expect(kKernel, "r--");
  EXPECT_EQ(page_number_at(host(kKernel)), 9U);
  EXPECT_EQ(window.extents(), 2U);
  EXPECT_EQ(window.pages(), 4U);
}

TEST_F(WindowTest, TheTableHasItsSlicesAndNoOthersAndOnlyWhileItIsEntered) {
  ASSERT_TRUE(map(kUser, 0, 1));
  ASSERT_TRUE(map(kKernel, 1, 1));
  for (std::size_t n = 0; n < kSlices; ++n) {
    const bool own = n == slice_of(kUser) || n == slice_of(kKernel);
    EXPECT_EQ(table[n] != no_window(n), own) << n;
  }
  window.leave(table);
  for (std::size_t n = 0; n < kSlices; ++n) EXPECT_EQ(table[n], no_window(n));
}

TEST_F(WindowTest, WhatIsMappedOverReplacesWhatWasThere) {
  ASSERT_TRUE(map(kUser, 0, 6));
  ASSERT_TRUE(map(kUser + 2 * kPageSize, 20, 2, false));
  const std::size_t wanted[] = {0, 1, 20, 21, 4, 5};
  for (std::size_t n = 0; n < 6; ++n) {
    EXPECT_EQ(page_number_at(host(kUser + n * kPageSize)), wanted[n]);
    expect(kUser + n * kPageSize, n == 2 || n == 3 ? "r--" : "rw-");
  }
  EXPECT_EQ(window.extents(), 3U);
  EXPECT_EQ(window.pages(), 6U);
}

TEST_F(WindowTest, UnmappingSplitsExtents) {
  ASSERT_TRUE(map(kUser, 0, 9));
  window.unmap(VA{kUser + 3 * kPageSize}, 2);
  window.unmap(VA{kUser + 8 * kPageSize}, 1);
  for (std::uint64_t n = 0; n < 9; ++n) {
    expect(kUser + n * kPageSize, n == 3 || n == 4 || n == 8 ? "---" : "rw-");
  }
  EXPECT_EQ(window.extents(), 2U);
  EXPECT_EQ(window.pages(), 6U);
  // The parts still know what they are: the second one begins with page 5.
  window.unmap_writable(PPN{105});
  expect(kUser + 5 * kPageSize, "---");
  expect(kUser + 6 * kPageSize, "rw-");
  // From the middle of one over another's beginning.
  window.unmap(VA{kUser + 2 * kPageSize}, 5);
  for (std::uint64_t n = 2; n < 7; ++n) expect(kUser + n * kPageSize, "---");
  expect(kUser + 1 * kPageSize, "rw-");
  expect(kUser + 7 * kPageSize, "rw-");
  EXPECT_EQ(window.pages(), 3U);
}

TEST_F(WindowTest, UnmapPageTakesOneSmallPage) {
  ASSERT_TRUE(map(kUser, 0, 3));
  window.unmap_page(VA{kUser + kPageSize + 0xFFF});
  expect(kUser, "rw-");
  expect(kUser + kPageSize, "---");
  expect(kUser + 2 * kPageSize, "rw-");
  window.unmap_page(VA{kUser + 17 * kPageSize});
  EXPECT_EQ(window.pages(), 2U);
}

/// INVLPG of any address in a large page takes what there is of it, whether that address was mapped
/// or not (SDM 3A 4.10.4.1).
class WindowLargePage : public WindowTest, public ::testing::WithParamInterface<unsigned> {};

TEST_P(WindowLargePage, UnmapPageTakesAllPartsOfIt) {
  const unsigned shift = GetParam();
  const std::uint64_t bytes = 1ULL << shift;
  const std::uint64_t large = 0x7F00'0000'0000;
  const auto size = static_cast<std::uint8_t>(shift);
  ASSERT_TRUE(map(large, 0, 2, true, size));
  ASSERT_TRUE(map(large + bytes - kPageSize, 8, 1, true, size));
  ASSERT_TRUE(map(large + bytes / 2, 10, 1, true, size));
  ASSERT_TRUE(map(large - kPageSize, 20, 1));
  ASSERT_TRUE(map(large + bytes, 30, 1, true, size));
  window.unmap_page(VA{large + bytes / 4 + 0x234});
  for (const std::uint64_t at : {std::uint64_t{0}, kPageSize, bytes / 2, bytes - kPageSize}) {
    expect(large + at, "---");
  }
  expect(large - kPageSize, "rw-");
  expect(large + bytes, "rw-");
  EXPECT_EQ(window.pages(), 2U);
}

INSTANTIATE_TEST_SUITE_P(Sizes, WindowLargePage, ::testing::Values(21U, 22U, 30U));

TEST_F(WindowTest, UnmapWritableTakesEveryWritableAliasOfAPage) {
  ASSERT_TRUE(map(kUser, 0, 4));
  ASSERT_TRUE(map(kUser + 32 * kPageSize, 2, 1));
  ASSERT_TRUE(map(kKernel, 1, 4, false));
  window.unmap_writable(PPN{102});
  expect(kUser + kPageSize, "rw-");
  expect(kUser + 2 * kPageSize, "---");
  expect(kUser + 3 * kPageSize, "rw-");
  expect(kUser + 32 * kPageSize, "---");
  for (std::uint64_t n = 0; n < 4; ++n) expect(kKernel + n * kPageSize, "r--");
}

TEST_F(WindowTest, UnmapIfTakesWholeExtents) {
  ASSERT_TRUE(map(kUser, 0, 4));
  ASSERT_TRUE(map(kKernel, 8, 4, false));
  window.unmap_if([](const Extent& e) { return e.write; });
  expect(kUser + 3 * kPageSize, "---");
  expect(kKernel + 3 * kPageSize, "r--");
}

TEST_F(WindowTest, ClearLosesEverythingAndKeepsTheSlices) {
  ASSERT_TRUE(map(kUser, 0, 4));
  ASSERT_TRUE(map(kUser + 32 * kPageSize, 8, 4));
  ASSERT_TRUE(map(kKernel, 16, 1));
  const SliceTable before = table;
  window.clear();
  EXPECT_EQ(window.extents(), 0U);
  EXPECT_EQ(window.pages(), 0U);
  for (const std::uint64_t va : {kUser, kUser + 35 * kPageSize, kKernel}) expect(va, "---");
  ASSERT_TRUE(map(kUser, 1, 1));
  EXPECT_EQ(table, before);
}

TEST_F(WindowTest, ReleaseGivesTheSlicesToWhoeverWantsThem) {
  ASSERT_TRUE(map(kUser, 0, 4));
  const std::uint64_t slice = host(kUser) & ~(kPageSize - 1);
  window.leave(table);
  window.release();
  EXPECT_EQ(rights_at(slice), "---");
  Window other{pool};
  ASSERT_TRUE(other.map(VA{kUser}, {.pages = 1, .first = PPN{0}, .host = memory.page(6)}));
  other.enter(table);
  EXPECT_EQ(host(kUser), slice) << "the same one";
  EXPECT_TRUE(other.allows(VA{kUser}, false));
  EXPECT_FALSE(window.allows(VA{kUser}, false));
}

TEST_F(WindowTest, AnExtentThatLeavesItsSliceIsRefused) {
  const std::uint64_t last = (0x7FULL << kSliceShift) + kSliceBytes - kPageSize;
  EXPECT_FALSE(map(last, 0, 2));
  EXPECT_TRUE(map(last, 0, 1));
}

}  // namespace
}  // namespace strata::bt::test
