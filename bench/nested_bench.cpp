// Two-dimensional walks: time and memory references with each cache on and off, and what a nested
// violation costs to fill. Counters: refs = table entries read for one translation.
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "mmu/flush.hpp"
#include "mmu/frames.hpp"
#include "mmu/mmu.hpp"
#include "mmu/p2m.hpp"
#include "nested/nested_mmu.hpp"

namespace strata::nested {
namespace {

constexpr std::uint64_t kGuestBytes = 1ULL << 30;
constexpr std::uint64_t kHomeBase = 1ULL << 30;
constexpr std::uint64_t kFrameBase = kHomeBase + kGuestBytes;
constexpr std::uint64_t kWindowBytes = kFrameBase + (64ULL << 20);
constexpr std::uint64_t kAll = 0x67;  ///< present, writable, user, accessed, dirty

/// Frames above guest memory, handed out and taken back in order.
class Frames final : public FrameSource {
 public:
  Frames() {
    void* p = mmap(nullptr, kWindowBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) std::abort();
    base_ = static_cast<std::byte*>(p);
  }
  ~Frames() override { munmap(base_, kWindowBytes); }
  Expected<MPN, OutOfFrames> allocate(FrameKind) override {
    if (free_.empty()) return MPN{kFrameBase / kPageSize + next_++};
    const MPN mpn = free_.back();
    free_.pop_back();
    std::uint64_t* words = window().words(mpn);
    for (unsigned i = 0; i < 512; ++i) words[i] = 0;
    return mpn;
  }
  void release(MPN mpn, FrameKind) noexcept override { free_.push_back(mpn); }
  [[nodiscard]] MachineWindow window() const noexcept override { return MachineWindow{base_}; }
  [[nodiscard]] std::array<std::uint64_t, kFrameKinds> in_use() const noexcept override {
    return {};
  }

 private:
  std::byte* base_ = nullptr;
  std::uint64_t next_ = 0;
  std::vector<MPN> free_;
};

/// All of guest memory private and at home, as one run or page by page: no cost of its own.
class FlatP2m final : public P2m {
 public:
  explicit FlatP2m(unsigned run_shift) : run_shift_{run_shift} {}
  [[nodiscard]] P2mLookup lookup(PPN ppn) const noexcept override {
    if (ppn.value() >= kGuestBytes / kPageSize) return {};
    return {P2mEntry::make(PageState::private_page, kHomeBase / kPageSize + ppn.value()),
            run_shift_};
  }
  Expected<P2mLookup, Fault> resolve(PPN ppn, AccessKind) override { return lookup(ppn); }
  [[nodiscard]] MPN zero_frame() const noexcept override { return MPN{0}; }
  void note_dirty(PPN) noexcept override {}
  void add_observer(P2mObserver&) override {}
  void remove_observer(P2mObserver&) override {}

 private:
  unsigned run_shift_;
};

struct Machine {
  Machine(const NestedOptions& options, unsigned run_shift)
      : p2m{run_shift}, mmu{make_nested(Format::ept, p2m, frames, domain, options)} {}

  std::uint64_t& word(std::uint64_t pa) {
    return *reinterpret_cast<std::uint64_t*>(frames.window().host(MA{kHomeBase + pa}));
  }
  /// Four-level guest tables for `pages` pages from VA 0, leaves of `level`, memory from 16 MiB up.
  PagingContext map(std::uint64_t pages, unsigned level) {
    std::uint64_t next = 0x2000;
    for (std::uint64_t i = 0; i < pages; ++i) {
      const std::uint64_t va = i << (12 + 9 * (level - 1));
      std::uint64_t table = 0x1000;
      for (unsigned l = 4; l > level; --l) {
        std::uint64_t& e = word(table + (va >> (12 + 9 * (l - 1)) & 511) * 8);
        if (e == 0) {
          e = next | kAll;
          next += kPageSize;
        }
        table = e & ~kPageMask;
      }
      word(table + (va >> (12 + 9 * (level - 1)) & 511) * 8) =
          (0x1000000 + va) | kAll | (level > 1 ? 0x80 : 0);
    }
    PagingContext c;
    c.mode = PagingMode::long4;
    c.root = PA{0x1000};
    c.wp = true;
    mmu->set_context(0, c);
    return c;
  }

  Frames frames;
  FlushDomain domain;
  FlatP2m p2m;
  std::unique_ptr<NestedMmu> mmu;
};

NestedOptions switches(std::int64_t bits) {
  NestedOptions o;
  o.guest_caches = (bits & 1) != 0;
  o.nested_tlb = (bits & 2) != 0;
  o.nested_caches = (bits & 4) != 0;
  return o;
}

/// Walks over `pages` pages in a scattered order. range(0): cache switches (1 guest, 2 nested TLB,
/// 4 nested paging-structure), range(1): guest leaf level, range(2): nested leaf level.
void walk(benchmark::State& state) {
  const auto guest_level = static_cast<unsigned>(state.range(1));
  const unsigned run_shift = state.range(2) == 2 ? kLargePageShift : kPageShift;
  const std::uint64_t pages = guest_level == 1 ? 8192 : 256;
  Machine m{switches(state.range(0)), run_shift};
  m.map(pages, guest_level);
  const unsigned shift = 12 + 9 * (guest_level - 1);
  for (std::uint64_t i = 0; i < pages; ++i) (void)m.mmu->translate(0, VA{i << shift}, {});
  const MmuStats before = m.mmu->stats();
  std::uint64_t i = 0;
  for (auto _ : state) {
    i = (i * 5 + 12345) % pages;
    benchmark::DoNotOptimize(m.mmu->translate(0, VA{i << shift}, {}));
  }
  const MmuStats after = m.mmu->stats();
  const auto calls = static_cast<double>(after.translations - before.translations);
  state.counters["guest_refs"] =
      static_cast<double>(after.guest_references - before.guest_references) / calls;
  state.counters["nested_refs"] =
      static_cast<double>(after.table_references - before.table_references) / calls;
  state.counters["refs"] = static_cast<double>(after.guest_references + after.table_references -
                                               before.guest_references - before.table_references) /
                           calls;
}
BENCHMARK(walk)
    ->ArgNames({"caches", "guest", "nested"})
    ->ArgsProduct({{0, 1, 2, 4, 7}, {1}, {1}})
    ->ArgsProduct({{0, 7}, {2}, {1, 2}});

/// The same page again and again: everything hits.
void walk_one_page(benchmark::State& state) {
  Machine m{switches(state.range(0)), kPageShift};
  m.map(1, 1);
  (void)m.mmu->translate(0, VA{0}, {});
  (void)m.mmu->translate(0, VA{0}, {});
  state.counters["refs"] = [&] {
    (void)m.mmu->translate(0, VA{0}, {});
    return static_cast<double>(m.mmu->last_walk(0).total());
  }();
  for (auto _ : state) benchmark::DoNotOptimize(m.mmu->translate(0, VA{0}, {}));
}
BENCHMARK(walk_one_page)->ArgName("caches")->DenseRange(0, 7);

/// A violation: resolve, install, walk again. Memory is dropped outside of the timed part.
void fill(benchmark::State& state) {
  const unsigned run_shift = state.range(0) == 2 ? kLargePageShift : kPageShift;
  Machine m{NestedOptions{}, run_shift};
  const std::uint64_t batch = run_shift == kPageShift ? 4096 : 256;
  for (auto _ : state) {
    for (std::uint64_t i = 0; i < batch; ++i) {
      benchmark::DoNotOptimize(m.mmu->translate(0, VA{i << run_shift}, {}));
    }
    state.PauseTiming();
    Flush flush{m.domain};
    m.mmu->p2m_changed({PPN{0}, kGuestBytes / kPageSize}, flush);
    flush.commit();
    state.ResumeTiming();
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations() * batch));
}
BENCHMARK(fill)->ArgName("leaf")->Arg(1)->Arg(2);

/// Taking one page out of a mapped 2 MiB leaf and mapping the run again: split and join.
void split_and_join(benchmark::State& state) {
  Machine m{NestedOptions{}, kLargePageShift};
  (void)m.mmu->translate(0, VA{0}, {});
  for (auto _ : state) {
    Flush flush{m.domain};
    m.mmu->p2m_changed({PPN{9}, 1}, flush);
    benchmark::DoNotOptimize(m.mmu->join({PPN{0}, 512}, flush));
    flush.commit();
  }
}
BENCHMARK(split_and_join);

}  // namespace
}  // namespace strata::nested

BENCHMARK_MAIN();
