// The guest walk's own behaviour; permissions are in guest_walk_model_test.cpp.
#include "machine/guest_walk.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "machine/test_support.hpp"

namespace strata::machine {
namespace {

using test::must;
using test::TestMachine;

class GuestWalkTest : public ::testing::Test {
 protected:
  Expected<GuestWalk, Fault> walk(VA va, AccessKind kind = AccessKind::read, bool user = false) {
    return guest_walk(context_, va, {kind, user, false}, m_.p2m, m_.window(), counters_);
  }
  void use(PagingMode mode) {
    context_.mode = mode;
    context_.root = m_.new_table();
    context_.pse = context_.nxe = context_.wp = context_.pge = true;
    if (mode == PagingMode::i386) context_.nxe = false;
    context_.pdpte[1] = context_.root.value() | 1;
  }
  TestMachine m_{64};
  PagingContext context_;
  GuestWalkCounters counters_;
};

TEST_F(GuestWalkTest, without_paging_addresses_are_identical) {
  const auto r = must(walk(VA{0x1'2345'6789}));
  EXPECT_EQ(r.pa, PA{0x2345'6789}) << "32 bits";
  EXPECT_TRUE(r.rights.write && r.rights.execute && r.rights.user && r.dirty);
  EXPECT_EQ(counters_.references, 0U);
  EXPECT_EQ(counters_.walks, 0U);
}

TEST_F(GuestWalkTest, long_mode_takes_four_references) {
  use(PagingMode::long4);
  const VA va{0x7F12'3456'7ABC};
  m_.map<Long4Format>(context_.root, va, PA{0xABCDE000});
  const auto r = must(walk(va));
  EXPECT_EQ(r.pa, PA{0xABCDEABC});
  EXPECT_EQ(r.page_shift, 12U);
  EXPECT_EQ(r.top_level, 4U);
  EXPECT_EQ(counters_.references, 4U);
  EXPECT_EQ(counters_.ad_writes, 4U);
  EXPECT_FALSE(r.dirty);
  EXPECT_TRUE(must(walk(va, AccessKind::write)).dirty);
  EXPECT_EQ(counters_.ad_writes, 5U);
  EXPECT_EQ(counters_.references, 8U);
}

TEST_F(GuestWalkTest, the_upper_half_is_walked_as_well) {
  use(PagingMode::long4);
  const VA va{0xFFFF'8000'0000'1234};
  m_.map<Long4Format>(context_.root, va, PA{0x5000});
  EXPECT_EQ(must(walk(va)).pa, PA{0x5234});
}

TEST_F(GuestWalkTest, large_pages_stop_early_and_keep_the_offset) {
  use(PagingMode::long4);
  m_.map<Long4Format>(context_.root, VA{0x4000'0000}, PA{0xC000'0000}, {}, 3);
  m_.map<Long4Format>(context_.root, VA{0x8020'0000}, PA{0x1'0060'0000}, {}, 2);
  const auto huge = must(walk(VA{0x7FFF'FFFF}));
  EXPECT_EQ(huge.pa, PA{0xFFFF'FFFF});
  EXPECT_EQ(huge.page_shift, 30U);
  EXPECT_EQ(counters_.references, 2U);
  const auto large = must(walk(VA{0x8035'6789}));
  EXPECT_EQ(large.pa, PA{0x1'0075'6789});
  EXPECT_EQ(large.page_shift, 21U);
  EXPECT_EQ(large.leaf_level, 2U);
}

TEST_F(GuestWalkTest, pae_reads_two_entries_below_the_registers) {
  use(PagingMode::pae);
  const VA va{0x4012'3456};
  m_.map<PaeFormat>(context_.root, VA{va.value() & 0x3FFF'FFFF}, PA{0x12'3456'7000});
  const auto r = must(walk(va));
  EXPECT_EQ(r.pa, PA{0x12'3456'7456});
  EXPECT_EQ(counters_.references, 2U);
  EXPECT_EQ(must(walk(VA{0xFFFF'FFFF'4012'3456})).pa, r.pa) << "addresses have 32 bits";
}

TEST_F(GuestWalkTest, a_pdpte_that_is_not_present_faults) {
  use(PagingMode::pae);
  const auto r = walk(VA{0x8000'0000}, AccessKind::write, true);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().stage, Stage::guest_table);
  EXPECT_EQ(r.error().error_code, pf::kWrite | pf::kUser);
  EXPECT_EQ(r.error().va, VA{0x8000'0000});
  EXPECT_EQ(counters_.references, 0U);
  EXPECT_EQ(counters_.faults, 1U);
}

TEST_F(GuestWalkTest, each_reserved_bit_of_a_pdpte_faults) {
  use(PagingMode::pae);
  m_.map<PaeFormat>(context_.root, VA{0}, PA{0x5000});
  const std::uint64_t good = context_.pdpte[1];
  for (unsigned bit = 1; bit < 64; ++bit) {
    context_.pdpte[1] = good ^ 1ULL << bit;
    const bool reserved = bit == 1 || bit == 2 || (bit >= 5 && bit <= 8) || bit >= 40;
    const auto r = walk(VA{0x4000'0000});
    if (bit == 3 || bit == 4 || (bit >= 9 && bit <= 11)) {
      EXPECT_TRUE(r) << "PWT, PCD and ignored bits, " << bit;
    } else if (reserved) {
      ASSERT_FALSE(r) << bit;
      EXPECT_EQ(r.error().error_code, pf::kPresent | pf::kReserved) << bit;
    }
  }
}

TEST_F(GuestWalkTest, i386_tables_have_4_byte_entries_and_4_mib_pages) {
  use(PagingMode::i386);
  m_.map<I386Format>(context_.root, VA{0xC010'0000}, PA{0x0123'4000});
  m_.map<I386Format>(context_.root, VA{0xC040'0000}, PA{0xAB'0080'0000}, {}, 2);
  EXPECT_EQ(must(walk(VA{0xC010'0FFF})).pa, PA{0x0123'4FFF});
  const auto large = must(walk(VA{0xC07F'FFFF}));
  EXPECT_EQ(large.pa, PA{0xAB'00BF'FFFF}) << "PSE-36";
  EXPECT_EQ(large.page_shift, 22U);
}

TEST_F(GuestWalkTest, global_counts_only_with_pge_and_only_at_the_leaf) {
  use(PagingMode::long4);
  const VA va{0x1000};
  m_.map<Long4Format>(context_.root, va, PA{0x5000}, {}, 1, 1 << 8);
  EXPECT_TRUE(must(walk(va)).global);
  context_.pge = false;
  EXPECT_FALSE(must(walk(va)).global);
  context_.pge = true;
  m_.map<Long4Format>(context_.root, va, PA{0x5000});
  const PA pde = m_.entry_address<Long4Format>(context_.root, va, 2);
  m_.store(pde, m_.load<std::uint64_t>(pde) | 1 << 8);
  EXPECT_FALSE(must(walk(va)).global);
}

TEST_F(GuestWalkTest, cacheability_bits_of_cr3_do_not_matter) {
  use(PagingMode::long4);
  m_.map<Long4Format>(context_.root, VA{0x1000}, PA{0x5000});
  context_.root = context_.root + 0x18;
  EXPECT_TRUE(walk(VA{0x1000}));
}

TEST_F(GuestWalkTest, tables_in_untouched_pages_are_not_present_and_cost_nothing) {
  use(PagingMode::long4);
  context_.root = PA{0x10000};
  const auto before = m_.home->resident_bytes();
  const auto r = walk(VA{0x1000});
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().error_code, 0U);
  EXPECT_EQ(m_.home->resident_bytes(), before);
}

TEST_F(GuestWalkTest, tables_in_no_memory_read_as_ones) {
  context_.mode = PagingMode::long4;
  context_.nxe = true;
  context_.root = PA{0x7FFF'F000};
  const auto r = walk(VA{0x1000});
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().stage, Stage::guest_table);
  EXPECT_EQ(r.error().error_code, pf::kPresent | pf::kReserved);
  // Two-level tables without large pages have no reserved bits: all ones lead to the last page.
  context_.mode = PagingMode::i386;
  context_.nxe = context_.pse = false;
  const auto ones = must(walk(VA{0x1234}, AccessKind::write, true));
  EXPECT_EQ(ones.pa, PA{0xFFFF'F234});
  context_.pse = true;
  EXPECT_FALSE(walk(VA{0x1234})) << "bit 21 of a 4 MiB page is reserved";
  context_.mode = PagingMode::pae;
  context_.pdpte[0] = 0x7FFF'F001;
  EXPECT_FALSE(walk(VA{0x1234}));
}

TEST_F(GuestWalkTest, roots_far_outside_never_crash) {
  for (const auto mode : {PagingMode::i386, PagingMode::pae, PagingMode::long4}) {
    for (const std::uint64_t root : {~0ULL, 1ULL << 51, (1ULL << 48) - 1, 0xFFFF'FFFFULL}) {
      context_.mode = mode;
      context_.root = PA{root};
      context_.maxphyaddr = 52;
      context_.pdpte.fill((root & bit_range(12, 51)) | 1);
      (void)walk(VA{0xFFFF'FFFF'FFFF'FFFF});
      (void)walk(VA{0});
    }
  }
  EXPECT_EQ(counters_.walks, 24U);
}

TEST_F(GuestWalkTest, accessed_bits_of_tables_in_rom_are_dropped) {
  use(PagingMode::long4);
  m_.map<Long4Format>(context_.root, VA{0x1000}, PA{0x5000});
  const PPN root = page_of(context_.root);
  const std::uint64_t* words = m_.window().words(m_.p2m.home_of(root));
  std::vector<std::uint64_t> copy(words, words + 512);
  Flush flush{m_.domain};
  (void)must(m_.p2m.remove({root, 1}, flush));
  flush.commit();
  must(m_.p2m.add_rom({root, 1}, std::as_bytes(std::span{copy})));
  EXPECT_EQ(must(walk(VA{0x1000})).pa, PA{0x5000});
  EXPECT_EQ(m_.load<std::uint64_t>(context_.root) & 0x20, 0U);
}

TEST_F(GuestWalkTest, a_table_that_is_away_is_the_p2ms_fault) {
  use(PagingMode::long4);
  const VA va{0x1000};
  const PA entry = m_.map<Long4Format>(context_.root, va, PA{0x5000});
  const PPN table = page_of(entry);
  Flush flush{m_.domain};
  const P2mEntry seen = m_.p2m.lookup(table).entry;
  (void)must(m_.p2m.replace(table, seen, P2mEntry::make(PageState::swapped, 3), flush));
  flush.commit();
  const auto r = walk(va + 5);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().stage, Stage::p2m);
  EXPECT_EQ(r.error().kind, FaultKind::paused);
  EXPECT_EQ(r.error().va, va + 5);
  EXPECT_EQ(r.error().pa, address_of(table));
  EXPECT_EQ(counters_.faults, 0U) << "not the guest's";
}

TEST_F(GuestWalkTest, accessed_updates_survive_concurrent_changes) {
  use(PagingMode::long4);
  const VA va{0x1000};
  const PA entry = m_.map<Long4Format>(context_.root, va, PA{0x5000});
  std::uint64_t* word = m_.window().words(m_.p2m.home_of(page_of(entry))) + 1;
  std::atomic<bool> stop{false};
  std::atomic<int> bad{0};
  // The guest's other processor flips the leaf between two pages; each result must be one of them
  // with D in the entry it came from.
  std::thread other{[&] {
    for (int i = 0; i < 20000; ++i) {
      std::atomic_ref<std::uint64_t>{*word}.store((i % 2 != 0 ? 0x5000U : 0x6000U) | 7U);
    }
    stop.store(true);
  }};
  while (!stop.load()) {
    const auto r = must(walk(va, AccessKind::write));
    const bool known = r.pa == PA{0x5000} || r.pa == PA{0x6000};
    if (!known || (r.leaf & 0x60) != 0x60 || (r.leaf & ~0xFFFULL) != r.pa.value()) ++bad;
  }
  other.join();
  EXPECT_EQ(bad.load(), 0);
}

}  // namespace
}  // namespace strata::machine
