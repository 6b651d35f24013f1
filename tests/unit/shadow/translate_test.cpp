// What one access does: installs, accessed and dirty bits, large pages, P2M states, contexts.

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>

#include "shadow/shadow_mmu.hpp"
#include "shadow_support.hpp"

namespace strata::shadow::test {
namespace {

constexpr std::uint64_t kRoot = 16;
constexpr std::uint64_t kTable = kRoot + 3;

[[nodiscard]] VA page(std::uint64_t n) { return VA{n * kPageSize}; }

/// A long-mode guest whose first 2 MiB are mapped by page kTable.
class Translate : public testing::Test {
 protected:
  Translate() {
    build_long4(s, kRoot);
    s.mmu->set_context(0, long4(kRoot));
  }
  [[nodiscard]] std::uint64_t misses() const { return s.mmu->stats().backend_misses; }
  [[nodiscard]] std::uint64_t entry(std::uint64_t index) const {
    return s.get<std::uint64_t>(at(kTable, index));
  }
  TestGuest s{TestGuest::patient()};
};

TEST_F(Translate, SecondAccessIsAHitOfFourReferences) {
  s.put(at(kTable, 1), to(100, kPWU));
  ASSERT_TRUE(s.read(page(1)));
  const MmuStats before = s.mmu->stats();
  const auto t = s.read(VA{page(1).value() + 0x123});
  ASSERT_TRUE(t);
  EXPECT_EQ(t->page, TestGuest::home(100));
  EXPECT_EQ(t->pa, at(100));
  const MmuStats after = s.mmu->stats();
  EXPECT_EQ(after.backend_misses, before.backend_misses);
  EXPECT_EQ(after.table_references - before.table_references, 4U);
  EXPECT_EQ(after.guest_references, before.guest_references);
  EXPECT_EQ(after.translations - before.translations, 1U);
  EXPECT_EQ(after.walks - before.walks, 1U);
}

TEST_F(Translate, DirtyBitsComeFromWriteMissesOnly) {
  s.put(at(kTable, 1), to(100, kPWU));
  const auto read = s.read(page(1));
  ASSERT_TRUE(read);
  EXPECT_FALSE(read->writable);
  EXPECT_EQ(entry(1), to(100, kPWU | kA));
  const auto write = s.write(page(1));
  ASSERT_TRUE(write);
  EXPECT_TRUE(write->writable);
  EXPECT_EQ(entry(1), to(100, kPWU | kA | kD));
  const std::uint64_t seen = misses();
  ASSERT_TRUE(s.write(page(1)));
  EXPECT_TRUE(s.read(page(1))->writable);
  EXPECT_EQ(misses(), seen);
}

TEST_F(Translate, GuestThatClearsAccessedSeesItSetAgain) {
  s.put(at(kTable, 1), to(100, kPWU));
  ASSERT_TRUE(s.write(page(1)));
  s.put(at(kTable, 1), to(100, kPWU));
  EXPECT_FALSE(s.read(page(1))->writable);
  EXPECT_EQ(entry(1), to(100, kPWU | kA));
  // And so at upper levels.
  s.put(at(kRoot + 1), to(kRoot + 2, kPWU));
  ASSERT_TRUE(s.read(page(1)));
  EXPECT_EQ(s.get<std::uint64_t>(at(kRoot + 1)), to(kRoot + 2, kPWU | kA));
}

TEST_F(Translate, GlobalFollowsTheLeafAndPge) {
  s.put(at(kTable, 1), to(100, kPWU | kG));
  EXPECT_TRUE(s.read(page(1))->global);
  EXPECT_TRUE(s.read(page(1))->global);
  PagingContext c = long4(kRoot);
  c.pge = false;
  s.mmu->set_context(0, c);
  EXPECT_FALSE(s.read(page(1))->global);
}

TEST_F(Translate, TablesAreReal) {
  s.put(at(kTable, 1), to(100, kPWU | kD));
  s.put(at(kTable, 2), to(200, kPWU | kD));
  ASSERT_TRUE(s.write(page(1)));
  ASSERT_TRUE(s.write(page(2)));
  // Find the shadow leaf of page 1 in the pool by what it must hold.
  std::uint64_t* found = nullptr;
  for (std::uint64_t mpn = kPool; mpn < kPool + 64; ++mpn) {
    std::uint64_t* words = s.frames.window().words(MPN{mpn});
    if ((words[1] & ~0xFFFULL) == TestGuest::home(100).value() && (words[1] & kP) != 0) {
      found = &words[1];
    }
  }
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(*found & (kPWU | kA | kD), kPWU | kA | kD);
  *found ^= TestGuest::home(100).value() ^ TestGuest::home(300).value();
  EXPECT_EQ(s.read(page(1))->page, TestGuest::home(300));
  // Taking R/W away by hand makes the next write miss and repair the entry.
  *found &= ~kW;
  const std::uint64_t seen = misses();
  EXPECT_EQ(s.write(page(1))->page, TestGuest::home(100));
  EXPECT_EQ(misses(), seen + 1);
  EXPECT_NE(*found & kW, 0U);
}

TEST_F(Translate, ZeroPageReadsTheZeroFrameAndGetsItsHomeOnWrite) {
  s.p2m.set(PPN{100}, PageState::zero);
  s.put(at(kTable, 1), to(100, kPWU | kD));
  auto t = s.read(page(1));
  ASSERT_TRUE(t);
  EXPECT_EQ(t->page, address_of(s.p2m.zero_frame()));
  EXPECT_FALSE(t->writable);
  EXPECT_EQ(s.read(page(1))->page, address_of(s.p2m.zero_frame()));
  t = s.write(page(1));
  ASSERT_TRUE(t);
  EXPECT_TRUE(t->writable);
  EXPECT_EQ(t->page, TestGuest::home(100));
  EXPECT_EQ(s.read(page(1))->page, TestGuest::home(100));
}

TEST_F(Translate, SharedPageIsReadOnlyUntilUnshared) {
  s.p2m.set(PPN{100}, PageState::shared, kHome + 300);
  s.put(at(kTable, 1), to(100, kPWU | kD));
  EXPECT_FALSE(s.read(page(1))->writable);
  EXPECT_EQ(s.read(page(1))->page, TestGuest::home(300));
  EXPECT_EQ(s.write(page(1))->page, TestGuest::home(100));
  EXPECT_TRUE(s.write(page(1))->writable);
}

TEST_F(Translate, DeviceAndRomFaultsAreByteExactAndNeverCached) {
  s.p2m.set(PPN{100}, PageState::mmio);
  s.p2m.set(PPN{101}, PageState::rom, kHome + 101);
  s.put(at(kTable, 1), to(100, kPWU | kD));
  s.put(at(kTable, 2), to(101, kPWU | kD));
  const VA device{page(1).value() + 0x34};
  for (int pass = 0; pass < 2; ++pass) {
    const auto t = s.read(device);
    ASSERT_FALSE(t);
    EXPECT_EQ(t.error().stage, Stage::p2m);
    EXPECT_EQ(t.error().kind, FaultKind::mmio);
    EXPECT_EQ(t.error().pa, PA{at(100).value() + 0x34});
    EXPECT_EQ(t.error().va, device);
    const auto rom = s.write(VA{page(2).value() + 8});
    ASSERT_FALSE(rom);
    EXPECT_EQ(rom.error().kind, FaultKind::rom_write);
    EXPECT_EQ(rom.error().pa, PA{at(101).value() + 8});
    const auto readable = s.read(page(2));
    ASSERT_TRUE(readable);
    EXPECT_FALSE(readable->writable);
  }
  EXPECT_EQ(s.mmu->shadow_stats().mappings, 1U);
  const auto beyond = s.read(VA{1ULL << 21});  // no page directory entry
  ASSERT_FALSE(beyond);
  EXPECT_EQ(beyond.error().kind, FaultKind::page_fault);
}

TEST_F(Translate, LoggedPageIsNotedOnTheFirstWrite) {
  s.put(at(kTable, 1), to(100, kPWU | kD));
  ASSERT_TRUE(s.write(page(1)));
  s.p2m.log(PPN{100});
  EXPECT_FALSE(s.read(page(1))->writable);
  EXPECT_EQ(s.p2m.noted_dirty, 0);
  EXPECT_TRUE(s.write(page(1))->writable);
  EXPECT_EQ(s.p2m.noted_dirty, 1);
  ASSERT_TRUE(s.write(page(1)));
  EXPECT_EQ(s.p2m.noted_dirty, 1);
}

TEST_F(Translate, PageLoggedAgainAtOnceIsRetried) {
  s.put(at(kTable, 1), to(100, kPWU | kD));
  s.p2m.log(PPN{100});
  s.p2m.logs_again = true;
  const auto t = s.write(VA{page(1).value() + 3});
  ASSERT_FALSE(t);
  EXPECT_EQ(t.error().stage, Stage::p2m);
  EXPECT_EQ(t.error().kind, FaultKind::retry);
  EXPECT_EQ(t.error().pa, PA{at(100).value() + 3});
  s.p2m.logs_again = false;
  EXPECT_TRUE(s.write(page(1))->writable);
}

TEST_F(Translate, P2mChangeTakesEveryMappingOfThePage) {
  s.put(at(kTable, 1), to(100, kPWU | kD));
  s.put(at(kTable, 2), to(100, kPWU | kD));
  s.put(at(kTable, 3), to(101, kPWU | kD));
  for (std::uint64_t n = 1; n <= 3; ++n) ASSERT_TRUE(s.write(page(n)));
  s.p2m.set(PPN{100}, PageState::swapped, 7);
  EXPECT_EQ(s.mmu->shadow_stats().mappings, 1U);
  EXPECT_EQ(s.read(page(1)).error().kind, FaultKind::paused);
  EXPECT_EQ(s.write(page(2)).error().kind, FaultKind::paused);
  EXPECT_EQ(s.read(page(3))->page, TestGuest::home(101));
  s.p2m.set(PPN{100}, PageState::private_page, kHome + 100);
  EXPECT_TRUE(s.read(page(2))->writable);
}

TEST_F(Translate, WholeMemoryChangeIsOneCall) {
  s.put(at(kTable, 1), to(100, kPWU | kD));
  s.put(at(kTable, 2), to(1900, kPWU | kD));
  ASSERT_TRUE(s.read(page(1)));
  ASSERT_TRUE(s.read(page(2)));
  Flush flush{s.domain};
  s.mmu->p2m_changed({PPN{0}, 1ULL << 40}, flush);
  flush.commit();
  EXPECT_EQ(s.mmu->shadow_stats().mappings, 0U);
  EXPECT_TRUE(s.read(page(1)));
}

TEST_F(Translate, ChangeOfAFewPagesTakesThoseAlone) {
  // The last pages of one 2 MiB and the first of the next, as a discard of four pages names them.
  for (std::uint64_t n = 1; n <= 6; ++n) {
    s.put(at(kTable, n), to(508 + n, kPWU | kD));
    ASSERT_TRUE(s.read(page(n)));
  }
  Flush flush{s.domain};
  s.mmu->p2m_changed({PPN{510}, 4}, flush);
  flush.commit();
  EXPECT_EQ(s.mmu->shadow_stats().mappings, 2U);
  const std::uint64_t seen = misses();
  EXPECT_EQ(s.read(page(1))->pa, at(509));
  EXPECT_EQ(s.read(page(6))->pa, at(514));
  EXPECT_EQ(misses(), seen);
  for (std::uint64_t n = 2; n <= 5; ++n) EXPECT_EQ(s.read(page(n))->pa, at(508 + n));
  EXPECT_EQ(misses(), seen + 4);
}

TEST_F(Translate, StoreInTheMiddleOfAMissWins) {
  s.put(at(kTable, 1), to(100, kPWU));
  s.put(at(kTable, 2), to(101, kPWU));
  ASSERT_TRUE(s.read(page(2)));
  s.p2m.after_resolve_of = PPN{100};
  s.p2m.after_resolve = [&] { s.put(at(kTable, 1), to(200, kPWU)); };
  EXPECT_EQ(s.read(page(1))->pa, at(200));
  EXPECT_EQ(s.read(page(1))->pa, at(200));
  EXPECT_EQ(s.mmu->shadow_stats().retries, 1U);
}

TEST_F(Translate, P2mChangeInTheMiddleOfAMissWins) {
  s.put(at(kTable, 1), to(100, kPWU | kD));
  s.put(at(kTable, 2), to(101, kPWU | kD));
  ASSERT_TRUE(s.read(page(2)));
  s.p2m.after_resolve_of = PPN{100};
  s.p2m.after_resolve = [&] { s.p2m.set(PPN{100}, PageState::shared, kHome + 300); };
  for (int pass = 0; pass < 2; ++pass) {
    const auto t = s.read(page(1));
    ASSERT_TRUE(t);
    EXPECT_EQ(t->page, TestGuest::home(300));
    EXPECT_FALSE(t->writable);
  }
  EXPECT_EQ(s.mmu->shadow_stats().retries, 1U);
}

TEST_F(Translate, MissThatNeverGetsThroughIsAnsweredUnlinked) {
  s.put(at(kTable, 1), to(100, kPWU | kD));
  s.put(at(kTable, 2), to(101, kPWU | kD));
  ASSERT_TRUE(s.read(page(2)));
  s.p2m.after_resolve_of = PPN{100};
  std::function<void()> disturb = [&] {
    s.put(at(kTable, 3), to(300, kPWU));
    s.p2m.after_resolve = disturb;
  };
  s.p2m.after_resolve = disturb;
  const auto t = s.write(page(1));
  ASSERT_TRUE(t);
  EXPECT_EQ(t->page, TestGuest::home(100));
  EXPECT_TRUE(t->writable);
  EXPECT_EQ(s.mmu->shadow_stats().unlinked, 1U);
  EXPECT_EQ(s.mmu->shadow_stats().retries, kAttempts);
  EXPECT_EQ(s.mmu->shadow_stats().mappings, 1U);
}

TEST_F(Translate, LargePageOfARunIsOneLeaf) {
  s.p2m.set_run(PPN{1024}, true);
  s.put(at(kRoot + 2, 1), to(1024, kPWU | kPS | kD));
  const VA base{kLargePageSize};
  ASSERT_TRUE(s.write(base));
  const std::uint64_t seen = misses();
  for (const std::uint64_t i : {1ULL, 77ULL, 511ULL}) {
    const auto t = s.read(VA{base.value() + i * kPageSize + 9});
    ASSERT_TRUE(t);
    EXPECT_EQ(t->page, TestGuest::home(1024 + i));
    EXPECT_EQ(t->pa, at(1024 + i));
    EXPECT_EQ(t->page_shift, kLargePageShift);
    EXPECT_TRUE(t->writable);
  }
  EXPECT_EQ(misses(), seen);
  EXPECT_EQ(s.mmu->shadow_stats().large_leaves, 1U);
  // Moving one page breaks the run; the others keep their places.
  s.p2m.set_run(PPN{1024}, false);
  s.p2m.set(PPN{1025}, PageState::shared, kHome + 300);
  EXPECT_EQ(s.read(VA{base.value() + kPageSize})->page, TestGuest::home(300));
  EXPECT_EQ(s.read(VA{base.value() + 2 * kPageSize})->page, TestGuest::home(1026));
  EXPECT_EQ(s.read(base)->page_shift, kLargePageShift);
  EXPECT_EQ(s.mmu->shadow_stats().fragmented, 1U);
}

TEST_F(Translate, FragmentsGiveWayToALargeLeaf) {
  s.put(at(kRoot + 2, 1), to(1024, kPWU | kPS | kD));
  const auto va = [](std::uint64_t i) { return VA{kLargePageSize + i * kPageSize}; };
  for (std::uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(s.read(va(i)));
  const ShadowStats before = s.mmu->shadow_stats();
  EXPECT_EQ(before.mappings, 8U);
  s.p2m.set_run(PPN{1024}, true);
  ASSERT_TRUE(s.read(va(100)));
  const ShadowStats after = s.mmu->shadow_stats();
  EXPECT_EQ(after.large_leaves, 1U);
  EXPECT_EQ(after.mappings, 1U);
  EXPECT_EQ(after.pages, before.pages - 1);
  for (const std::uint64_t i : {3ULL, 100ULL}) {
    EXPECT_EQ(s.read(va(i))->page, TestGuest::home(1024 + i));
    EXPECT_EQ(s.read(va(i))->pa, at(1024 + i));
  }
  s.p2m.set(PPN{1027}, PageState::swapped, 1);
  EXPECT_FALSE(s.read(va(3)));
}

TEST_F(Translate, DirtyBitOfAFragmentedLargePageCoversItsPieces) {
  s.put(at(kRoot + 2, 1), to(1024, kPWU | kPS));
  const VA base{kLargePageSize};
  for (const std::uint64_t i : {0ULL, 1ULL}) {
    EXPECT_FALSE(s.read(VA{base.value() + i * kPageSize})->writable);
  }
  ASSERT_TRUE(s.write(base));
  EXPECT_NE(s.get<std::uint64_t>(at(kRoot + 2, 1)) & kD, 0U);
  const std::uint64_t seen = misses();
  EXPECT_TRUE(s.read(VA{base.value() + kPageSize})->writable);
  EXPECT_EQ(misses(), seen);
}

TEST_F(Translate, UnalignedRunIsNotALargeLeaf) {
  s.p2m.set_run(PPN{1024}, true);
  for (std::uint64_t p = 1024; p < 1536; ++p) {
    s.p2m.set(PPN{p}, PageState::private_page, kHome + p - 1);
  }
  s.put(at(kRoot + 2, 1), to(1024, kPWU | kPS));
  EXPECT_EQ(s.read(VA{kLargePageSize})->page, TestGuest::home(1023));
  EXPECT_EQ(s.mmu->shadow_stats().large_leaves, 0U);
}

TEST_F(Translate, LargeRunOfZeroesIsFragmented) {
  s.p2m.set_run(PPN{1024}, true);
  for (std::uint64_t p = 1024; p < 1536; ++p) s.p2m.set(PPN{p}, PageState::zero);
  s.put(at(kRoot + 2, 1), to(1024, kPWU | kPS));
  for (int pass = 0; pass < 2; ++pass) {
    for (const std::uint64_t i : {0ULL, 5ULL}) {
      EXPECT_EQ(s.read(VA{kLargePageSize + i * kPageSize})->page, address_of(s.p2m.zero_frame()));
    }
  }
  EXPECT_EQ(s.mmu->shadow_stats().large_leaves, 0U);
}

TEST_F(Translate, Pse36ReachesBothHalves) {
  PagingContext c = long4(kRoot + 8);
  c.mode = PagingMode::i386;
  c.nxe = false;
  c.pse = true;
  s.mmu->set_context(0, c);
  s.p2m.set_run(PPN{1024}, true);
  s.p2m.set_run(PPN{1536}, true);
  s.put<std::uint32_t>(at(kRoot + 8, 3, 4), static_cast<std::uint32_t>(to(1024, kPWU | kPS | kD)));
  for (const std::uint64_t i : {0ULL, 511ULL, 512ULL, 1023ULL}) {
    for (int pass = 0; pass < 2; ++pass) {
      const auto t = s.write(VA{3 * (4ULL << 20) + i * kPageSize});
      ASSERT_TRUE(t);
      EXPECT_EQ(t->page, TestGuest::home(1024 + i));
      EXPECT_EQ(t->page_shift, 22U);
    }
  }
  EXPECT_EQ(s.mmu->shadow_stats().large_leaves, 2U);
  // One guest entry, two shadow entries: both go.
  s.put<std::uint32_t>(at(kRoot + 8, 3, 4), 0);
  EXPECT_FALSE(s.read(VA{3 * (4ULL << 20)}));
  EXPECT_FALSE(s.read(VA{3 * (4ULL << 20) + 600 * kPageSize}));
}

TEST_F(Translate, I386TablesCoverTheWholeSpace) {
  PagingContext c = long4(kRoot + 8);
  c.mode = PagingMode::i386;
  c.nxe = false;
  s.mmu->set_context(0, c);
  const auto put = [&](std::uint64_t ppn, std::uint64_t index, std::uint64_t e) {
    s.put<std::uint32_t>(at(ppn, index, 4), static_cast<std::uint32_t>(e));
  };
  // A page table for each of the 16 eighths of a GiB, each with a low and a high entry.
  for (std::uint64_t i = 0; i < 32; ++i) {
    put(kRoot + 8, i * 32, to(200 + i, kPWU));
    put(200 + i, 3, to(300 + i, kPWU));
    put(200 + i, 1020, to(400 + i, kPWU));
  }
  for (int pass = 0; pass < 2; ++pass) {
    for (std::uint64_t i = 0; i < 32; ++i) {
      const std::uint64_t base = i * 32 << 22;
      EXPECT_EQ(s.read(VA{base + 3 * kPageSize})->pa, at(300 + i));
      EXPECT_EQ(s.read(VA{base + 1020 * kPageSize})->pa, at(400 + i));
    }
  }
}

TEST_F(Translate, PaeDirectoriesComeFromTheRegisters) {
  PagingContext c = long4(0);
  c.mode = PagingMode::pae;
  for (std::uint64_t i = 0; i < 4; ++i) {
    c.pdpte[i] = to(200 + i, kP);
    s.put(at(200 + i, i), to(210 + i, kPWU));
    s.put(at(210 + i, 7), to(300 + i, kPWU));
  }
  const auto va = [](std::uint64_t i) { return VA{(i << 30) + (i << 21) + 7 * kPageSize}; };
  s.mmu->set_context(0, c);
  for (int pass = 0; pass < 2; ++pass) {
    for (std::uint64_t i = 0; i < 4; ++i) EXPECT_EQ(s.read(va(i))->pa, at(300 + i));
  }
  // The registers keep their values until they are loaded again; then another root is used.
  std::swap(c.pdpte[0], c.pdpte[1]);
  s.mmu->set_context(0, c);
  EXPECT_FALSE(s.read(va(0)));
  c.pdpte[2] = 0;
  s.mmu->set_context(0, c);
  EXPECT_FALSE(s.read(va(2)));
  EXPECT_EQ(s.read(va(3))->pa, at(303));
}

TEST_F(Translate, RootsAreCachedByTableAndRole) {
  build_long4(s, 32);
  s.put(at(kTable, 1), to(100, kPWU));
  s.put(at(35, 1), to(101, kPWU));
  ASSERT_TRUE(s.read(page(1)));
  s.mmu->set_context(0, long4(32));
  EXPECT_EQ(s.read(page(1))->pa, at(101));
  const std::uint64_t seen = misses();
  s.mmu->set_context(0, long4(kRoot));
  EXPECT_EQ(s.read(page(1))->pa, at(100));
  s.mmu->set_context(0, long4(32));
  EXPECT_EQ(s.read(page(1))->pa, at(101));
  EXPECT_EQ(misses(), seen);
  EXPECT_EQ(s.mmu->shadow_stats().roots, 2U);
  EXPECT_EQ(s.mmu->shadow_stats().root_hits, 2U);
  EXPECT_EQ(s.mmu->shadow_stats().root_misses, 2U);
}

TEST_F(Translate, TablesUnderSeveralRootsAreShadowedOnce) {
  s.put(at(kTable, 1), to(100, kPWU));
  ASSERT_TRUE(s.read(page(1)));
  const std::uint64_t before = s.mmu->shadow_stats().pages;
  s.put(at(32, 5), to(kRoot + 1, kPWU));  // another root over the same lower tables
  s.mmu->set_context(0, long4(32));
  const VA va{(5ULL << 39) + kPageSize};
  EXPECT_EQ(s.read(va)->pa, at(100));
  EXPECT_EQ(s.mmu->shadow_stats().pages, before + 1);
  s.put(at(kTable, 1), to(101, kPWU));
  EXPECT_EQ(s.read(va)->pa, at(101));
  s.mmu->set_context(0, long4(kRoot));
  EXPECT_EQ(s.read(page(1))->pa, at(101));
}

TEST_F(Translate, UnknownVcpuIsAnError) {
  const auto t = s.mmu->translate(1000, page(1), {});
  ASSERT_FALSE(t);
  EXPECT_EQ(t.error().stage, Stage::engine);
  s.mmu->set_context(1000, long4(kRoot));
  s.mmu->invalidate_page(1000, page(1));
}

TEST_F(Translate, FlushesAreCounted) {
  s.mmu->invalidate_page(0, page(1));
  s.mmu->invalidate(0, FlushScope::all, 0, {});
  EXPECT_EQ(s.mmu->stats().invalidations, 2U);
  EXPECT_EQ(s.mmu->name(), "shadow");
}

TEST(ShadowMmu, StopsObservingWhenItGoes) {
  TestGuest s;
  EXPECT_TRUE(s.p2m.observed());
  s.mmu.reset();
  EXPECT_FALSE(s.p2m.observed());
}

TEST(ShadowMmu, FactoryGivesTheCommonInterface) {
  TestGuest s;
  const std::unique_ptr<Mmu> mmu = make_shadow(s.p2m, s.frames, s.domain, {});
  mmu->set_context(3, {});
  const auto t = mmu->translate(3, VA{5 * kPageSize}, {});
  ASSERT_TRUE(t);
  EXPECT_EQ(t->pa, at(5));
  EXPECT_EQ(mmu->stats().table_bytes, 4 * kPageSize);
}

}  // namespace
}  // namespace strata::shadow::test
