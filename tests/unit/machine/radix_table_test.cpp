#include "machine/radix_table.hpp"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <thread>
#include <vector>

#include "machine/p2m_format.hpp"
#include "machine/test_support.hpp"

namespace strata::machine {
namespace {

using test::FailingFrames;
using test::must;

/// A leaf of any format: present, and leading to `address`.
template <class Format>
typename Format::Entry leaf_of(std::uint64_t address, unsigned level) {
  return Format::make_leaf(address, Rights{}, level);
}
template <>
std::uint64_t leaf_of<P2mFormat>(std::uint64_t address, unsigned /*level*/) {
  return P2mEntry::make(PageState::private_page, address >> kPageShift).raw();
}

/// Runs of P2M entries are joined under a protocol of their own (P2mTable::join).
template <class Format>
struct Joins : std::bool_constant<!std::is_same_v<Format, P2mFormat>> {};

template <class Format>
class RadixTableTest : public ::testing::Test {
 protected:
  using Table = RadixTable<Format>;
  using Entry = typename Format::Entry;
  RadixTableTest()
      : memory_{must(MachineMemory::create(layout()))}, pool_{*memory_}, frames_{pool_} {}
  static HostLayout layout() {
    HostLayout l;
    l.window_bytes = 1ULL << 32;
    l.system_pool_bytes = 1ULL << 28;
    return l;
  }
  Table make() {
    return must(Table::create(frames_, FrameKind::nested_table, FrameKind::nested_table));
  }
  /// What the table says about the 4 KiB page at `input`: the address it leads to, or ~0.
  static std::uint64_t translate(const Table& table, std::uint64_t input) {
    const auto slot = table.find(input);
    if (!Format::present(slot.value)) return ~0ULL;
    const std::uint64_t inside = input & (Table::reach_of(slot.level) - 1);
    if constexpr (std::is_same_v<Format, P2mFormat>) {
      return (P2mEntry{slot.value}.payload() << kPageShift) + inside;
    } else {
      return Format::page_address(slot.value, slot.level) + inside;
    }
  }
  static constexpr std::uint64_t kLarge = 1ULL << Format::shift(2);
  static constexpr unsigned kFan = 1U << Format::index_bits(1);

  std::unique_ptr<MachineMemory> memory_;
  FrameAllocator pool_;
  FailingFrames frames_;
};

using Formats =
    ::testing::Types<P2mFormat, EptFormat, NptFormat, Long4Format, PaeFormat, I386Format>;
TYPED_TEST_SUITE(RadixTableTest, Formats);

TYPED_TEST(RadixTableTest, an_empty_table_has_a_root_and_nothing_else) {
  const auto table = this->make();
  EXPECT_EQ(table.table_frames().nodes, 1U);
  EXPECT_EQ(table.table_frames().leaves, 0U);
  EXPECT_EQ(this->translate(table, 0x5000), ~0ULL);
}

TYPED_TEST(RadixTableTest, leaves_are_found_where_they_were_put) {
  auto table = this->make();
  std::map<std::uint64_t, std::uint64_t> put;
  for (std::uint64_t i = 0; i < 40; ++i) {
    const std::uint64_t input = (i * i * 0x34567000) % table.span() & ~kPageMask;
    const std::uint64_t address = 0x10000 + i * kPageSize;
    auto slot = must(table.reach(input, 1));
    slot.store(leaf_of<TypeParam>(address, 1));
    put[input] = address;
  }
  for (const auto& [input, address] : put) EXPECT_EQ(this->translate(table, input), address);
  EXPECT_EQ(this->translate(table, 0x7FF000), ~0ULL);
}

TYPED_TEST(RadixTableTest, splitting_changes_no_translation) {
  auto table = this->make();
  const std::uint64_t base = 3 * this->kLarge;
  auto large = must(table.reach(base, 2));
  large.store(leaf_of<TypeParam>(5 * this->kLarge, 2));
  EXPECT_EQ(table.table_frames().leaves, 0U);
  auto slot = must(table.reach(base + 7 * kPageSize, 1));
  EXPECT_EQ(slot.level, 1U);
  EXPECT_EQ(table.table_frames().leaves, 1U);
  for (std::uint64_t i = 0; i < this->kFan; ++i) {
    ASSERT_EQ(this->translate(table, base + i * kPageSize), 5 * this->kLarge + i * kPageSize);
  }
  // Exactly the leaf that would have been written: no PS, address at its place.
  EXPECT_EQ(slot.value, leaf_of<TypeParam>(5 * this->kLarge + 7 * kPageSize, 1));
}

TYPED_TEST(RadixTableTest, splitting_through_two_levels) {
  if constexpr (TypeParam::kLevels >= 3) {
    auto table = this->make();
    const std::uint64_t huge = 1ULL << TypeParam::shift(3);
    must(table.reach(huge, 3)).store(leaf_of<TypeParam>(2 * huge, 3));
    const std::uint64_t inside = huge + 5 * this->kLarge + 9 * kPageSize;
    const auto slot = must(table.reach(inside, 1));
    EXPECT_EQ(slot.value, leaf_of<TypeParam>(2 * huge + 5 * this->kLarge + 9 * kPageSize, 1));
    EXPECT_EQ(table.find(huge).value, leaf_of<TypeParam>(2 * huge, 2)) << "the others stay large";
    EXPECT_EQ(this->translate(table, 2 * huge - kPageSize), 3 * huge - kPageSize);
  }
}

TYPED_TEST(RadixTableTest, joining_undoes_splitting) {
  if constexpr (Joins<TypeParam>::value) {
    auto table = this->make();
    const std::uint64_t base = 3 * this->kLarge;
    const auto large = leaf_of<TypeParam>(5 * this->kLarge, 2);
    must(table.reach(base, 2)).store(large);
    (void)must(table.reach(base, 1));
    EXPECT_TRUE(table.join(base, 2, table.release_sink()));
    EXPECT_EQ(table.find(base).value, large);
    EXPECT_EQ(table.find(base).level, 2U);
    EXPECT_EQ(table.table_frames().leaves, 0U);
    EXPECT_FALSE(table.join(base, 2, table.release_sink())) << "nothing left to join";
  }
}

TYPED_TEST(RadixTableTest, joining_gathers_accessed_and_dirty) {
  if constexpr (Joins<TypeParam>::value) {
    auto table = this->make();
    must(table.reach(0, 2)).store(leaf_of<TypeParam>(this->kLarge, 2));
    auto one = must(table.reach(4 * kPageSize, 1));
    one.store(one.value | static_cast<decltype(one.value)>(TypeParam::kDirty));
    auto other = must(table.reach(9 * kPageSize, 1));
    other.store(other.value | static_cast<decltype(other.value)>(TypeParam::kAccessed));
    ASSERT_TRUE(table.join(0, 2, table.release_sink()));
    const auto joined = table.find(0).value;
    EXPECT_NE(joined & TypeParam::kDirty, 0U);
    EXPECT_NE(joined & TypeParam::kAccessed, 0U);
  }
}

TYPED_TEST(RadixTableTest, what_is_not_one_run_is_not_joined) {
  if constexpr (Joins<TypeParam>::value) {
    auto table = this->make();
    must(table.reach(0, 2)).store(leaf_of<TypeParam>(this->kLarge, 2));
    auto odd = must(table.reach(17 * kPageSize, 1));
    const auto before = odd.value;
    odd.store(leaf_of<TypeParam>(0x7000, 1));
    EXPECT_FALSE(table.join(0, 2, table.release_sink())) << "another address";
    odd.store(0);
    EXPECT_FALSE(table.join(0, 2, table.release_sink())) << "not present";
    odd.store(TypeParam::make_leaf(TypeParam::page_address(before, 1), Rights{true, false}, 1));
    EXPECT_FALSE(table.join(0, 2, table.release_sink())) << "other rights";
    odd.store(before);
    EXPECT_TRUE(table.join(0, 2, table.release_sink()));
    // Contiguous, but not where a large page can begin.
    for (std::uint64_t i = 0; i < this->kFan; ++i) {
      must(table.reach(this->kLarge + i * kPageSize, 1))
          .store(leaf_of<TypeParam>(0x3000 + i * kPageSize, 1));
    }
    EXPECT_FALSE(table.join(this->kLarge, 2, table.release_sink()));
  }
}

TYPED_TEST(RadixTableTest, clearing_a_range_takes_its_tables_and_leaves_the_rest) {
  auto table = this->make();
  for (std::uint64_t i = 0; i < 4; ++i) {
    must(table.reach(i * this->kLarge + 3 * kPageSize, 1)).store(leaf_of<TypeParam>(0x9000, 1));
  }
  std::vector<MPN> freed;
  const auto removed =
      table.clear(this->kLarge, 3 * this->kLarge - 1, [&](MPN mpn, FrameKind kind) {
        freed.push_back(mpn);
        this->frames_.release(mpn, kind);
      });
  EXPECT_EQ(removed, 2U);
  EXPECT_EQ(freed.size(), 2U);
  EXPECT_EQ(table.table_frames().leaves, 2U);
  EXPECT_EQ(this->translate(table, 3 * kPageSize), 0x9000U);
  EXPECT_EQ(this->translate(table, this->kLarge + 3 * kPageSize), ~0ULL);
  EXPECT_EQ(this->translate(table, 3 * this->kLarge + 3 * kPageSize), 0x9000U);
}

TYPED_TEST(RadixTableTest, clearing_part_of_a_large_entry_takes_it_as_a_whole) {
  auto table = this->make();
  must(table.reach(0, 2)).store(leaf_of<TypeParam>(this->kLarge, 2));
  EXPECT_EQ(table.clear(kPageSize, 2 * kPageSize, table.release_sink()), 1U);
  EXPECT_EQ(this->translate(table, 0), ~0ULL);
}

TYPED_TEST(RadixTableTest, iteration_visits_what_touches_the_range_in_order) {
  auto table = this->make();
  must(table.reach(0, 2)).store(leaf_of<TypeParam>(this->kLarge, 2));
  for (const std::uint64_t page : {2U, 5U, 9U}) {
    must(table.reach(this->kLarge + page * kPageSize, 1)).store(leaf_of<TypeParam>(0x9000, 1));
  }
  std::vector<std::uint64_t> seen;
  table.for_each(this->kLarge - 1, this->kLarge + 5 * kPageSize,
                 [&](std::uint64_t input, auto&) { seen.push_back(input); });
  EXPECT_EQ(seen, (std::vector<std::uint64_t>{0, this->kLarge + 2 * kPageSize,
                                              this->kLarge + 5 * kPageSize}));
  seen.clear();
  table.for_each(0, table.span() - 1, [&](std::uint64_t input, auto&) { seen.push_back(input); });
  EXPECT_EQ(seen.size(), 4U);
}

TYPED_TEST(RadixTableTest, running_out_at_any_allocation_changes_nothing) {
  for (std::uint64_t n = 0;; ++n) {
    this->frames_.fail_after(n);
    auto created = TestFixture::Table::create(this->frames_, FrameKind::other, FrameKind::other);
    if (!created) {
      EXPECT_EQ(n, 0U);
      EXPECT_EQ(this->frames_.outstanding(), 0);
      continue;
    }
    auto& table = *created;
    const auto reached = table.reach(0, 1);
    if (!reached) {
      EXPECT_EQ(table.table_frames().nodes, 1U);
      EXPECT_EQ(this->frames_.outstanding(), 1);
      EXPECT_EQ(table.find(0).level, TypeParam::kLevels);
      EXPECT_EQ(table.find(0).value, 0U);
      continue;
    }
    EXPECT_EQ(n, TypeParam::kLevels);
    EXPECT_EQ(this->frames_.outstanding(), static_cast<std::int64_t>(TypeParam::kLevels));
    break;
  }
  EXPECT_EQ(this->frames_.outstanding(), 0) << "the table's end frees everything";
}

TYPED_TEST(RadixTableTest, running_out_while_splitting_leaves_the_large_entry) {
  auto table = this->make();
  auto large = must(table.reach(0, 2));
  large.store(leaf_of<TypeParam>(this->kLarge, 2));
  const auto before = this->frames_.outstanding();
  this->frames_.fail_after(0);
  EXPECT_FALSE(table.reach(kPageSize, 1));
  EXPECT_EQ(table.find(kPageSize).value, large.value);
  EXPECT_EQ(this->frames_.outstanding(), before);
  this->frames_.never_fail();
}

TYPED_TEST(RadixTableTest, racing_threads_build_one_tree) {
  auto table = this->make();
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < 300; ++i) {
        const std::uint64_t input = (i * 5 * this->kLarge / 16) & ~kPageMask;
        auto slot = must(table.reach(input + t * kPageSize, 1));
        slot.store(leaf_of<TypeParam>(0x1000 * (t + 1), 1));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (std::uint64_t t = 0; t < 4; ++t) {
    for (std::uint64_t i = 0; i < 300; ++i) {
      const std::uint64_t input = (i * 5 * this->kLarge / 16) & ~kPageMask;
      ASSERT_EQ(this->translate(table, input + t * kPageSize), 0x1000 * (t + 1));
    }
  }
  const auto frames = table.table_frames();
  EXPECT_EQ(static_cast<std::int64_t>(frames.nodes + frames.leaves), this->frames_.outstanding());
}

}  // namespace
}  // namespace strata::machine
