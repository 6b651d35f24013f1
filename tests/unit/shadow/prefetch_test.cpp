// Neighbours mapped with a miss: which, with what rights, and what they must not cause.

#include <gtest/gtest.h>

#include <cstdint>

#include "shadow_support.hpp"

namespace strata::shadow::test {
namespace {

constexpr std::uint64_t kRoot = 16;
constexpr std::uint64_t kTable = kRoot + 3;

[[nodiscard]] VA page(std::uint64_t n) { return VA{n * kPageSize}; }

class Prefetch : public testing::Test {
 protected:
  Prefetch() {
    build_long4(s, kRoot);
    s.mmu->set_context(0, long4(kRoot));
  }
  static ShadowOptions only_prefetch() {
    ShadowOptions o = TestGuest::patient();
    o.prefetch = true;
    return o;
  }
  [[nodiscard]] std::uint64_t misses() const { return s.mmu->stats().backend_misses; }
  [[nodiscard]] ShadowStats stats() const { return s.mmu->shadow_stats(); }
  /// The misses that reading page `n` costs; it has to be PPN 100 + n.
  [[nodiscard]] std::uint64_t cost(std::uint64_t n) const {
    const std::uint64_t before = misses();
    EXPECT_EQ(s.read(page(n))->pa, at(100 + n));
    return misses() - before;
  }
  TestGuest s{only_prefetch()};
};

TEST_F(Prefetch, NeighboursInTheGroupComeWithAMiss) {
  for (std::uint64_t i = 0; i < 24; ++i) s.put(at(kTable, i), to(100 + i, kPWU | kA | kD));
  EXPECT_EQ(cost(10), 1U);
  EXPECT_EQ(stats().prefetched, 7U);
  EXPECT_EQ(stats().prefetch_used, 0U);
  for (std::uint64_t i = 8; i < 16; ++i) EXPECT_EQ(cost(i), 0U) << i;
  EXPECT_EQ(stats().prefetch_used, 7U);
  for (std::uint64_t i = 8; i < 16; ++i) EXPECT_EQ(cost(i), 0U) << i;
  EXPECT_EQ(stats().prefetch_used, 7U) << "counted once each";
  EXPECT_TRUE(s.write(page(9))->writable);
  EXPECT_EQ(cost(7), 1U);
  EXPECT_EQ(cost(16), 1U);
}

TEST_F(Prefetch, OffMapsOnePage) {
  TestGuest plain{TestGuest::patient()};
  build_long4(plain, kRoot);
  plain.mmu->set_context(0, long4(kRoot));
  for (std::uint64_t i = 0; i < 8; ++i) plain.put(at(kTable, i), to(100 + i, kPWU | kA));
  ASSERT_TRUE(plain.read(page(1)));
  EXPECT_EQ(plain.mmu->shadow_stats().mappings, 1U);
}

TEST_F(Prefetch, NothingIsSetOrMadeForAGuess) {
  s.put(at(kTable, 1), to(101, kPWU));
  s.put(at(kTable, 2), to(102, kPWU));                    // not accessed yet
  s.put(at(kTable, 3), to(103, kPWU | kA));               // not dirty yet
  s.put(at(kTable, 4), to(104, kPWU | kA | kD));          // never touched memory
  s.put(at(kTable, 5), to(105, kPWU | kA | 1ULL << 45));  // reserved bit
  s.put(at(kTable, 6), to(106, kPWU | kA | kD));          // a device
  s.put(at(kTable, 7), to(1ULL << 26, kPWU | kA));        // no memory
  s.p2m.set(PPN{104}, PageState::zero);
  s.p2m.set(PPN{106}, PageState::mmio);
  EXPECT_EQ(cost(1), 1U);
  EXPECT_EQ(stats().prefetched, 2U) << "pages 3 and 4";
  EXPECT_EQ(s.get<std::uint64_t>(at(kTable, 2)), to(102, kPWU));
  EXPECT_EQ(s.get<std::uint64_t>(at(kTable, 3)), to(103, kPWU | kA));
  EXPECT_EQ(s.p2m.lookup(PPN{104}).entry.state(), PageState::zero);
  EXPECT_EQ(cost(2), 1U);
  EXPECT_FALSE(s.read(page(3))->writable);
  EXPECT_TRUE(s.write(page(3))->writable);
  EXPECT_EQ(s.get<std::uint64_t>(at(kTable, 3)), to(103, kPWU | kA | kD));
  EXPECT_FALSE(s.read(page(4))->writable);
  EXPECT_EQ(s.write(page(4))->page, TestGuest::home(104));
  EXPECT_FALSE(s.read(page(5)));
  EXPECT_EQ(s.read(page(6)).error().kind, FaultKind::mmio);
  EXPECT_EQ(s.read(page(7)).error().kind, FaultKind::mmio);
}

TEST_F(Prefetch, RightsAreTheNeighboursOwn) {
  s.put(at(kTable, 1), to(101, kPWU | kA | kD));
  s.put(at(kTable, 2), to(102, kP | kA | kD | kNX | kG));
  s.put(at(kTable, 3), to(kTable, kPWU | kA | kD));  // the table itself: traced
  ASSERT_EQ(cost(1), 1U);
  const auto supervisor = s.read(page(2));
  EXPECT_FALSE(supervisor->writable);
  EXPECT_FALSE(supervisor->executable);
  EXPECT_TRUE(supervisor->global);
  EXPECT_FALSE(s.read(page(2), true));
  EXPECT_TRUE(s.write(page(3))->traced);
  EXPECT_FALSE(s.read(page(3))->writable);
}

TEST_F(Prefetch, WhatTakesAMappingAwayTakesThemToo) {
  for (std::uint64_t i = 0; i < 8; ++i) s.put(at(kTable, i), to(100 + i, kPWU | kA));
  ASSERT_EQ(cost(1), 1U);
  s.put(at(kTable, 2), to(200, kPWU | kA));
  EXPECT_EQ(s.read(page(2))->pa, at(200));
  s.p2m.set(PPN{103}, PageState::shared, kHome + 1600);
  EXPECT_EQ(s.read(page(3))->page, TestGuest::home(1600));
}

TEST_F(Prefetch, PiecesOfLargePagesAndUnpagedMemory) {
  s.put(at(kRoot + 2, 1), to(0, kPWU | kPS | kA | kD));
  ASSERT_TRUE(s.read(page(512 + 100)));
  std::uint64_t before = misses();
  for (std::uint64_t i = 96; i < 104; ++i) {
    const auto t = s.write(page(512 + i));
    EXPECT_EQ(t->pa, at(i));
    EXPECT_TRUE(t->writable);
  }
  EXPECT_EQ(misses(), before);
  s.mmu->set_context(1, {});
  before = misses();
  for (std::uint64_t i = 200; i < 208; ++i) {
    EXPECT_EQ(s.mmu->translate(1, page(i), {})->pa, at(i));
  }
  EXPECT_EQ(misses(), before + 1);
}

TEST_F(Prefetch, PiecesOfALargePageAreGlobalAndHaveItsKey) {
  s.put(at(kRoot + 2, 1), to(0, kPWU | kPS | kA | kD | kG | 5ULL << 59));
  PagingContext c = long4(kRoot);
  c.pke = true;
  s.mmu->set_context(0, c);
  ASSERT_TRUE(s.read(page(512 + 100)));
  const std::uint64_t before = misses();
  EXPECT_TRUE(s.read(page(512 + 101))->global);
  EXPECT_EQ(misses(), before) << "101 came with 100";
  c.pkru = 1U << (2 * 5);  // no access through key 5
  s.mmu->set_context(0, c);
  const auto t = s.read(page(512 + 102));
  ASSERT_FALSE(t);
  EXPECT_EQ(t.error().error_code, pf::kPresent | pf::kProtectionKey);
}

/// Bits 62:52 are ignored, or a key, in long mode and reserved with PAE (SDM 3A tables 4-11, 4-20).
TEST_F(Prefetch, ReservedBitsAreThoseOfTheMode) {
  for (std::uint64_t i = 0; i < 8; ++i) s.put(at(kTable, i), to(100 + i, kPWU | kA));
  s.put(at(kTable, 2), to(102, kPWU | kA | 1ULL << 52));
  PagingContext c = long4(0);
  c.mode = PagingMode::pae;
  c.pdpte[0] = to(kRoot + 2, kP);
  s.mmu->set_context(1, c);
  ASSERT_TRUE(s.mmu->translate(1, page(1), {}));
  EXPECT_EQ(stats().prefetched, 6U);
  const auto t = s.mmu->translate(1, page(2), {});
  ASSERT_FALSE(t);
  EXPECT_EQ(t.error().error_code, pf::kPresent | pf::kReserved);
  ASSERT_TRUE(s.read(page(1)));
  EXPECT_EQ(cost(2), 0U) << "in long mode it is a neighbour as any";
}

TEST_F(Prefetch, I386TablesOfTwoMirrors) {
  PagingContext c = long4(40);
  c.mode = PagingMode::i386;
  c.nxe = false;
  s.mmu->set_context(0, c);
  s.put<std::uint32_t>(at(40, 0, 4), static_cast<std::uint32_t>(to(41, kPWU)));
  for (std::uint64_t i = 0; i < 1024; ++i) {
    s.put<std::uint32_t>(at(41, i, 4), static_cast<std::uint32_t>(to(100 + i, kPWU | kA)));
  }
  for (const std::uint64_t first : {8ULL, 512ULL, 1016ULL}) {
    EXPECT_EQ(cost(first), 1U);
    for (std::uint64_t i = first; i < first + 8; ++i) EXPECT_EQ(cost(i), 0U) << i;
  }
}

}  // namespace
}  // namespace strata::shadow::test
