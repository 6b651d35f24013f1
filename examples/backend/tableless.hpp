// An example backend that needs nothing but include/mmu: it keeps no tables of its own and walks
// the guest's for every translation. docs/adding-a-backend.md goes through it.
//
// It understands PagingMode::off and long mode without protection keys; a guest in another mode
// gets a fault of stage engine. What it shows is the contract of strata::Mmu, whole: contexts for
// each vCPU, accessed and dirty bits, faults that name their stage, and P2M changes.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "mmu/expected.hpp"
#include "mmu/frames.hpp"
#include "mmu/mmu.hpp"
#include "mmu/p2m.hpp"

namespace example {

/// Thread-safe as strata::Mmu asks: the only state a vCPU shares with others is the guest's memory
/// and the counters, both of which are atomic.
class TablelessMmu final : public strata::Mmu {
 public:
  TablelessMmu(strata::P2m& p2m, strata::MachineWindow window, unsigned vcpus);
  ~TablelessMmu() override;

  [[nodiscard]] std::string_view name() const noexcept override { return "tableless"; }
  void set_context(strata::VcpuId vcpu, const strata::PagingContext& context) override;
  strata::Expected<strata::Translation, strata::Fault> translate(strata::VcpuId vcpu, strata::VA va,
                                                                 strata::Access access) override;
  // Nothing is cached here, so there is nothing to flush: the engine's TLB is the engine's.
  void invalidate_page(strata::VcpuId, strata::VA) override {}
  void invalidate(strata::VcpuId, strata::FlushScope, std::uint16_t, strata::VA) override {}
  void guest_wrote(strata::PA, std::uint64_t) override {}
  void p2m_changed(strata::PpnRange, strata::Flush&) override {}
  [[nodiscard]] strata::MmuStats stats() const noexcept override;

 private:
  struct GuestPage;
  using Word = std::atomic_ref<std::uint64_t>;
  strata::Expected<std::uint64_t*, strata::Fault> entry_at(strata::PA pa, strata::AccessKind kind);
  strata::Expected<GuestPage, strata::Fault> walk(const strata::PagingContext& context,
                                                  strata::VA va, strata::Access access);
  strata::Expected<strata::Translation, strata::Fault> to_machine(const strata::PagingContext& c,
                                                                  const GuestPage& page,
                                                                  strata::VA va,
                                                                  strata::Access access);

  strata::P2m& p2m_;
  strata::MachineWindow window_;
  std::vector<strata::PagingContext> contexts_;  ///< by vCPU; each used by its own thread only
  std::atomic<std::uint64_t> translations_{0};
  std::atomic<std::uint64_t> references_{0};
  std::atomic<std::uint64_t> faults_{0};
};

}  // namespace example
