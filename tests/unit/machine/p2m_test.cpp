// Regions, lookup, resolve, versions, pins.
#include "machine/p2m.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "machine/p2m_fixture.hpp"

namespace strata::machine {
namespace {

using test::ManualHolder;
using test::must;
using test::P2mTest;
using test::same;
using test::TestMachine;
using test::Watcher;

// ---- regions ----

TEST_F(P2mTest, fresh_ram_is_zero_runs_without_leaf_tables) {
  EXPECT_EQ(state(0), PageState::zero);
  EXPECT_EQ(state(64 * 256 - 1), PageState::zero);
  EXPECT_EQ(state(64 * 256), PageState::absent);
  EXPECT_EQ(p2m().lookup(PPN{700}).run_shift, kLargePageShift);
  EXPECT_EQ(p2m().table_bytes().leaves, 0U);
  EXPECT_EQ(m_.home->resident_bytes(), 0U);
}

TEST_F(P2mTest, pages_beyond_everything_are_absent) {
  for (const std::uint64_t ppn : {1ULL << 35, 1ULL << 36, 1ULL << 40, (1ULL << 52) - 1, ~0ULL}) {
    EXPECT_EQ(state(ppn), PageState::absent);
    EXPECT_EQ(fault(ppn, AccessKind::read), FaultKind::mmio);
  }
}

TEST_F(P2mTest, regions_may_not_overlap_or_leave_the_segment) {
  EXPECT_EQ(p2m().add_ram({PPN{100}, 1}).error(), EditError::bad_range);
  EXPECT_EQ(p2m().add_mmio({PPN{64 * 256 - 1}, 2}).error(), EditError::bad_range);
  EXPECT_EQ(p2m().add_ram({PPN{256 * 256 - 1}, 2}).error(), EditError::bad_range);
  EXPECT_EQ(p2m().add_ram({PPN{~0ULL}, 2}).error(), EditError::bad_range);
  EXPECT_EQ(p2m().add_ram({PPN{64 * 256}, ~0ULL}).error(), EditError::bad_range);
  EXPECT_EQ(p2m().add_ram({PPN{64 * 256}, 0}).error(), EditError::bad_range);
  EXPECT_EQ(p2m().add_mmio({PPN{(1ULL << 36) - 1}, 2}).error(), EditError::bad_range);
  EXPECT_TRUE(p2m().add_ram({PPN{64 * 256}, 3}));
  EXPECT_EQ(state(64 * 256 + 2), PageState::zero);
  EXPECT_EQ(state(64 * 256 + 3), PageState::absent);
}

TEST_F(P2mTest, a_gigabyte_is_one_entry_and_looks_like_2_mib_runs) {
  TestMachine big{2048};
  EXPECT_EQ(big.p2m.lookup(PPN{5}).run_shift, kLargePageShift);
  EXPECT_EQ(big.p2m.table_bytes().total(), 2 * kPageSize);
  must(big.p2m.resolve(PPN{300000}, AccessKind::write));
  EXPECT_EQ(big.p2m.table_bytes().nodes, 3 * kPageSize);
  EXPECT_EQ(big.p2m.table_bytes().leaves, kPageSize);
}

TEST_F(P2mTest, mmio_faults_on_every_access) {
  must(p2m().add_mmio({PPN{0xFEE00}, 1}));
  for (const auto kind : {AccessKind::read, AccessKind::write, AccessKind::execute}) {
    EXPECT_EQ(fault(0xFEE00, kind), FaultKind::mmio);
  }
}

TEST_F(P2mTest, rom_reads_its_image_and_refuses_writes) {
  std::vector<std::byte> image(kPageSize + 10, std::byte{0xAB});
  const PPN first{64 * 256 + 16};
  must(p2m().add_rom({first, 3}, image));
  const auto r = must(p2m().resolve(first + 1, AccessKind::execute));
  EXPECT_EQ(r.entry.state(), PageState::rom);
  const std::byte* host = m_.window().host(address_of(r.entry.mpn()));
  EXPECT_EQ(host[9], std::byte{0xAB});
  EXPECT_EQ(host[10], std::byte{0});
  EXPECT_EQ(fault(first.value(), AccessKind::write), FaultKind::rom_write);
  EXPECT_FALSE(target_of(r.entry, p2m().zero_frame()).writable);
  EXPECT_EQ(p2m().add_rom({first + 3, 1}, image).error(), EditError::bad_range) << "too long";
}

// ---- demand-zero ----

TEST_F(P2mTest, reading_zero_pages_costs_nothing) {
  for (std::uint64_t ppn = 0; ppn < 64 * 256; ++ppn) {
    const auto r = must(p2m().resolve(PPN{ppn}, AccessKind::read));
    const auto target = target_of(r.entry, p2m().zero_frame());
    ASSERT_EQ(target.mpn, p2m().zero_frame());
    ASSERT_FALSE(target.writable);
    ASSERT_EQ(m_.window().words(target.mpn)[ppn % 512], 0U);
  }
  EXPECT_EQ(m_.home->resident_bytes(), 0U);
  EXPECT_EQ(p2m().table_bytes().leaves, 0U);
  EXPECT_EQ(p2m().private_pages(), 0U);
}

TEST_F(P2mTest, writing_a_zero_page_gives_exactly_its_home_frame) {
  const auto r = must(p2m().resolve(PPN{700}, AccessKind::write));
  EXPECT_EQ(r.entry.state(), PageState::private_page);
  EXPECT_EQ(address_of(r.entry.mpn()), m_.home->base() + 700 * kPageSize);
  EXPECT_EQ(r.run_shift, kPageShift);
  EXPECT_TRUE(target_of(r.entry, p2m().zero_frame()).writable);
  EXPECT_EQ(m_.home->resident_bytes(), kPageSize);
  EXPECT_EQ(p2m().private_pages(), 1U);
  EXPECT_EQ(state(699), PageState::zero);
  EXPECT_EQ(state(701), PageState::zero);
  EXPECT_EQ(p2m().table_bytes().leaves, kPageSize);
  EXPECT_EQ(p2m().lookup(PPN{1100}).run_shift, kLargePageShift) << "other runs stay whole";
}

TEST_F(P2mTest, observers_hear_of_a_write_while_the_page_is_busy) {
  Watcher watcher{p2m()};
  touch(5);
  ASSERT_EQ(watcher.seen.size(), 1U);
  EXPECT_TRUE(same(watcher.seen[0], PpnRange{PPN{5}, 1}));
  EXPECT_TRUE(watcher.states[0].busy());
  EXPECT_EQ(watcher.states[0].state(), PageState::zero);
  EXPECT_EQ(watcher.freed, 1);
  touch(5);
  EXPECT_EQ(watcher.seen.size(), 1U) << "a private page changes nothing";
}

TEST_F(P2mTest, holders_hear_of_it_too) {
  ManualHolder holder;
  m_.domain.add(holder);
  touch(5);
  ASSERT_EQ(holder.seen.size(), 1U);
  EXPECT_TRUE(same(holder.seen[0].ranges.at(0), PpnRange{PPN{5}, 1}));
  m_.domain.remove(holder);
}

TEST_F(P2mTest, no_frame_for_the_leaf_table_is_out_of_memory) {
  m_.frames.fail_after(0);
  EXPECT_EQ(fault(5, AccessKind::write), FaultKind::out_of_memory);
  EXPECT_EQ(state(5), PageState::zero);
  m_.frames.never_fail();
  touch(5);
}

TEST_F(P2mTest, no_host_memory_for_the_page_is_out_of_memory) {
  p2m().set_private_limit(1);
  touch(5);
  EXPECT_EQ(fault(6, AccessKind::write), FaultKind::out_of_memory);
  EXPECT_EQ(state(6), PageState::zero);
  EXPECT_FALSE(entry(6).busy());
  EXPECT_EQ(p2m().private_pages(), 1U);
  p2m().set_private_limit(2);
  touch(6);
}

TEST_F(P2mTest, a_segment_the_host_cannot_back_is_out_of_memory) {
  FileDescriptor fd{::memfd_create("shrunk", MFD_CLOEXEC)};
  ASSERT_EQ(::ftruncate(fd.get(), 8 << 20), 0);
  const int raw = ::dup(fd.get());
  const auto home = must(m_.memory->adopt_segment(std::move(fd), 8 << 20, "home", true));
  ASSERT_EQ(::ftruncate(raw, 4096), 0);
  ::close(raw);
  const auto table = must(P2mTable::create(m_.frames, home, m_.domain));
  must(table->add_ram({PPN{0}, 2048}));
  EXPECT_TRUE(table->resolve(PPN{0}, AccessKind::write));
  const auto r = table->resolve(PPN{9}, AccessKind::write);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, FaultKind::out_of_memory);
  EXPECT_EQ(table->lookup(PPN{9}).entry.state(), PageState::zero);
  EXPECT_EQ(table->private_pages(), 1U);
}

// ---- versions ----

TEST_F(P2mTest, splitting_keeps_what_everybody_saw) {
  const P2mEntry before = entry(600);
  touch(601);
  EXPECT_EQ(entry(600), before);
}

TEST_F(P2mTest, every_change_gets_a_new_version) {
  std::vector<P2mEntry> seen{entry(5)};
  const auto note = [&] {
    for (const P2mEntry& e : seen) EXPECT_NE(e, entry(5));
    seen.push_back(entry(5));
  };
  touch(5);
  note();
  discard(5, 1);
  note();
  touch(5);
  note();
  const auto pinned = must(p2m().pin(PPN{5}, AccessKind::write));
  EXPECT_TRUE(pinned.counted);
  note();
  p2m().unpin(PPN{5}, AccessKind::write);
  note();
  discard(0, 512);
  note();
  EXPECT_EQ(p2m().lookup(PPN{5}).run_shift, kLargePageShift);
}

TEST_F(P2mTest, an_edit_of_something_older_is_refused) {
  const P2mEntry old = entry(5);
  touch(5);
  discard(5, 1);
  ASSERT_EQ(state(5), PageState::zero);
  Flush flush{m_.domain};
  const auto r = p2m().replace(PPN{5}, old, old.with_state(PageState::ballooned, 0), flush);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error(), EditError::changed);
  EXPECT_FALSE(flush.owes());
}

// ---- pins ----

TEST_F(P2mTest, pins_are_counted_and_bounded) {
  for (unsigned i = 0; i < P2mEntry::kMaxPins; ++i) {
    EXPECT_TRUE(must(p2m().pin(PPN{5}, AccessKind::write)).counted);
  }
  EXPECT_EQ(entry(5).pins(), P2mEntry::kMaxPins);
  const auto one_more = p2m().pin(PPN{5}, AccessKind::write);
  ASSERT_FALSE(one_more);
  EXPECT_EQ(one_more.error().kind, FaultKind::retry);
  for (unsigned i = 0; i < P2mEntry::kMaxPins; ++i) p2m().unpin(PPN{5}, AccessKind::write);
  EXPECT_EQ(entry(5).pins(), 0U);
}

TEST_F(P2mTest, a_read_pin_of_an_untouched_page_costs_nothing) {
  const auto pin = must(p2m().pin(PPN{5}, AccessKind::read));
  EXPECT_EQ(pin.mpn, p2m().zero_frame());
  EXPECT_FALSE(pin.counted);
  EXPECT_EQ(p2m().table_bytes().leaves, 0U);
}

TEST_F(P2mTest, an_unpin_too_many_aborts) {
  touch(5);
  EXPECT_DEATH(p2m().unpin(PPN{5}, AccessKind::read), "");
}

}  // namespace
}  // namespace strata::machine
