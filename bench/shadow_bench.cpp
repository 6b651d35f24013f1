// What the shadow backend's paths cost: hits, misses, traced stores, large pages on and off.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "machine/frame_allocator.hpp"
#include "machine/guest_memory.hpp"
#include "machine/machine_memory.hpp"
#include "machine/p2m.hpp"
#include "shadow/shadow.hpp"

namespace {

using namespace strata;  // NOLINT: a benchmark of the whole namespace

constexpr std::uint64_t kPages = 8192;      // 32 MiB of guest memory in use
constexpr std::uint64_t kTables = 64 << 8;  // PPN of the guest's tables: at 64 MiB
constexpr std::uint64_t kRights = 0x7;      // P, W, U
constexpr std::uint64_t kDirty = 0x60, kLarge = 0x80;

template <class T, class E>
T must(Expected<T, E> result) {
  if (!result) throw std::runtime_error{"benchmark set-up failed"};
  return std::move(*result);
}

/// A long-mode guest that maps VA 0..32 MiB to PA 0..32 MiB by 4 KiB pages, and the same again from
/// VA 1 GiB by 2 MiB pages.
class Guest {
 public:
  explicit Guest(const shadow::ShadowOptions& options)
      : memory_{must(machine::MachineMemory::create({}))},
        frames_{*memory_},
        home_{must(memory_->create_segment(128ULL << 20, "bench"))},
        p2m_{must(machine::P2mTable::create(frames_, home_, domain_))},
        guest_{*p2m_, memory_->window()} {
    if (!p2m_->add_ram({PPN{0}, 128 << 8})) throw std::runtime_error{"no RAM"};
    for (std::uint64_t p = 0; p < kPages; ++p) store(p, 0, p);
    (void)p2m_->join_range({PPN{0}, kPages});
    store(kTables, 0, (kTables + 1) << 12 | kRights);
    store(kTables + 1, 0, (kTables + 2) << 12 | kRights);
    store(kTables + 1, 1, (kTables + 3) << 12 | kRights);
    for (std::uint64_t i = 0; i < kPages / 512; ++i) {
      store(kTables + 2, i, (kTables + 4 + i) << 12 | kRights);
      store(kTables + 3, i, i << 21 | kRights | kDirty | kLarge);
    }
    for (std::uint64_t p = 0; p < kPages; ++p) {
      store(kTables + 4 + p / 512, p % 512, p << 12 | kRights | kDirty);
    }
    mmu = shadow::make_shadow_backend(*p2m_, frames_, domain_, options);
    PagingContext c;
    c.mode = PagingMode::long4;
    c.root = address_of(PPN{kTables});
    c.wp = c.nxe = true;
    mmu->set_context(0, c);
  }
  void store(std::uint64_t ppn, std::uint64_t index, std::uint64_t value) {
    const PA pa{ppn * kPageSize + index * 8};
    (void)guest_.write(machine::kIdentitySpace, pa, std::as_bytes(std::span{&value, 1}));
  }
  /// Forgets all mappings of the guest's data, but not the tables.
  void forget() {
    Flush flush{domain_};
    mmu->p2m_changed({PPN{0}, kPages}, flush);
    flush.commit();
  }
  /// The word that an engine would store to after a translation.
  [[nodiscard]] std::atomic_ref<std::uint64_t> word(PA pa) const {
    const MPN mpn = p2m_->lookup(page_of(pa)).entry.mpn();
    return std::atomic_ref<std::uint64_t>{
        memory_->window().words(mpn)[pa.page_offset() / sizeof(std::uint64_t)]};
  }

 private:
  std::unique_ptr<machine::MachineMemory> memory_;
  machine::FrameAllocator frames_;
  FlushDomain domain_;
  machine::SegmentRef home_;
  std::unique_ptr<machine::P2mTable> p2m_;
  machine::GuestMemory guest_;

 public:
  std::unique_ptr<shadow::ShadowBackend> mmu;
};

shadow::ShadowOptions with_large_pages(bool on) {
  shadow::ShadowOptions o;
  o.large_pages = on;
  return o;
}

/// A full-cycle walk over page numbers that does not please a prefetcher.
class Scatter {
 public:
  explicit Scatter(std::uint64_t pages) : pages_{pages} {}
  std::uint64_t next() {
    at_ = (at_ * 5 + 4093) % pages_;
    return at_;
  }

 private:
  std::uint64_t pages_;
  std::uint64_t at_ = 0;
};

void count_references(benchmark::State& state, const MmuStats& before, const MmuStats& after) {
  const auto per = [&](std::uint64_t n) {
    return benchmark::Counter(static_cast<double>(n), benchmark::Counter::kAvgIterations);
  };
  state.counters["table_refs"] = per(after.table_references - before.table_references);
  state.counters["guest_refs"] = per(after.guest_references - before.guest_references);
  state.counters["misses"] = per(after.backend_misses - before.backend_misses);
}

/// Hits over range(0) pages.
void BM_ShadowHit(benchmark::State& state) {
  Guest g{with_large_pages(true)};
  const auto pages = static_cast<std::uint64_t>(state.range(0));
  for (std::uint64_t p = 0; p < pages; ++p) (void)g.mmu->translate(0, VA{p * kPageSize}, {});
  for (std::uint64_t p = 0; p < pages; ++p) (void)g.mmu->translate(0, VA{p * kPageSize}, {});
  Scatter scatter{pages};
  const MmuStats before = g.mmu->stats();
  for (auto _ : state) {
    benchmark::DoNotOptimize(g.mmu->translate(0, VA{scatter.next() * kPageSize}, {}));
  }
  count_references(state, before, g.mmu->stats());
}
BENCHMARK(BM_ShadowHit)->Arg(64)->Arg(kPages);

/// First accesses after all leaves were dropped; the tables above are there.
void BM_ShadowMiss(benchmark::State& state) {
  Guest g{with_large_pages(true)};
  Scatter scatter{kPages};
  for (std::uint64_t p = 0; p < kPages; ++p) (void)g.mmu->translate(0, VA{p * kPageSize}, {});
  const MmuStats before = g.mmu->stats();
  std::uint64_t left = 0;
  for (auto _ : state) {
    if (left == 0) {
      state.PauseTiming();
      g.forget();
      left = kPages;
      state.ResumeTiming();
    }
    --left;
    benchmark::DoNotOptimize(g.mmu->translate(0, VA{scatter.next() * kPageSize}, {}));
  }
  count_references(state, before, g.mmu->stats());
}
BENCHMARK(BM_ShadowMiss);

/// A guest's store to a page-table entry: the engine's translate() for the store, the store,
/// guest_wrote(), and the next use of the mapping. range(0): whether the entry was in use.
void BM_TracedWrite(benchmark::State& state) {
  shadow::ShadowOptions options;
  options.write_flood_limit = 0;
  Guest g{options};
  const bool in_use = state.range(0) != 0;
  // The table of the first 2 MiB, mapped as data in the last entry of the second table.
  const std::uint64_t window = 2 * 512 - 1;
  g.store(kTables + 5, 511, (kTables + 4) << 12 | kRights | kDirty);
  for (std::uint64_t p = 0; p < kPages; ++p) (void)g.mmu->translate(0, VA{p * kPageSize}, {});
  const MmuStats before = g.mmu->stats();
  const std::uint64_t zaps = g.mmu->shadow_stats().zaps;
  std::uint64_t i = 0;
  for (auto _ : state) {
    const std::uint64_t index = i++ % 511;
    // Used now and then, as tables are; otherwise the flood rule would give it up.
    if (index == 0) benchmark::DoNotOptimize(g.mmu->translate(0, VA{511 * kPageSize}, {}));
    const VA at{window * kPageSize + index * 8};
    benchmark::DoNotOptimize(g.mmu->translate(0, at, {AccessKind::write, false, false}));
    const PA entry{(kTables + 4) * kPageSize + index * 8};
    g.word(entry).store(index << 12 | kRights | kDirty);
    g.mmu->guest_wrote(entry, 8);
    if (in_use) benchmark::DoNotOptimize(g.mmu->translate(0, VA{index * kPageSize}, {}));
  }
  count_references(state, before, g.mmu->stats());
  state.counters["zaps"] = benchmark::Counter(
      static_cast<double>(g.mmu->shadow_stats().zaps - zaps), benchmark::Counter::kAvgIterations);
}
BENCHMARK(BM_TracedWrite)->Arg(0)->Arg(1);

/// guest_wrote() for a page that holds data: what every device transfer pays.
void BM_UntracedWrite(benchmark::State& state) {
  Guest g{with_large_pages(true)};
  for (std::uint64_t p = 0; p < 512; ++p) (void)g.mmu->translate(0, VA{p * kPageSize}, {});
  std::uint64_t p = 0;
  for (auto _ : state) g.mmu->guest_wrote(PA{(p++ % 512) * kPageSize}, kPageSize);
}
BENCHMARK(BM_UntracedWrite);

/// Touching 32 MiB through the guest's 2 MiB pages from nothing, with large shadows on and off.
void BM_TouchLargePages(benchmark::State& state) {
  Guest g{with_large_pages(state.range(0) != 0)};
  const MmuStats before = g.mmu->stats();
  for (auto _ : state) {
    state.PauseTiming();
    g.forget();
    state.ResumeTiming();
    for (std::uint64_t p = 0; p < kPages; ++p) {
      benchmark::DoNotOptimize(g.mmu->translate(0, VA{kHugePageSize + p * kPageSize}, {}));
    }
  }
  count_references(state, before, g.mmu->stats());
  const shadow::ShadowStats stats = g.mmu->shadow_stats();
  state.counters["tables"] = static_cast<double>(stats.pages);
  state.counters["overhead_KiB"] = static_cast<double>(
      (stats.pages * kPageSize + stats.rmap_bytes + stats.metadata_bytes) >> 10);
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(kPages));
}
BENCHMARK(BM_TouchLargePages)->Arg(1)->Arg(0)->Unit(benchmark::kMicrosecond);

/// Switching between range(0) address spaces whose roots are cached.
void BM_RootSwitch(benchmark::State& state) {
  Guest g{with_large_pages(true)};
  std::vector<PagingContext> contexts;
  for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(state.range(0)); ++i) {
    const std::uint64_t root = kTables + 64 + i;
    g.store(root, 0, (kTables + 1) << 12 | kRights);
    PagingContext c;
    c.mode = PagingMode::long4;
    c.root = address_of(PPN{root});
    c.wp = c.nxe = true;
    contexts.push_back(c);
    g.mmu->set_context(0, c);
    for (int pass = 0; pass < 2; ++pass) (void)g.mmu->translate(0, VA{0}, {});
  }
  std::size_t i = 0;
  for (auto _ : state) {
    g.mmu->set_context(0, contexts[i++ % contexts.size()]);
    benchmark::DoNotOptimize(g.mmu->translate(0, VA{0}, {}));
  }
}
BENCHMARK(BM_RootSwitch)->Arg(16);

// --- each technique on and off: what a guest does, as an engine would pass it on

/// Backend options by name: everything, everything but one, nothing.
shadow::ShadowOptions without(std::string_view name) {
  shadow::ShadowOptions o;
  if (name == "all") return shadow::plain_options();
  for (const shadow::Technique& t : shadow::techniques()) {
    if (t.name == name) t.turn_off(o);
  }
  return o;
}

/// Counts what one iteration cost the backend.
class Events {
 public:
  explicit Events(const shadow::ShadowBackend& mmu)
      : mmu_{mmu}, mmu_before_{mmu.stats()}, before_{mmu.shadow_stats()} {}
  void report(benchmark::State& state) const {
    const MmuStats m = mmu_.stats();
    const shadow::ShadowStats s = mmu_.shadow_stats();
    const auto per = [&](const char* name, std::uint64_t n) {
      state.counters[name] =
          benchmark::Counter(static_cast<double>(n), benchmark::Counter::kAvgIterations);
    };
    per("misses", m.backend_misses - mmu_before_.backend_misses);
    per("traced_writes", m.traced_writes - mmu_before_.traced_writes);
    per("unsyncs", s.unsyncs - before_.unsyncs);
    per("resyncs", s.resyncs - before_.resyncs);
    per("outdated", s.outdated - before_.outdated);
    per("floods", s.floods - before_.floods);
    per("prefetched", s.prefetched - before_.prefetched);
    per("prefetch_used", s.prefetch_used - before_.prefetch_used);
    per("evictions", s.evictions - before_.evictions);
  }

 private:
  const shadow::ShadowBackend& mmu_;
  MmuStats mmu_before_;
  shadow::ShadowStats before_;
};

/// vCPU 1 has paging off: it stores to tables as a kernel does through its direct map.
void kernel_store(Guest& g, PA pa, std::uint64_t value) {
  const auto t = g.mmu->translate(1, VA{pa.value()}, {AccessKind::write, false, false});
  g.word(pa).store(value);
  if (t && t->traced) g.mmu->guest_wrote(pa, sizeof value);
}

PA leaf_entry(std::uint64_t page) {
  return PA{(kTables + 4 + page / 512) * kPageSize + page % 512 * 8};
}

void touch(Guest& g, std::uint64_t first, std::uint64_t count, std::uint64_t stride = 1) {
  for (std::uint64_t p = first; p < first + count; p += stride) {
    benchmark::DoNotOptimize(g.mmu->translate(0, VA{p * kPageSize}, {}));
  }
}

/// fork(): write protection of 1024 pages by stores to their entries, a CR3 load, and 64 of the
/// pages used again.
void BM_Fork(benchmark::State& state, std::string_view off) {
  Guest g{without(off)};
  g.mmu->set_context(1, {});
  touch(g, 0, 1024);
  const Events events{*g.mmu};
  std::uint64_t writable = 2;
  for (auto _ : state) {
    writable ^= 2;
    for (std::uint64_t p = 0; p < 1024; ++p) {
      kernel_store(g, leaf_entry(p), p << 12 | 0x5 | kDirty | writable);
    }
    g.mmu->invalidate(0, FlushScope::pcid, 0, {});
    touch(g, 0, 1024, 16);
  }
  events.report(state);
}

/// Page faults: an entry that was not present is made so and used, 256 times over two tables; then
/// a CR3 load, and all are taken away with INVLPG.
void BM_FaultStorm(benchmark::State& state, std::string_view off) {
  Guest g{without(off)};
  g.mmu->set_context(1, {});
  touch(g, 0, 1024);
  const Events events{*g.mmu};
  for (auto _ : state) {
    for (std::uint64_t i = 0; i < 256; ++i) {
      const std::uint64_t p = i * 4;
      kernel_store(g, leaf_entry(p), p << 12 | kRights);
      touch(g, p, 1);
    }
    g.mmu->invalidate(0, FlushScope::pcid, 0, {});
    for (std::uint64_t i = 0; i < 256; ++i) {
      kernel_store(g, leaf_entry(i * 4), 0);
      g.mmu->invalidate_page(0, VA{i * 4 * kPageSize});
    }
  }
  events.report(state);
}

/// A page of tables that becomes data, 64 times: tables are given to the guest as a buffer that is
/// written from end to end.
void BM_TableReuse(benchmark::State& state, std::string_view off) {
  Guest g{without(off)};
  g.mmu->set_context(1, {});
  const Events events{*g.mmu};
  for (auto _ : state) {
    touch(g, 0, 512, 8);
    for (std::uint64_t i = 0; i < 512; ++i)
      kernel_store(g, leaf_entry(i), i << 12 | kRights | kDirty);
  }
  events.report(state);
}

/// All 32 MiB used in order after all mappings were lost.
void BM_SequentialTouch(benchmark::State& state, std::string_view off) {
  Guest g{without(off)};
  touch(g, 0, kPages);
  const Events events{*g.mmu};
  for (auto _ : state) {
    state.PauseTiming();
    g.forget();
    state.ResumeTiming();
    touch(g, 0, kPages);
  }
  events.report(state);
}

/// Eight processes with PCIDs over a common kernel of global pages: each switch comes back without
/// a flush, one kernel entry changes, and 32 pages of process and kernel are used.
void BM_ContextSwitch(benchmark::State& state, std::string_view off) {
  constexpr std::uint64_t kGlobal = 0x100;
  Guest g{without(off)};
  g.mmu->set_context(1, {});
  for (std::uint64_t p = 0; p < 512; ++p)
    g.store(kTables + 4, p, p << 12 | kRights | kDirty | kGlobal);
  std::vector<PagingContext> spaces;
  for (std::uint64_t i = 0; i < 8; ++i) {
    const std::uint64_t own = kTables + 64 + 4 * i;
    g.store(own, 0, (kTables + 1) << 12 | kRights);
    g.store(own, 1, (own + 1) << 12 | kRights);
    g.store(own + 1, 0, (own + 2) << 12 | kRights);
    g.store(own + 2, 0, (own + 3) << 12 | kRights);
    for (std::uint64_t p = 0; p < 64; ++p) g.store(own + 3, p, (512 + p) << 12 | kRights | kDirty);
    PagingContext c;
    c.mode = PagingMode::long4;
    c.root = address_of(PPN{own});
    c.wp = c.nxe = c.pge = c.pcide = true;
    c.pcid = static_cast<std::uint16_t>(i + 1);
    spaces.push_back(c);
  }
  g.mmu->invalidate(0, FlushScope::all, 0, {});
  constexpr std::uint64_t kOwn = 1ULL << 39;
  std::uint64_t round = 0;
  const Events events{*g.mmu};
  for (auto _ : state) {
    const std::uint64_t i = round++ % spaces.size();
    g.mmu->set_context(0, spaces[i]);
    const std::uint64_t changed = 256 + round % 200;
    kernel_store(g, leaf_entry(changed), changed << 12 | kRights | kDirty | kGlobal);
    kernel_store(g, PA{(kTables + 64 + 4 * i + 3) * kPageSize + 60 * 8},
                 600 << 12 | kRights | kDirty);
    touch(g, 0, 32);
    touch(g, kOwn >> kPageShift, 32);
  }
  events.report(state);
}

/// Sixteen address spaces of 40 tables' worth under a limit of range tables: what a hostile guest
/// pays, and what it costs the host.
void BM_TablesUnderLimit(benchmark::State& state) {
  shadow::ShadowOptions options;
  options.memory_limit = static_cast<std::uint64_t>(state.range(0)) * shadow::kTableCost;
  Guest g{options};
  std::vector<PagingContext> spaces;
  for (std::uint64_t i = 0; i < 16; ++i) {
    const std::uint64_t own = kTables + 64 + 4 * i;
    for (std::uint64_t t = 0; t < 8; ++t) g.store(own, t, (own + 1) << 12 | kRights);
    g.store(own + 1, 0, (kTables + 2) << 12 | kRights);
    PagingContext c;
    c.mode = PagingMode::long4;
    c.root = address_of(PPN{own});
    c.wp = c.nxe = true;
    spaces.push_back(c);
  }
  std::uint64_t round = 0;
  const Events events{*g.mmu};
  for (auto _ : state) {
    g.mmu->set_context(0, spaces[round++ % spaces.size()]);
    for (std::uint64_t t = 0; t < 16; ++t) touch(g, t * 512, 1);
  }
  events.report(state);
  const shadow::ShadowStats s = g.mmu->shadow_stats();
  state.counters["tables_KiB"] =
      static_cast<double>((s.pages * kPageSize + s.metadata_bytes) >> 10);
  state.counters["limit_KiB"] = static_cast<double>(s.limit_bytes >> 10);
}
BENCHMARK(BM_TablesUnderLimit)->Arg(8)->Arg(24)->Arg(400);

#define STRATA_ON_AND_OFF(bench, technique)             \
  BENCHMARK_CAPTURE(bench, everything_on, "none");      \
  BENCHMARK_CAPTURE(bench, no_##technique, #technique); \
  BENCHMARK_CAPTURE(bench, everything_off, "all")

STRATA_ON_AND_OFF(BM_Fork, unsync);
STRATA_ON_AND_OFF(BM_FaultStorm, unsync);
STRATA_ON_AND_OFF(BM_TableReuse, flood);
BENCHMARK_CAPTURE(BM_TableReuse, no_unsync, "unsync");
STRATA_ON_AND_OFF(BM_SequentialTouch, prefetch);
STRATA_ON_AND_OFF(BM_ContextSwitch, pcid);
BENCHMARK_CAPTURE(BM_ContextSwitch, no_global, "global");
BENCHMARK_CAPTURE(BM_ContextSwitch, no_unsync, "unsync");

}  // namespace
