// Random guests that edit their tables through an engine while they use them: every translation is
// what a fresh walk of the tables as they are, then the P2M, would give. With tables out of sync it
// may instead be what such a walk gave at some time since the vCPU's last flush, as far as the leaf
// goes.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <string>

#include "model.hpp"
#include "shadow_support.hpp"

namespace strata::shadow::test {
namespace {

struct World {
  const char* name;
  PagingMode mode;
  std::uint32_t budget;  ///< in tables
  bool lazy;             ///< the editing engine passes epochs only between instructions
  std::uint16_t flood;
  bool unsync = false;
};

class RandomGuest : public testing::TestWithParam<World> {
 protected:
  // Tables live in pages 1..24, data in 25..63; pages 512..1023 are one run.
  static constexpr std::uint64_t kTables = 24;

  static ShadowOptions options() {
    ShadowOptions o;
    o.unsync = GetParam().unsync;
    o.memory_limit = GetParam().budget * kTableCost;
    o.write_flood_limit = GetParam().flood;
    return o;
  }
  [[nodiscard]] std::uint64_t below(std::uint64_t n) { return random_() % n; }

  [[nodiscard]] std::uint64_t random_entry(bool narrow) {
    std::uint64_t ppn = 1 + below(63);
    std::uint64_t bits = below(8) == 0 ? 0 : kP;
    for (const std::uint64_t bit : {kW, kU, kD, kA, kG}) bits |= below(3) == 0 ? 0 : bit;
    if (below(2) == 0) ppn = 1 + below(kTables);
    if (below(5) == 0) {
      bits |= kPS;
      ppn = narrow || below(3) == 0 ? 0 : 512 * below(3);
    }
    if (!narrow && below(8) == 0) bits |= kNX;
    if (!narrow && GetParam().mode == PagingMode::long4) bits |= below(4) << 59;
    if (!narrow && below(64) == 0) bits |= 1ULL << (40 + below(12));
    return to(ppn, bits);
  }
  void store_entry(const TestGuest& s, FakeEngine& engine, PA pa) {
    const unsigned size = GetParam().mode == PagingMode::i386 ? 4 : 8;
    outdated_.emplace(pa, size == 4 ? s.get<std::uint32_t>(pa) : s.get<std::uint64_t>(pa));
    if (GetParam().mode == PagingMode::i386) {
      ASSERT_TRUE(engine.store(pa, static_cast<std::uint32_t>(random_entry(true))));
    } else {
      ASSERT_TRUE(engine.store(pa, random_entry(false)));
    }
  }
  /// Few indices, so that walks meet entries and edits meet walks.
  [[nodiscard]] PA random_slot() {
    const bool narrow = GetParam().mode == PagingMode::i386;
    const std::uint64_t index = narrow ? below(3) * 300 + below(4) : below(4) + below(2) * 508;
    return at(1 + below(kTables), index, narrow ? 4 : 8);
  }
  [[nodiscard]] VA random_va() {
    const auto index = [&] { return below(4) + below(2) * 508; };
    const std::uint64_t offset = below(kPageSize);
    switch (GetParam().mode) {
      case PagingMode::i386:
        return VA{((below(3) * 300 + below(4)) << 22 | (below(3) * 300 + below(4)) << 12 | offset) &
                  0xFFFFFFFF};
      case PagingMode::pae:
        return VA{below(4) << 30 | index() << 21 | index() << 12 | offset};
      default:
        return VA{index() << 39 | index() << 30 | index() << 21 | index() << 12 | offset};
    }
  }
  [[nodiscard]] PagingContext random_context() {
    PagingContext c;
    c.mode = GetParam().mode;
    c.root = at(1 + below(3));
    for (auto& e : c.pdpte) e = to(1 + below(kTables), below(8) == 0 ? 0 : kP);
    c.wp = below(2) == 0;
    c.pse = below(2) == 0;
    c.pge = below(2) == 0;
    c.smep = below(2) == 0;
    c.smap = below(2) == 0;
    c.nxe = below(4) != 0;
    c.pke = below(2) == 0;
    c.pkru = static_cast<std::uint32_t>(random_() & random_());
    return c;
  }
  void random_p2m_change(TestGuest& s) {
    const PPN ppn{25 + below(39)};
    const PPN table{1 + below(kTables)};
    switch (below(6)) {
      case 0:
        return s.p2m.set(ppn, PageState::zero);
      case 1:
        return s.p2m.set(ppn, PageState::shared, kHome + 1600 + below(8));
      case 2:
        return s.p2m.set(ppn, PageState::rom, kHome + ppn.value());
      case 3:
        return s.p2m.set(table, PageState::private_page, kHome + table.value());
      case 4:
        return s.p2m.log(ppn);
      default:
        return s.p2m.set(ppn, PageState::private_page, kHome + ppn.value());
    }
  }
  void access(TestGuest& s, const PagingContext& c);
  /// The entry of `result`'s walk that a TLB may hold as it was before one of the stores since the
  /// last flush: only a 4 KiB page's own. Calls `judge` with each walk that this allows; true if
  /// one of them is it.
  template <class Load, class Judge>
  [[nodiscard]] bool outdated_walk(const PagingContext& c, VA va, Access a, Load load,
                                   Judge judge) {
    for (const auto& [pa, before] : outdated_) {
      const auto as_before = [&, at = pa, old = before](PA entry, unsigned size) -> std::uint64_t {
        return entry == at ? old : load(entry, size);
      };
      const ModelResult r = Model{c, as_before}.run(va, a);
      if (r.permitted && r.page_shift == kPageShift && r.used.back().address == pa && judge(r)) {
        return true;
      }
    }
    return false;
  }
  void flush(TestGuest& s) {
    s.mmu->invalidate(0, FlushScope::all, 0, {});
    outdated_.clear();
  }

  /// What entries were before stores since the last flush.
  std::multimap<PA, std::uint64_t> outdated_;
  unsigned used_outdated_ = 0;
  std::mt19937_64 random_{GetParam().budget + 17U * static_cast<unsigned>(GetParam().mode)};
};

void RandomGuest::access(TestGuest& s, const PagingContext& c) {
  const VA va = random_va();
  const Access a{static_cast<AccessKind>(below(3)), below(2) == 0, below(2) == 0};
  const auto load = [&](PA pa, unsigned size) -> std::uint64_t {
    if (page_of(pa).value() >= kGuestPages) return size == 4 ? 0xFFFFFFFF : ~0ULL;
    return size == 4 ? s.get<std::uint32_t>(pa) : s.get<std::uint64_t>(pa);
  };
  const ModelResult want = Model{c, load}.run(va, a);
  const auto got = s.mmu->translate(0, va, a);
  if (GetParam().unsync && got && (!want.permitted || got->pa != want.pa.page_base())) {
    ++used_outdated_;
    ASSERT_TRUE(outdated_walk(c, va, a, load, [&](const ModelResult& r) {
      const P2mTarget target = target_of(s.p2m.lookup(page_of(r.pa)).entry, s.p2m.zero_frame());
      return got->pa == r.pa.page_base() && got->page == address_of(target.mpn);
    })) << "no entry since the last flush says so";
    return;
  }
  if (!want.permitted) {
    ASSERT_FALSE(got);
    ASSERT_EQ(got.error().stage, Stage::guest_table);
    ASSERT_EQ(got.error().error_code, want.code);
    return;
  }
  const P2mEntry entry = s.p2m.lookup(page_of(want.pa)).entry;
  if (entry.state() == PageState::absent ||
      (entry.state() == PageState::rom && a.kind == AccessKind::write)) {
    ASSERT_FALSE(got);
    ASSERT_EQ(got.error().stage, Stage::p2m);
    ASSERT_EQ(got.error().pa, want.pa);
    return;
  }
  ASSERT_TRUE(got);
  const P2mTarget target = target_of(entry, s.p2m.zero_frame());
  ASSERT_EQ(got->pa, want.pa.page_base());
  // The same page by an older entry: rights may differ, and nothing is set in the newer one.
  if (GetParam().unsync && !outdated_.empty()) return;
  ASSERT_EQ(got->page, address_of(target.mpn));
  ASSERT_EQ(got->page_shift, want.page_shift);
  ASSERT_EQ(got->readable, want.readable);
  ASSERT_EQ(got->executable, want.executable);
  ASSERT_EQ(got->global, want.global);
  // A store is allowed at once or has to be announced; nothing else is ever writable.
  ASSERT_EQ(got->writable || got->traced,
            want.writable && target.writable && (got->writable || a.kind == AccessKind::write))
      << "traced " << got->traced;
  if (a.kind == AccessKind::write) {
    ASSERT_TRUE(got->writable || got->traced);
  }
  // A table may have been used at several levels of this very walk.
  std::map<PA, std::uint64_t> after;
  for (const ModelEntry& e : want.used) after[e.address] |= e.after;
  for (const ModelEntry& e : want.used) ASSERT_EQ(load(e.address, e.size), after[e.address]);
}

TEST_P(RandomGuest, AlwaysAgreesWithAFreshWalk) {
  TestGuest s{options(), 256};
  s.p2m.set_run(PPN{512}, true);
  FakeEngine editor{s.domain, *s.mmu, s.frames.window(), 1, GetParam().lazy};
  s.mmu->set_context(1, {});
  for (std::uint64_t i = 0; i < 2000; ++i)
    ASSERT_NO_FATAL_FAILURE(store_entry(s, editor, random_slot()));
  PagingContext c = random_context();
  s.mmu->set_context(0, c);
  flush(s);
  for (int step = 0; step < 60000; ++step) {
    if (GetParam().unsync && below(256) == 0) flush(s);
    switch (below(40)) {
      case 0:
        if (GetParam().unsync && below(8) != 0) break;  // let entries grow old
        c = random_context();
        s.mmu->set_context(0, c);
        flush(s);
        break;
      case 1:
        random_p2m_change(s);
        break;
      case 2:
      case 3:
      case 4:
      case 5:
        ASSERT_NO_FATAL_FAILURE(store_entry(s, editor, random_slot()));
        break;
      default:
        ASSERT_NO_FATAL_FAILURE(access(s, c)) << "step " << step;
    }
    ASSERT_LE(s.frames.tables(), std::max(8U, GetParam().budget));
  }
  const ShadowStats stats = s.mmu->shadow_stats();
  if (GetParam().unsync) {
    EXPECT_GT(stats.unsyncs, 100U);
    // With four levels of random tables few pages last long enough.
    if (GetParam().mode != PagingMode::long4) {
      EXPECT_GT(used_outdated_, 0U);
    }
  } else {
    EXPECT_GT(editor.traced, 0U);
  }
  EXPECT_GT(stats.zaps, 1000U);
  EXPECT_LT(s.mmu->stats().backend_misses, s.mmu->stats().translations);
  s.mmu.reset();
  editor.quiesce();
  s.domain.collect();
  EXPECT_EQ(s.frames.tables(), 0U);
}

INSTANTIATE_TEST_SUITE_P(
    Worlds, RandomGuest,
    testing::Values(World{"Long4", PagingMode::long4, 128, false, 0},
                    World{"Long4Lazy", PagingMode::long4, 128, true, 0},
                    World{"Long4Flood", PagingMode::long4, 128, true, 3},
                    World{"Long4Tight", PagingMode::long4, 8, true, 12},
                    World{"Pae", PagingMode::pae, 128, false, 0},
                    World{"PaeTight", PagingMode::pae, 10, true, 3},
                    World{"I386", PagingMode::i386, 128, false, 0},
                    World{"I386Lazy", PagingMode::i386, 128, true, 12},
                    World{"I386Tight", PagingMode::i386, 9, false, 3},
                    World{"Long4Unsync", PagingMode::long4, 128, false, 0, true},
                    World{"Long4UnsyncLazy", PagingMode::long4, 24, true, 12, true},
                    World{"PaeUnsync", PagingMode::pae, 128, false, 12, true},
                    World{"I386Unsync", PagingMode::i386, 128, true, 12, true}),
    [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace strata::shadow::test
