// Replacing, discarding, joining, dirty logging.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "machine/p2m.hpp"
#include "machine/p2m_fixture.hpp"

namespace strata::machine {
namespace {

using test::kRun;
using test::ManualHolder;
using test::must;
using test::Owner;
using test::P2mTest;
using test::same;
using test::TestMachine;
using test::Watcher;

// ---- replace ----

TEST_F(P2mTest, stored_away_pages_pause_the_guest) {
  for (const auto s : {PageState::compressed, PageState::swapped, PageState::image_backed}) {
    touch(5);
    put(5, s, 0x123);
    EXPECT_EQ(entry(5).payload(), 0x123U);
    EXPECT_EQ(fault(5, AccessKind::read), FaultKind::paused);
    discard(5, 1);
  }
  put(6, PageState::poisoned);
  EXPECT_EQ(fault(6, AccessKind::read), FaultKind::poisoned);
}

TEST_F(P2mTest, a_page_that_leaves_home_is_busy_until_the_flush_is_through) {
  ManualHolder holder;
  touch(5);
  m_.domain.add(holder);
  std::memset(m_.window().words(p2m().home_of(PPN{5})), 7, kPageSize);
  Flush flush{m_.domain};
  const auto done =
      must(p2m().replace(PPN{5}, entry(5), P2mEntry::make(PageState::swapped, 9), flush));
  EXPECT_TRUE(done.busy());
  EXPECT_EQ(done, entry(5));
  const Epoch epoch = flush.commit();
  EXPECT_EQ(fault(5, AccessKind::read), FaultKind::retry);
  EXPECT_EQ(p2m()
                .replace(PPN{5}, entry(5).with_busy(false), P2mEntry::make(PageState::zero), flush)
                .error(),
            EditError::busy);
  EXPECT_EQ(m_.home->resident_bytes(), kPageSize) << "somebody may still read the old frame";
  holder.pass(epoch);
  EXPECT_EQ(fault(5, AccessKind::read), FaultKind::paused) << "resolve runs what was deferred";
  EXPECT_EQ(m_.home->resident_bytes(), 0U);
  EXPECT_EQ(p2m().private_pages(), 0U);
  m_.domain.remove(holder);
}

TEST_F(P2mTest, a_service_moves_a_page_in_two_steps) {
  touch(5);
  Watcher watcher{p2m()};
  Flush flush{m_.domain};
  const P2mEntry held = must(p2m().replace(PPN{5}, entry(5), entry(5).with_busy(true), flush));
  flush.commit();
  EXPECT_TRUE(held.busy());
  EXPECT_EQ(held.state(), PageState::private_page);
  EXPECT_EQ(fault(5, AccessKind::write), FaultKind::retry);
  EXPECT_EQ(watcher.seen.size(), 1U);
  // The service copies the page out here; then it lets go, or moves it.
  (void)must(p2m().replace(PPN{5}, held, P2mEntry::make(PageState::compressed, 4), flush));
  flush.commit();
  EXPECT_EQ(watcher.seen.size(), 1U) << "translations were gone already";
  EXPECT_EQ(entry(5).payload(), 4U);
  EXPECT_FALSE(entry(5).busy());
  // And back: the contents go home first.
  (void)must(p2m().replace(PPN{5}, entry(5),
                           P2mEntry::make(PageState::private_page, p2m().home_of(PPN{5}).value()),
                           flush));
  flush.commit();
  EXPECT_EQ(p2m().private_pages(), 1U);
}

TEST_F(P2mTest, a_private_page_lives_at_home_only) {
  touch(6);
  Flush flush{m_.domain};
  const auto stolen = P2mEntry::make(PageState::private_page, p2m().home_of(PPN{6}).value());
  EXPECT_EQ(p2m().replace(PPN{5}, entry(5), stolen, flush).error(), EditError::bad_range);
}

TEST_F(P2mTest, devices_and_rom_are_not_for_services) {
  must(p2m().add_mmio({PPN{64 * 256}, 1}));
  Flush flush{m_.domain};
  EXPECT_EQ(
      p2m().replace(PPN{64 * 256}, entry(64 * 256), P2mEntry::make(PageState::zero), flush).error(),
      EditError::bad_range);
  EXPECT_EQ(p2m().replace(PPN{5}, entry(5), P2mEntry::make(PageState::mmio), flush).error(),
            EditError::bad_range);
  EXPECT_EQ(p2m().replace(PPN{5}, entry(5), P2mEntry{0xF}, flush).error(), EditError::bad_range)
      << "the mark of a table";
  EXPECT_EQ(p2m().discard({PPN{64 * 256}, 1}, flush).error(), EditError::bad_range);
}

TEST_F(P2mTest, a_write_to_a_shared_page_unshares_it) {
  Owner owner;
  p2m().set_payload_owner(PageState::shared, &owner);
  const MPN frame = must(m_.allocator.allocate(FrameKind::shared_page));
  m_.window().words(frame)[17] = 0xBEEF;
  touch(5);
  put(5, PageState::shared, frame.value());
  EXPECT_EQ(p2m().private_pages(), 0U);
  const auto read = must(p2m().resolve(PPN{5}, AccessKind::read));
  EXPECT_EQ(target_of(read.entry, p2m().zero_frame()).mpn, frame);
  EXPECT_FALSE(target_of(read.entry, p2m().zero_frame()).writable);
  Watcher watcher{p2m()};
  const auto written = must(p2m().resolve(PPN{5}, AccessKind::write));
  EXPECT_EQ(written.entry.mpn(), p2m().home_of(PPN{5}));
  EXPECT_EQ(m_.window().words(written.entry.mpn())[17], 0xBEEFU);
  EXPECT_EQ(watcher.seen.size(), 1U);
  ASSERT_EQ(owner.dropped.size(), 1U);
  EXPECT_EQ(owner.dropped[0].first, PPN{5});
  EXPECT_EQ(owner.dropped[0].second.mpn(), frame);
  m_.allocator.release(frame, FrameKind::shared_page);
}

TEST_F(P2mTest, a_shared_page_that_a_device_reads_is_not_unshared_yet) {
  const MPN frame = must(m_.allocator.allocate(FrameKind::shared_page));
  put(5, PageState::shared, frame.value());
  ASSERT_TRUE(must(p2m().pin(PPN{5}, AccessKind::read)).counted);
  EXPECT_EQ(fault(5, AccessKind::write), FaultKind::retry);
  p2m().unpin(PPN{5}, AccessKind::read);
  touch(5);
  m_.allocator.release(frame, FrameKind::shared_page);
}

TEST_F(P2mTest, touching_a_ballooned_page_takes_it_back) {
  put(5, PageState::ballooned);
  const auto r = must(p2m().resolve(PPN{5}, AccessKind::read));
  EXPECT_EQ(r.entry.state(), PageState::zero);
  put(5, PageState::ballooned);
  touch(5);
  EXPECT_EQ(state(5), PageState::private_page);
}

// ---- discard and remove ----

TEST_F(P2mTest, discard_gives_frames_back_and_contents_up) {
  for (std::uint64_t p = 500; p < 600; ++p) {
    touch(p);
    std::memset(m_.window().words(p2m().home_of(PPN{p})), 9, kPageSize);
  }
  EXPECT_EQ(discard(510, 80), 80U);
  EXPECT_EQ(m_.home->resident_bytes(), 20 * kPageSize);
  EXPECT_EQ(p2m().private_pages(), 20U);
  EXPECT_EQ(state(509), PageState::private_page);
  EXPECT_EQ(state(510), PageState::zero);
  touch(510);
  EXPECT_EQ(m_.window().words(p2m().home_of(PPN{510}))[0], 0U);
}

TEST_F(P2mTest, discard_waits_for_the_flush) {
  ManualHolder holder;
  touch(5);
  m_.domain.add(holder);
  Flush flush{m_.domain};
  EXPECT_EQ(must(p2m().discard({PPN{4}, 3}, flush)), 3U);
  const Epoch epoch = flush.commit();
  EXPECT_EQ(m_.home->resident_bytes(), kPageSize);
  EXPECT_EQ(fault(5, AccessKind::write), FaultKind::retry);
  EXPECT_EQ(state(4), PageState::zero);
  touch(4);  // was zero before: not held up
  holder.pass(epoch);
  touch(5);
  EXPECT_EQ(m_.home->resident_bytes(), 2 * kPageSize);
  m_.domain.remove(holder);
}

TEST_F(P2mTest, discard_stops_at_a_pinned_page_and_says_how_far_it_came) {
  for (std::uint64_t p = 0; p < 8; ++p) touch(p);
  (void)must(p2m().pin(PPN{5}, AccessKind::read));
  EXPECT_EQ(discard(0, 8), 5U);
  EXPECT_EQ(state(4), PageState::zero);
  EXPECT_EQ(state(5), PageState::private_page);
  EXPECT_EQ(state(6), PageState::private_page);
  Flush flush{m_.domain};
  EXPECT_EQ(p2m().discard({PPN{5}, 1}, flush).error(), EditError::pinned);
  EXPECT_EQ(p2m().replace(PPN{5}, entry(5), P2mEntry::make(PageState::swapped, 1), flush).error(),
            EditError::pinned);
  p2m().unpin(PPN{5}, AccessKind::read);
  EXPECT_EQ(discard(5, 3), 3U);
}

TEST_F(P2mTest, discarding_a_whole_run_joins_it) {
  for (std::uint64_t p = kRun; p < 2 * kRun; ++p) touch(p);
  EXPECT_EQ(p2m().table_bytes().leaves, kPageSize);
  EXPECT_EQ(discard(kRun, kRun), kRun);
  EXPECT_EQ(p2m().table_bytes().leaves, 0U);
  EXPECT_EQ(p2m().lookup(PPN{kRun}).run_shift, kLargePageShift);
  EXPECT_EQ(m_.home->resident_bytes(), 0U);
}

TEST_F(P2mTest, discard_tells_the_owners_of_payloads) {
  Owner owner;
  p2m().set_payload_owner(PageState::swapped, &owner);
  put(3, PageState::swapped, 77);
  EXPECT_EQ(discard(0, 10), 10U);
  ASSERT_EQ(owner.dropped.size(), 1U);
  EXPECT_EQ(owner.dropped[0].second.payload(), 77U);
}

TEST_F(P2mTest, removed_ranges_are_absent_and_can_be_added_again) {
  touch(kRun + 1);
  std::memset(m_.window().words(p2m().home_of(PPN{kRun + 1})), 9, kPageSize);
  Flush flush{m_.domain};
  EXPECT_EQ(must(p2m().remove({PPN{kRun}, 2 * kRun}, flush)), 2 * kRun);
  flush.commit();
  EXPECT_EQ(state(kRun + 1), PageState::absent);
  EXPECT_EQ(state(kRun - 1), PageState::zero);
  EXPECT_EQ(state(3 * kRun), PageState::zero);
  EXPECT_EQ(m_.home->resident_bytes(), 0U);
  must(p2m().add_mmio({PPN{kRun}, 1}));
  must(p2m().add_ram({PPN{kRun + 1}, 2 * kRun - 1}));
  touch(kRun + 1);
  EXPECT_EQ(m_.window().words(p2m().home_of(PPN{kRun + 1}))[0], 0U);
}

TEST_F(P2mTest, a_range_that_ends_inside_a_run_leaves_its_rest) {
  Flush flush{m_.domain};
  EXPECT_EQ(must(p2m().remove({PPN{kRun - 300}, 600}, flush)), 600U);
  flush.commit();
  EXPECT_EQ(state(kRun - 301), PageState::zero);
  EXPECT_EQ(state(kRun - 300), PageState::absent);
  EXPECT_EQ(state(kRun + 299), PageState::absent);
  EXPECT_EQ(state(kRun + 300), PageState::zero);
}

TEST_F(P2mTest, a_table_that_ends_leaves_deferred_work_harmless) {
  ManualHolder holder;
  auto second = must(P2mTable::create(m_.frames, m_.home, m_.domain));
  must(second->add_ram({PPN{0}, 512}));
  must(second->resolve(PPN{1}, AccessKind::write));
  m_.domain.add(holder);
  Flush flush{m_.domain};
  (void)must(second->discard({PPN{0}, 512}, flush));
  flush.commit();
  second.reset();
  m_.domain.remove(holder);
  m_.domain.collect();
  EXPECT_EQ(m_.domain.waiting(), 0U);
}

// ---- joining and sizes ----

TEST_F(P2mTest, private_neighbours_join_on_request) {
  for (std::uint64_t p = kRun; p < 2 * kRun; ++p) {
    EXPECT_FALSE(p2m().join(PPN{p}) && p != kRun) << "not while one is missing";
    touch(p);
  }
  const P2mEntry page = entry(kRun + 9);
  EXPECT_TRUE(p2m().join(PPN{kRun + 100}));
  EXPECT_EQ(p2m().table_bytes().leaves, 0U);
  const P2mLookup run = p2m().lookup(PPN{kRun + 9});
  EXPECT_EQ(run.run_shift, kLargePageShift);
  EXPECT_EQ(run.entry.mpn(), page.mpn());
  EXPECT_NE(run.entry, page) << "a newer version: old edits do not fit";
  EXPECT_EQ(must(p2m().resolve(PPN{kRun + 9}, AccessKind::write)).run_shift, kLargePageShift);
  discard(kRun + 9, 1);
  EXPECT_EQ(state(kRun + 9), PageState::zero);
  EXPECT_EQ(entry(kRun + 10).mpn(), p2m().home_of(PPN{kRun + 10}));
}

TEST_F(P2mTest, a_range_is_joined_run_by_run_and_only_what_lies_in_it) {
  // Three runs in leaves, each of 512 pages that could be one.
  for (std::uint64_t p = 0; p < 3 * kRun; ++p) touch(p);
  ASSERT_EQ(p2m().table_bytes().leaves, 3 * kPageSize);
  EXPECT_EQ(p2m().join_range({PPN{1}, 2 * kRun - 1}), 1U);
  EXPECT_EQ(p2m().lookup(PPN{0}).run_shift, kPageShift) << "begins before the range";
  EXPECT_EQ(p2m().lookup(PPN{kRun}).run_shift, kLargePageShift);
  EXPECT_EQ(p2m().join_range({PPN{2 * kRun}, kRun - 1}), 0U) << "ends beyond the range";
  EXPECT_EQ(p2m().join_range({PPN{0}, 3 * kRun}), 2U);
}

TEST_F(P2mTest, pinned_busy_or_logged_pages_are_not_joined) {
  for (std::uint64_t p = 0; p < kRun; ++p) touch(p);
  (void)must(p2m().pin(PPN{9}, AccessKind::read));
  EXPECT_FALSE(p2m().join(PPN{0}));
  p2m().unpin(PPN{9}, AccessKind::read);
  Flush flush{m_.domain};
  const P2mEntry held = must(p2m().replace(PPN{9}, entry(9), entry(9).with_busy(true), flush));
  flush.commit();
  EXPECT_FALSE(p2m().join(PPN{0}));
  (void)must(p2m().replace(PPN{9}, held, held.with_busy(false), flush));
  flush.commit();
  must(p2m().log_dirty({PPN{9}, 1}, flush));
  flush.commit();
  EXPECT_FALSE(p2m().join(PPN{0}));
  p2m().note_dirty(PPN{9});
  EXPECT_TRUE(p2m().join(PPN{0}));
  for (std::uint64_t p = 0; p < kRun; ++p) EXPECT_FALSE(entry(p).busy());
}

TEST_F(P2mTest, a_join_that_cannot_be_changes_no_entry) {
  for (std::uint64_t p = 0; p + 1 < kRun; ++p) touch(p);
  const P2mEntry first = entry(0);
  EXPECT_FALSE(p2m().join(PPN{0}));
  EXPECT_EQ(entry(0), first) << "who holds the old entry would have to look again";
}

TEST_F(P2mTest, fully_split_tables_cost_a_fifth_of_a_percent) {
  TestMachine big{512};
  const std::uint64_t pages = 512 * 256;
  for (std::uint64_t p = 0; p < pages; p += kRun) {
    // Splits without giving every page memory.
    Flush flush{big.domain};
    const P2mEntry e = big.p2m.lookup(PPN{p}).entry;
    (void)must(big.p2m.replace(PPN{p}, e, e.with_state(PageState::ballooned, 0), flush));
    flush.commit();
  }
  const P2mTableBytes bytes = big.p2m.table_bytes();
  EXPECT_EQ(bytes.leaves, pages * 8);
  EXPECT_LE(bytes.total() * 1000, pages * kPageSize * 2) << "0.2 % of guest memory";
  // Nodes: one table a GiB of leaves (1/512 = 0.2 % of them), and the two above.
  EXPECT_EQ(bytes.nodes, 3 * kPageSize);
  EXPECT_EQ(big.p2m.join_range({PPN{0}, pages}), 0U) << "one page of each run differs";
  for (std::uint64_t p = 0; p < pages; p += kRun) must(big.p2m.resolve(PPN{p}, AccessKind::read));
  EXPECT_EQ(big.p2m.join_range({PPN{0}, pages}), pages / kRun);
  EXPECT_EQ(big.p2m.table_bytes().leaves, 0U);
}

// ---- dirty logging ----

class P2mDirtyTest : public P2mTest {
 protected:
  void log(std::uint64_t first, std::uint64_t count) {
    Flush flush{m_.domain};
    must(p2m().log_dirty({PPN{first}, count}, flush));
    flush.commit();
  }
  std::vector<std::uint64_t> dirty(std::uint64_t first = 0, std::uint64_t count = 64 * 256) {
    std::vector<std::uint64_t> pages;
    for (const PpnRange& r : p2m().collect_dirty({PPN{first}, count})) {
      for (std::uint64_t i = 0; i < r.count; ++i) pages.push_back(r.first.value() + i);
    }
    return pages;
  }
};

TEST_F(P2mDirtyTest, the_first_write_to_a_marked_page_is_recorded) {
  touch(5);
  Watcher watcher{p2m()};
  log(0, 1024);
  ASSERT_EQ(watcher.seen.size(), 1U) << "only the private page could be written unseen";
  EXPECT_TRUE(same(watcher.seen[0], PpnRange{PPN{5}, 1}));
  EXPECT_TRUE(entry(5).logged());
  EXPECT_FALSE(target_of(entry(5), p2m().zero_frame()).writable);
  EXPECT_TRUE(dirty().empty());
  must(p2m().resolve(PPN{5}, AccessKind::read));
  EXPECT_TRUE(entry(5).logged());
  touch(5);
  touch(700);  // a zero page in a marked run
  EXPECT_FALSE(entry(5).logged());
  EXPECT_FALSE(entry(700).logged()) << "one record a round: its next write needs no exit";
  EXPECT_TRUE(entry(701).logged());
  EXPECT_EQ(dirty(), (std::vector<std::uint64_t>{5, 700}));
  EXPECT_TRUE(dirty().empty()) << "collecting forgets";
  touch(5);
  EXPECT_TRUE(dirty().empty()) << "not marked again";
  log(0, 1024);
  touch(5);
  EXPECT_EQ(dirty(), (std::vector<std::uint64_t>{5}));
}

TEST_F(P2mDirtyTest, note_dirty_does_it_for_the_backend) {
  touch(5);
  log(5, 1);
  p2m().note_dirty(PPN{5});
  p2m().note_dirty(PPN{6});
  EXPECT_EQ(dirty(), (std::vector<std::uint64_t>{5}));
}

TEST_F(P2mDirtyTest, marking_part_of_a_run_splits_it) {
  log(10, 5);
  EXPECT_FALSE(entry(9).logged());
  EXPECT_TRUE(entry(10).logged());
  EXPECT_TRUE(entry(14).logged());
  EXPECT_FALSE(entry(15).logged());
}

TEST_F(P2mDirtyTest, a_marked_run_of_private_pages_splits_at_its_first_write) {
  for (std::uint64_t p = 0; p < kRun; ++p) touch(p);
  ASSERT_TRUE(p2m().join(PPN{0}));
  log(0, kRun);
  EXPECT_EQ(p2m().lookup(PPN{3}).run_shift, kLargePageShift);
  touch(3);
  EXPECT_EQ(dirty(), (std::vector<std::uint64_t>{3}));
  EXPECT_TRUE(entry(4).logged());
}

TEST_F(P2mDirtyTest, without_a_frame_to_split_the_whole_run_counts_as_dirty) {
  for (std::uint64_t p = 0; p < kRun; ++p) touch(p);
  ASSERT_TRUE(p2m().join(PPN{0}));
  log(0, kRun);
  m_.frames.fail_after(0);
  touch(3);
  m_.frames.never_fail();
  EXPECT_EQ(dirty().size(), kRun);
}

TEST_F(P2mDirtyTest, collecting_a_part_leaves_the_rest) {
  for (const std::uint64_t p : {63U, 64U, 65U, 127U, 128U}) touch(p);
  log(0, 512);
  for (const std::uint64_t p : {63U, 64U, 65U, 127U, 128U}) touch(p);
  EXPECT_EQ(dirty(64, 64), (std::vector<std::uint64_t>{64, 65, 127}));
  EXPECT_EQ(dirty(), (std::vector<std::uint64_t>{63, 128}));
}

TEST_F(P2mDirtyTest, a_write_pin_is_dirty_again_when_it_ends) {
  touch(5);
  log(0, 512);
  (void)must(p2m().pin(PPN{5}, AccessKind::write));
  EXPECT_EQ(dirty(), (std::vector<std::uint64_t>{5}));
  log(0, 512);  // the device goes on writing through its pin
  p2m().unpin(PPN{5}, AccessKind::write);
  EXPECT_EQ(dirty(), (std::vector<std::uint64_t>{5}));
}

}  // namespace
}  // namespace strata::machine
