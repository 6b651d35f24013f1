// The backend over the real P2M and machine memory: states, runs, logging, byte for byte.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "machine/test_support.hpp"
#include "nested/nested_mmu.hpp"

namespace strata::nested::test {
namespace {

using machine::Long4Format;
using machine::test::TestMachine;

class OverRealP2m : public testing::TestWithParam<Format> {
 protected:
  OverRealP2m() : mmu{make_nested(GetParam(), machine.p2m, machine.frames, machine.domain)} {
    mmu->set_context(0, {});
  }
  auto load(std::uint64_t va) { return mmu->translate(0, VA{va}, {}); }
  auto store(std::uint64_t va) {
    return mmu->translate(0, VA{va}, {AccessKind::write, false, false});
  }
  std::uint64_t word(MA page, std::uint64_t offset = 0) {
    std::uint64_t value = 0;
    std::memcpy(&value, machine.window().host(page + offset), sizeof value);
    return value;
  }
  TestMachine machine{64};
  std::unique_ptr<NestedMmu> mmu;
};
INSTANTIATE_TEST_SUITE_P(Formats, OverRealP2m, testing::Values(Format::ept, Format::npt),
                         [](const auto& p) { return p.param == Format::ept ? "ept" : "npt"; });

TEST_P(OverRealP2m, DemandZeroThenPrivate) {
  const auto zero = load(0x5000);
  ASSERT_TRUE(zero);
  EXPECT_EQ(zero->page, address_of(machine.p2m.zero_frame()));
  EXPECT_FALSE(zero->writable);
  const auto own = store(0x5000);
  ASSERT_TRUE(own);
  EXPECT_EQ(own->page, address_of(machine.p2m.home_of(PPN{5})));
  EXPECT_TRUE(own->writable);
  EXPECT_EQ(machine.p2m.private_pages(), 1U);
}

TEST_P(OverRealP2m, GuestPagingReadsAndWritesWhatTheLoaderStored) {
  const PA root = machine.new_table();
  machine.store<std::uint64_t>(PA{0x300010}, 0x1122334455667788);
  const PA leaf = machine.map<Long4Format>(root, VA{0x7F0000123000}, PA{0x300000});
  PagingContext c;
  c.mode = PagingMode::long4;
  c.root = root;
  c.wp = c.nxe = true;
  mmu->set_context(0, c);
  const auto r = load(0x7F0000123010);
  ASSERT_TRUE(r);
  EXPECT_EQ(word(r->page, 0x10), 0x1122334455667788U);
  EXPECT_EQ(r->pa.value(), 0x300000U);
  EXPECT_EQ(machine.load<std::uint64_t>(leaf) & (Long4Format::kAccessed | Long4Format::kDirty),
            Long4Format::kAccessed);
  ASSERT_TRUE(store(0x7F0000123010));
  EXPECT_NE(machine.load<std::uint64_t>(leaf) & Long4Format::kDirty, 0U);
}

TEST_P(OverRealP2m, RunsOfThePrivatePagesBecomeLargeLeaves) {
  const auto base = address_of(machine.p2m.home_of(PPN{0})).value();
  ASSERT_EQ(base % kLargePageSize, 0U) << "home segments are aligned for large leaves";
  for (std::uint64_t p = 512; p < 1024; ++p) ASSERT_TRUE(store(p << kPageShift));
  const std::uint64_t tables = mmu->nested_stats().tables;
  ASSERT_TRUE(machine.p2m.join(PPN{512}));
  Flush flush{machine.domain};
  EXPECT_EQ(mmu->join({PPN{512}, 512}, flush), 1U);
  flush.commit();
  EXPECT_EQ(mmu->nested_stats().tables, tables - 1);
  EXPECT_EQ(load(kLargePageSize + 0x7123)->page.value(), base + kLargePageSize + 0x7000);
  // One page is given back: the leaf splits, the others stay as they are.
  ASSERT_TRUE(machine.p2m.discard({PPN{512 + 9}, 1}, flush));
  flush.commit();
  EXPECT_EQ(mmu->nested_stats().splits, 1U);
  const std::uint64_t misses = mmu->stats().backend_misses;
  EXPECT_TRUE(load(kLargePageSize + 0x8000)->writable);
  EXPECT_EQ(mmu->stats().backend_misses, misses);
  EXPECT_EQ(load(kLargePageSize + 0x9000)->page, address_of(machine.p2m.zero_frame()));
}

TEST_P(OverRealP2m, DirtyLoggingSeesEveryFirstStore) {
  for (std::uint64_t p = 0; p < 8; ++p) ASSERT_TRUE(store(p << kPageShift));
  Flush flush{machine.domain};
  ASSERT_TRUE(machine.p2m.log_dirty({PPN{0}, 8}, flush));
  flush.commit();
  for (std::uint64_t p = 0; p < 8; ++p) EXPECT_FALSE(load(p << kPageShift)->writable);
  EXPECT_TRUE(machine.p2m.collect_dirty({PPN{0}, 8}).empty());
  EXPECT_TRUE(store(0x3000)->writable);
  EXPECT_TRUE(store(0x3008)->writable);
  const auto dirty = machine.p2m.collect_dirty({PPN{0}, 8});
  ASSERT_EQ(dirty.size(), 1U);
  EXPECT_EQ(dirty[0].first, PPN{3});
  EXPECT_EQ(dirty[0].count, 1U);
}

TEST_P(OverRealP2m, SharedPageIsUnsharedByAStore) {
  ASSERT_TRUE(store(0x4000));
  std::memcpy(machine.window().host(address_of(machine.p2m.home_of(PPN{4}))), "contents", 8);
  const auto frame = machine.frames.allocate(FrameKind::shared_page);
  ASSERT_TRUE(frame);
  std::memcpy(machine.window().host(address_of(*frame)), "contents", 8);
  Flush flush{machine.domain};
  ASSERT_TRUE(machine.p2m.replace(PPN{4}, machine.p2m.lookup(PPN{4}).entry,
                                  P2mEntry::make(PageState::shared, frame->value()), flush));
  flush.commit();
  const auto shared = load(0x4000);
  ASSERT_TRUE(shared);
  EXPECT_EQ(shared->page, address_of(*frame));
  EXPECT_FALSE(shared->writable);
  const auto own = store(0x4000);
  ASSERT_TRUE(own);
  EXPECT_EQ(own->page, address_of(machine.p2m.home_of(PPN{4})));
  EXPECT_EQ(word(own->page), word(address_of(*frame)));
  machine.frames.release(*frame, FrameKind::shared_page);
}

TEST_P(OverRealP2m, RomAndMmio) {
  Flush flush{machine.domain};
  ASSERT_TRUE(machine.p2m.remove({PPN{16}, 4}, flush));
  flush.commit();
  const std::byte image[] = {std::byte{0xEA}};
  ASSERT_TRUE(machine.p2m.add_rom({PPN{16}, 2}, image));
  ASSERT_TRUE(machine.p2m.add_mmio({PPN{18}, 1}));
  const auto rom = load(0x10000);
  ASSERT_TRUE(rom);
  EXPECT_TRUE(rom->executable);
  EXPECT_FALSE(rom->writable);
  EXPECT_EQ(word(rom->page) & 0xFF, 0xEAU);
  EXPECT_EQ(store(0x10008).error().kind, FaultKind::rom_write);
  EXPECT_EQ(load(0x12345).error().kind, FaultKind::mmio);
  EXPECT_EQ(load(0x12345).error().pa.value(), 0x12345U);
  EXPECT_EQ(load(0x13000).error().kind, FaultKind::mmio) << "absent";
  EXPECT_EQ(load(0xFFFFF000).error().kind, FaultKind::mmio) << "beyond every region";
}

TEST_P(OverRealP2m, LeavesNothingBehind) {
  for (std::uint64_t pa = 0; pa < 64 * (1ULL << 20); pa += kLargePageSize) ASSERT_TRUE(store(pa));
  const auto nested = static_cast<std::size_t>(FrameKind::nested_table);
  EXPECT_EQ(machine.frames.in_use()[nested], 3U + 32U);
  Flush flush{machine.domain};
  ASSERT_TRUE(machine.p2m.discard({PPN{0}, 64 * 256}, flush));
  flush.commit();
  EXPECT_EQ(machine.frames.in_use()[nested], 1U);
  mmu.reset();
  EXPECT_EQ(machine.frames.in_use()[nested], 0U);
  // And it no longer listens.
  ASSERT_TRUE(machine.p2m.resolve(PPN{7}, AccessKind::write));
}

TEST_P(OverRealP2m, FrameExhaustionAnywhereIsAValue) {
  // Violations and the P2M share one source here, so every kind of allocation gets its turn.
  for (std::uint64_t after = 0;; ++after) {
    machine.frames.fail_after(after);
    const auto r = store(0x2000000 + 0x5000);
    const bool failed = machine.frames.failed();
    machine.frames.never_fail();
    ASSERT_EQ(r.has_value(), !failed);
    if (!failed) break;
    EXPECT_EQ(r.error().kind, FaultKind::out_of_memory);
    EXPECT_EQ(r.error().pa.value(), 0x2005000U);
    const auto nested = static_cast<std::size_t>(FrameKind::nested_table);
    EXPECT_EQ(machine.frames.in_use()[nested], mmu->nested_stats().tables);
    EXPECT_THAT(mmu->nested_stats().tables, testing::Eq(1U));
  }
  EXPECT_EQ(mmu->nested_stats().tables, 4U);
}

}  // namespace
}  // namespace strata::nested::test
