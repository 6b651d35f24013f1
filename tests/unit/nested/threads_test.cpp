// vCPUs translate while the P2M changes under them. Every answer must fit the P2M as it was at some
// moment of the call; freed tables are poisoned, so a walk through one shows.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "guest_builder.hpp"
#include "machine/test_support.hpp"

namespace strata::nested::test {
namespace {

constexpr unsigned kVcpus = 3;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kEdits = 4000;
#else
constexpr int kEdits = 20000;
#endif

/// What a load of a page must give at this moment; odd versions: it is being changed.
struct alignas(64) Expectation {
  std::atomic<std::uint64_t> version{0};
  std::atomic<std::uint64_t> ma{0};  ///< 0: MMIO
};

class Threads : public testing::TestWithParam<Format> {};
INSTANTIATE_TEST_SUITE_P(Formats, Threads, testing::Values(Format::ept, Format::npt),
                         [](const auto& p) { return p.param == Format::ept ? "ept" : "npt"; });

TEST_P(Threads, TranslateWhilePagesMove) {
  Vm vm{GetParam(), NestedOptions{}};
  constexpr std::uint64_t kPages = 96;
  const auto ppn_of = [](std::uint64_t i) { return PPN{(kData >> 12) + i * 29}; };
  const auto va_of = [](std::uint64_t i) {
    return 0x40000000 + (i % 4) * kLargePageSize * 3 + i * kPageSize;
  };
  std::vector<Expectation> pages(kPages);
  for (std::uint64_t i = 0; i < kPages; ++i) {
    vm.map_long4(va_of(i), address_of(ppn_of(i)).value(), kAll);
    pages[i].ma = kHomeBase + address_of(ppn_of(i)).value();
  }
  for (VcpuId id = 0; id < kVcpus; ++id) vm.use(vm.context(), id);

  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> checked{0}, wrong{0};
  std::vector<std::thread> vcpus;
  for (VcpuId id = 0; id < kVcpus; ++id) {
    vcpus.emplace_back([&, id] {
      std::mt19937 random{id};
      while (!stop.load(std::memory_order_relaxed)) {
        const std::uint64_t i = random() % kPages;
        const std::uint64_t before = pages[i].version.load();
        const std::uint64_t ma = pages[i].ma.load();
        const auto r = vm.load(va_of(i), id);
        if ((before & 1) != 0 || pages[i].version.load() != before) continue;
        checked.fetch_add(1, std::memory_order_relaxed);
        const bool fits =
            r ? r->page.value() == ma : (ma == 0 && r.error().kind == FaultKind::mmio);
        if (!fits) wrong.fetch_add(1);
        if (random() % 64 == 0) vm.mmu->invalidate_page(id, VA{va_of(i)});
      }
    });
  }
  std::mt19937 random{77};
  // On a busy host the vCPUs may start late and take turns with this thread.
  const auto met = [&] {
    return checked.load() > 2000 && vm.mmu->nested_stats().leaves_removed > 200;
  };
  for (int n = 0; n < kEdits || !met(); ++n) {
    const std::uint64_t i = random() % kPages;
    const PPN ppn = ppn_of(i);
    const std::uint64_t home = FakeP2m::home(ppn).value();
    const std::uint64_t elsewhere = kElsewhere + random() % 8;
    const P2mEntry choices[] = {P2mEntry::make(PageState::private_page, home),
                                P2mEntry::make(PageState::shared, elsewhere),
                                P2mEntry::make(PageState::zero), P2mEntry::make(PageState::mmio)};
    const std::uint64_t targets[] = {home, elsewhere, kZeroFrame, 0};
    const std::size_t c = random() % 4;
    pages[i].version.fetch_add(1);
    Flush flush{vm.domain};
    vm.p2m.change(ppn, choices[c], flush);
    // Another part of the address space goes and comes as a whole, tables and all.
    if (n % 16 == 0) vm.mmu->p2m_changed({PPN{kTables >> 12}, 0x800}, flush);
    pages[i].ma.store(targets[c] << kPageShift);
    flush.commit();
    pages[i].version.fetch_add(1);
  }
  stop = true;
  for (auto& t : vcpus) t.join();
  EXPECT_EQ(wrong.load(), 0U);
  EXPECT_EQ(vm.machine.nested_tables(), vm.mmu->nested_stats().tables);
}

TEST_P(Threads, SplitAndJoinUnderWalks) {
  NestedOptions options;
  options.nested_tlb = false;  // make them walk
  Vm vm{GetParam(), options};
  vm.p2m.set(512, 1024, PageState::private_page, kLargePageShift);
  for (VcpuId id = 0; id < kVcpus; ++id) vm.use(vm.context(PagingMode::off), id);
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> wrong{0}, checked{0};
  std::vector<std::thread> vcpus;
  for (VcpuId id = 0; id < kVcpus; ++id) {
    vcpus.emplace_back([&, id] {
      std::mt19937 random{id};
      while (!stop.load(std::memory_order_relaxed)) {
        const std::uint64_t pa = kLargePageSize + random() % (2 * kLargePageSize);
        const auto r = random() % 2 != 0 ? vm.load(pa, id) : vm.store(pa, id);
        const std::uint64_t expected = kHomeBase + (pa & ~kPageMask);
        checked.fetch_add(1, std::memory_order_relaxed);
        if (r ? r->page.value() != expected : r.error().kind != FaultKind::retry) {
          wrong.fetch_add(1);
        }
      }
    });
  }
  std::mt19937 random{99};
  const auto met = [&] {
    const NestedStats stats = vm.mmu->nested_stats();
    return checked.load() > 2000 && stats.splits > 20 && stats.joins > 20;
  };
  for (int n = 0; n < kEdits / 4 || !met(); ++n) {
    const std::uint64_t first = 512 + 512 * (random() % 2);
    const PPN ppn{first + random() % 512};
    Flush flush{vm.domain};
    // One page for itself, so that the leaf splits; then the run is one again.
    vm.p2m.change(ppn, P2mEntry::make(PageState::private_page, FakeP2m::home(ppn).value()), flush);
    vm.p2m.set(first, 512, PageState::private_page);
    flush.commit();
    vm.p2m.set(first, 512, PageState::private_page, kLargePageShift);
    vm.mmu->join({PPN{512}, 1024}, flush);
    flush.commit();
  }
  stop = true;
  for (auto& t : vcpus) t.join();
  EXPECT_EQ(wrong.load(), 0U);
  EXPECT_EQ(vm.machine.nested_tables(), vm.mmu->nested_stats().tables);
}

/// An engine's TLB flushed the way a vCPU would: it counts as passed while outside of guest code.
class Holder final : public TranslationHolder {
 public:
  void invalidate(const Invalidation&, Epoch epoch) noexcept override { newest_.store(epoch); }
  [[nodiscard]] Epoch passed() const noexcept override { return passed_.load(); }
  /// A quiescent point.
  void pass() noexcept { passed_.store(newest_.load()); }
  void idle() noexcept { passed_.store(~Epoch{0}); }

 private:
  std::atomic<Epoch> newest_{0}, passed_{0};
};

/// The real P2M, whose lookups take no lock that could order things by accident.
TEST_P(Threads, RealP2mDiscardsAndLogsUnderWriters) {
  machine::test::TestMachine machine{64};
  auto mmu = make_nested(GetParam(), machine.p2m, machine.frames, machine.domain);
  ASSERT_NE(mmu, nullptr);
  std::array<Holder, kVcpus> holders;
  for (VcpuId id = 0; id < kVcpus; ++id) {
    mmu->set_context(id, {});
    machine.domain.add(holders[id]);
  }
  constexpr std::uint64_t kPages = 1200;
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> wrong{0}, stores{0};
  std::vector<std::thread> vcpus;
  const MA home = machine.home->base();
  for (VcpuId id = 0; id < kVcpus; ++id) {
    vcpus.emplace_back([&, id] {
      std::mt19937 random{id};
      while (!stop.load(std::memory_order_relaxed)) {
        holders[id].pass();
        const PA pa{(random() % kPages) << kPageShift};
        const bool write = random() % 2 != 0;
        const auto r = mmu->translate(id, VA{pa.value()},
                                      {write ? AccessKind::write : AccessKind::read, false, false});
        if (!r) {
          if (r.error().kind != FaultKind::retry) wrong.fetch_add(1);
          continue;
        }
        const bool at_home = r->page - home == pa.value();
        const bool at_zero = r->page == address_of(machine.p2m.zero_frame());
        if (write ? !at_home || !r->writable : !at_home && !at_zero) wrong.fetch_add(1);
        if (at_zero && r->writable) wrong.fetch_add(1);
        if (write) stores.fetch_add(1, std::memory_order_relaxed);
      }
      holders[id].idle();
    });
  }
  std::mt19937 random{5};
  const auto met = [&] { return stores.load() > 2000 && mmu->nested_stats().leaves_removed > 200; };
  for (int n = 0; n < kEdits / 4 || !met(); ++n) {
    Flush flush{machine.domain};
    const PpnRange range{PPN{random() % kPages}, 1 + random() % 64};
    if (n % 3 == 0) {
      (void)machine.p2m.log_dirty(range, flush);
    } else {
      (void)machine.p2m.discard(range, flush);
    }
    if (n % 32 == 0) {
      (void)machine.p2m.join_range({PPN{0}, 2048});
      mmu->join({PPN{0}, 2048}, flush);
    }
    flush.commit();
  }
  stop = true;
  for (auto& t : vcpus) t.join();
  machine.domain.collect();
  EXPECT_EQ(wrong.load(), 0U);
  const auto nested = static_cast<std::size_t>(FrameKind::nested_table);
  EXPECT_EQ(machine.frames.in_use()[nested], mmu->nested_stats().tables);
  for (Holder& h : holders) machine.domain.remove(h);
}

}  // namespace
}  // namespace strata::nested::test
