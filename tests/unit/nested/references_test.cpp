// What a two-dimensional walk costs in memory references, with and without the caches.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "guest_builder.hpp"

namespace strata::nested::test {
namespace {

class References : public testing::TestWithParam<Format> {};
INSTANTIATE_TEST_SUITE_P(Formats, References, testing::Values(Format::ept, Format::npt),
                         [](const auto& p) { return p.param == Format::ept ? "ept" : "npt"; });

TEST_P(References, FourLevelsUnderFourLevelsAre24) {
  Vm vm{GetParam()};
  vm.map_long4(0x7F0012345000, kData, kAll);
  vm.use(vm.context());
  const WalkReferences r = vm.settled(0x7F0012345678);
  EXPECT_EQ(r.guest, 4U);
  EXPECT_EQ(r.nested, 20U);
  EXPECT_EQ(r.total(), 24U);
  EXPECT_EQ(r.ad_writes, 0U);
  EXPECT_EQ(r.violations, 0U);
}

TEST_P(References, GuestLargePageUnderSmallNestedPagesIs19) {
  Vm vm{GetParam()};
  vm.map_long4(0x40000000, kData, kAll, 2);
  vm.use(vm.context());
  EXPECT_EQ(vm.settled(0x40012345).total(), 19U);
}

TEST_P(References, LargeUnderLargeIs15) {
  Vm vm{GetParam()};
  vm.p2m.set(0, 512 * 16, PageState::private_page, kLargePageShift);
  vm.map_long4(0x40000000, kData, kAll, 2);
  vm.use(vm.context());
  EXPECT_EQ(vm.settled(0x40012345).total(), 15U);
  EXPECT_EQ(vm.mmu->nested_stats().leaves_4k, 0U);
}

TEST_P(References, HugeUnderHugeIs8) {
  Vm vm{GetParam()};
  vm.p2m.set(0, kGuestBytes >> kPageShift, PageState::private_page, kHugePageShift);
  vm.map_long4(0x40000000, 0x40000000, kAll, 3);
  vm.use(vm.context());
  // Two guest entries, three nested walks of two entries.
  EXPECT_EQ(vm.settled(0x40012345).total(), 8U);
}

TEST_P(References, I386UnderFourLevelsIs14) {
  Vm vm{GetParam()};
  vm.map_i386(0xC0001000, kData, kAll);
  vm.use(vm.context(PagingMode::i386));
  EXPECT_EQ(vm.settled(0xC0001234).total(), 14U);
}

TEST_P(References, PaeUnderFourLevelsIs14) {
  Vm vm{GetParam()};
  vm.map_pae(0xC0001000, kData, kAll);
  vm.use(vm.context(PagingMode::pae));
  EXPECT_EQ(vm.settled(0xC0001234).total(), 14U);
}

TEST_P(References, NoPagingIsOneNestedWalk) {
  Vm vm{GetParam()};
  vm.use(vm.context(PagingMode::off));
  EXPECT_EQ(vm.settled(kData).total(), 4U);
}

TEST_P(References, StatsAddUpAndHistogramCountsWalks) {
  Vm vm{GetParam()};
  vm.map_long4(0x1000, kData, kAll);
  vm.use(vm.context());
  (void)vm.load(0x1000);
  const MmuStats before = vm.mmu->stats();
  const NestedStats nested_before = vm.mmu->nested_stats();
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(vm.load(0x1000));
  EXPECT_FALSE(vm.load(0x2000));
  const MmuStats after = vm.mmu->stats();
  const NestedStats nested_after = vm.mmu->nested_stats();
  EXPECT_EQ(after.translations - before.translations, 11U);
  // The fault reads four guest entries but no data page.
  EXPECT_EQ(after.guest_references - before.guest_references, 44U);
  EXPECT_EQ(after.table_references - before.table_references, 10U * 20 + 16);
  EXPECT_EQ(after.walks - before.walks, 10U * 5 + 4);
  EXPECT_EQ(after.guest_faults - before.guest_faults, 1U);
  EXPECT_EQ(after.cache_hits, 0U);
  EXPECT_EQ(nested_after.references[24] - nested_before.references[24], 10U);
  EXPECT_EQ(std::accumulate(nested_after.references.begin(), nested_after.references.end(), 0ULL),
            11U);
}

TEST_P(References, FirstWalkCountsEveryViolationAndTheHistogramItsLastBucket) {
  Vm vm{GetParam()};
  vm.map_long4(0x1000, kData, kAll);
  vm.use(vm.context());
  ASSERT_TRUE(vm.load(0x1000));
  const WalkReferences first = vm.mmu->last_walk(0);
  EXPECT_EQ(first.violations, 5U);  // four table pages and the data page
  EXPECT_EQ(first.guest, 4U) << "a violation must not repeat the guest's half";
  EXPECT_EQ(vm.mmu->stats().backend_misses, 5U);
  // 1 reference finds the empty root, 4 the full path, and so on.
  EXPECT_EQ(first.nested, (1U + 4) + 3 * (4 + 4) + (3 + 4));
  EXPECT_EQ(vm.mmu->nested_stats().references[40], 1U);
}

/// Expected references with each cache alone: four levels under four, warm.
TEST_P(References, EachCacheSavesItsShare) {
  struct Case {
    bool guest, tlb, nested;
    std::uint64_t expected;
  };
  const Case cases[] = {
      {false, false, false, 24},
      {true, false, false, 1 + 4 + 4},  // the PDE cache leaves one
                                        // guest entry
      {false, true, false, 4},          // nested walks cost nothing
      {false, false, true, 4 + 5},      // nested walks cost their leaf entry
      {true, true, false, 1},
      {true, false, true, 1 + 1 + 1},
      {false, true, true, 4},
      {true, true, true, 1},
  };
  for (const Case& c : cases) {
    NestedOptions options;
    options.guest_caches = c.guest;
    options.nested_tlb = c.tlb;
    options.nested_caches = c.nested;
    Vm vm{GetParam(), options};
    vm.map_long4(0x7F0012345000, kData, kAll);
    vm.use(vm.context());
    EXPECT_EQ(vm.settled(0x7F0012345678).total(), c.expected) << c.guest << c.tlb << c.nested;
    const NestedStats s = vm.mmu->nested_stats();
    EXPECT_EQ(s.guest_cache_hits > 0, c.guest);
    EXPECT_EQ(s.nested_tlb_hits > 0, c.tlb);
    EXPECT_EQ(s.nested_cache_hits > 0, c.nested);
    EXPECT_EQ(vm.mmu->stats().cache_hits,
              s.guest_cache_hits + s.nested_tlb_hits + s.nested_cache_hits);
  }
}

TEST_P(References, NeighbourUnderTheSameTableStartsFromThePdeCache) {
  NestedOptions options = kNoCaches;
  options.guest_caches = true;
  Vm vm{GetParam(), options};
  vm.map_long4(0x1000, kData, kAll);
  vm.map_long4(0x2000, kData + 0x1000, kAll);
  vm.map_long4(0x40001000, kData, kAll);  // shares the PML4E only
  vm.use(vm.context());
  (void)vm.load(0x2000);
  (void)vm.load(0x40001000);
  vm.mmu->invalidate(0, FlushScope::all, 0, VA{});
  EXPECT_EQ(vm.settled(0x1000).guest, 1U);
  (void)vm.load(0x2000);
  EXPECT_EQ(vm.mmu->last_walk(0).guest, 1U);
  (void)vm.load(0x40001000);
  EXPECT_EQ(vm.mmu->last_walk(0).guest, 3U) << "the PML4E cache knows the PDPT";
}

}  // namespace
}  // namespace strata::nested::test
