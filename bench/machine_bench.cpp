// Micro-benchmarks of src/machine: P2M lookup and update, frame allocation across threads, and
// guest walks with the references they take.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "machine/formats.hpp"
#include "machine/frame_allocator.hpp"
#include "machine/guest_memory.hpp"
#include "machine/guest_walk.hpp"
#include "machine/machine_memory.hpp"
#include "machine/p2m.hpp"

namespace strata::machine {
namespace {

template <class T, class E>
T must(Expected<T, E> result) {
  if (!result) std::abort();
  return std::move(*result);
}

/// A VM with `mib` MiB of RAM, and guest tables taken from the end of it.
struct Machine {
  explicit Machine(std::uint64_t mib)
      : memory{must(MachineMemory::create())},
        frames{*memory},
        home{must(memory->create_segment(mib << 20, "bench-vm"))},
        p2m{must(P2mTable::create(frames, home, domain))},
        guest{*p2m, memory->window()},
        next_table{PA{mib << 20}} {
    if (!p2m->add_ram({PPN{0}, mib << 8})) std::abort();
  }

  PA new_table() {
    next_table = PA{next_table.value() - kPageSize};
    if (!p2m->resolve(page_of(next_table), AccessKind::write)) std::abort();
    return next_table;
  }
  template <class Entry>
  Entry* word(PA pa) const {
    return reinterpret_cast<Entry*>(memory->window().host(home->base()) + pa.value());
  }
  template <class Format>
  void map(PA root, VA va, PA pa, unsigned level) {
    using Entry = typename Format::Entry;
    PA table = root;
    for (unsigned l = Format::kLevels;; --l) {
      const std::uint64_t index =
          va.value() >> Format::shift(l) & ((1ULL << Format::index_bits(l)) - 1);
      Entry* entry = word<Entry>(table) + index;
      if (l == level) {
        *entry = Format::make_leaf(pa.value(), Rights{}, level);
        return;
      }
      if (!Format::present(*entry)) *entry = Format::make_table(new_table().value());
      table = PA{Format::table_address(*entry)};
    }
  }

  std::unique_ptr<MachineMemory> memory;
  FrameAllocator frames;
  FlushDomain domain;
  SegmentRef home;
  std::unique_ptr<P2mTable> p2m;
  GuestMemory guest;
  PA next_table;
};

std::uint64_t next_random(std::uint64_t& state) noexcept {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

/// Lookup at random pages. Argument: 0 = runs, 1 = split to single pages.
void bm_p2m_lookup(benchmark::State& state) {
  static constexpr std::uint64_t kMib = 256;
  Machine m{kMib};
  if (state.range(0) != 0) {
    for (std::uint64_t p = 0; p < kMib << 8; p += 512) {
      benchmark::DoNotOptimize(m.p2m->resolve(PPN{p}, AccessKind::write));
    }
  }
  std::uint64_t random = 1;
  for (auto _ : state) {
    benchmark::DoNotOptimize(m.p2m->lookup(PPN{next_random(random) % (kMib << 8)}));
  }
}
BENCHMARK(bm_p2m_lookup)->ArgName("split")->Arg(0)->Arg(1);

/// Demand-zero: the first write to each page, host page fault included.
void bm_p2m_first_write(benchmark::State& state) {
  static constexpr std::uint64_t kMib = 512;
  auto m = std::make_unique<Machine>(kMib);
  std::uint64_t ppn = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(m->p2m->resolve(PPN{ppn}, AccessKind::write));
    if (++ppn < kMib << 8) continue;
    state.PauseTiming();
    m = std::make_unique<Machine>(kMib);
    ppn = 0;
    state.ResumeTiming();
  }
}
BENCHMARK(bm_p2m_first_write);

/// One edit of a single page's entry, flush included.
void bm_p2m_replace(benchmark::State& state) {
  Machine m{16};
  std::uint64_t slot = 0;
  for (auto _ : state) {
    Flush flush{m.domain};
    const P2mEntry seen = m.p2m->lookup(PPN{5}).entry;
    const auto wanted = P2mEntry::make(PageState::swapped, ++slot);
    benchmark::DoNotOptimize(m.p2m->replace(PPN{5}, seen, wanted, flush));
    flush.commit();
  }
}
BENCHMARK(bm_p2m_replace);

void bm_p2m_pin_unpin(benchmark::State& state) {
  Machine m{16};
  for (auto _ : state) {
    benchmark::DoNotOptimize(m.p2m->pin(PPN{5}, AccessKind::write));
    m.p2m->unpin(PPN{5}, AccessKind::write);
  }
}
BENCHMARK(bm_p2m_pin_unpin);

/// Joins a private 2 MiB run that one pin split.
void bm_p2m_split_and_join(benchmark::State& state) {
  Machine m{16};
  for (std::uint64_t p = 0; p < 512; ++p) {
    if (!m.p2m->resolve(PPN{p}, AccessKind::write)) std::abort();
  }
  for (auto _ : state) {
    benchmark::DoNotOptimize(m.p2m->pin(PPN{5}, AccessKind::write));
    m.p2m->unpin(PPN{5}, AccessKind::write);
    if (!m.p2m->join(PPN{5})) std::abort();
  }
}
BENCHMARK(bm_p2m_split_and_join);

/// Allocate and release 64 frames, each thread on its own.
class FrameBench : public benchmark::Fixture {
 public:
  void SetUp(const benchmark::State& state) override {
    if (state.thread_index() != 0) return;
    memory = must(MachineMemory::create());
    frames = std::make_unique<FrameAllocator>(*memory);
  }
  void TearDown(const benchmark::State& state) override {
    if (state.thread_index() != 0) return;
    frames.reset();
    memory.reset();
  }
  std::unique_ptr<MachineMemory> memory;
  std::unique_ptr<FrameAllocator> frames;
};

BENCHMARK_DEFINE_F(FrameBench, allocate_release)(benchmark::State& state) {
  std::vector<MPN> mine(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) {
    for (MPN& mpn : mine) mpn = must(frames->allocate(FrameKind::other));
    for (const MPN mpn : mine) frames->release(mpn, FrameKind::other);
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK_REGISTER_F(FrameBench, allocate_release)
    ->ArgName("frames")
    ->Arg(8)
    ->Arg(64)
    ->Threads(1)
    ->Threads(2)
    ->Threads(4)
    ->UseRealTime();

/// Guest walks over 256 pages, accessed bits set already. Counter: table references a walk.
template <class Format>
void walk_pages(benchmark::State& state, PagingMode mode, unsigned level) {
  Machine m{64};
  PagingContext context;
  context.mode = mode;
  context.pse = context.wp = true;
  context.root = m.new_table();
  context.pdpte[0] = context.root.value() | 1;
  const std::uint64_t page = 1ULL << Format::shift(level);
  for (std::uint64_t i = 0; i < 256; ++i) {
    m.map<Format>(context.root, VA{i * page}, PA{i * page}, level);
  }
  GuestWalkCounters counters;
  std::uint64_t random = 1;
  for (auto _ : state) {
    const VA va{(next_random(random) % 256) * page};
    benchmark::DoNotOptimize(guest_walk(context, va, {AccessKind::read, true, false}, *m.p2m,
                                        m.memory->window(), counters));
  }
  state.counters["references"] =
      static_cast<double>(counters.references) / static_cast<double>(counters.walks);
}
void bm_walk_i386(benchmark::State& state) { walk_pages<I386Format>(state, PagingMode::i386, 1); }
void bm_walk_pae(benchmark::State& state) { walk_pages<PaeFormat>(state, PagingMode::pae, 1); }
void bm_walk_long4(benchmark::State& state) {
  walk_pages<Long4Format>(state, PagingMode::long4, 1);
}
void bm_walk_long4_2m(benchmark::State& state) {
  walk_pages<Long4Format>(state, PagingMode::long4, 2);
}
BENCHMARK(bm_walk_i386);
BENCHMARK(bm_walk_pae);
BENCHMARK(bm_walk_long4);
BENCHMARK(bm_walk_long4_2m);

/// Device reads and writes through the one accessor.
void bm_guest_memory_copy(benchmark::State& state) {
  Machine m{16};
  std::vector<std::byte> bytes(static_cast<std::size_t>(state.range(0)), std::byte{1});
  for (auto _ : state) {
    benchmark::DoNotOptimize(m.guest.write(kIdentitySpace, PA{0x800}, bytes));
    benchmark::DoNotOptimize(m.guest.read(kIdentitySpace, PA{0x800}, std::span{bytes}));
  }
  state.SetBytesProcessed(2 * state.iterations() * state.range(0));
}
BENCHMARK(bm_guest_memory_copy)->ArgName("bytes")->Arg(64)->Arg(4096)->Arg(65536);

}  // namespace
}  // namespace strata::machine
