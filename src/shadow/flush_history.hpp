// What a vCPU's TLB could still hold: decides whether the vCPU may use an entry of a table that is
// out of sync with the guest's.
//
// A table out of sync is a TLB that has lost nothing, shared by all vCPUs. An entry of it that the
// guest has changed since may be used by a vCPU only if that vCPU's own TLB could hold it (SDM 3A
// 4.10.2, 4.10.4): if at some time since the vCPU's last flush of it, the entry was the guest's and
// the vCPU was in an address space where the address led to it. Being up to date is always allowed.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "mmu/mmu.hpp"
#include "shadow/role.hpp"

namespace strata::shadow {

/// Orders flushes and checks of tables, and names tenures. Never gives the same value twice, nor 0.
class EventClock {
 public:
  [[nodiscard]] std::uint64_t next() noexcept {
    return now_.fetch_add(1, std::memory_order_acq_rel) + 1;
  }

 private:
  std::atomic<std::uint64_t> now_{0};
};

/// Names what a vCPU's TLB has kept without a flush.
struct Tenure {
  std::uint64_t space = 0;    ///< the entries of this PCID and root, on this vCPU
  std::uint64_t globals = 0;  ///< the global entries on this vCPU
};

/// The 2 MiB of addresses that one leaf table translates; 0 stands for "several" or "none".
[[nodiscard]] constexpr std::uint64_t region_of(std::uint64_t input) noexcept {
  return (input >> kLargePageShift) + 1;
}

/// What is known about all present entries of a leaf table together.
struct Provenance {
  /// When all of them were the guest's. Later ones were the guest's when they were made.
  std::uint64_t synced_at = 0;
  /// The tenure and region under which each of them was made or checked; 0: not the same for all.
  Tenure tenure;
  std::uint64_t region = 0;

  /// An entry is made now; `only`: it is the only one.
  void add(const Tenure& by, std::uint64_t in, bool only) noexcept {
    if (only) tenure = by;
    if (only) region = in;
    if (tenure.space != by.space) tenure.space = 0;
    if (tenure.globals != by.globals) tenure.globals = 0;
    if (region != in) region = 0;
  }
};

/// The flushes of one vCPU. Used by its own thread only.
class FlushHistory {
 public:
  /// Whether coming back to a PCID, and global entries, outlive CR3 loads as the SDM allows.
  FlushHistory(bool pcids, bool globals) noexcept : pcids_{pcids}, globals_kept_{globals} {}

  /// CR3 names another table or PCID now; nothing was flushed by that alone.
  void enter(std::uint16_t pcid, const PageKey& root, EventClock& clock) noexcept {
    fresh_ = clock.next();
    if (pcids_) {
      for (std::size_t i = 0; i < spaces_.size(); ++i) {
        if (spaces_[i].id == 0 || spaces_[i].pcid != pcid || !(spaces_[i].root == root)) continue;
        current_ = i;
        return;
      }
    }
    next_ = (next_ + 1) % spaces_.size();
    current_ = next_;
    spaces_[current_] = {clock.next(), pcid, root};
  }

  /// A flush other than of one address.
  void flush(FlushScope scope, std::uint16_t pcid, EventClock& clock) noexcept {
    const bool every = scope != FlushScope::pcid;
    for (Space& s : spaces_) {
      if (every || s.pcid == pcid) s.id = 0;
    }
    if (scope == FlushScope::all) globals_ = clock.next();
    if (spaces_[current_].id != 0) return;
    fresh_ = clock.next();
    spaces_[current_].id = clock.next();
  }

  /// Whether this vCPU may use an entry of a table with provenance `p`, met in `region`.
  /// `relinked`: when an upper level last got a new way down.
  [[nodiscard]] bool covers(const Provenance& p, std::uint64_t region, bool global,
                            std::uint64_t relinked) const noexcept {
    // A new way down combines its rights with leaves as they are, not as they were.
    if (p.synced_at < relinked) return false;
    // In this address space, by this way, since before all entries were last checked.
    if (p.synced_at >= fresh_) return true;
    if (p.region != region) return false;
    if (p.tenure.space != 0 && p.tenure.space == spaces_[current_].id) return true;
    return global && globals_kept_ && p.tenure.globals != 0 && p.tenure.globals == globals_;
  }
  [[nodiscard]] Tenure tenure() const noexcept { return {spaces_[current_].id, globals_}; }

 private:
  struct Space {
    std::uint64_t id = 0;  ///< 0: flushed, or never entered
    std::uint16_t pcid = 0;
    PageKey root{};
  };
  bool pcids_;
  bool globals_kept_;
  std::uint64_t fresh_ = 0;    ///< when the current stay in this address space began
  std::uint64_t globals_ = 0;  ///< name of the tenure of global entries
  std::size_t current_ = 0;
  std::size_t next_ = 0;
  /// Linux keeps six PCIDs a CPU, twice that with page-table isolation.
  std::array<Space, 16> spaces_{};
};

}  // namespace strata::shadow
