// The shadow backend's translate(): walk the shadow table; on a miss walk the guest's tables, ask
// the P2M, install.
//
// Why settled tables are always in step with the guest's. A shadow entry is installed only into a
// mirror that is settled: tracing took write access to the guest page away, and every holder of an
// older translation has passed the epoch of that change, so every store to the page is announced to
// guest_wrote(). And only if generation() did not move between before the guest walk and the
// install, so no store was announced in between; a store announced later finds the entry and zaps
// it. Until a mirror is settled, misses through it are answered from the guest walk and nothing is
// installed. Waiting for the epoch instead could deadlock: two vCPUs may trace pages at once.
//
// Tables of leaves may also be out of sync (ShadowTable::unsync): nobody announces stores to them.
// An entry is installed into one only if it agrees with the guest's under the lock, and used by a
// vCPU only as far as its FlushHistory allows; otherwise the table is compared with the guest's
// first. What is above leaves is always in step, and a miss always walks the guest's own tables, so
// no fault is ever delivered that the tables as they are do not call for.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string_view>

#include "machine/guest_walk.hpp"
#include "machine/walk.hpp"
#include "shadow/shadow.hpp"
#include "shadow/tables.hpp"

namespace strata::shadow {

/// After so many races with other vCPUs a miss is answered without installing.
inline constexpr unsigned kAttempts = 8;

/// See shadow.hpp. Thread-safety as Mmu demands; everything else may come from any thread.
class ShadowMmu final : public ShadowBackend {
 public:
  ShadowMmu(P2m& p2m, FrameSource& frames, FlushDomain& domain, const ShadowOptions& options);
  ~ShadowMmu() override;

  [[nodiscard]] std::string_view name() const noexcept override { return "shadow"; }
  void set_context(VcpuId vcpu, const PagingContext& context) override;
  /// Errors: stage guest_table as guest_walk(); stage p2m as P2m::resolve(), and out_of_memory when
  /// the FrameSource refuses and no shadow table can be given up. Stage engine, kind retry, for a
  /// vCPU number out of range.
  Expected<Translation, Fault> translate(VcpuId vcpu, VA va, Access access) override;
  void invalidate_page(VcpuId vcpu, VA va) override;
  void invalidate(VcpuId vcpu, FlushScope scope, std::uint16_t pcid, VA va) override;
  void guest_wrote(PA pa, std::uint64_t length) override;
  void traced_store_begins(VcpuId vcpu) noexcept override;
  void traced_store_ends(VcpuId vcpu) noexcept override;
  void p2m_changed(PpnRange range, Flush& flush) override;
  [[nodiscard]] MmuStats stats() const noexcept override;
  [[nodiscard]] ShadowStats shadow_stats() const override;

 private:
  /// A counter written by one thread and read by any: no locked instruction.
  class Counter {
   public:
    void add(std::uint64_t n) noexcept {
      value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
    }
    [[nodiscard]] std::uint64_t get() const noexcept {
      return value_.load(std::memory_order_relaxed);
    }

   private:
    std::atomic<std::uint64_t> value_{0};
  };

  /// Used by the vCPU's own thread only, counters apart.
  struct alignas(64) Vcpu {
    explicit Vcpu(const ShadowOptions& o) noexcept : history{o.pcid, o.global_pages} {}
    PagingContext context{};
    /// What the walk of a shadow table checks: [0] ordinary, [1] write_anywhere.
    std::array<machine::WalkControls, 2> controls{};
    FlushHistory history;
    Counter translations, walks, guest_references, table_references, ad_writes, misses, faults,
        invalidations, root_hits, unlinked, retries;
    /// Odd while a store to a traced page is under way. Other vCPUs read it, so in a line apart.
    alignas(64) std::atomic<std::uint32_t> traced_stores{0};
  };

  /// What a miss found out before it took the lock.
  struct Mapping {
    machine::GuestWalk guest;
    std::uint64_t input = 0;  ///< the VA as tables are indexed by it
    unsigned leaf_level = 5;  ///< level of the guest's leaf; 5 where nothing is paged
    unsigned top_level = 4;   ///< highest level that the guest's format has
    bool ad_written = false;  ///< the guest walk set accessed or dirty bits
    bool anywhere = false;    ///< role bit write_anywhere
    PPN ppn;
    P2mLookup lookup;
    P2mTarget target;
  };

  /// How an attempt to install ended.
  enum class Install : std::uint8_t { done, unsettled, raced, no_room, out_of_frames };
  struct Path;

  /// What the shadow tables answered: a translation, or the table that has to be resynced first, or
  /// neither.
  struct Hit {
    std::optional<Translation> translation;
    std::uint32_t outdated = kNone;
  };
  [[nodiscard]] Hit hit(VcpuId vcpu, VA va, Access access, bool anywhere);
  void resync(VcpuId vcpu, std::uint32_t number, std::uint64_t region);
  [[nodiscard]] std::optional<Translation> translation_at(const machine::WalkResult& walk,
                                                          std::uint32_t number, const Vcpu& v,
                                                          VA va, Access access,
                                                          const machine::WalkControls& controls,
                                                          bool traced);
  void await_traced_stores(VcpuId vcpu) const noexcept;
  /// INVLPG, and what a page fault drops for its address (SDM 3A 4.10.4.1).
  void forget_address(VcpuId vcpu, VA va);
  Expected<Translation, Fault> miss(VcpuId vcpu, VA va, Access access, bool anywhere);
  Expected<Mapping, Fault> find_mapping(Vcpu& v, VA va, Access access, bool anywhere);
  Expected<P2mLookup, Fault> resolve(VA va, PA pa, AccessKind kind);
  [[nodiscard]] Install try_install(VcpuId vcpu, const Mapping& m, std::uint64_t generation,
                                    Translation& out, Access access);
  [[nodiscard]] Install install(VcpuId vcpu, const Mapping& m, Change& change);
  void announce_ad_writes(const Mapping& m, Change& change);
  [[nodiscard]] Install build_path(VcpuId vcpu, std::uint32_t root, const Mapping& m, Path& path,
                                   Change& change);
  Expected<std::uint32_t, Shortage> root_for(VcpuId vcpu, bool anywhere, Change& change);
  [[nodiscard]] bool maps_large(const Mapping& m) const noexcept;
  [[nodiscard]] PageKey key_below(unsigned level, const Mapping& m, Role role) const noexcept;
  [[nodiscard]] Translation translation_of(const Vcpu& v, const Mapping& m, bool traced,
                                           Access access) const noexcept;
  [[nodiscard]] bool needs_anywhere(const Vcpu& v, Access access) const noexcept {
    return !v.context.wp && !access.user && v.context.mode != PagingMode::off;
  }

  P2m& p2m_;
  FlushDomain& domain_;
  const bool large_pages_;
  const bool prefetch_;
  const MachineWindow window_;
  const std::shared_ptr<ShadowTables> tables_;
  std::deque<Vcpu> vcpus_;  ///< neither copied nor moved
  std::atomic<std::uint64_t> traced_writes_{0};
};

}  // namespace strata::shadow
