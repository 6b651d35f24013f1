// The nested-paging backend: the guest keeps its own tables, PA -> MA is an EPT or NPT table built
// on demand from the P2M, and a two-dimensional walk composes the two.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "mmu/address.hpp"
#include "mmu/flush.hpp"
#include "mmu/frames.hpp"
#include "mmu/mmu.hpp"
#include "mmu/p2m.hpp"

namespace strata::nested {

enum class Format : std::uint8_t {
  ept,  ///< Intel extended page tables (SDM 3C 29.3)
  npt,  ///< AMD nested page tables (APM 2 15.25)
};

/// What the modelled processor and its host kernel offer. No switch changes what the guest sees.
struct NestedOptions {
  bool guest_caches = true;   ///< paging-structure caches of the guest's tables (SDM 3A 4.10.3)
  bool nested_tlb = true;     ///< PA -> MA
  bool nested_caches = true;  ///< paging-structure caches of the nested table (SDM 3C 29.4.1)
  bool large_pages = true;    ///< 2 MiB leaves
  bool huge_pages = true;     ///< 1 GiB leaves; needs large_pages
  /// EPTP bit 6: the walker sets accessed and dirty bits in EPT entries (SDM 3C 29.3.5). NPT always
  /// has them.
  bool accessed_dirty = true;
  unsigned max_vcpus = 8;  ///< VcpuIds are below this
};

/// Memory references of one translate(), whatever retries it took inside.
struct WalkReferences {
  std::uint64_t guest = 0;       ///< guest table entries read
  std::uint64_t nested = 0;      ///< EPT or NPT entries read
  std::uint64_t ad_writes = 0;   ///< accessed/dirty updates, either table
  std::uint64_t violations = 0;  ///< nested violations met on the way
  [[nodiscard]] constexpr std::uint64_t total() const noexcept { return guest + nested; }
};

/// What only this backend counts. Snapshot; monotonic but for `tables`.
struct NestedStats {
  /// references[n]: successful translate() calls that read n table entries; the last bucket also
  /// counts all that read more. 24 is four levels under four with nothing cached.
  std::array<std::uint64_t, 41> references{};
  std::uint64_t guest_cache_hits = 0;
  std::uint64_t nested_tlb_hits = 0;
  std::uint64_t nested_cache_hits = 0;
  std::uint64_t leaves_4k = 0;  ///< leaves installed or given other rights
  std::uint64_t leaves_2m = 0;
  std::uint64_t leaves_1g = 0;
  std::uint64_t leaves_removed = 0;  ///< by P2M changes
  std::uint64_t splits = 0;          ///< large leaves replaced by a table of smaller ones
  std::uint64_t joins = 0;           ///< tables replaced by one large leaf
  std::uint64_t tables = 0;          ///< now linked, the root included; 4 KiB each
};

/// A backend of either format. Thread-safety as Mmu; everything added here may be called from any
/// thread.
class NestedMmu : public Mmu {
 public:
  [[nodiscard]] virtual Format format() const noexcept = 0;
  /// The root table: what EPTP or nCR3 would hold. Constant.
  [[nodiscard]] virtual MA root() const noexcept = 0;
  [[nodiscard]] virtual NestedStats nested_stats() const noexcept = 0;
  /// References of the last translate() of `vcpu`.
  [[nodiscard]] virtual WalkReferences last_walk(VcpuId vcpu) const = 0;
  /// Replaces tables inside `range` by large leaves where the P2M says one run is behind them now;
  /// violations do so by themselves where they meet one. Freed tables go to `flush`. Returns how
  /// many leaves were joined. The caller commits `flush` and holds no lock of the P2M.
  virtual std::uint64_t join(PpnRange range, Flush& flush) = 0;
};

/// A nested backend over `p2m`, registered as its observer while it lives. All references must
/// outlive it, and `frames` also `domain` (freed tables wait there). Null when there is no frame
/// for the root. Overhead: 4 KiB a nested table, about 17 KiB of caches a vCPU.
///
/// The P2M must have marked a page busy (or logged) before it tells its observers, as P2mTable
/// does: a violation that reads the entry afterwards then can not install what is about to go.
[[nodiscard]] std::unique_ptr<NestedMmu> make_nested(Format format, P2m& p2m, FrameSource& frames,
                                                     FlushDomain& domain,
                                                     const NestedOptions& options = {});

}  // namespace strata::nested
