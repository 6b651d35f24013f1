// What a TLB miss and a page fault cost a guest, per backend: the engine, the backend and machine
// memory together. Event counts stand beside the times as counters.
#include <benchmark/benchmark.h>

#include "small_vm.hpp"

namespace {

using strata::conformance::SmallVm;
namespace cpu = strata::cpu;

constexpr std::uint64_t kPages = 4096;  // four times the TLB's entries: every access misses

void report(benchmark::State& state, const SmallVm& vm, const strata::MmuStats& before,
            std::uint64_t events) {
  const strata::MmuStats now = vm.mmu->stats();
  const auto per_event = [&](std::uint64_t a, std::uint64_t b) {
    return static_cast<double>(a - b) / static_cast<double>(events);
  };
  state.SetItemsProcessed(static_cast<std::int64_t>(events));
  state.counters["translations"] = per_event(now.translations, before.translations);
  state.counters["guest_refs"] = per_event(now.guest_references, before.guest_references);
  state.counters["table_refs"] = per_event(now.table_references, before.table_references);
}

/// Reads one word of each of kPages pages: a TLB fill an access.
void tlb_fill(benchmark::State& state, const char* backend, bool caches) {
  SmallVm vm{backend, caches, kPages};
  cpu::VcpuState start = vm.start_state();
  start.gpr[cpu::RBX] = SmallVm::kWindow;
  start.gpr[cpu::RCX] = kPages;
  // mov rax, [rbx]; add rbx, 4096; dec rcx; jnz; hlt
  const auto sweep = [&] {
    return vm.run({0x48, 0x8B, 0x03, 0x48, 0x81, 0xC3, 0x00, 0x10, 0x00, 0x00, 0x48, 0xFF, 0xC9,
                   0x75, 0xF1, 0xF4},
                  start);
  };
  sweep();  // tables are filled, accessed bits set
  const strata::MmuStats before = vm.mmu->stats();
  std::uint64_t events = 0;
  for (auto _ : state) {
    if (sweep().kind != strata::engine::ExitKind::halt) {
      state.SkipWithError("the guest did not halt");
      return;
    }
    events += kPages;
  }
  report(state, vm, before, events);
}

/// A guest page fault to the guest's handler and back by IRETQ.
void page_fault(benchmark::State& state, const char* backend) {
  constexpr std::uint64_t kFaults = 10'000;
  SmallVm vm{backend};
  // add rsp, 8; add qword [rsp], 3; iretq: skip the faulting instruction
  vm.on_page_fault({0x48, 0x83, 0xC4, 0x08, 0x48, 0x83, 0x04, 0x24, 0x03, 0x48, 0xCF});
  cpu::VcpuState start = vm.start_state();
  start.gpr[cpu::RBX] = 0x5000'0000;  // mapped by nobody
  start.gpr[cpu::RCX] = kFaults;
  const strata::MmuStats before = vm.mmu->stats();
  std::uint64_t events = 0;
  for (auto _ : state) {
    // mov rax, [rbx]; dec rcx; jnz; hlt
    if (vm.run({0x48, 0x8B, 0x03, 0x48, 0xFF, 0xC9, 0x75, 0xF8, 0xF4}, start).kind !=
        strata::engine::ExitKind::halt) {
      state.SkipWithError("the guest did not halt");
      return;
    }
    events += kFaults;
  }
  report(state, vm, before, events);
}

#ifdef STRATA_HAS_NESTED
BENCHMARK_CAPTURE(tlb_fill, ept, "ept", true)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(tlb_fill, ept_no_caches, "ept", false)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(tlb_fill, npt, "npt", true)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(page_fault, ept, "ept")->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(page_fault, npt, "npt")->Unit(benchmark::kMicrosecond);
#endif
#ifdef STRATA_HAS_SHADOW
BENCHMARK_CAPTURE(tlb_fill, shadow, "shadow", true)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(page_fault, shadow, "shadow")->Unit(benchmark::kMicrosecond);
#endif

}  // namespace

BENCHMARK_MAIN();
