// What the tables cost: budgets, eviction, exhaustion at every allocation, hostile guests, leaks.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>

#include "shadow/flat_index.hpp"
#include "shadow/tables.hpp"
#include "shadow_support.hpp"

namespace strata::shadow::test {
namespace {

constexpr std::uint64_t kRoot = 16;

[[nodiscard]] VA page(std::uint64_t n) { return VA{n * kPageSize}; }

[[nodiscard]] ShadowOptions budget(std::uint32_t frames) {
  ShadowOptions o = TestGuest::patient();
  o.memory_limit = frames * kTableCost;
  return o;
}

void expect_all_given_back(TestGuest& s) {
  s.mmu.reset();
  s.domain.collect();
  EXPECT_EQ(s.frames.tables(), 0U);
}

/// `count` address spaces at `first`, `first` + 4, ...; page 1 of number i is 100 + i.
void build_spaces(const TestGuest& s, std::uint64_t first, std::uint64_t count) {
  for (std::uint64_t i = 0; i < count; ++i) {
    build_long4(s, first + 4 * i);
    s.put(at(first + 4 * i + 3, 1), to(100 + i, kPWU));
  }
}

TEST(ShadowMemory, BudgetHoldsForManyAddressSpaces) {
  TestGuest s{budget(24)};
  build_spaces(s, 200, 100);
  for (int pass = 0; pass < 3; ++pass) {
    for (std::uint64_t i = 0; i < 100; ++i) {
      s.mmu->set_context(0, long4(200 + 4 * i));
      for (int again = 0; again < 2; ++again) {
        const auto t = s.read(page(1));
        ASSERT_TRUE(t);
        ASSERT_EQ(t->pa, at(100 + i));
      }
      ASSERT_LE(s.frames.tables(), 24U);
    }
  }
  const ShadowStats stats = s.mmu->shadow_stats();
  EXPECT_GT(stats.evictions, 100U);
  EXPECT_EQ(s.mmu->stats().table_bytes, stats.pages * kPageSize);
  EXPECT_EQ(s.frames.tables(), stats.pages + stats.retiring);
  expect_all_given_back(s);
}

TEST(ShadowMemory, LeastRecentlyUsedRootGoesFirst) {
  TestGuest s{budget(12)};
  build_spaces(s, 200, 4);
  const auto visit = [&](std::uint64_t i) {
    s.mmu->set_context(0, long4(200 + 4 * i));
    const std::uint64_t before = s.mmu->stats().backend_misses;
    EXPECT_EQ(s.read(page(1))->pa, at(100 + i));
    return s.mmu->stats().backend_misses != before;  // whether it had to be built
  };
  for (std::uint64_t i = 0; i < 3; ++i) EXPECT_TRUE(visit(i));
  EXPECT_FALSE(visit(0));
  EXPECT_TRUE(visit(3));  // takes the place of 1
  EXPECT_FALSE(visit(0));
  EXPECT_FALSE(visit(2));
  EXPECT_TRUE(visit(1));
}

TEST(ShadowMemory, AnIdleRootGoesWithAllThatOnlyItNeeds) {
  TestGuest s{budget(8)};
  build_spaces(s, 200, 2);
  s.put(at(206, 1), to(208, kPWU));
  s.put(at(208, 1), to(150, kPWU));
  for (std::uint64_t i = 0; i < 2; ++i) {
    s.mmu->set_context(0, long4(200 + 4 * i));
    ASSERT_TRUE(s.read(page(1)));
  }
  ASSERT_EQ(s.mmu->shadow_stats().pages, 8U);
  ASSERT_EQ(s.read(page(513))->pa, at(150));  // a ninth table
  const ShadowStats stats = s.mmu->shadow_stats();
  EXPECT_EQ(stats.roots, 1U);
  EXPECT_EQ(stats.evictions, 4U);
  EXPECT_EQ(stats.pages, 5U);
}

/// Eviction takes away the only way to a table that the miss at work needs. The miss makes a new
/// one; and when that goes too, so does the table.
TEST(ShadowMemory, ATableThatAMissKeptFromEvictionIsFreedWithItsNextParent) {
  TestGuest s{budget(8)};
  build_long4(s, 200);
  for (std::uint64_t i = 0; i < 6; ++i) {
    s.put(at(202, i), to(203 + i, kPWU));
    s.put(at(203 + i, 1), to(100 + i, kPWU));
  }
  s.put(at(220), to(201, kPWU));  // a second root over the same tables
  s.mmu->set_context(0, long4(200));
  for (std::uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(s.read(page(512 * i + 1)));
  ASSERT_EQ(s.mmu->shadow_stats().pages, 7U);
  // The second root is the eighth table. It is not settled when the first, idle now, has to go for
  // the ninth, so nothing else leads to what both share.
  s.mmu->set_context(0, long4(220));
  ASSERT_EQ(s.read(page(512 * 5 + 1))->pa, at(105));
  EXPECT_EQ(s.mmu->shadow_stats().roots, 1U);
  EXPECT_EQ(s.mmu->shadow_stats().evictions, 1U);
  EXPECT_EQ(s.mmu->shadow_stats().pages, 8U);
  s.put<std::uint64_t>(at(220), 0);
  EXPECT_EQ(s.mmu->shadow_stats().pages, 1U);
}

/// Tables go one by one, those of leaves first: a directory would take with it what is below.
TEST(ShadowMemory, TablesInUseAndTheWayToThemStay) {
  constexpr std::uint64_t kTables = 10;
  constexpr std::uint64_t kLeaves = 40;
  TestGuest s{budget(kTables)};
  s.put(at(200), to(201, kPWU));
  s.put(at(201, 0), to(202, kPWU));
  s.put(at(201, 1), to(203, kPWU));
  s.put(at(203), to(204, kPWU));
  s.put(at(204, 1), to(100, kPWU));
  for (std::uint64_t i = 0; i < kLeaves; ++i) {
    s.put(at(202, i), to(210 + i, kPWU));
    s.put(at(210 + i, 1), to(110 + i, kPWU));
  }
  s.mmu->set_context(0, long4(200));
  const VA busy{kHugePageSize + kPageSize};
  ASSERT_TRUE(s.read(page(1)));  // the oldest: of tables that are all in use, one has to go
  ASSERT_TRUE(s.read(busy));
  // One leaf table after the other under the first directory; the one under the second is used all
  // the time.
  for (std::uint64_t i = 0; i < kLeaves; ++i) {
    ASSERT_EQ(s.read(page(512 * i + 1))->pa, at(110 + i));
    ASSERT_EQ(s.read(busy)->pa, at(100));
  }
  EXPECT_EQ(s.mmu->stats().backend_misses, 1 + kLeaves) << "never one for the busy page again";
  const ShadowStats stats = s.mmu->shadow_stats();
  EXPECT_EQ(stats.pages, kTables);
  EXPECT_EQ(stats.pages_created, 5 + kLeaves) << "root, directories' directory, two, and leaves";
  EXPECT_EQ(stats.evictions, 5 + kLeaves - kTables);
  EXPECT_EQ(stats.root_misses, 1U);
}

TEST(ShadowMemory, RootsOfRunningVcpusStay) {
  TestGuest s{budget(12)};
  build_spaces(s, 200, 20);
  s.mmu->set_context(1, long4(200));
  ASSERT_TRUE(s.mmu->translate(1, page(1), {}));
  for (std::uint64_t i = 1; i < 20; ++i) {
    s.mmu->set_context(0, long4(200 + 4 * i));
    ASSERT_TRUE(s.read(page(1)));
  }
  const std::uint64_t before = s.mmu->stats().backend_misses;
  ASSERT_TRUE(s.mmu->translate(1, page(1), {}));
  EXPECT_EQ(s.mmu->stats().backend_misses, before);
}

TEST(ShadowMemory, ShortMemoryDropsAllButThePathOfTheMiss) {
  TestGuest s{budget(8)};
  build_spaces(s, 200, 8);
  // Eight vCPUs on eight roots want 32 tables; each miss gets its four.
  for (int pass = 0; pass < 2; ++pass) {
    for (VcpuId v = 0; v < 8; ++v) {
      s.mmu->set_context(v, long4(200 + 4 * v));
      const auto t = s.mmu->translate(v, page(1), {});
      ASSERT_TRUE(t);
      EXPECT_EQ(t->pa, at(100 + v));
      EXPECT_LE(s.frames.tables(), 8U);
      const std::uint64_t before = s.mmu->stats().backend_misses;
      ASSERT_TRUE(s.mmu->translate(v, page(1), {}));
      EXPECT_EQ(s.mmu->stats().backend_misses, before);
    }
  }
  expect_all_given_back(s);
}

TEST(ShadowMemory, FramesHeldBackByAHolderCountAgainstTheBudget) {
  TestGuest s{budget(8)};
  build_spaces(s, 200, 2);
  FakeEngine holder{s.domain, *s.mmu, s.frames.window(), 1, true};
  s.mmu->set_context(0, long4(200));
  for (int round = 0; round < 50; ++round) {
    const auto t = s.read(page(1));
    ASSERT_TRUE(t);
    EXPECT_EQ(t->pa, at(100));
    s.put(at(200), to(201, kPWU));  // unlinks and frees three tables, which nobody may reuse yet
    ASSERT_LE(s.frames.tables(), 8U);
    if (round % 3 == 0) holder.quiesce();
  }
  holder.quiesce();
  s.domain.collect();
  EXPECT_EQ(s.mmu->shadow_stats().retiring, 0U);
}

/// Every allocation fails once: the access that meets it either works or says out_of_memory.
TEST(ShadowMemory, EveryAllocationMayFail) {
  std::uint64_t failures = 0;
  for (std::int64_t allowed = 0; allowed < 12; ++allowed) {
    TestGuest s;
    build_spaces(s, 200, 3);
    s.frames.fail_after = allowed;
    for (std::uint64_t i = 0; i < 3; ++i) {
      s.mmu->set_context(0, long4(200 + 4 * i));
      const auto t = s.read(page(1));
      if (!t) {
        ++failures;
        EXPECT_EQ(t.error().stage, Stage::p2m);
        EXPECT_EQ(t.error().kind, FaultKind::out_of_memory);
        EXPECT_EQ(t.error().va, page(1));
        EXPECT_EQ(t.error().pa, at(100 + i));
        EXPECT_LT(allowed, 4);
        continue;
      }
      EXPECT_EQ(t->pa, at(100 + i));
      EXPECT_EQ(s.read(page(1))->pa, at(100 + i));
    }
    // Nothing half-built is left behind: with memory back, all of it works.
    s.frames.fail_after = -1;
    for (std::uint64_t i = 0; i < 3; ++i) {
      s.mmu->set_context(0, long4(200 + 4 * i));
      EXPECT_EQ(s.write(page(1))->pa, at(100 + i));
    }
    expect_all_given_back(s);
  }
  EXPECT_EQ(failures, 4U * 3);  // fewer than four frames are never enough, four always are
}

TEST(ShadowMemory, RandomTablesStayWithinTheBudget) {
  TestGuest s{budget(32)};
  std::mt19937_64 random{7};
  // Every page is a table, everything points everywhere: other tables, themselves, large pages.
  for (std::uint64_t p = 1; p < 64; ++p) {
    for (std::uint64_t i = 0; i < 512; ++i) {
      const std::uint64_t bits = kPWU | (random() % 8 == 0 ? kPS : 0) | (random() & (kD | kA | kG));
      s.poke(at(p, i), to(random() % 8 == 0 ? 1024 : 1 + random() % 63, bits));
    }
  }
  s.p2m.set(PPN{20}, PageState::rom, kHome + 20);
  s.p2m.set(PPN{21}, PageState::zero);
  s.p2m.set(PPN{22}, PageState::mmio);
  for (int i = 0; i < 20000; ++i) {
    if (i % 16 == 0) {
      PagingContext c = long4(1 + random() % 63);
      c.mode = static_cast<PagingMode>(1 + random() % 3);
      c.wp = random() % 2 == 0;
      for (auto& e : c.pdpte) e = to(1 + random() % 63, kP);
      s.mmu->set_context(0, c);
    }
    const auto kind = static_cast<AccessKind>(random() % 3);
    (void)s.mmu->translate(0, VA{random() & 0x0000FFFFFFFFFFFF}, {kind, random() % 2 == 0, false});
    if (random() % 4 == 0) s.mmu->guest_wrote(at(random() % 64, random() % 512), 8);
    ASSERT_LE(s.frames.tables(), 32U);
  }
  const ShadowStats stats = s.mmu->shadow_stats();
  EXPECT_LE(stats.pages, 32U);
  EXPECT_LE(stats.mappings, 32U * 512);
  EXPECT_GT(stats.evictions, 0U);
  EXPECT_LT(stats.rmap_bytes, 64U << 10);
  EXPECT_LT(stats.metadata_bytes, 1U << 20);
  expect_all_given_back(s);
}

/// A guest that wants as many tables as it can get, with every technique on: what they cost stays
/// below the limit after every single step, and every access gets through.
TEST(ShadowMemory, LimitInBytesHoldsUnderAttack) {
  constexpr std::uint64_t kLimit = 40 * kTableCost;
  ShadowOptions options;
  options.memory_limit = kLimit;
  TestGuest s{options};
  FakeEngine holder{s.domain, *s.mmu, s.frames.window(), 1, true};
  // 16 roots that share nothing; under each, 8 leaf tables with an entry in every link block.
  const auto base = [](std::uint64_t space) { return 100 + 16 * space; };
  for (std::uint64_t i = 0; i < 16; ++i) {
    s.put(at(base(i)), to(base(i) + 1, kPWU));
    s.put(at(base(i) + 1), to(base(i) + 2, kPWU));
    for (std::uint64_t t = 0; t < 8; ++t) {
      s.put(at(base(i) + 2, t), to(base(i) + 3 + t, kPWU));
      for (std::uint64_t e = 0; e < 512; ++e) {
        s.put(at(base(i) + 3 + t, e), to(1000 + e, kPWU | kA | kD));
      }
    }
  }
  std::uint64_t most = 0;
  for (std::uint64_t step = 0; step < 3000; ++step) {
    const std::uint64_t space = step * 7 % 16;
    s.mmu->set_context(0, long4(base(space)));
    const std::uint64_t n = step * 37 % 4096;
    ASSERT_EQ(s.read(page(n))->pa, at(1000 + n % 512));
    if (step % 5 == 0) s.put(at(base(space) + 3 + n / 512, 3), to(1003, kPWU | kA));
    if (step % 64 == 0) holder.quiesce();
    const ShadowStats stats = s.mmu->shadow_stats();
    const std::uint64_t cost = (stats.pages + stats.retiring) * kPageSize + stats.metadata_bytes;
    ASSERT_LE(cost, kLimit);
    ASSERT_EQ(s.frames.tables(), stats.pages + stats.retiring);
    most = std::max(most, cost);
  }
  EXPECT_GT(s.mmu->shadow_stats().evictions, 100U);
  EXPECT_GT(most, kLimit / 3) << "the limit was never near";
  EXPECT_EQ(s.mmu->shadow_stats().limit_bytes, kLimit);
}

TEST(ShadowMemory, LimitGrowsWithTheGuest) {
  EXPECT_EQ(default_memory_limit(64ULL << 20), 4ULL << 20);
  EXPECT_EQ(default_memory_limit(1ULL << 30), 32ULL << 20);
}

/// Tables where no table should be.
TEST(ShadowMemory, TablesInRomZeroPagesAndDevices) {
  TestGuest s;
  build_long4(s, kRoot);
  s.put(at(kRoot + 3, 1), to(100, kPWU));
  // ROM: readable as a table; accessed and dirty bits go nowhere.
  s.p2m.set(PPN{kRoot + 3}, PageState::rom, kHome + kRoot + 3);
  s.mmu->set_context(0, long4(kRoot));
  for (int pass = 0; pass < 2; ++pass) {
    EXPECT_EQ(s.read(page(1))->pa, at(100));
    EXPECT_EQ(s.write(page(1))->pa, at(100));
  }
  EXPECT_EQ(s.get<std::uint64_t>(at(kRoot + 3, 1)), to(100, kPWU));
  // A zero page: nothing present.
  s.p2m.set(PPN{kRoot + 3}, PageState::zero);
  auto t = s.read(page(1));
  ASSERT_FALSE(t);
  EXPECT_EQ(t.error().error_code, 0U);
  // A device, and no memory at all: all ones on the bus, reserved bits.
  for (const std::uint64_t nowhere : {kRoot + 3, std::uint64_t{1} << 27}) {
    s.p2m.set(PPN{kRoot + 3}, PageState::mmio);
    s.put(at(kRoot + 2), to(nowhere, kPWU));
    t = s.read(page(1));
    ASSERT_FALSE(t);
    EXPECT_EQ(t.error().error_code, pf::kPresent | pf::kReserved);
  }
  // The root itself.
  s.mmu->set_context(0, long4(std::uint64_t{1} << 27));
  EXPECT_FALSE(s.read(page(1)));
  expect_all_given_back(s);
}

TEST(ShadowMemory, MetadataIsCounted) {
  TestGuest s;
  const ShadowStats before = s.mmu->shadow_stats();
  s.mmu->set_context(0, {});
  for (std::uint64_t p = 0; p < 512; ++p) ASSERT_TRUE(s.read(page(p)));
  const ShadowStats after = s.mmu->shadow_stats();
  EXPECT_GE(after.rmap_bytes - before.rmap_bytes, sizeof(Region));
  // Eight full blocks for the leaves, one block in each of the three tables above.
  EXPECT_GE(after.metadata_bytes - before.metadata_bytes,
            4 * sizeof(ShadowTable) + 11 * sizeof(ShadowTable::LinkBlock));
  EXPECT_EQ(after.mappings, 512U);
  Flush flush{s.domain};
  s.mmu->p2m_changed({PPN{0}, 512}, flush);
  flush.commit();
  EXPECT_EQ(s.mmu->shadow_stats().zaps - after.zaps, 512U);
}

TEST(FlatIndex, AgreesWithAMapUnderRandomUse) {
  FlatIndex index;
  std::map<std::uint64_t, std::uint32_t> model;
  std::mt19937_64 random{3};
  for (int i = 0; i < 200000; ++i) {
    const std::uint64_t key = random() % 700 << (random() % 2 * 20);
    switch (random() % 3) {
      case 0:
        index.set(key, static_cast<std::uint32_t>(i));
        model[key] = static_cast<std::uint32_t>(i);
        break;
      case 1:
        index.erase(key);
        model.erase(key);
        break;
      default: {
        const auto it = model.find(key);
        ASSERT_EQ(index.find(key), it == model.end() ? kNone : it->second);
      }
    }
    ASSERT_EQ(index.size(), model.size());
  }
}

TEST(DerivedEntries, OfEveryShape) {
  const auto range = [](PagingMode mode, std::uint8_t level, std::uint8_t quadrant,
                        std::uint64_t offset, std::uint64_t length) {
    PageKey key;
    key.role.mode = mode;
    key.level = level;
    key.quadrant = quadrant;
    const EntryRange r = derived_entries(key, offset, length);
    return std::pair{r.first, r.last};
  };
  using Pair = std::pair<std::uint32_t, std::uint32_t>;
  EXPECT_EQ(range(PagingMode::long4, 1, 0, 16, 8), (Pair{2, 2}));
  EXPECT_EQ(range(PagingMode::long4, 1, 0, 20, 8), (Pair{2, 3}));
  EXPECT_EQ(range(PagingMode::pae, 2, 0, 4095, 1), (Pair{511, 511}));
  EXPECT_EQ(range(PagingMode::i386, 1, 0, 4, 4), (Pair{1, 1}));
  EXPECT_EQ(range(PagingMode::i386, 1, 1, 2048, 4), (Pair{0, 0}));
  EXPECT_EQ(range(PagingMode::i386, 1, 0, 2044, 8), (Pair{511, 511}));
  EXPECT_EQ(range(PagingMode::i386, 2, 0, 4, 4), (Pair{2, 3}));
  EXPECT_EQ(range(PagingMode::i386, 2, 3, 4092, 4), (Pair{510, 511}));
  const auto none = [&](std::uint8_t level, std::uint8_t quadrant, std::uint64_t offset) {
    const Pair r = range(PagingMode::i386, level, quadrant, offset, 4);
    return r.first > r.second;
  };
  EXPECT_TRUE(none(1, 1, 2044));
  EXPECT_TRUE(none(1, 0, 2048));
  EXPECT_TRUE(none(2, 1, 1020));
  EXPECT_TRUE(none(2, 0, 1024));
  EXPECT_GT(range(PagingMode::long4, 1, 0, 8, 0).first,
            range(PagingMode::long4, 1, 0, 8, 0).second);
}

}  // namespace
}  // namespace strata::shadow::test
