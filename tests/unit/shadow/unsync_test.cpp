// Leaf tables out of sync: which stores go unwatched, and which outdated entries a vCPU may still
// use (SDM 3A 4.10.2 to 4.10.4).

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>

#include "shadow_support.hpp"

namespace strata::shadow::test {
namespace {

constexpr std::uint64_t kRoot = 16;
constexpr std::uint64_t kTable = kRoot + 3;
constexpr std::uint64_t kOther = 32;  // another address space
constexpr VcpuId kStores = 7;         // a vCPU with paging off that makes the stores

[[nodiscard]] VA page(std::uint64_t n) { return VA{n * kPageSize}; }

class Unsync : public testing::Test {
 protected:
  explicit Unsync(ShadowOptions options = only_unsync()) : s{options} {
    build_long4(s, kRoot);
    s.mmu->set_context(0, with_pcid(kRoot, 1));
    s.mmu->set_context(1, with_pcid(kRoot, 1));
    s.mmu->set_context(kStores, {});
    for (const VcpuId v : {0U, 1U}) s.mmu->invalidate(v, FlushScope::all, 0, {});
  }
  static ShadowOptions only_unsync() {
    ShadowOptions o = TestGuest::patient();
    o.unsync = true;
    return o;
  }
  static ShadowOptions with_tenures() {
    ShadowOptions o = only_unsync();
    o.pcid = o.global_pages = true;
    return o;
  }
  static PagingContext with_pcid(std::uint64_t root, std::uint16_t pcid) {
    PagingContext c = long4(root);
    c.pcide = true;
    c.pcid = pcid;
    return c;
  }
  /// A store as the engine makes it: translated, and announced only if it has to be.
  void store(PA pa, std::uint64_t value, bool expect_traced = false) {
    const auto t = s.mmu->translate(kStores, VA{pa.value()}, {AccessKind::write, false, false});
    ASSERT_TRUE(t);
    EXPECT_EQ(t->traced, expect_traced);
    s.poke(pa, value);
    if (t->traced) s.mmu->guest_wrote(pa, sizeof value);
  }
  void map(std::uint64_t index, std::uint64_t ppn, std::uint64_t bits = kPWU) {
    store(at(kTable, index), to(ppn, bits));
  }
  [[nodiscard]] PA read_on(VcpuId vcpu, VA va) const {
    const auto t = s.mmu->translate(vcpu, va, {});
    return t ? t->pa : PA{~0ULL};
  }
  [[nodiscard]] ShadowStats stats() const { return s.mmu->shadow_stats(); }
  /// Page 1 is 100 in the shadow and 200 in the guest's table.
  void make_outdated(std::uint64_t bits = kPWU) {
    map(1, 100, bits);
    s.mmu->invalidate_page(0, page(1));
    ASSERT_EQ(read_on(0, page(1)), at(100));
    map(1, 200, bits);
  }
  TestGuest s;
};

TEST_F(Unsync, StoresToALeafTableAreTracedOnceAtMost) {
  make_outdated();
  EXPECT_EQ(stats().unsyncs, 1U);
  EXPECT_EQ(stats().unsync_now, 1U);
  for (std::uint64_t i = 10; i < 60; ++i) map(i, i);
  EXPECT_EQ(s.mmu->stats().traced_writes, 0U);
  EXPECT_EQ(stats().unsyncs, 1U);
  // Upper levels are always in step.
  store(at(kRoot + 2, 5), to(60, kPWU), true);
  EXPECT_EQ(s.mmu->stats().traced_writes, 1U);
}

TEST_F(Unsync, OffMeansEveryStoreIsAnnounced) {
  TestGuest plain{TestGuest::patient()};
  build_long4(plain, kRoot);
  plain.mmu->set_context(0, long4(kRoot));
  plain.put(at(kTable, 1), to(100, kPWU));
  ASSERT_TRUE(plain.read(page(1)));
  plain.mmu->set_context(kStores, {});
  const auto t =
      plain.mmu->translate(kStores, VA{kTable * kPageSize}, {AccessKind::write, false, false});
  EXPECT_TRUE(t->traced);
  EXPECT_EQ(plain.mmu->shadow_stats().unsyncs, 0U);
}

TEST_F(Unsync, AnOutdatedEntryIsUsedUntilInvlpg) {
  make_outdated();
  const std::uint64_t misses = s.mmu->stats().backend_misses;
  EXPECT_EQ(read_on(0, page(1)), at(100)) << "no flush yet: what a TLB would answer";
  EXPECT_EQ(s.mmu->stats().backend_misses, misses);
  s.mmu->invalidate_page(0, page(2));
  EXPECT_EQ(read_on(0, page(1)), at(100)) << "INVLPG of another page";
  s.mmu->invalidate_page(0, page(1));
  EXPECT_EQ(read_on(0, page(1)), at(200));
  EXPECT_EQ(stats().unsync_now, 1U) << "one address was looked at, not the table";
}

TEST_F(Unsync, EveryFlushThatReachesTheEntryIsHonoured) {
  struct Flushing {
    FlushScope scope;
    std::uint16_t pcid;
    bool reaches;
  };
  std::uint64_t want = 100;
  map(1, want);
  for (const Flushing f :
       {Flushing{FlushScope::pcid, 1, true}, Flushing{FlushScope::all, 0, true},
        Flushing{FlushScope::all_non_global, 0, true}, Flushing{FlushScope::address, 1, true},
        Flushing{FlushScope::pcid, 2, false}}) {
    ASSERT_EQ(read_on(0, page(1)), at(want));
    map(1, want + 1);
    ASSERT_EQ(read_on(0, page(1)), at(want));
    s.mmu->invalidate(0, f.scope, f.pcid, page(1));
    if (f.reaches) ++want;
    EXPECT_EQ(read_on(0, page(1)), at(want)) << static_cast<int>(f.scope);
  }
}

TEST_F(Unsync, EveryPropertyOfAnEntryIsCompared) {
  const std::uint64_t full = kPWU | kA | kD | kG;
  struct Edit {
    const char* what;
    std::uint64_t to;
  };
  for (const Edit e : {Edit{"not present", full & ~kP}, Edit{"read-only", full & ~kW},
                       Edit{"supervisor", full & ~kU}, Edit{"not dirty", full & ~kD},
                       Edit{"not accessed", full & ~kA}, Edit{"not global", full & ~kG},
                       Edit{"no execute", full | kNX}, Edit{"key", full | 5ULL << 59},
                       Edit{"reserved", full | 1ULL << 45}}) {
    map(1, 100, full);
    s.mmu->invalidate(0, FlushScope::all, 0, {});
    ASSERT_TRUE(s.write(page(1), true)->writable) << e.what;
    map(1, 100, e.to);
    const std::uint64_t outdated = stats().outdated;
    s.mmu->invalidate_page(0, page(1));
    EXPECT_EQ(stats().outdated, outdated + 1) << e.what;
  }
}

TEST_F(Unsync, DirtyAndAccessedBitsComeBackAfterAFlush) {
  map(1, 100);
  ASSERT_TRUE(s.write(page(1))->writable);
  ASSERT_EQ(s.get<std::uint64_t>(at(kTable, 1)), to(100, kPWU | kA | kD));
  map(1, 100);  // the guest cleans the page
  EXPECT_TRUE(s.write(page(1))->writable) << "as with a dirty TLB entry";
  EXPECT_EQ(s.get<std::uint64_t>(at(kTable, 1)), to(100, kPWU));
  s.mmu->invalidate_page(0, page(1));
  EXPECT_FALSE(s.read(page(1))->writable) << "D has to be set first";
  EXPECT_EQ(s.get<std::uint64_t>(at(kTable, 1)), to(100, kPWU | kA));
  EXPECT_TRUE(s.write(page(1))->writable);
  EXPECT_EQ(s.get<std::uint64_t>(at(kTable, 1)), to(100, kPWU | kA | kD));
}

TEST_F(Unsync, NoSpuriousFault) {
  make_outdated(kP | kU);
  // More rights, and presence, need no flush to be seen.
  map(1, 200, kPWU);
  EXPECT_EQ(s.write(page(1))->pa, at(200));
  map(2, 300);
  EXPECT_EQ(read_on(0, page(2)), at(300));
}

TEST_F(Unsync, AFlushOfOneVcpuIsNotOneOfAnother) {
  map(2, 300);
  for (const VcpuId v : {0U, 1U}) ASSERT_EQ(read_on(v, page(2)), at(300));
  make_outdated();
  ASSERT_EQ(read_on(1, page(1)), at(100)) << "its TLB could hold it as well";
  s.mmu->invalidate(1, FlushScope::pcid, 1, {});
  EXPECT_EQ(read_on(1, page(1)), at(200));
  // Being up to date is always allowed, so nothing can be said about vCPU 0.
}

TEST_F(Unsync, QuietTablesAreTracedAgainAndBusyOnesAreNot) {
  make_outdated();
  s.mmu->invalidate(0, FlushScope::pcid, 1, {});
  ASSERT_EQ(read_on(0, page(1)), at(200));
  EXPECT_EQ(stats().resyncs, 1U);
  EXPECT_EQ(stats().unsync_now, 1U) << "something had changed: it will again";
  for (std::uint64_t quiet = 1; quiet <= 3; ++quiet) {
    EXPECT_EQ(stats().unsync_now, 1U);
    s.mmu->invalidate(0, FlushScope::pcid, 1, {});
    ASSERT_EQ(read_on(0, page(1)), at(200));
    EXPECT_EQ(stats().resyncs, 1 + quiet);
  }
  EXPECT_EQ(stats().unsync_now, 0U);
  // In sync: flushes cost nothing more, and a store is noticed at once.
  s.mmu->invalidate(0, FlushScope::pcid, 1, {});
  ASSERT_EQ(read_on(0, page(1)), at(200));
  EXPECT_EQ(stats().resyncs, 4U);
  s.put(at(kTable, 1), to(201, kPWU));
  EXPECT_EQ(read_on(0, page(1)), at(201));
}

TEST_F(Unsync, ATableNotUsedAfterAFlushIsNotCompared) {
  make_outdated();
  s.mmu->invalidate(0, FlushScope::all, 0, {});
  EXPECT_EQ(stats().resyncs, 0U);
  ASSERT_EQ(read_on(0, page(1)), at(200));
  EXPECT_EQ(stats().resyncs, 1U);
}

TEST_F(Unsync, ANewWayToATableStartsUpToDate) {
  map(2, 300);
  ASSERT_EQ(read_on(0, page(2)), at(300));
  make_outdated();
  // Another directory entry, and another top one, lead to the table: no TLB can know it by those.
  // The miss that makes the way is about page 2; the outdated entry is met by a hit.
  store(at(kRoot + 2, 1), to(kTable, kPWU), true);
  EXPECT_EQ(read_on(0, page(512 + 2)), at(300));
  EXPECT_EQ(read_on(0, page(512 + 1)), at(200));
  make_outdated();
  store(at(kRoot, 7), to(kRoot + 1, kPWU), true);
  EXPECT_EQ(read_on(0, VA{(7ULL << 39) + 2 * kPageSize}), at(300));
  EXPECT_EQ(read_on(0, VA{(7ULL << 39) + kPageSize}), at(200));
}

TEST_F(Unsync, APageThatIsADirectoryTooStaysTraced) {
  map(1, 100);
  ASSERT_EQ(read_on(0, page(1)), at(100));
  // The leaf table is a directory as well.
  s.put(at(kRoot + 1, 1), to(kTable, kPWU));
  s.put(at(100, 3), to(101, kPWU));
  ASSERT_EQ(read_on(0, VA{kHugePageSize + (512 + 3) * kPageSize}), at(101));
  store(at(kTable, 1), to(200, kPWU), true);
  EXPECT_EQ(read_on(0, page(1)), at(200));
  EXPECT_EQ(stats().unsyncs, 0U);
}

TEST_F(Unsync, ATableOutOfSyncThatBecomesADirectoryIsTracedAgain) {
  make_outdated();
  s.put(at(kRoot + 1, 1), to(kTable, kPWU));
  s.put(at(200, 3), to(101, kPWU));
  ASSERT_EQ(read_on(0, VA{kHugePageSize + (512 + 3) * kPageSize}), at(101));
  EXPECT_EQ(stats().unsync_now, 0U);
  EXPECT_EQ(read_on(0, page(1)), at(200));
  store(at(kTable, 1), to(201, kPWU), true);
  EXPECT_EQ(read_on(0, page(1)), at(201));
}

/// CR0.WP=0 makes supervisor stores use tables of their own over the same guest pages.
TEST_F(Unsync, AnotherMirrorOfAPageOutOfSyncIsOutOfSyncToo) {
  make_outdated();
  PagingContext free = with_pcid(kRoot, 1);
  free.wp = false;
  s.mmu->set_context(1, free);
  const ShadowStats before = stats();
  ASSERT_TRUE(s.mmu->translate(1, page(1), {AccessKind::write, false, false}));
  EXPECT_EQ(stats().pages, before.pages + 4);
  EXPECT_EQ(stats().unsync_now, 2U);
  EXPECT_EQ(stats().traces, before.traces) << "stores to the table go on unwatched";
}

TEST_F(Unsync, ATableThatLosesItsFrameIsForgotten) {
  make_outdated();
  s.p2m.set(PPN{kTable}, PageState::zero);
  EXPECT_EQ(read_on(0, page(1)), PA{~0ULL});
}

TEST_F(Unsync, AStoreAnnouncedLateIsStillHonoured) {
  map(1, 100);
  ASSERT_EQ(read_on(0, page(1)), at(100));
  s.poke(at(kTable, 1), to(200, kPWU));  // traced when it was made ...
  map(9, 9);                             // ... and no longer when another vCPU's store unsynced it
  s.mmu->guest_wrote(at(kTable, 1), 8);
  EXPECT_EQ(read_on(0, page(1)), at(200));
}

TEST_F(Unsync, AStoreInTheMiddleOfAMissIsNotInstalledOver) {
  make_outdated();
  ASSERT_NE(read_on(1, page(1)), PA{~0ULL});  // vCPU 1 has a root, so what follows can be a hit
  // After vCPU 0 has read the entry of page 2, vCPU 1 changes it and flushes.
  map(2, 300);
  s.p2m.after_resolve_of = PPN{300};
  s.p2m.after_resolve = [this] {
    s.poke(at(kTable, 2), to(301, kPWU));
    s.mmu->invalidate_page(1, page(2));
  };
  ASSERT_NE(read_on(0, page(2)), PA{~0ULL});
  EXPECT_EQ(read_on(1, page(2)), at(301));
}

TEST_F(Unsync, ALazyHolderKeepsTheTableOutOfSync) {
  FakeEngine engine{s.domain, *s.mmu, s.frames.window(), kStores, true};
  map(1, 100);
  ASSERT_EQ(read_on(0, page(1)), at(100));
  engine.quiesce();
  ASSERT_EQ(read_on(0, page(1)), at(100));
  // The engine caches a writable translation of the table, and keeps it although the table is quiet
  // and traced again.
  ASSERT_TRUE(engine.store(at(kTable, 2), to(101, kPWU)));
  for (int quiet = 0; quiet < 4; ++quiet) {
    s.mmu->invalidate(0, FlushScope::pcid, 1, {});
    ASSERT_EQ(read_on(0, page(1)), at(100));
  }
  EXPECT_EQ(stats().unsync_now, 1U) << "not before the engine has passed";
  s.poke(at(kTable, 1), to(200, kPWU));  // by the engine's TLB
  s.mmu->invalidate(0, FlushScope::pcid, 1, {});
  EXPECT_EQ(read_on(0, page(1)), at(200));
  s.poke(at(kTable, 1), to(201, kPWU));
  engine.quiesce();
  s.domain.collect();
  EXPECT_EQ(stats().unsync_now, 0U);
  EXPECT_EQ(read_on(0, page(1)), at(201)) << "compared once more when the last holder had passed";
}

TEST_F(Unsync, ManyTablesOutOfSyncDoNotPileUp) {
  for (std::uint64_t i = 0; i < 200; ++i) {
    s.put(at(kRoot + 2, i), to(300 + i, kPWU));
    s.put(at(300 + i, 1), to(100, kPWU));
    ASSERT_EQ(read_on(0, page(512 * i + 1)), at(100));
    store(at(300 + i, 1), to(101, kPWU));
    // Up to 64 leave each other alone; then the oldest goes back for each that comes.
    ASSERT_EQ(stats().unsync_now, std::min<std::uint64_t>(i + 1, 64));
  }
  for (std::uint64_t i = 0; i < 200; ++i) {
    s.mmu->invalidate_page(0, page(512 * i + 1));
    EXPECT_EQ(read_on(0, page(512 * i + 1)), at(101));
  }
}

/// Address spaces 1 (kRoot) and 2 (kOther, which shares nothing but the top entry 8).
class Tenures : public Unsync {
 protected:
  explicit Tenures(ShadowOptions options = with_tenures()) : Unsync{options} {
    build_long4(s, kOther);
    s.put(at(kOther + 3, 1), to(500, kPWU));
    // The kernel's half: tables 48, 49 and 50 under both roots.
    for (const std::uint64_t root : {kRoot, kOther}) s.put(at(root, 8), to(48, kPWU));
    s.put(at(48), to(49, kPWU));
    s.put(at(49), to(50, kPWU));
    // Both spaces have been entered and all paths exist.
    for (const auto& [root, pcid] : {std::pair{kOther, 2}, std::pair{kRoot, 1}}) {
      go(0, root, static_cast<std::uint16_t>(pcid));
      s.put(at(50, 9), to(600, kPWU | kG));
      EXPECT_EQ(read_on(0, kernel(9)), at(600));
      (void)read_on(0, page(1));
    }
  }
  void go(VcpuId vcpu, std::uint64_t root, std::uint16_t pcid) const {
    s.mmu->set_context(vcpu, with_pcid(root, pcid));
  }
  /// MOV to CR3 with bit 63 clear.
  void go_and_flush(VcpuId vcpu, std::uint64_t root, std::uint16_t pcid) const {
    go(vcpu, root, pcid);
    s.mmu->invalidate(vcpu, FlushScope::pcid, pcid, {});
  }
  static VA kernel(std::uint64_t n) { return VA{(8ULL << 39) + n * kPageSize}; }
  void make_kernel_outdated(std::uint64_t bits) {
    s.put(at(50, 1), to(100, bits));
    ASSERT_EQ(read_on(0, kernel(1)), at(100));
    store(at(50, 1), to(200, bits));
  }
};

TEST_F(Tenures, ComingBackToAPcidKeepsWhatItsTlbWouldKeep) {
  make_outdated();
  go(0, kOther, 2);
  go(0, kRoot, 1);
  EXPECT_EQ(read_on(0, page(1)), at(100));
  go(0, kOther, 2);
  s.mmu->invalidate(0, FlushScope::pcid, 1, {});  // INVPCID from elsewhere
  go(0, kRoot, 1);
  EXPECT_EQ(read_on(0, page(1)), at(200));
}

TEST_F(Tenures, ComingBackWithAFlushDoesNot) {
  make_outdated();
  go(0, kOther, 2);
  go_and_flush(0, kRoot, 1);
  EXPECT_EQ(read_on(0, page(1)), at(200));
}

TEST_F(Tenures, AnotherPcidOrVcpuOverTheSameTablesStartsFresh) {
  make_outdated();
  go(0, kRoot, 3);
  EXPECT_EQ(read_on(0, page(1)), at(200));
  make_outdated();
  go(1, kOther, 2);
  go(1, kRoot, 1);  // was there before, but could not have seen 100
  EXPECT_EQ(read_on(1, page(1)), at(200));
}

TEST_F(Tenures, WhatAnotherVcpuMappedInTheMeantimeIsNotOurs) {
  map(2, 300);
  ASSERT_EQ(read_on(0, page(2)), at(300));
  // vCPU 1 maps page 3 while vCPU 0 is away, then the guest changes it.
  go(0, kOther, 2);
  map(3, 301);
  ASSERT_EQ(read_on(1, page(3)), at(301));
  map(3, 302);
  go(0, kRoot, 1);
  EXPECT_EQ(read_on(0, page(3)), at(302));
}

TEST_F(Tenures, PcidOffComparesAtEverySwitch) {
  ShadowOptions options = with_tenures();
  options.pcid = false;
  TestGuest t{options};
  build_long4(t, kRoot);
  build_long4(t, kOther);
  t.mmu->set_context(kStores, {});
  t.mmu->set_context(0, with_pcid(kRoot, 1));
  t.put(at(kTable, 1), to(100, kPWU));
  ASSERT_EQ(t.read(page(1))->pa, at(100));
  ASSERT_TRUE(t.mmu->translate(kStores, VA{kTable * kPageSize}, {AccessKind::write, false, false}));
  t.poke(at(kTable, 1), to(200, kPWU));
  ASSERT_EQ(t.read(page(1))->pa, at(100));
  t.mmu->set_context(0, with_pcid(kOther, 2));
  t.mmu->set_context(0, with_pcid(kRoot, 1));
  EXPECT_EQ(t.read(page(1))->pa, at(200));
}

TEST_F(Tenures, GlobalEntriesOutliveCr3Loads) {
  make_kernel_outdated(kPWU | kG);
  go_and_flush(0, kOther, 2);
  EXPECT_EQ(read_on(0, kernel(1)), at(100));
  go_and_flush(0, kRoot, 1);
  EXPECT_EQ(read_on(0, kernel(1)), at(100));
  s.mmu->invalidate(0, FlushScope::all_non_global, 0, {});
  EXPECT_EQ(read_on(0, kernel(1)), at(100));
  s.mmu->invalidate(0, FlushScope::all, 0, {});
  EXPECT_EQ(read_on(0, kernel(1)), at(200));
}

TEST_F(Tenures, OtherEntriesOfTheSameTableDoNot) {
  make_kernel_outdated(kPWU);
  go_and_flush(0, kOther, 2);
  EXPECT_EQ(read_on(0, kernel(1)), at(200));
}

TEST_F(Tenures, GlobalEntriesDoNotOutliveInvlpgInAnySpace) {
  make_kernel_outdated(kPWU | kG);
  go_and_flush(0, kOther, 2);
  s.mmu->invalidate_page(0, kernel(1));
  go_and_flush(0, kRoot, 1);
  EXPECT_EQ(read_on(0, kernel(1)), at(200));
  // The same where the other space has a table of its own at the address.
  make_outdated(kPWU | kG);
  go_and_flush(0, kOther, 2);
  s.mmu->invalidate_page(0, page(1));
  go_and_flush(0, kRoot, 1);
  EXPECT_EQ(read_on(0, page(1)), at(200));
}

TEST_F(Tenures, GlobalIsNothingWithoutPge) {
  PagingContext c = with_pcid(kRoot, 1);
  c.pge = false;
  s.mmu->set_context(0, c);
  s.mmu->invalidate(0, FlushScope::all, 0, {});
  s.put<std::uint64_t>(at(50, 9), 0);  // so that all of the table is this tenure's
  make_kernel_outdated(kPWU | kG);
  s.mmu->invalidate(0, FlushScope::pcid, 1, {});
  EXPECT_EQ(read_on(0, kernel(1)), at(200));
}

TEST_F(Tenures, GlobalEntriesOfAnotherAddressAreNotOurs) {
  // In the other space, the kernel's table is reached by a second directory entry.
  s.put(at(kOther + 2, 4), to(50, kPWU));
  go_and_flush(0, kOther, 2);
  ASSERT_EQ(read_on(0, page(4 * 512 + 9)), at(600));
  go_and_flush(0, kRoot, 1);
  make_kernel_outdated(kPWU | kG);
  s.mmu->invalidate(0, FlushScope::pcid, 1, {});
  ASSERT_EQ(read_on(0, kernel(1)), at(200)) << "met by two addresses: compared";
  make_kernel_outdated(kPWU | kG);
  s.mmu->invalidate(0, FlushScope::pcid, 1, {});
  ASSERT_EQ(read_on(0, kernel(1)), at(100)) << "compared when met by this one";
  go_and_flush(0, kOther, 2);
  EXPECT_EQ(read_on(0, page(4 * 512 + 1)), at(200));
}

TEST_F(Tenures, GlobalOffComparesAtEveryCr3Load) {
  ShadowOptions options = with_tenures();
  options.global_pages = false;
  TestGuest t{options};
  build_long4(t, kRoot);
  t.mmu->set_context(kStores, {});
  t.mmu->set_context(0, long4(kRoot));
  t.mmu->invalidate(0, FlushScope::all, 0, {});
  t.put(at(kTable, 1), to(100, kPWU | kG));
  ASSERT_EQ(t.read(page(1))->pa, at(100));
  ASSERT_TRUE(t.mmu->translate(kStores, VA{kTable * kPageSize}, {AccessKind::write, false, false}));
  t.poke(at(kTable, 1), to(200, kPWU | kG));
  t.mmu->invalidate(0, FlushScope::pcid, 0, {});
  EXPECT_EQ(t.read(page(1))->pa, at(200));
}

}  // namespace
}  // namespace strata::shadow::test
