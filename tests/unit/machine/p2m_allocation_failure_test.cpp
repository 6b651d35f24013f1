// Every P2M operation with the n-th frame failing, for every n.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>

#include "machine/p2m.hpp"
#include "machine/p2m_fixture.hpp"

namespace strata::machine {
namespace {

using test::must;
using test::TestMachine;

// ---- allocation failure at every allocation ----

/// Runs `operation` on fresh machines, failing the n-th frame for n = 0, 1, .. until it succeeds.
/// `unchanged` judges the machine after each failure.
void at_every_allocation(const std::function<bool(TestMachine&)>& operation,
                         const std::function<void(TestMachine&)>& unchanged,
                         std::uint64_t least_failures) {
  std::uint64_t n = 0;
  for (;; ++n) {
    TestMachine m{64, 2048};
    const auto before = m.frames.outstanding();
    m.frames.fail_after(n);
    const bool done = operation(m);
    m.frames.never_fail();
    if (!done) unchanged(m);
    const auto bytes = m.p2m.table_bytes();
    EXPECT_EQ(static_cast<std::uint64_t>(m.frames.outstanding()), bytes.total() / kPageSize + 1)
        << "every frame is a table or the zero frame; before: " << before;
    m.p2m_owner.reset();
    EXPECT_EQ(m.frames.outstanding(), 0);
    if (done) break;
  }
  EXPECT_GE(n, least_failures);
}

TEST(P2mAllocationFailure, creating) {
  TestMachine m{4};
  const auto before = m.frames.outstanding();
  for (std::uint64_t n = 0; n < 2; ++n) {
    m.frames.fail_after(n);
    EXPECT_FALSE(P2mTable::create(m.frames, m.home, m.domain));
    EXPECT_EQ(m.frames.outstanding(), before);
  }
}

TEST(P2mAllocationFailure, adding_a_region_adds_all_or_nothing) {
  at_every_allocation(
      [](TestMachine& m) {
        return m.p2m.add_ram({PPN{64 * 256 + 5}, 1100}).has_value();
      },
      [](TestMachine& m) {
        for (std::uint64_t p = 0; p < 1200; ++p) {
          ASSERT_EQ(m.p2m.lookup(PPN{64 * 256 + p}).entry.state(), PageState::absent);
        }
        EXPECT_TRUE(m.p2m.add_ram({PPN{64 * 256 + 5}, 1100}));
      },
      2);
}

TEST(P2mAllocationFailure, demand_zero) {
  at_every_allocation(
      [](TestMachine& m) { return m.p2m.resolve(PPN{7}, AccessKind::write).has_value(); },
      [](TestMachine& m) {
        EXPECT_EQ(m.p2m.lookup(PPN{7}).entry.state(), PageState::zero);
        EXPECT_EQ(m.p2m.lookup(PPN{7}).run_shift, kLargePageShift);
        EXPECT_EQ(m.home->resident_bytes(), 0U);
      },
      1);
}

TEST(P2mAllocationFailure, pinning_a_page_of_a_run) {
  at_every_allocation(
      [](TestMachine& m) {
        const auto pin = m.p2m.pin(PPN{7}, AccessKind::write);
        if (pin) m.p2m.unpin(PPN{7}, AccessKind::write);
        return pin.has_value();
      },
      [](TestMachine& m) { EXPECT_EQ(m.p2m.private_pages(), 0U); }, 1);
}

TEST(P2mAllocationFailure, replacing) {
  at_every_allocation(
      [](TestMachine& m) {
        Flush flush{m.domain};
        const P2mEntry e = m.p2m.lookup(PPN{7}).entry;
        const bool done =
            m.p2m.replace(PPN{7}, e, P2mEntry::make(PageState::ballooned), flush).has_value();
        EXPECT_EQ(flush.owes(), done);
        flush.commit();
        return done;
      },
      [](TestMachine& m) { EXPECT_EQ(m.p2m.lookup(PPN{7}).entry.state(), PageState::zero); }, 1);
}

TEST(P2mAllocationFailure, logging) {
  at_every_allocation(
      [](TestMachine& m) {
        Flush flush{m.domain};
        const bool done = m.p2m.log_dirty({PPN{7}, 600}, flush).has_value();
        flush.commit();
        return done;
      },
      [](TestMachine& m) { EXPECT_FALSE(m.p2m.lookup(PPN{606}).entry.logged()); }, 2);
}

TEST(P2mAllocationFailure, discarding_says_how_far_it_came) {
  at_every_allocation(
      [](TestMachine& m) {
        // A joined private run behind 12 single pages: its part takes a frame to split.
        m.frames.never_fail();
        for (std::uint64_t p = 500; p < 1024; ++p) must(m.p2m.resolve(PPN{p}, AccessKind::write));
        EXPECT_TRUE(m.p2m.join(PPN{512}));
        m.frames.fail_after(0);
        Flush flush{m.domain};
        const auto stopped = must(m.p2m.discard({PPN{500}, 20}, flush));
        flush.commit();
        EXPECT_EQ(stopped, 12U);
        EXPECT_EQ(m.p2m.lookup(PPN{511}).entry.state(), PageState::zero);
        EXPECT_EQ(m.p2m.lookup(PPN{512}).entry.state(), PageState::private_page);
        m.frames.never_fail();
        EXPECT_EQ(must(m.p2m.discard({PPN{512}, 8}, flush)), 8U);
        flush.commit();
        EXPECT_EQ(m.p2m.private_pages(), 504U);
        return true;
      },
      [](TestMachine&) {}, 0);
}

}  // namespace
}  // namespace strata::machine
