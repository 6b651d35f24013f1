// Over the real P2M: reclaim against shadows, and vCPUs, table edits and P2M edits at the same
// time.

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "machine/test_support.hpp"
#include "shadow_support.hpp"

namespace strata::shadow::test {
namespace {

using machine::Long4Format;
using machine::test::must;
using machine::test::TestMachine;

constexpr std::uint64_t kFirstData = 1024;  // PPN; page p holds the word p

[[nodiscard]] VA page(std::uint64_t n) { return VA{n * kPageSize}; }

/// A guest with one page table at `table`; its first entries are left to the test.
struct RealGuest {
  explicit RealGuest(const ShadowOptions& options) {
    root = m.new_table();
    table = m.entry_address<Long4Format>(root, page(0), 1).page_base();
    mmu = make_shadow_backend(m.p2m, m.frames, m.domain, options);
    context = long4(page_of(root).value());
  }
  void fill(std::uint64_t pages) {
    for (std::uint64_t p = kFirstData; p < kFirstData + pages; ++p) {
      m.store<std::uint64_t>(at(p), p);
    }
  }
  [[nodiscard]] std::uint64_t load(const Translation& t) const {
    return std::atomic_ref<std::uint64_t>{*m.window().words(page_of(t.page))}.load();
  }
  TestMachine m{16};
  PA root, table;
  PagingContext context;
  std::unique_ptr<ShadowBackend> mmu;
};

TEST(RealP2m, SharingLoggingAndDiscardingReachTheShadow) {
  RealGuest g{{}};
  g.fill(4);
  g.m.store(PA{g.table.value() + 8}, to(kFirstData, kPWU));
  g.mmu->set_context(0, g.context);
  const auto go = [&](AccessKind kind) {
    return must(g.mmu->translate(0, page(1), {kind, false, false}));
  };
  EXPECT_EQ(go(AccessKind::write).page, address_of(g.m.p2m.home_of(PPN{kFirstData})));
  // Shared: read-only elsewhere, then written and back home.
  const MPN frame = must(g.m.frames.allocate(FrameKind::shared_page));
  std::memcpy(g.m.window().words(frame), g.m.window().words(g.m.p2m.home_of(PPN{kFirstData})),
              kPageSize);
  {
    Flush flush{g.m.domain};
    must(g.m.p2m.replace(PPN{kFirstData}, g.m.p2m.lookup(PPN{kFirstData}).entry,
                         P2mEntry::make(PageState::shared, frame.value()), flush));
    flush.commit();
  }
  EXPECT_EQ(go(AccessKind::read).page, address_of(frame));
  EXPECT_FALSE(go(AccessKind::read).writable);
  EXPECT_EQ(g.load(go(AccessKind::write)), kFirstData);
  EXPECT_EQ(go(AccessKind::read).page, address_of(g.m.p2m.home_of(PPN{kFirstData})));
  g.m.frames.release(frame, FrameKind::shared_page);
  // Logged: the next write is noted.
  {
    Flush flush{g.m.domain};
    must(g.m.p2m.log_dirty({PPN{kFirstData}, 1}, flush));
    flush.commit();
  }
  EXPECT_FALSE(go(AccessKind::read).writable);
  EXPECT_TRUE(g.m.p2m.collect_dirty({PPN{kFirstData}, 4}).empty());
  EXPECT_TRUE(go(AccessKind::write).writable);
  EXPECT_EQ(g.m.p2m.collect_dirty({PPN{kFirstData}, 4}).size(), 1U);
  // Discarded: zeroes.
  {
    Flush flush{g.m.domain};
    must(g.m.p2m.discard({PPN{kFirstData}, 1}, flush));
    flush.commit();
  }
  EXPECT_EQ(go(AccessKind::read).page, address_of(g.m.p2m.zero_frame()));
}

/// One vCPU polls a table entry, flushes when it has changed and looks: the other one's store has
/// landed then, its announcement has not (held back here as by a host that preempts the thread).
TEST(RealP2m, AFlushAfterSeeingAStoreWaitsForItsAnnouncement) {
  ShadowOptions options;
  options.unsync = false;
  RealGuest g{options};
  g.fill(2);
  const PA entry{g.table.value() + 8};
  g.m.store(entry, to(kFirstData, kPWU));
  for (const VcpuId vcpu : {0U, 1U}) g.mmu->set_context(vcpu, g.context);
  ASSERT_EQ(g.load(must(g.mmu->translate(1, page(1), {}))), kFirstData);

  std::atomic<bool> stored = false;
  std::thread storing{[&] {
    g.mmu->traced_store_begins(0);
    g.m.store(entry, to(kFirstData + 1, kPWU));
    stored = true;
    std::this_thread::sleep_for(std::chrono::milliseconds{50});
    g.mmu->guest_wrote(entry, 8);
    g.mmu->traced_store_ends(0);
  }};
  while (!stored) std::this_thread::yield();
  g.mmu->invalidate_page(1, page(1));
  EXPECT_EQ(g.load(must(g.mmu->translate(1, page(1), {}))), kFirstData + 1);
  storing.join();
}

TEST(RealP2m, JoinedRunBecomesALargeLeaf) {
  RealGuest g{{}};
  g.fill(512);
  ASSERT_TRUE(g.m.p2m.join(PPN{kFirstData}));
  const PA directory = g.m.entry_address<Long4Format>(g.root, page(512), 2);
  g.m.store(directory, to(kFirstData, kPWU | kPS | kD));
  g.mmu->set_context(0, g.context);
  ASSERT_TRUE(g.mmu->translate(0, page(512), {}));
  ASSERT_TRUE(g.mmu->translate(0, page(600), {}));
  EXPECT_EQ(g.load(must(g.mmu->translate(0, page(600), {}))), kFirstData + 88);
  EXPECT_EQ(g.mmu->shadow_stats().large_leaves, 1U);
  Flush flush{g.m.domain};
  must(g.m.p2m.log_dirty({PPN{kFirstData + 88}, 1}, flush));
  flush.commit();
  EXPECT_FALSE(must(g.mmu->translate(0, page(600), {})).writable);
  EXPECT_TRUE(must(g.mmu->translate(0, page(601), {})).writable);
}

TEST(RealP2m, LeavesNoFrameBehind) {
  RealGuest g{{}};
  g.mmu->set_context(0, g.context);
  g.m.store(PA{g.table.value() + 8}, to(kFirstData, kPWU));
  ASSERT_TRUE(g.mmu->translate(0, page(1), {}));
  const auto tables = [&] {
    return g.m.frames.in_use()[static_cast<std::size_t>(FrameKind::shadow_table)];
  };
  EXPECT_GT(tables(), 0U);
  g.mmu.reset();
  g.m.domain.collect();
  EXPECT_EQ(tables(), 0U);
}

/// vCPUs that each own some entries of one page table and edit them; each must see its own edits at
/// once, whatever the others and the P2M do meanwhile.
class Stress {
 public:
  /// `flushes`: the guest follows each edit with INVLPG, or now and then with a load of CR3, as it
  /// has to where tables may be out of sync.
  Stress(RealGuest& guest, VcpuId vcpu, bool lazy, bool flushes)
      : g_{guest}, vcpu_{vcpu}, lazy_{lazy}, flushes_{flushes}, random_{vcpu} {}

  void run(int steps) {
    FakeEngine engine{g_.m.domain, *g_.mmu, g_.m.window(), 2 * vcpu_ + 1, lazy_};
    g_.mmu->set_context(2 * vcpu_ + 1, {});
    g_.mmu->set_context(2 * vcpu_, g_.context);
    std::array<std::uint64_t, 4> mapped{};
    for (int step = 0; step < steps; ++step) {
      engine.quiesce();
      const std::uint64_t own = random_() % mapped.size();
      const std::uint64_t index = 1 + vcpu_ * 64 + own;
      if (random_() % 4 == 0) {
        mapped[own] = kFirstData + random_() % 64;
        const PA entry{g_.table.value() + index * 8};
        while (!engine.store(entry, to(mapped[own], kPWU))) engine.quiesce();
        if (flushes_ && random_() % 8 == 0) {
          g_.mmu->invalidate(2 * vcpu_, FlushScope::pcid, 0, {});
        } else if (flushes_) {
          g_.mmu->invalidate_page(2 * vcpu_, page(index));
        }
      } else if (mapped[own] != 0) {
        check(engine, index, mapped[own]);
      }
    }
  }

 private:
  void check(FakeEngine& engine, std::uint64_t index, std::uint64_t want) {
    const auto kind = random_() % 4 == 0 ? AccessKind::write : AccessKind::read;
    for (int tries = 0; tries < 100000; ++tries) {
      engine.quiesce();
      const auto t = g_.mmu->translate(2 * vcpu_, page(index), {kind, false, false});
      if (!t) {  // the page is on its way somewhere
        ASSERT_EQ(t.error().kind, FaultKind::retry);
        continue;
      }
      ASSERT_EQ(t->pa, at(want));
      if (engine.stale()) continue;  // dropped before it could be used
      ASSERT_EQ(g_.load(*t), want);
      if (kind == AccessKind::write && t->writable) {
        std::atomic_ref<std::uint64_t>{*g_.m.window().words(page_of(t->page))}.store(want);
      }
      return;
    }
    FAIL() << "never got through";
  }

  RealGuest& g_;
  VcpuId vcpu_;
  bool lazy_;
  bool flushes_;
  std::mt19937_64 random_;
};

/// Logs, shares and unshares pages that hold data, and logs the page table itself.
void disturb(RealGuest& g, const std::atomic<bool>& stop) {
  std::mt19937_64 random{99};
  std::vector<MPN> shared;
  for (std::uint64_t i = 0; i < 8; ++i) {
    shared.push_back(must(g.m.frames.allocate(FrameKind::shared_page)));
    g.m.window().words(shared.back())[0] = kFirstData + i;
  }
  while (!stop.load()) {
    Flush flush{g.m.domain};
    const std::uint64_t i = random() % 8;
    if (random() % 3 == 0) {
      (void)g.m.p2m.log_dirty({random() % 4 == 0 ? page_of(g.table) : PPN{kFirstData + i}, 1},
                              flush);
    } else {
      const PPN ppn{kFirstData + i};
      const P2mEntry seen = g.m.p2m.lookup(ppn).entry;
      if (seen.state() == PageState::private_page) {
        (void)g.m.p2m.replace(ppn, seen, P2mEntry::make(PageState::shared, shared[i].value()),
                              flush);
      }
    }
    flush.commit();
    std::this_thread::yield();
  }
}

struct StressKind {
  const char* name;
  bool lazy;
  bool unsync;
};

class ShadowStress : public testing::TestWithParam<StressKind> {};

TEST_P(ShadowStress, EveryVcpuSeesItsOwnEdits) {
  ShadowOptions options;
  options.unsync = GetParam().unsync;
  options.memory_limit = 24 * kTableCost;
  options.write_flood_limit = 6;
  RealGuest g{options};
  g.fill(64);
  std::atomic<bool> stop{false};
  std::thread reclaim{[&] { disturb(g, stop); }};
  std::vector<std::thread> vcpus;
  for (VcpuId v = 0; v < 3; ++v) {
    vcpus.emplace_back([&g, v] { Stress{g, v, GetParam().lazy, GetParam().unsync}.run(4000); });
  }
  for (auto& t : vcpus) t.join();
  stop.store(true);
  reclaim.join();
  const ShadowStats stats = g.mmu->shadow_stats();
  if (GetParam().unsync) {
    EXPECT_GT(stats.unsyncs, 0U);
    EXPECT_GT(stats.outdated, 0U);
  } else {
    EXPECT_GT(stats.traced_writes, 0U);
  }
  EXPECT_GT(stats.zaps, 0U);
  EXPECT_LE(stats.pages + stats.retiring, 24U);
  EXPECT_GT(g.mmu->stats().translations, g.mmu->stats().backend_misses);
}

INSTANTIATE_TEST_SUITE_P(Engines, ShadowStress,
                         testing::Values(StressKind{"Eager", false, false},
                                         StressKind{"Lazy", true, false},
                                         StressKind{"EagerUnsync", false, true},
                                         StressKind{"LazyUnsync", true, true}),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace strata::shadow::test
