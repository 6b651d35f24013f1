// Where windows are: what is reserved, what is accessible, and that it stays so.
#include "engines/bt/slice_pool.hpp"

#include <gtest/gtest.h>

#include <set>

#include "process_maps.hpp"
#include "shared_memory.hpp"

namespace strata::bt::test {
namespace {

class SlicePoolTest : public ::testing::Test {
 protected:
  SlicePool pool;
  SharedMemory memory{16};
};

TEST_F(SlicePoolTest, ASliceIsReservedWithGuardZonesAndInaccessible) {
  const std::uint64_t slice = pool.take();
  if (slice == 0) GTEST_SKIP() << "this host has no room";
  EXPECT_TRUE(all_reserved(slice - kGuardBytes, slice + kSliceBytes + kGuardBytes));
  EXPECT_EQ(accessible_bytes(slice - kGuardBytes, slice + kSliceBytes + kGuardBytes), 0U);
  // A displacement of an instruction, and the longest access that windows are for.
  EXPECT_GE(kGuardBytes, (2ULL << 30) + 64);
}

TEST_F(SlicePoolTest, MapsTheMemoryItselfWithTheRightsAskedFor) {
  const std::uint64_t slice = pool.take();
  ASSERT_NE(slice, 0U);
  ASSERT_TRUE(SlicePool::map(slice, memory.page(3), 2 * kPageSize, true));
  ASSERT_TRUE(SlicePool::map(slice + 5 * kPageSize, memory.page(7), kPageSize, false));
  EXPECT_EQ(rights_at(slice), "rw-");
  EXPECT_EQ(rights_at(slice + kPageSize), "rw-");
  EXPECT_EQ(rights_at(slice + 2 * kPageSize), "---");
  EXPECT_EQ(rights_at(slice + 5 * kPageSize), "r--");
  EXPECT_EQ(page_number_at(slice + kPageSize), 4U);
  EXPECT_EQ(page_number_at(slice + 5 * kPageSize), 7U);
  const std::size_t changed = 99;
  std::memcpy(memory.page(7), &changed, sizeof changed);
  EXPECT_EQ(page_number_at(slice + 5 * kPageSize), changed) << "the same memory";
  EXPECT_EQ(rights_at(reinterpret_cast<std::uint64_t>(memory.page(3))), "rw-") << "as it was";
}

TEST_F(SlicePoolTest, WhatIsUnmappedStaysReserved) {
  const std::uint64_t slice = pool.take();
  ASSERT_NE(slice, 0U);
  ASSERT_TRUE(SlicePool::map(slice + kPageSize, memory.page(0), 8 * kPageSize, true));
  SlicePool::unmap(slice + 3 * kPageSize, 2 * kPageSize);
  EXPECT_EQ(accessible_bytes(slice, slice + kSliceBytes), 6 * kPageSize);
  EXPECT_EQ(rights_at(slice + 3 * kPageSize), "---");
  EXPECT_TRUE(all_reserved(slice - kGuardBytes, slice + kSliceBytes + kGuardBytes));
}

TEST_F(SlicePoolTest, WhatTheHostRefusesIsInaccessible) {
  const std::uint64_t slice = pool.take();
  ASSERT_NE(slice, 0U);
  ASSERT_TRUE(SlicePool::map(slice, memory.page(0), kPageSize, true));
  // A private mapping can not be mapped a second time.
  void* own = mmap(nullptr, kPageSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(own, MAP_FAILED);
  EXPECT_FALSE(SlicePool::map(slice, static_cast<std::byte*>(own), kPageSize, true));
  EXPECT_EQ(rights_at(slice), "---");
  munmap(own, kPageSize);
}

TEST_F(SlicePoolTest, GivesOutNoMoreThanItsLimitAndWhatWasGivenBackAgain) {
  std::set<std::uint64_t> slices;
  for (std::uint64_t slice = pool.take(); slice != 0; slice = pool.take()) {
    ASSERT_TRUE(slices.insert(slice).second);
    ASSERT_LE(slices.size(), 24U);
  }
  ASSERT_FALSE(slices.empty());
  // Apart, guard zones and all.
  for (auto i = slices.begin(); std::next(i) != slices.end(); ++i) {
    EXPECT_GE(*std::next(i) - *i, kSliceBytes + 2 * kGuardBytes);
  }
  pool.give_back(*slices.begin());
  EXPECT_EQ(pool.take(), *slices.begin());
  EXPECT_EQ(pool.take(), 0U);
}

TEST(SlicePool, GivesItsAddressesBackToTheProcess) {
  std::uint64_t slice = 0;
  {
    SlicePool pool;
    slice = pool.take();
    ASSERT_NE(slice, 0U);
  }
  EXPECT_EQ(rights_at(slice + kSliceBytes / 2), "");
}

}  // namespace
}  // namespace strata::bt::test
