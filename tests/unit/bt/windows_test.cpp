// Which address spaces have a window, and that it loses what the TLB loses.
#include "engines/bt/windows.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "shared_memory.hpp"

namespace strata::bt::test {
namespace {

using interp::Tlb;
using interp::WindowUse;

/// More than an address space executes before it gets a window, the first time.
constexpr std::uint64_t kEnough = 6'000'000;
constexpr SpaceKey kUser{.pcid = 5, .mode = interp::kUser};
constexpr SpaceKey kOther{.pcid = 6, .mode = interp::kUser};
constexpr std::uint16_t kAsid = 17, kOtherAsid = 18;
constexpr VA kVa{0x5555'5555'0000};

class WindowsTest : public ::testing::TestWithParam<WindowUse> {
 protected:
  explicit WindowsTest(WindowUse use = WindowUse::always) : windows{table, use} {
    tlb.set_mirror(&windows);
  }
  ~WindowsTest() override { tlb.set_mirror(nullptr); }

  [[nodiscard]] Extent extent(std::uint64_t number, std::uint64_t pages = 1, bool write = true) {
    return {
        .pages = pages, .first = PPN{100 + number}, .host = memory.page(number), .write = write};
  }
  /// Fills the TLB as a miss would.
  void miss(VA va, std::uint64_t number, std::uint16_t asid = kAsid) {
    Translation t;
    t.pa = address_of(PPN{100 + number});
    t.readable = t.writable = true;
    tlb.fill(interp::kUser, va, asid, t, memory.page(number), true);
  }
  bool enter(SpaceKey key = kUser, std::uint16_t asid = kAsid, std::uint64_t executed = 0) {
    return windows.enter(key, asid, {.instructions = executed}, tlb);
  }
  /// Looks again at what a flush left in doubt: `same` of the pages are what they were.
  void revalidate(const std::vector<VA>& same = {}) {
    windows.revalidate([&same](VA va, const Extent& e) {
      EXPECT_EQ(e.pages, 1U);
      return std::find(same.begin(), same.end(), va) != same.end();
    });
  }
  [[nodiscard]] bool visible(VA va) const { return windows.allows(va, false); }
  [[nodiscard]] bool reachable(VA va) const {
    return table[slice_of(va.value())] != no_window(slice_of(va.value()));
  }

  SharedMemory memory{64};
  SliceTable table{};
  Tlb tlb;
  Windows windows;
};

class AutomaticWindows : public WindowsTest {
 protected:
  AutomaticWindows() : WindowsTest{WindowUse::automatic} {}
  /// Executes until the current address space has paid for a window.
  void earn(SpaceKey key = kUser, std::uint16_t asid = kAsid) {
    (void)enter(key, asid);
    (void)enter(key, asid, kEnough);
  }
};

TEST_F(AutomaticWindows, AnAddressSpaceGetsOneForWhatItExecutes) {
  EXPECT_FALSE(enter());
  EXPECT_FALSE(enter(kUser, kAsid, 1000));
  EXPECT_FALSE(windows.active());
  EXPECT_FALSE(windows.fill(kVa, extent(0))) << "there is none";
  EXPECT_TRUE(enter(kUser, kAsid, kEnough));
  EXPECT_TRUE(windows.active());
  EXPECT_EQ(windows.counts().promotions, 1U);
  EXPECT_FALSE(enter(kOther, kOtherAsid)) << "which has executed nothing";
  EXPECT_TRUE(enter(kUser, kAsid));
}

TEST_F(AutomaticWindows, WhatIsExecutedCountsForWhoExecutedIt) {
  EXPECT_FALSE(enter(kOther, kOtherAsid));
  EXPECT_FALSE(enter(kUser, kAsid, kEnough));
  EXPECT_TRUE(enter(kOther, kOtherAsid));
  windows.enter_none({});
  EXPECT_FALSE(windows.active());
  windows.enter_none({.instructions = kEnough});
  EXPECT_FALSE(enter(kUser, kAsid)) << "that was somebody without a window";
}

TEST_F(AutomaticWindows, ANewWindowHasWhatTheTlbHas) {
  miss(kVa, 3);
  miss(kVa + kPageSize, 4);
  miss(kVa + 9 * kPageSize, 9);
  miss(kVa + 20 * kPageSize, 20, kOtherAsid);
  earn();
  EXPECT_TRUE(visible(kVa));
  EXPECT_TRUE(windows.allows(kVa + kPageSize, true));
  EXPECT_TRUE(visible(kVa + 9 * kPageSize));
  EXPECT_FALSE(visible(kVa + 20 * kPageSize)) << "of another address space";
  EXPECT_EQ(windows.counts().fills, 2U) << "neighbours are one extent";
  EXPECT_EQ(page_number_at(kVa.value() + table[slice_of(kVa.value())] + kPageSize), 4U);
}

TEST_F(AutomaticWindows, ItIsLostWhenItCostsMoreThanItSaves) {
  earn();
  for (std::uint64_t n = 0; windows.counts().demotions == 0; ++n) {
    ASSERT_LT(n, 1000U);
    ASSERT_TRUE(windows.fill(kVa + n % 8 * 2 * kPageSize, extent(n % 8 * 2)));
    tlb.flush_all();
    (void)enter(kUser, kAsid, 1000);
    if (windows.stale()) revalidate();
  }
  EXPECT_FALSE(windows.active());
  EXPECT_FALSE(reachable(kVa));
  // The next one is dearer.
  EXPECT_FALSE(enter(kUser, kAsid, kEnough));
  EXPECT_TRUE(enter(kUser, kAsid, kEnough));
}

TEST_F(AutomaticWindows, MissesThatItWouldSpareCount) {
  EXPECT_FALSE(enter());
  EXPECT_FALSE(windows.enter(kUser, kAsid, {.instructions = 100'000, .misses = 100}, tlb));
  EXPECT_TRUE(windows.enter(kUser, kAsid, {.instructions = 100'000, .misses = 5'000}, tlb));
  // With a window they do not come, and count as often as they did without.
  for (std::uint64_t n = 0; n < 100; ++n) {
    ASSERT_TRUE(windows.fill(kVa + n % 8 * 2 * kPageSize, extent(n % 8 * 2)));
    ASSERT_TRUE(enter(kUser, kAsid, 10'000));
  }
}

TEST_F(AutomaticWindows, WhoMapsOnePageAfterTheOtherGetsNone) {
  EXPECT_FALSE(enter());
  for (unsigned n = 0; n < 1000; ++n) {
    ASSERT_FALSE(windows.enter(kUser, kAsid, {.instructions = 50'000, .faults = 1}, tlb));
  }
  EXPECT_TRUE(enter(kUser, kAsid, kEnough)) << "has stopped";
}

TEST_F(AutomaticWindows, ItStaysWhileItPays) {
  earn();
  ASSERT_TRUE(windows.fill(kVa, extent(0)));
  for (unsigned n = 0; n < 100; ++n) {
    ASSERT_TRUE(windows.fill(kVa + kPageSize, extent(1)));
    tlb.flush_page(kVa + kPageSize, kAsid);
    ASSERT_TRUE(enter(kUser, kAsid, 100'000));
  }
  EXPECT_TRUE(visible(kVa));
  EXPECT_EQ(windows.counts().demotions, 0U);
  EXPECT_GE(windows.counts().instructions, 100U * 100'000);
}

// ---- what the TLB loses, a window loses ---------------------------------------------------------

class WindowsLose : public WindowsTest {
 protected:
  WindowsLose() {
    (void)enter();
    EXPECT_TRUE(windows.fill(kVa, extent(0, 4)));
    EXPECT_TRUE(windows.fill(kVa + 8 * kPageSize, extent(8, 1, false)));
  }
};

TEST_F(WindowsLose, AtAFlushOfEverything) {
  tlb.flush_all();
  EXPECT_FALSE(visible(kVa));
  EXPECT_FALSE(visible(kVa + 8 * kPageSize));
  EXPECT_EQ(windows.counts().flushes, 1U);
}

TEST_F(WindowsLose, AtAFlushOnlyWhatHasChanged) {
  tlb.flush_all();
  EXPECT_TRUE(enter());
  ASSERT_TRUE(windows.stale());
  EXPECT_FALSE(windows.active());
  EXPECT_FALSE(reachable(kVa)) << "before anybody has looked";
  EXPECT_FALSE(windows.fill(kVa, extent(0)));
  revalidate({kVa, kVa + 3 * kPageSize, kVa + 8 * kPageSize});
  EXPECT_TRUE(windows.active());
  EXPECT_TRUE(visible(kVa));
  EXPECT_EQ(page_number_at(kVa.value() + table[slice_of(kVa.value())]), 0U);
  EXPECT_FALSE(visible(kVa + kPageSize));
  EXPECT_FALSE(visible(kVa + 2 * kPageSize));
  EXPECT_EQ(page_number_at(kVa.value() + table[slice_of(kVa.value())] + 3 * kPageSize), 3U);
  EXPECT_TRUE(visible(kVa + 8 * kPageSize));
  EXPECT_FALSE(windows.allows(kVa + 8 * kPageSize, true));
  EXPECT_EQ(windows.counts().checked_pages, 5U);
}

TEST_F(WindowsLose, WhatAFlushInTheMiddleOfLookingLeavesInDoubt) {
  tlb.flush_all();
  windows.revalidate([this](VA va, const Extent&) {
    if (va == kVa) tlb.flush_all();
    tlb.flush_physical({{PPN{108}, 1}});
    return true;
  });
  EXPECT_TRUE(windows.stale());
  EXPECT_FALSE(reachable(kVa));
  revalidate({kVa, kVa + 8 * kPageSize});
  EXPECT_TRUE(visible(kVa));
  EXPECT_FALSE(visible(kVa + 8 * kPageSize)) << "went in the meantime";
}

TEST_F(WindowsLose, AtAFlushWhileAnotherAddressSpaceExecutes) {
  EXPECT_TRUE(enter(kOther, kOtherAsid));
  tlb.flush_pcid(kAsid, false, false);
  EXPECT_FALSE(windows.stale());
  EXPECT_TRUE(enter());
  EXPECT_TRUE(windows.stale());
  EXPECT_FALSE(reachable(kVa));
}

TEST_F(WindowsLose, AtAFlushOfTheirPcidAndNoOther) {
  tlb.flush_pcid(kOtherAsid, false, false);
  EXPECT_TRUE(visible(kVa));
  tlb.flush_pcid(kAsid, false, false);
  EXPECT_FALSE(visible(kVa));
}

TEST_F(WindowsLose, AtAFlushOfEveryPcid) {
  tlb.flush_pcid(kOtherAsid, true, false);
  EXPECT_FALSE(visible(kVa));
}

TEST_F(WindowsLose, WhenTheNumberOfTheirPcidIsForgotten) {
  const auto asid = tlb.asid(kUser.pcid);
  ASSERT_TRUE(asid.has_value());
  (void)enter(kUser, *asid);
  EXPECT_FALSE(visible(kVa)) << "of another number";
  revalidate();
  ASSERT_TRUE(windows.fill(kVa, extent(0)));
  tlb.forget_asid(kUser.pcid);
  EXPECT_FALSE(visible(kVa));
}

TEST_F(WindowsLose, AtAFlushOfTheirPcidWhileAnotherOneExecutes) {
  (void)enter(kOther, kOtherAsid);
  EXPECT_FALSE(visible(kVa));
  EXPECT_FALSE(reachable(kVa)) << "no other address space's window is in the table";
  tlb.flush_pcid(kAsid, false, false);
  (void)enter();
  EXPECT_FALSE(visible(kVa));
}

TEST_F(WindowsLose, NothingWhileAnotherOneExecutes) {
  (void)enter(kOther, kOtherAsid);
  (void)enter();
  EXPECT_TRUE(visible(kVa));
  EXPECT_TRUE(reachable(kVa));
}

TEST_F(WindowsLose, APageByItsAddressInEveryWindow) {
  (void)enter(kOther, kOtherAsid);
  ASSERT_TRUE(windows.fill(kVa, extent(0, 4)));
  tlb.flush_page(kVa + kPageSize + 5, kAsid);
  EXPECT_FALSE(visible(kVa + kPageSize));
  EXPECT_TRUE(visible(kVa + 2 * kPageSize));
  (void)enter();
  EXPECT_FALSE(visible(kVa + kPageSize));
  EXPECT_TRUE(visible(kVa));
}

TEST_F(WindowsLose, APageThatIsForgotten) {
  (void)tlb.forget(kVa + kPageSize);
  EXPECT_FALSE(visible(kVa + kPageSize));
  EXPECT_TRUE(visible(kVa + 2 * kPageSize));
}

TEST_F(WindowsLose, WhatLeadsToGuestPhysicalPages) {
  tlb.flush_physical({{PPN{102}, 1}});
  EXPECT_FALSE(visible(kVa)) << "the extent that it is in";
  EXPECT_TRUE(visible(kVa + 8 * kPageSize));
  tlb.flush_physical({{PPN{50}, 58}});
  EXPECT_TRUE(visible(kVa + 8 * kPageSize)) << "ends before it";
  tlb.flush_physical({{PPN{50}, 59}});
  EXPECT_FALSE(visible(kVa + 8 * kPageSize));
}

TEST_F(WindowsLose, WritePermissionOfAPageWithCode) {
  tlb.revoke_writes(PPN{101});
  EXPECT_FALSE(windows.allows(kVa + kPageSize, true));
  EXPECT_TRUE(windows.allows(kVa, true));
  tlb.revoke_writes(PPN{108});
  EXPECT_TRUE(visible(kVa + 8 * kPageSize)) << "only read";
}

TEST_F(WindowsLose, AllWritePermissions) {
  tlb.revoke_all_writes();
  for (std::uint64_t n = 0; n < 4; ++n) EXPECT_FALSE(windows.allows(kVa + n * kPageSize, true));
  EXPECT_TRUE(visible(kVa + 8 * kPageSize));
}

TEST_F(WindowsTest, MoreExtentsThanFitLeaveTheNewestAndTheLimit) {
  (void)enter();
  const VA first{0x1000'0000'0000};
  constexpr std::uint64_t kMost = 12'000;
  for (std::uint64_t n = 0; n <= kMost + 5; ++n) {
    // No two are neighbours.
    ASSERT_TRUE(windows.fill(first + n * 2 * kPageSize, extent(n % 32 * 2)));
  }
  EXPECT_TRUE(visible(first + (kMost + 5) * 2 * kPageSize));
  EXPECT_FALSE(visible(first)) << "had to make room";
  EXPECT_LT(windows.bytes(), 10U << 20);
}

TEST_F(WindowsTest, WhatTheyCostTheHostIsCounted) {
  (void)enter();
  const std::size_t before = windows.bytes();
  for (std::uint64_t n = 0; n < 16; ++n) {
    ASSERT_TRUE(windows.fill(kVa + n * 2 * kPageSize, extent(n * 2)));
  }
  // At least the kernel's structure for each mapping, which is some 200 bytes (docs).
  EXPECT_GE(windows.bytes(), before + 16U * 200);
  tlb.flush_all();
  revalidate();
  EXPECT_EQ(windows.bytes(), before);
}

}  // namespace
}  // namespace strata::bt::test
