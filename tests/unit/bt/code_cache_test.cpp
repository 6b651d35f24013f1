#include "engines/bt/code_cache.hpp"

#include <gtest/gtest.h>

#include <cstring>

namespace strata::bt {
namespace {

constexpr std::size_t kBudget = 144U << 10;  // three units
constexpr PA kPage{0x5000};

/// Blocks that are called as functions and return a number: their own, or that of the block that
/// their jump was linked to.
class CodeCacheTest : public ::testing::Test {
 protected:
  struct Made {
    std::uint32_t entry = 0;
    std::uint64_t field = 0;  ///< of its jump
    PA pa{};
    std::uint32_t number = 0;
  };

  void SetUp() override {
    ASSERT_NE(cache_.size(), 0U);
    const std::uint64_t stale = cache_.cursor();
    ASSERT_TRUE(cache_.append(std::array<std::uint8_t, 4>{0x44, 0x89, 0xD0, 0xC3}));
    cache_.keep({.stale = stale, .far = stale});  // mov eax, r10d; ret
  }

  static std::uint32_t word_at(std::uint64_t at) {
    std::uint32_t word = 0;
    std::memcpy(&word, reinterpret_cast<const void*>(at), sizeof word);
    return word;
  }
  static std::uint32_t call(std::uint64_t entry) {
    return reinterpret_cast<std::uint32_t (*)()>(entry)();
  }

  /// With as much code as a block with a few memory accesses has.
  Made make(PA pa, bool crosses = false) {
    const std::uint64_t at = cache_.cursor();
    std::array<std::uint8_t, 512> code{};
    code.fill(0x90);
    code[16] = 0xE9;  // jmp behind itself
    std::memset(&code[17], 0, 4);
    code[21] = 0xB8;  // mov eax, number; ret
    std::memcpy(&code[22], &++numbers_, 4);
    code[26] = 0xC3;
    EXPECT_TRUE(cache_.append(code));
    const auto entry = static_cast<std::uint32_t>(at);
    const auto offset = static_cast<std::uint16_t>(pa.page_offset());
    cache_.insert({.pa = pa,
                   .entry = entry,
                   .chain = entry,
                   .bytes = 4,
                   .from = offset,
                   .to = static_cast<std::uint16_t>(offset + 4),
                   .crosses = crosses,
                   .second = page_of(kPage) + 1});
    return {entry, at + 17, pa, numbers_};
  }
  /// The same elsewhere, after making room.
  Made make_anywhere() {
    if (!cache_.make_room().empty()) ++evicted_;
    return make(PA{0x100000 + (elsewhere_ += 16)});
  }
  void fill_until_evicted() {
    for (const unsigned before = evicted_; evicted_ == before;) last_ = make_anywhere();
  }
  /// Goes on to a unit that holds nothing yet.
  void next_unit() {
    const std::uint64_t here = cache_.cursor();
    do {
      last_ = make_anywhere();
    } while (cache_.cursor() - here < cache_.size() / 3);
    ASSERT_EQ(evicted_, 0U);
  }

  CodeCache cache_{kBudget};
  std::uint32_t numbers_ = 0;
  std::uint64_t elsewhere_ = 0;
  unsigned evicted_ = 0;
  Made last_;
};

TEST_F(CodeCacheTest, AJumpIntoAnEvictedUnitLeadsBehindItselfAgain) {
  const Made to = make(kPage);
  next_unit();
  const Made from = make(kPage + 16);
  EXPECT_EQ(call(from.entry), from.number);
  cache_.link(from.field, to.entry);
  EXPECT_EQ(call(from.entry), to.number);
  const std::uint64_t evictions = cache_.evictions();
  fill_until_evicted();
  EXPECT_EQ(cache_.evictions(), evictions + 1);
  EXPECT_EQ(cache_.find(to.pa, 0), nullptr);
  EXPECT_EQ(call(from.entry), from.number);
}

TEST_F(CodeCacheTest, AJumpWithinAUnitStays) {
  next_unit();
  const Made to = make(kPage);
  const Made from = make(kPage + 16);
  cache_.link(from.field, to.entry);
  fill_until_evicted();
  EXPECT_EQ(call(from.entry), to.number);
}

TEST_F(CodeCacheTest, JumpsOfAnEvictedUnitAreForgotten) {
  const Made from = make(kPage);
  next_unit();
  const Made to = make(kPage + 16);
  cache_.link(from.field, to.entry);
  // Something else is where the jump was.
  fill_until_evicted();
  const Made reused = last_;
  ASSERT_EQ(reused.field, from.field);
  cache_.link(reused.field, reused.entry + 5);
  const std::uint32_t distance = word_at(reused.field);
  fill_until_evicted();
  EXPECT_EQ(cache_.find(to.pa, 0), nullptr);
  EXPECT_EQ(word_at(reused.field), distance);
}

TEST_F(CodeCacheTest, AFarJumpIntoAnEvictedUnitIsForNoPageAgain) {
  constexpr std::uint64_t kFar = 64, kVa = 0x7000, kContext = 0x1234;
  const Made to = make(kPage);
  next_unit();
  const Made other = make(kPage + 16);
  const Made from = make(kPage + 32);
  const std::uint64_t at = from.entry + kFar;
  const FarLink link{.page_va = kVa, .context = kContext, .target = to.entry, .miss = to.entry};
  cache_.link_far(at, link);
  EXPECT_EQ(word_at(at + FarJump::kPageVa), kVa);
  EXPECT_EQ(word_at(at + FarJump::kContext), kContext);
  EXPECT_EQ(word_at(at + FarJump::kJump) + at + FarJump::kJump + 4, to.entry + (1ULL << 32));
  const Made again = make(kPage + 48);
  cache_.link_far(again.entry + kFar, link);
  cache_.link_far(again.entry + kFar,
                  {.page_va = kVa, .context = kContext, .target = other.entry, .miss = to.entry});
  fill_until_evicted();
  EXPECT_EQ(word_at(at + FarJump::kPageVa), FarLink::kNever);
  EXPECT_EQ(word_at(at + FarJump::kContext), FarLink::kNever);
  // The other one leads within its unit by now.
  EXPECT_EQ(word_at(again.entry + kFar + FarJump::kPageVa), kVa);
}

TEST_F(CodeCacheTest, FaultsOfOtherUnitsStay) {
  const Made old = make(kPage);
  cache_.add_fault({.begin = old.entry, .end = old.entry + 4, .cold = old.entry + 8});
  next_unit();
  const Made kept = make(kPage + 16);
  cache_.add_fault({.begin = kept.entry, .end = kept.entry + 4, .cold = kept.entry + 8});
  EXPECT_EQ(cache_.find_fault(old.entry + 3), old.entry + 8);
  EXPECT_EQ(cache_.find_fault(old.entry + 4), 0U);
  fill_until_evicted();
  EXPECT_EQ(cache_.find_fault(old.entry + 3), 0U);
  EXPECT_EQ(cache_.find_fault(kept.entry), kept.entry + 8);
  EXPECT_EQ(cache_.find_fault(0), 0U);
}

TEST_F(CodeCacheTest, ADroppedBlockThatLedIntoAnEvictedUnitIsStaleAgain) {
  const Made to = make(kPage);
  next_unit();
  const Made from = make(kPage + 16);
  EXPECT_EQ(cache_.drop(from.pa, 1), 1U);
  EXPECT_EQ(call(from.entry), from.entry);
  EXPECT_EQ(cache_.dropped_offset(from.entry), 16);
  cache_.redirect(from.entry, to.entry);
  EXPECT_EQ(call(from.entry), to.number);
  fill_until_evicted();
  EXPECT_EQ(call(from.entry), from.entry);
  EXPECT_EQ(cache_.dropped_offset(from.entry), 16);
}

TEST_F(CodeCacheTest, WhatIsInOtherUnitsStays) {
  const Made old = make(kPage);
  next_unit();
  const Made kept = make(kPage + 16);
  fill_until_evicted();
  EXPECT_EQ(cache_.find(old.pa, 0), nullptr);
  ASSERT_NE(cache_.find(kept.pa, 0), nullptr);
  EXPECT_EQ(cache_.find(kept.pa, 0)->entry, kept.entry);
  EXPECT_EQ(call(kept.entry), kept.number);
  EXPECT_TRUE(cache_.has_code(page_of(kPage)));
  EXPECT_EQ(cache_.drop(kPage, kPageSize), 1U);
  EXPECT_FALSE(cache_.has_code(page_of(kPage)));
}

TEST_F(CodeCacheTest, BlocksInTwoPagesGoFromBoth) {
  const PPN second = page_of(kPage) + 1;
  const Made old = make(kPage + 0xFFC, true);
  next_unit();
  EXPECT_NE(cache_.find_crossing(old.pa, 0, second), nullptr);
  EXPECT_TRUE(cache_.has_code(second));
  fill_until_evicted();
  EXPECT_EQ(cache_.find_crossing(old.pa, 0, second), nullptr);
  EXPECT_FALSE(cache_.has_code(page_of(kPage)));
  EXPECT_FALSE(cache_.has_code(second));
  const Made again = make(kPage + 0xFFC, true);
  EXPECT_EQ(cache_.drop(address_of(second) + 1, 1), 1U);
  EXPECT_FALSE(cache_.has_code(second));
  EXPECT_EQ(cache_.find_crossing(again.pa, 0, second), nullptr);
}

TEST_F(CodeCacheTest, SitesAndStepsOfOtherUnitsStay) {
  next_unit();
  interp::Uop uop;
  uop.imm = 1234;
  const std::uint32_t site =
      cache_.add_site({.resume = static_cast<std::uint32_t>(cache_.cursor()), .page_offset = 77});
  cache_.site(site).steps = cache_.add_steps({&uop, 1});
  make(kPage);
  fill_until_evicted();
  EXPECT_EQ(cache_.site(site).page_offset, 77);
  EXPECT_EQ(cache_.steps(cache_.site(site))->first()->imm, 1234U);
}

TEST_F(CodeCacheTest, CodeAndTablesStayWithinTheBudget) {
  const std::array<interp::Uop, 4> uops{};
  Made last = make_anywhere();
  for (unsigned i = 0; i < 4000; ++i) {
    const Made here = make_anywhere();
    // First more code than tables, then more tables than code.
    for (unsigned n = 0; i > 2000 && n < 30; ++n) {
      Site& site = cache_.site(cache_.add_site({.resume = here.entry}));
      if (n % 4 == 0) site.steps = cache_.add_steps(uops);
    }
    cache_.link(here.field, last.entry);
    if (i % 2 == 0) last = here;
    ASSERT_LE(cache_.bytes(), kBudget) << i;
  }
  EXPECT_GT(evicted_, 30U);
  EXPECT_GT(cache_.bytes(), kBudget / 2);
}

TEST_F(CodeCacheTest, AFlushLeavesTheStubs) {
  const Made block = make(kPage);
  next_unit();
  const Made other = make(kPage + 16);
  cache_.flush();
  EXPECT_EQ(cache_.find(block.pa, 0), nullptr);
  EXPECT_EQ(cache_.find(other.pa, 0), nullptr);
  EXPECT_FALSE(cache_.has_code(page_of(kPage)));
  const Made again = make(kPage);
  EXPECT_EQ(again.entry, block.entry);
  cache_.drop(kPage, 1);
  EXPECT_EQ(call(again.entry), again.entry);
}

TEST(CodeCacheSize, LessThanAUnitIsNone) { EXPECT_EQ(CodeCache{32U << 10}.size(), 0U); }

TEST(CodeCacheSize, ABlockThatDoesNotFitIsRefused) {
  CodeCache cache{kBudget};
  const std::vector<std::uint8_t> code(cache.size());
  EXPECT_FALSE(cache.append(code));
}

}  // namespace
}  // namespace strata::bt
