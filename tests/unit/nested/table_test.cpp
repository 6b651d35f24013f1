// The nested tables themselves: real bits in machine memory, no frame too many, large leaves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "table_fixture.hpp"

namespace strata::nested::test {
namespace {

class Tables : public TableFixture {};
INSTANTIATE_TEST_SUITE_P(Formats, Tables, kFormats, kFormatName);

TEST_P(Tables, NamesItsFormat) {
  auto vm = flat();
  EXPECT_EQ(vm->mmu->format(), GetParam());
  EXPECT_EQ(vm->mmu->name(), ept() ? "nested-ept" : "nested-npt");
}

TEST_P(Tables, OneFrameForEachTouchedRegion) {
  auto vm = flat();
  const auto tables = [&] { return vm->mmu->stats().table_bytes / kPageSize; };
  EXPECT_EQ(tables(), 1U) << "the root";
  ASSERT_TRUE(vm->load(0));
  EXPECT_EQ(tables(), 4U) << "and one each for 512 GiB, 1 GiB, 2 MiB";
  ASSERT_TRUE(vm->load(k2M - 1));
  EXPECT_EQ(tables(), 4U);
  ASSERT_TRUE(vm->load(k2M));
  EXPECT_EQ(tables(), 5U);
  ASSERT_TRUE(vm->load(k1G));
  EXPECT_EQ(tables(), 7U);
  EXPECT_EQ(vm->machine.nested_tables(), 7U) << "stats and the frame source agree";
  EXPECT_EQ(vm->mmu->nested_stats().tables, 7U);
  vm->mmu.reset();
  EXPECT_EQ(vm->machine.nested_tables(), 0U);
}

TEST_P(Tables, NothingIsSpentOnFaults) {
  Vm vm{GetParam()};
  vm.p2m.set(0, 0x100, PageState::absent);
  vm.use(vm.context(PagingMode::off));
  EXPECT_FALSE(vm.load(0x1000));
  EXPECT_EQ(vm.mmu->nested_stats().tables, 1U);
}

TEST_P(Tables, LeafBitsAreTheManuals) {
  auto vm = flat();
  vm->p2m.set(7, 1, PageState::rom);
  vm->p2m.set(8, 1, PageState::zero);
  for (const std::uint64_t pa : {0x6000U, 0x7000U, 0x8000U}) ASSERT_TRUE(vm->load(pa));
  const std::uint64_t home = kHomeBase;
  // SDM 3C table 29-6: R, W, X, write-back; APM 2 5.3: P, R/W, U/S, NX clear.
  const std::uint64_t rwx = ept() ? 7U | 6U << 3 : 7U;
  const std::uint64_t rx = ept() ? 5U | 6U << 3 : 5U;
  EXPECT_EQ(*vm->nested_entry(0x6000, 1), (home + 0x6000) | rwx | accessed());
  EXPECT_EQ(*vm->nested_entry(0x7000, 1), (home + 0x7000) | rx | accessed());
  EXPECT_EQ(*vm->nested_entry(0x8000, 1), kZeroFrame << 12 | rx | accessed());
  for (unsigned level = 2; level <= 4; ++level) {
    EXPECT_EQ(*vm->nested_entry(0x6000, level) & ~kAddress, 7U | accessed()) << level;
  }
}

TEST_P(Tables, CorruptingAnEntryChangesTheTranslation) {
  auto vm = flat();
  ASSERT_EQ(vm->load(0x6000)->page.value(), kHomeBase + 0x6000);
  std::uint64_t* leaf = vm->nested_entry(0x6000, 1);
  ASSERT_NE(leaf, nullptr);
  *leaf = (*leaf & ~kAddress) | (kHomeBase + 0x9000);
  EXPECT_EQ(vm->load(0x6000)->page.value(), kHomeBase + 0x9000);
  EXPECT_EQ(vm->load(0x6000)->pa.value(), 0x6000U);
  // An interior entry, too: let 0x6000's region use the table of the next 2 MiB.
  ASSERT_TRUE(vm->load(k2M + 0x6000));
  const std::uint64_t kept = *vm->nested_entry(0, 2);
  *vm->nested_entry(0, 2) = *vm->nested_entry(k2M, 2);
  EXPECT_EQ(vm->load(0x6000)->page.value(), kHomeBase + k2M + 0x6000);
  *vm->nested_entry(0, 2) = kept;
}

TEST_P(Tables, MisconfiguredEntryIsAMachineCheckNotALoop) {
  auto vm = flat();
  ASSERT_TRUE(vm->load(0x6000));
  // Write-only is an EPT misconfiguration; bit 7 of a PML4E is reserved in both formats.
  const unsigned level = ept() ? 1 : 4;
  std::uint64_t* entry = vm->nested_entry(0x6000, level);
  const std::uint64_t kept = *entry;
  *entry = ept() ? (kept & ~7ULL) | 2 : kept | kPS;
  const auto r = vm->load(0x6123);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, FaultKind::poisoned);
  EXPECT_EQ(r.error().stage, Stage::p2m);
  EXPECT_EQ(r.error().pa.value(), 0x6123U);
  *entry = kept;
}

TEST_P(Tables, AccessedAndDirtyFollowTheAccess) {
  auto vm = flat();
  ASSERT_TRUE(vm->load(0x6000));
  EXPECT_EQ(*vm->nested_entry(0x6000, 1) & (accessed() | dirty()), accessed());
  EXPECT_FALSE(vm->load(0x6000)->writable) << "D must be set by a walk";
  EXPECT_EQ(vm->mmu->last_walk(0).ad_writes, 0U);
  // A, once at every level; NPT entries that lead to tables are made with it.
  const std::uint64_t set = ept() ? 4 : 1;
  EXPECT_EQ(vm->mmu->stats().ad_writes, set);
  ASSERT_TRUE(vm->store(0x6000));
  EXPECT_EQ(vm->mmu->last_walk(0).ad_writes, 1U);
  EXPECT_EQ(vm->mmu->stats().ad_writes, set + 1);
  EXPECT_EQ(*vm->nested_entry(0x6000, 1) & (accessed() | dirty()), accessed() | dirty());
  EXPECT_TRUE(vm->load(0x6000)->writable);
}

TEST(EptTables, WithoutAccessedDirtyNothingIsWritten) {
  NestedOptions options = kNoCaches;
  options.accessed_dirty = false;
  Vm vm{Format::ept, options};
  vm.use(vm.context(PagingMode::off));
  EXPECT_TRUE(vm.load(0x6000)->writable);
  ASSERT_TRUE(vm.store(0x6000));
  for (unsigned level = 1; level <= 4; ++level) {
    EXPECT_EQ(*vm.nested_entry(0x6000, level) & (3U << 8), 0U);
  }
  EXPECT_EQ(vm.mmu->stats().ad_writes, 0U);
}

TEST_P(Tables, LargeAndHugeLeaves) {
  auto vm = flat_runs();
  EXPECT_EQ(vm->load(k2M + 0x5678)->page.value(), kHomeBase + k2M + 0x5000);
  EXPECT_EQ(vm->mmu->last_walk(0).nested, 1U + 3U);  // the empty root, then the full walk
  EXPECT_EQ(vm->mmu->nested_stats().tables, 3U);
  EXPECT_EQ(vm->mmu->nested_stats().leaves_2m, 1U);
  EXPECT_NE(*vm->nested_entry(k2M, 2) & kPS, 0U);

  auto huge = flat_runs(kNoCaches, kHugePageShift);
  EXPECT_EQ(huge->load(k1G + 0x12345678)->page.value(), kHomeBase + k1G + 0x12345000);
  EXPECT_EQ(huge->mmu->nested_stats().tables, 2U);
  EXPECT_EQ(huge->mmu->nested_stats().leaves_1g, 1U);
}

TEST_P(Tables, LargeLeavesCanBeSwitchedOff) {
  NestedOptions options = kNoCaches;
  options.huge_pages = false;
  EXPECT_TRUE(flat_runs(options, kHugePageShift)->load(0));
  auto two = flat_runs(options, kHugePageShift);
  ASSERT_TRUE(two->load(0));
  EXPECT_EQ(two->mmu->nested_stats().leaves_2m, 1U);
  options.large_pages = false;
  auto small = flat_runs(options, kHugePageShift);
  ASSERT_TRUE(small->load(0));
  EXPECT_EQ(small->mmu->nested_stats().leaves_4k, 1U);
  EXPECT_EQ(small->mmu->nested_stats().tables, 4U);
}

TEST_P(Tables, NoLargeLeafWhereMachineAddressesAreNotAligned) {
  auto vm = flat();
  for (std::uint64_t i = 0; i < 512; ++i) {
    const std::uint64_t mpn = FakeP2m::home(PPN{512 + i + 1}).value();
    vm->p2m.set_entry(512 + i, P2mEntry::make(PageState::private_page, mpn), kLargePageShift);
  }
  EXPECT_EQ(vm->load(k2M + 0x3000)->page.value(), kHomeBase + k2M + 0x4000);
  EXPECT_EQ(vm->mmu->nested_stats().leaves_2m, 0U);
}

TEST_P(Tables, NoLargeLeafOverTheZeroFrame) {
  auto vm = flat();
  vm->p2m.set(512, 512, PageState::zero, kLargePageShift);
  for (const std::uint64_t pa : {k2M, k2M + 0x7000}) {
    const auto r = vm->load(pa);
    ASSERT_TRUE(r);
    EXPECT_EQ(r->page.value(), kZeroFrame << kPageShift);
    EXPECT_FALSE(r->writable);
  }
  EXPECT_EQ(vm->mmu->nested_stats().leaves_2m, 0U);
}

TEST_P(Tables, FirstWriteToAZeroPageMovesItHome) {
  auto vm = flat();
  vm->p2m.set(6, 1, PageState::zero);
  EXPECT_EQ(vm->load(0x6000)->page.value(), kZeroFrame << kPageShift);
  const auto r = vm->store(0x6000);
  ASSERT_TRUE(r);
  EXPECT_EQ(r->page.value(), kHomeBase + 0x6000);
  EXPECT_TRUE(r->writable);
  EXPECT_EQ(vm->load(0x6000)->page.value(), kHomeBase + 0x6000);
}

TEST_P(Tables, ChangeOfOnePageSplitsALargeLeaf) {
  auto vm = flat_runs();
  ASSERT_TRUE(vm->store(k2M));
  ASSERT_EQ(vm->mmu->nested_stats().tables, 3U);
  Flush flush{vm->domain};
  vm->p2m.change(PPN{512 + 9}, P2mEntry::make(PageState::shared, kElsewhere), flush);
  flush.commit();
  EXPECT_EQ(vm->mmu->nested_stats().splits, 1U);
  EXPECT_EQ(vm->mmu->nested_stats().tables, 4U);
  EXPECT_EQ(vm->mmu->nested_stats().leaves_removed, 1U);
  const std::uint64_t before = vm->mmu->stats().backend_misses;
  // Its neighbours stay mapped, dirty as they were; the page itself is filled anew.
  EXPECT_EQ(vm->load(k2M + 0x8000)->page.value(), kHomeBase + k2M + 0x8000);
  EXPECT_TRUE(vm->load(k2M + 0xA000)->writable);
  EXPECT_EQ(vm->mmu->stats().backend_misses, before);
  EXPECT_EQ(vm->load(k2M + 0x9000)->page.value(), kElsewhere << kPageShift);
  EXPECT_EQ(vm->mmu->stats().backend_misses, before + 1);
  EXPECT_EQ(*vm->nested_entry(k2M + 0x8000, 1) & ~kAddress,
            (ept() ? 0x37U : 7U) | accessed() | dirty());
}

TEST_P(Tables, ChangeOfOnePageSplitsAHugeLeafTwice) {
  auto vm = flat_runs(kNoCaches, kHugePageShift);
  ASSERT_TRUE(vm->load(k1G));
  Flush flush{vm->domain};
  vm->p2m.change(PPN{(k1G + 5 * k2M + 0x3000) >> 12}, P2mEntry::make(PageState::mmio), flush);
  flush.commit();
  EXPECT_EQ(vm->mmu->nested_stats().splits, 2U);
  EXPECT_EQ(vm->mmu->nested_stats().tables, 4U);
  const std::uint64_t before = vm->mmu->stats().backend_misses;
  for (const std::uint64_t pa :
       {k1G, k1G + 5 * k2M + 0x2000, k1G + 5 * k2M + 0x4000, k1G + 6 * k2M, 2 * k1G - 1}) {
    const auto r = vm->load(pa);
    ASSERT_TRUE(r);
    EXPECT_EQ(r->page.value(), kHomeBase + (pa & ~kPageMask));
  }
  EXPECT_EQ(vm->mmu->stats().backend_misses, before);
  EXPECT_EQ(vm->load(k1G + 5 * k2M + 0x3000).error().kind, FaultKind::mmio);
}

TEST_P(Tables, RangesAcrossLargeLeavesKeepBothRests) {
  auto vm = flat_runs();
  for (std::uint64_t i = 1; i <= 4; ++i) ASSERT_TRUE(vm->load(i * k2M));
  Flush flush{vm->domain};
  // Half of leaf 1, all of 2 and 3, a quarter of 4.
  vm->p2m.tell({PPN{512 + 256}, 256 + 1024 + 128}, flush);
  flush.commit();
  EXPECT_EQ(vm->mmu->nested_stats().splits, 2U);
  const auto misses = [&](std::uint64_t pa) {
    const std::uint64_t before = vm->mmu->stats().backend_misses;
    EXPECT_TRUE(vm->load(pa));
    return vm->mmu->stats().backend_misses - before;
  };
  EXPECT_EQ(misses(k2M + 255 * kPageSize), 0U);
  EXPECT_EQ(misses(4 * k2M + 128 * kPageSize), 0U);
  EXPECT_EQ(misses(2 * k2M), 1U);
  EXPECT_EQ(misses(3 * k2M), 1U);
  EXPECT_EQ(misses(4 * k2M + 127 * kPageSize), 1U);
  EXPECT_EQ(misses(k2M + 256 * kPageSize), 1U);
}

TEST_P(Tables, WithoutAFrameForTheSplitTheWholeLeafGoes) {
  NestedOptions options;  // caches on: they must forget the whole leaf, too
  auto vm = flat_runs(options);
  ASSERT_TRUE(vm->load(k2M));
  ASSERT_TRUE(vm->load(k2M + 0x1000));
  vm->machine.fail_from(1);
  Flush flush{vm->domain};
  vm->p2m.change(PPN{512}, P2mEntry::make(PageState::mmio), flush);
  flush.commit();
  EXPECT_EQ(vm->mmu->nested_stats().tables, 1U) << "nothing is mapped any more";
  // The neighbour moves as well. Nothing maps it, so nothing but the caches could be stale.
  Flush second{vm->domain};
  vm->p2m.change(PPN{513}, P2mEntry::make(PageState::shared, kElsewhere), second);
  second.commit();
  vm->machine.fail_from(0);
  EXPECT_EQ(vm->load(k2M + 0x1000)->page.value(), kElsewhere << kPageShift);
}

TEST_P(Tables, EmptiedTablesAreFreedAfterTheFlush) {
  auto vm = flat();
  ASSERT_TRUE(vm->load(k1G));
  ASSERT_TRUE(vm->load(k1G + 0x1000));
  ASSERT_EQ(vm->machine.nested_tables(), 4U);
  Flush flush{vm->domain};
  vm->p2m.tell({PPN{k1G >> 12}, 1}, flush);
  EXPECT_EQ(vm->mmu->nested_stats().tables, 4U);
  vm->p2m.tell({PPN{(k1G >> 12) + 1}, 1}, flush);
  EXPECT_EQ(vm->mmu->nested_stats().tables, 1U);
  EXPECT_EQ(vm->machine.nested_tables(), 4U) << "not before the flush is through";
  flush.commit();
  EXPECT_EQ(vm->machine.nested_tables(), 1U);
  EXPECT_EQ(vm->load(k1G)->page.value(), kHomeBase + k1G);
}

TEST_P(Tables, ARangeEmptiesTheTableItBeginsIn) {
  auto vm = flat();
  for (const std::uint64_t page : {511U, 513U, 600U}) ASSERT_TRUE(vm->load(page << kPageShift));
  ASSERT_EQ(vm->mmu->nested_stats().tables, 5U);
  Flush flush{vm->domain};
  vm->p2m.tell({PPN{511}, 3}, flush);
  flush.commit();
  EXPECT_EQ(vm->mmu->nested_stats().tables, 4U);
  EXPECT_EQ(vm->nested_entry(600U << kPageShift, 1) != nullptr, true);
  EXPECT_NE(*vm->nested_entry(600U << kPageShift, 1), 0U);
}

TEST_P(Tables, WholeAddressSpaceCanGoAtOnce) {
  auto vm = flat();
  for (std::uint64_t pa = 0; pa < kGuestBytes; pa += 64 * k2M) ASSERT_TRUE(vm->load(pa));
  Flush flush{vm->domain};
  vm->mmu->p2m_changed({PPN{0}, ~0ULL >> 12}, flush);
  flush.commit();
  EXPECT_EQ(vm->machine.nested_tables(), 1U);
  EXPECT_EQ(vm->mmu->nested_stats().leaves_removed, kGuestBytes / (64 * k2M));
  // Nothing there, nothing beyond: no harm, nothing owed.
  Flush idle{vm->domain};
  vm->mmu->p2m_changed({PPN{1}, 0}, idle);
  vm->mmu->p2m_changed({PPN{~0ULL >> 13}, 5}, idle);
  vm->mmu->p2m_changed({PPN{0}, 17}, idle);
  EXPECT_FALSE(idle.owes());
}

TEST_P(Tables, LoggedPagesAreReadOnlyUntilWritten) {
  auto vm = flat();
  ASSERT_TRUE(vm->store(0x6000));
  Flush flush{vm->domain};
  vm->p2m.log({PPN{6}, 2}, flush);
  flush.commit();
  EXPECT_FALSE(vm->load(0x6000)->writable);
  EXPECT_TRUE(vm->p2m.dirty.empty());
  EXPECT_TRUE(vm->store(0x6000)->writable);
  EXPECT_THAT(vm->p2m.dirty, testing::ElementsAre(6U));
  EXPECT_FALSE(vm->load(0x7000)->writable);
}

TEST_P(Tables, WriteToOnePageOfALoggedRunSplitsTheLeaf) {
  auto vm = flat_runs();
  Flush flush{vm->domain};
  vm->p2m.log({PPN{512}, 512}, flush);
  flush.commit();
  EXPECT_FALSE(vm->load(k2M)->writable);
  EXPECT_EQ(vm->mmu->nested_stats().leaves_2m, 1U);
  EXPECT_TRUE(vm->store(k2M + 0x3000)->writable);
  EXPECT_EQ(vm->mmu->nested_stats().splits, 1U);
  EXPECT_FALSE(vm->load(k2M + 0x2000)->writable);
  EXPECT_FALSE(vm->load(k2M + 0x4000)->writable);
  EXPECT_TRUE(vm->load(k2M + 0x3000)->writable);
  EXPECT_THAT(vm->p2m.dirty, testing::ElementsAre(512U + 3));
}

TEST_P(Tables, ATableIsJoinedWhenItsPagesAreOneRun) {
  auto vm = flat();
  for (std::uint64_t i = 0; i < 512; ++i) ASSERT_TRUE(vm->load(k2M + i * kPageSize));
  ASSERT_TRUE(vm->store(k2M + 0x5000));
  ASSERT_EQ(vm->machine.nested_tables(), 4U);
  Flush flush{vm->domain};
  EXPECT_EQ(vm->mmu->join({PPN{0}, kGuestBytes >> 12}, flush), 0U) << "not one run yet";
  vm->p2m.set(512, 512, PageState::private_page, kLargePageShift);
  EXPECT_EQ(vm->mmu->join({PPN{513}, 511}, flush), 0U) << "the run begins before the range";
  EXPECT_EQ(vm->mmu->join({PPN{512}, 511}, flush), 0U) << "the run ends beyond the range";
  EXPECT_EQ(vm->mmu->join({PPN{0}, kGuestBytes >> 12}, flush), 1U);
  EXPECT_EQ(vm->mmu->join({PPN{0}, kGuestBytes >> 12}, flush), 0U) << "once is enough";
  EXPECT_EQ(vm->machine.nested_tables(), 4U);
  flush.commit();
  EXPECT_EQ(vm->machine.nested_tables(), 3U);
  EXPECT_EQ(vm->mmu->nested_stats().joins, 1U);
  EXPECT_NE(*vm->nested_entry(k2M, 2) & kPS, 0U);
  EXPECT_NE(*vm->nested_entry(k2M, 2) & dirty(), 0U) << "one of them was dirty";
  EXPECT_NE(*vm->nested_entry(k2M, 2) & accessed(), 0U);
  EXPECT_EQ(vm->load(k2M + 0x7000)->page.value(), kHomeBase + k2M + 0x7000);
  EXPECT_EQ(vm->mmu->last_walk(0).nested, 3U);
  // Another run, later: what is told is what this call has joined.
  for (std::uint64_t i = 0; i < 2; ++i) ASSERT_TRUE(vm->load(2 * k2M + i * kPageSize));
  vm->p2m.set(1024, 512, PageState::private_page, kLargePageShift);
  EXPECT_EQ(vm->mmu->join({PPN{1024}, 512}, flush), 1U);
  EXPECT_EQ(vm->mmu->nested_stats().joins, 2U);
  flush.commit();
}

TEST_P(Tables, AViolationInARunJoinsWhatIsThere) {
  NestedOptions options;  // caches on: they must not lead into the freed table
  auto vm = flat(options);
  ASSERT_TRUE(vm->store(k2M));
  ASSERT_TRUE(vm->load(k2M + 0x1000));
  vm->p2m.set(512, 512, PageState::private_page, kLargePageShift);
  ASSERT_TRUE(vm->load(k2M + 0x2000));
  EXPECT_EQ(vm->mmu->nested_stats().joins, 1U);
  EXPECT_EQ(vm->mmu->nested_stats().tables, 3U);
  EXPECT_EQ(vm->machine.nested_tables(), 3U);
  EXPECT_TRUE(vm->load(k2M + 0x1FF000));
}

TEST_P(Tables, AGigabyteIsJoinedOverTablesOfBothLevels) {
  auto vm = flat();
  ASSERT_TRUE(vm->load(k1G));
  ASSERT_TRUE(vm->load(k1G + 9 * k2M));
  vm->p2m.set(k1G >> 12, k1G >> 12, PageState::private_page, kHugePageShift);
  Flush flush{vm->domain};
  EXPECT_EQ(vm->mmu->join({PPN{k1G >> 12}, k1G >> 12}, flush), 1U);
  flush.commit();
  EXPECT_EQ(vm->machine.nested_tables(), 2U);
  EXPECT_EQ(vm->load(k1G + 0x3000000)->page.value(), kHomeBase + k1G + 0x3000000);
}

TEST_P(Tables, HostMemoryRunsOutAtEveryAllocation) {
  for (std::uint64_t nth = 1;; ++nth) {
    Vm vm{GetParam()};
    vm.p2m.set(0, kGuestBytes >> kPageShift, PageState::private_page);
    // Three regions of 2 MiB, two of 1 GiB.
    vm.map_long4(0x7F0012345000, k1G + kData, kAll);
    vm.use(vm.context());
    vm.machine.fail_from(nth);
    const auto r = vm.load(0x7F0012345678);
    const std::uint64_t spent = vm.machine.nested_tables();
    EXPECT_EQ(spent, vm.mmu->nested_stats().tables) << "nothing leaked on the way";
    // Only whole paths: the root, then with the first leaf 3 more, then 2 for the other gigabyte.
    EXPECT_THAT(spent, testing::AnyOf(1U, 4U, 6U)) << nth;
    vm.machine.fail_from(0);
    if (!r) {
      EXPECT_EQ(r.error().kind, FaultKind::out_of_memory);
      EXPECT_EQ(r.error().stage, Stage::p2m);
      EXPECT_EQ(r.error().va.value(), 0x7F0012345678U);
    }
    const auto again = vm.load(0x7F0012345678);
    ASSERT_TRUE(again);
    EXPECT_EQ(again->page.value(), kHomeBase + k1G + kData);
    EXPECT_EQ(vm.machine.nested_tables(), 6U);
    vm.mmu.reset();
    EXPECT_EQ(vm.machine.nested_tables(), 0U);
    if (r) {
      EXPECT_EQ(nth, 6U) << "five frames are needed";
      return;
    }
  }
}

TEST_P(Tables, NoFrameToSplitALoggedRunChangesNothing) {
  auto vm = flat_runs();
  Flush flush{vm->domain};
  vm->p2m.log({PPN{512}, 512}, flush);
  flush.commit();
  ASSERT_TRUE(vm->load(k2M));
  const std::uint64_t leaf = *vm->nested_entry(k2M, 2);
  vm->machine.fail_from(1);
  EXPECT_EQ(vm->store(k2M + 0x3000).error().kind, FaultKind::out_of_memory);
  EXPECT_EQ(*vm->nested_entry(k2M, 2), leaf);
  EXPECT_EQ(vm->machine.nested_tables(), 3U);
  vm->machine.fail_from(0);
  EXPECT_TRUE(vm->store(k2M + 0x3000));
  EXPECT_THAT(vm->p2m.dirty, testing::ElementsAre(512U + 3)) << "recorded once";
}

TEST_P(Tables, NoFrameForTheRootIsNull) {
  FakeMachine machine;
  FlushDomain domain;
  FakeP2m p2m{domain};
  machine.fail_from(1);
  EXPECT_EQ(make_nested(GetParam(), p2m, machine, domain), nullptr);
  EXPECT_EQ(machine.nested_tables(), 0U);
}

TEST_P(Tables, VcpuBeyondTheMaximumAborts) {
  auto vm = flat();
  EXPECT_DEATH((void)vm->load(0, 8), "");
}

}  // namespace
}  // namespace strata::nested::test
