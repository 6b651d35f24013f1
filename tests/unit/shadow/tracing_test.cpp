// Tracing of guest tables: who may write them unannounced, and what an announced store takes away.

#include <gtest/gtest.h>

#include <cstdint>

#include "shadow_support.hpp"

namespace strata::shadow::test {
namespace {

constexpr std::uint64_t kRoot = 16;
constexpr std::uint64_t kTable = kRoot + 3;

[[nodiscard]] VA page(std::uint64_t n) { return VA{n * kPageSize}; }

class Tracing : public testing::Test {
 protected:
  Tracing() {
    build_long4(s, kRoot);
    s.mmu->set_context(0, long4(kRoot));
    s.mmu->set_context(1, {});
  }
  [[nodiscard]] Expected<Translation, Fault> write_pa(std::uint64_t ppn) const {
    return s.mmu->translate(1, VA{ppn * kPageSize}, {AccessKind::write, false, false});
  }
  [[nodiscard]] ShadowStats stats() const { return s.mmu->shadow_stats(); }
  TestGuest s{TestGuest::patient()};
};

TEST_F(Tracing, TablesInUseAreNotWritable) {
  s.put(at(kTable, 1), to(100, kPWU));
  // Writable before they are known to be tables ...
  for (std::uint64_t p = kRoot; p <= kTable; ++p) EXPECT_TRUE(write_pa(p)->writable);
  ASSERT_TRUE(s.read(page(1)));
  // ... and traced from the first walk on, whatever the mapping.
  for (std::uint64_t p = kRoot; p <= kTable; ++p) {
    for (int pass = 0; pass < 2; ++pass) {
      const auto t = write_pa(p);
      ASSERT_TRUE(t);
      EXPECT_FALSE(t->writable);
      EXPECT_TRUE(t->traced);
      const auto r = s.mmu->translate(1, VA{p * kPageSize}, {});
      EXPECT_FALSE(r->writable);
      EXPECT_FALSE(r->traced);
    }
  }
  EXPECT_TRUE(write_pa(100)->writable);
  EXPECT_EQ(stats().traces, 4U);
}

TEST_F(Tracing, StoreToATableOfOnesOwnSetsDirtyFirst) {
  s.put(at(kTable, 1), to(kTable, kPWU));  // the page table maps itself
  const auto r = s.read(page(1));
  ASSERT_TRUE(r);
  const auto w = s.write(page(1));
  ASSERT_TRUE(w);
  EXPECT_TRUE(w->traced);
  EXPECT_FALSE(w->writable);
  EXPECT_EQ(s.get<std::uint64_t>(at(kTable, 1)), to(kTable, kPWU | kA | kD));
  // A guest's own read-only mapping is a guest fault, not a trace.
  s.put(at(kTable, 1), to(kTable, kP | kU));
  const auto f = s.write(page(1));
  ASSERT_FALSE(f);
  EXPECT_EQ(f.error().stage, Stage::guest_table);
}

TEST_F(Tracing, TracedStoresAreHitsWhileTheTraceLasts) {
  s.put(at(kTable, 1), to(100, kPWU));
  ASSERT_TRUE(s.read(page(1)));
  ASSERT_TRUE(write_pa(kTable)->traced);
  const MmuStats before = s.mmu->stats();
  const auto t = write_pa(kTable);
  EXPECT_TRUE(t->traced);
  EXPECT_FALSE(t->writable);
  EXPECT_TRUE(t->readable);
  EXPECT_EQ(t->page, TestGuest::home(kTable));
  EXPECT_EQ(s.mmu->stats().backend_misses, before.backend_misses);
  EXPECT_EQ(s.mmu->stats().table_references - before.table_references, 8U);
  // Rights above the leaf still count.
  s.put(at(kTable, 2), to(kTable, kPWU | kD));
  ASSERT_TRUE(s.write(page(2))->traced);
  ASSERT_TRUE(s.write(page(2))->traced);
  s.put(at(kRoot + 1), to(kRoot + 2, kP | kU));
  ASSERT_TRUE(s.read(page(2)));
  EXPECT_FALSE(s.write(page(2)));
  s.put(at(kRoot + 1), to(kRoot + 2, kP | kW));
  ASSERT_TRUE(s.read(page(2)));
  EXPECT_FALSE(s.write(page(2), true));
  EXPECT_TRUE(s.write(page(2))->traced);
}

TEST_F(Tracing, AnnouncedStoreZapsWhatItOverwrites) {
  s.put(at(kTable, 1), to(100, kPWU));
  s.put(at(kTable, 2), to(101, kPWU));
  ASSERT_TRUE(s.read(page(1)));
  ASSERT_TRUE(s.read(page(2)));
  const std::uint64_t misses = s.mmu->stats().backend_misses;
  s.put(at(kTable, 1), to(200, kPWU));
  EXPECT_EQ(s.read(page(2))->pa, at(101));
  EXPECT_EQ(s.mmu->stats().backend_misses, misses);  // the neighbour is untouched
  EXPECT_EQ(s.read(page(1))->pa, at(200));
  s.put<std::uint64_t>(at(kTable, 1), 0);
  EXPECT_EQ(s.read(page(1)).error().error_code, 0U);
  EXPECT_EQ(s.mmu->stats().traced_writes, 2U);
}

TEST_F(Tracing, PartialStoresZapToo) {
  s.put(at(kTable, 1), to(100, kPWU));
  ASSERT_TRUE(s.read(page(1)));
  // One byte of the address, in the middle of the entry.
  *s.host(PA{at(kTable, 1).value() + 1}) = std::byte{0x50};
  s.mmu->guest_wrote(PA{at(kTable, 1).value() + 1}, 1);
  EXPECT_EQ(s.read(page(1))->pa, at(0x65));
}

TEST_F(Tracing, AStoreMayEndWithTheFirstByteOfATable) {
  const auto present = [&] { return s.read(page(0)).has_value(); };
  for (const std::uint64_t before : {0U, 7U}) {  // bytes of the store in the page before
    s.put(at(kTable, 0), to(100, kPWU));
    ASSERT_TRUE(present());
    *s.host(at(kTable)) = std::byte{0};
    s.mmu->guest_wrote(PA{at(kTable).value() - before}, before + 1);
    EXPECT_FALSE(present()) << before;
  }
}

TEST_F(Tracing, OneStoreMayCoverSeveralEntriesAndPages) {
  s.put(at(kTable, 511), to(100, kPWU));
  ASSERT_TRUE(s.read(page(511)));
  s.put(at(kRoot + 2, 1), to(kTable + 1, kPWU));
  s.put(at(kTable + 1, 0), to(101, kPWU));
  ASSERT_TRUE(s.read(page(512)));
  s.poke(at(kTable, 511), to(200, kPWU));
  s.poke(at(kTable + 1, 0), to(201, kPWU));
  s.mmu->guest_wrote(at(kTable, 500), 13 * 8);
  EXPECT_EQ(s.read(page(511))->pa, at(200));
  EXPECT_EQ(s.read(page(512))->pa, at(201));
  // Lengths that reach beyond all memory are cut off, not followed.
  s.mmu->guest_wrote(at(kTable, 511), ~0ULL);
  s.mmu->guest_wrote(PA{~0ULL}, ~0ULL);
  EXPECT_EQ(s.read(page(512))->pa, at(201));
}

TEST_F(Tracing, StoresToDataCostNothing) {
  s.put(at(kTable, 1), to(100, kPWU));
  ASSERT_TRUE(s.read(page(1)));
  const ShadowStats before = stats();
  s.mmu->guest_wrote(at(100), 8);
  s.mmu->guest_wrote(at(1500), kPageSize);
  EXPECT_EQ(stats().traced_writes, before.traced_writes);
  EXPECT_EQ(stats().zaps, before.zaps);
}

TEST_F(Tracing, UnlinkedSubtreesAreFreedAndUntraced) {
  s.put(at(kTable, 1), to(100, kPWU));
  ASSERT_TRUE(s.read(page(1)));
  const std::uint64_t pages = stats().pages;
  s.put<std::uint64_t>(at(kRoot + 1), 0);
  s.domain.collect();
  EXPECT_EQ(stats().pages, pages - 2);
  EXPECT_EQ(s.frames.tables(), stats().pages);
  EXPECT_TRUE(write_pa(kRoot + 2)->writable);
  EXPECT_TRUE(write_pa(kTable)->writable);
  EXPECT_TRUE(write_pa(kRoot + 1)->traced);
  EXPECT_FALSE(s.read(page(1)));
  s.put(at(kRoot + 1), to(kRoot + 2, kPWU));
  EXPECT_EQ(s.read(page(1))->pa, at(100));
}

TEST_F(Tracing, SharedSubtreeLivesAsLongAsOneParent) {
  s.put(at(kTable, 1), to(100, kPWU));
  s.put(at(kRoot + 2, 1), to(kTable, kPWU));
  ASSERT_TRUE(s.read(page(1)));
  ASSERT_TRUE(s.read(page(513)));
  s.put<std::uint64_t>(at(kRoot + 2, 0), 0);
  EXPECT_TRUE(write_pa(kTable)->traced);
  const std::uint64_t misses = s.mmu->stats().backend_misses;
  EXPECT_EQ(s.read(page(513))->pa, at(100));
  EXPECT_EQ(s.mmu->stats().backend_misses, misses);
  s.put<std::uint64_t>(at(kRoot + 2, 1), 0);
  EXPECT_TRUE(write_pa(kTable)->writable);
}

TEST_F(Tracing, LargeLeafOverANewTableIsBroken) {
  s.p2m.set_run(PPN{0}, true);
  s.put(at(kTable, 1), to(100, kPWU));
  ASSERT_TRUE(write_pa(kTable)->writable);
  EXPECT_EQ(stats().large_leaves, 1U);
  ASSERT_TRUE(s.read(page(1)));
  EXPECT_TRUE(write_pa(kTable)->traced);
  EXPECT_TRUE(write_pa(100)->writable);
  EXPECT_EQ(stats().large_leaves, 1U);
  EXPECT_EQ(write_pa(101)->page, TestGuest::home(101));
}

TEST_F(Tracing, WriteFloodGivesATableUp) {
  ShadowOptions options = TestGuest::patient();
  options.write_flood_limit = 4;
  TestGuest f{options};
  build_long4(f, kRoot);
  f.mmu->set_context(0, long4(kRoot));
  f.mmu->set_context(1, {});
  f.put(at(kTable, 1), to(100, kPWU));
  ASSERT_TRUE(f.read(page(1)));
  // Writes between which the table is used do not count.
  for (std::uint64_t i = 0; i < 10; ++i) {
    f.put(at(kTable, 100 + i), to(i, kPWU));
    ASSERT_TRUE(f.read(page(1)));
  }
  EXPECT_EQ(f.mmu->shadow_stats().floods, 0U);
  for (std::uint64_t i = 0; i < 4; ++i) f.put(at(kTable, 100 + i), to(i, kPWU));
  EXPECT_EQ(f.mmu->shadow_stats().floods, 1U);
  const auto t = f.mmu->translate(1, VA{kTable * kPageSize}, {AccessKind::write, false, false});
  EXPECT_TRUE(t->writable);
  // Untraced stores are free to change it; the next use sees them.
  f.poke(at(kTable, 1), to(300, kPWU));
  EXPECT_EQ(f.read(page(1))->pa, at(300));
  // A root in use stays, and so do page directories for a while.
  for (std::uint64_t i = 0; i < 40; ++i) {
    f.put(at(kRoot, 100), i);
    f.put(at(kRoot + 1, 100), i);
  }
  EXPECT_EQ(f.mmu->shadow_stats().floods, 1U);
  for (std::uint64_t i = 0; i < 64; ++i) f.put(at(kRoot + 1, 100), i);
  EXPECT_EQ(f.mmu->shadow_stats().floods, 2U);
  EXPECT_EQ(f.read(page(1))->pa, at(300));
}

TEST_F(Tracing, WithoutTheTechniqueNoFloodGivesATableUp) {
  s.put(at(kTable, 1), to(100, kPWU));
  ASSERT_TRUE(s.read(page(1)));
  for (std::uint64_t i = 0; i < 200; ++i) s.put(at(kTable, 100 + i), to(i, kPWU));
  EXPECT_EQ(stats().floods, 0U);
  EXPECT_TRUE(write_pa(kTable)->traced);
}

TEST_F(Tracing, BulkStoreIsAFlood) {
  ShadowOptions options = TestGuest::patient();
  options.write_flood_limit = 12;
  TestGuest f{options};
  build_long4(f, kRoot);
  f.mmu->set_context(0, long4(kRoot));
  f.put(at(kTable, 1), to(100, kPWU));
  ASSERT_TRUE(f.read(page(1)));
  f.mmu->guest_wrote(at(kTable), kPageSize);
  EXPECT_EQ(f.mmu->shadow_stats().floods, 1U);
  EXPECT_EQ(f.read(page(1))->pa, at(100));
}

TEST_F(Tracing, TableThatLosesItsFrameIsForgotten) {
  s.put(at(kTable, 1), to(100, kPWU));
  ASSERT_TRUE(s.read(page(1)));
  s.p2m.set(PPN{kTable}, PageState::zero);  // discarded: all entries are gone
  const auto t = s.read(page(1));
  ASSERT_FALSE(t);
  EXPECT_EQ(t.error().kind, FaultKind::page_fault);
}

TEST_F(Tracing, OnePageAsNarrowAndWideTable) {
  // A page that is a PAE page table and an i386 page table at once: the accessed bit of the i386
  // walk (bit 5 of the upper half) is bit 37 of the PAE entry.
  PagingContext pae = long4(0);
  pae.mode = PagingMode::pae;
  pae.pdpte[0] = to(200, kP);
  s.put(at(200), to(201, kPWU));
  s.put(at(201, 0), to(100, kPWU | kD));
  s.mmu->set_context(0, pae);
  ASSERT_EQ(s.read(page(0))->pa, at(100));
  PagingContext narrow = long4(202);
  narrow.mode = PagingMode::i386;
  narrow.nxe = false;
  s.put<std::uint32_t>(at(202, 0, 4), static_cast<std::uint32_t>(to(201, kPWU)));
  s.mmu->set_context(1, narrow);
  // Upper half of the entry: present, so bit 32 of the PAE entry's address is set, too.
  s.p2m.high_aliases = true;
  s.put<std::uint32_t>(at(201, 1, 4), static_cast<std::uint32_t>(kP));
  for (int pass = 0; pass < 2; ++pass) {
    EXPECT_EQ(s.read(page(0))->pa, at((1ULL << 20) + 100));
  }
  const std::uint64_t a_of_narrow = 1ULL << 25;  // bit 37, as a page number
  ASSERT_TRUE(s.mmu->translate(1, VA{kPageSize}, {}));
  const auto after = s.read(page(0));
  ASSERT_TRUE(after);
  EXPECT_EQ(after->pa, at((1ULL << 20) + a_of_narrow + 100));
  EXPECT_EQ(after->page, TestGuest::home(101));
}

/// A page that becomes a table stays readable wherever it is mapped: only stores have to be seen.
TEST_F(Tracing, WhatMapsATracedPageStaysAndIsReadOnly) {
  s.put(at(kTable, 2), to(100, kPWU));
  ASSERT_TRUE(write_pa(kTable)->writable);
  ASSERT_TRUE(s.read(page(2)));  // makes kTable a table
  const std::uint64_t misses = s.mmu->stats().backend_misses;
  const auto t = s.mmu->translate(1, VA{kTable * kPageSize}, {});
  ASSERT_TRUE(t);
  EXPECT_EQ(t->page, TestGuest::home(kTable));
  EXPECT_FALSE(t->writable);
  EXPECT_TRUE(write_pa(kTable)->traced);
  EXPECT_EQ(s.mmu->stats().backend_misses, misses);
}

/// Rights come from every level, also where tracing alone keeps the leaf from being writable.
TEST_F(Tracing, ATracedPageBelowAReadOnlyDirectoryEntryCannotBeWritten) {
  s.put(at(kTable, 1), to(kTable, kPWU | kA | kD));
  s.put(at(kRoot + 2), to(kTable, kP | kU | kA));
  ASSERT_TRUE(s.read(page(1)));
  const auto t = s.write(page(1));
  ASSERT_FALSE(t);
  EXPECT_EQ(t.error().error_code, pf::kPresent | pf::kWrite);
}

/// A table that maps itself at every level, like the recursive slot of several kernels.
TEST_F(Tracing, RecursiveMapping) {
  constexpr std::uint64_t kSlot = 0x1F5;
  s.put(at(kTable, 1), to(100, kPWU));
  s.put(at(kRoot, kSlot), to(kRoot, kPWU));
  const auto recursive = [](std::uint64_t a, std::uint64_t b, std::uint64_t c, std::uint64_t d) {
    return VA{0xFFFF000000000000 | a << 39 | b << 30 | c << 21 | d << 12};
  };
  const VA leaf_table = recursive(kSlot, 0, 0, 0);              // kTable as data
  const VA root_table = recursive(kSlot, kSlot, kSlot, kSlot);  // kRoot as data
  for (int pass = 0; pass < 2; ++pass) {
    ASSERT_TRUE(s.read(page(1)));
    EXPECT_EQ(s.read(leaf_table)->pa, at(kTable));
    EXPECT_EQ(s.read(root_table)->pa, at(kRoot));
    EXPECT_EQ(s.read(recursive(kSlot, kSlot, 0, 0))->pa, at(kRoot + 2));
    EXPECT_TRUE(s.write(leaf_table)->traced);
    EXPECT_TRUE(s.write(root_table)->traced);
  }
  // An edit through the recursive mapping changes both views of it.
  s.put(at(kTable, 1), to(101, kPWU));
  EXPECT_EQ(s.read(page(1))->pa, at(101));
  s.put(at(kRoot + 2, 0), to(500, kPWU));
  EXPECT_EQ(s.read(leaf_table)->pa, at(500));
  EXPECT_FALSE(s.read(page(1)));
  // Cutting the recursion takes every level of it away at once.
  s.put<std::uint64_t>(at(kRoot, kSlot), 0);
  EXPECT_FALSE(s.read(root_table));
  EXPECT_FALSE(s.read(leaf_table));
  s.mmu.reset();
  s.domain.collect();
  EXPECT_EQ(s.frames.tables(), 0U);
}

TEST_F(Tracing, LazyEngineGetsUnlinkedTranslationsUntilItHasPassed) {
  FakeEngine engine{s.domain, *s.mmu, s.frames.window(), 1, true};
  s.put(at(kTable, 1), to(100, kPWU));
  // The engine caches a writable translation of what will be a table.
  ASSERT_TRUE(engine.store<std::uint64_t>(at(kTable, 2), to(101, kPWU)));
  ASSERT_TRUE(s.read(page(1)));
  ASSERT_TRUE(s.read(page(1)));
  EXPECT_EQ(stats().mappings - 1, 0U);  // the engine's own mapping, nothing else
  EXPECT_GE(stats().unlinked, 2U);
  engine.quiesce();
  ASSERT_TRUE(s.read(page(1)));
  EXPECT_EQ(stats().mappings - 1, 1U);
  ASSERT_TRUE(engine.store<std::uint64_t>(at(kTable, 1), to(200, kPWU)));
  EXPECT_EQ(engine.traced, 1U);
  EXPECT_EQ(s.read(page(1))->pa, at(200));
}

}  // namespace
}  // namespace strata::shadow::test
