// VA -> PA: the guest's own tables, every entry of which is reached through the nested table.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "machine/formats.hpp"
#include "machine/walk.hpp"
#include "mmu/mmu.hpp"
#include "nested/nested_dimension.hpp"
#include "nested/vcpu.hpp"

namespace strata::nested {

/// Memory policy of the guest's half of the two-dimensional walk. Lives for one walk; the vCPU's
/// lock is held.
template <class TableFormat>
class GuestTables {
 public:
  using Dimension = NestedDimension<TableFormat>;

  GuestTables(Dimension& nested, Vcpu& v, typename Dimension::WalkLock& lock) noexcept
      : nested_{&nested}, v_{&v}, lock_{&lock} {}

  template <class Entry>
  Expected<Entry, Fault> read(std::uint64_t address, unsigned /*level*/) {
    v_->count.guest_references.add();
    ++v_->last.guest;
    const auto page = nested_->reach(*v_, *lock_, PA{address}, AccessKind::read, true);
    if (!page) {
      // No table there: what a read that nobody claims returns on the bus.
      if (page.error().kind == FaultKind::mmio) return static_cast<Entry>(~Entry{0});
      return Unexpected{page.error()};
    }
    remember(page_of(PA{address}), *page);
    return word<Entry>(*page, address).load(std::memory_order_acquire);
  }

  /// An A/D update. Where stores have no effect (ROM, no memory) neither has this one.
  template <class Entry>
  Expected<bool, Fault> compare_exchange(std::uint64_t address, Entry seen, Entry wanted) {
    NestedPage page;
    if (const NestedPage* known = recall(page_of(PA{address}))) {
      page = *known;
    } else {
      const auto reached = nested_->reach(*v_, *lock_, PA{address}, AccessKind::write, true);
      if (!reached) {
        const FaultKind kind = reached.error().kind;
        if (kind == FaultKind::rom_write || kind == FaultKind::mmio) return true;
        return Unexpected{reached.error()};
      }
      page = *reached;
    }
    if (!word<Entry>(page, address).compare_exchange_strong(seen, wanted)) return false;
    v_->count.ad_writes.add();
    ++v_->last.ad_writes;
    return true;
  }

 private:
  struct Known {
    PPN ppn;
    NestedPage page;
  };

  template <class Entry>
  [[nodiscard]] std::atomic_ref<Entry> word(const NestedPage& page, std::uint64_t address) const {
    const MA ma = page.page + PA{address}.page_offset();
    return std::atomic_ref<Entry>{*reinterpret_cast<Entry*>(nested_->window().host(ma))};
  }

  /// The read of an entry and its A/D update are one access to the nested table: the update needs
  /// no second walk if the first found the page writable.
  void remember(PPN ppn, const NestedPage& page) {
    forget_if_stale();
    if (page.writable && used_ < known_.size()) known_[used_++] = {ppn, page};
  }
  [[nodiscard]] const NestedPage* recall(PPN ppn) {
    forget_if_stale();
    for (std::size_t i = 0; i < used_; ++i) {
      if (known_[i].ppn == ppn) return &known_[i].page;
    }
    return nullptr;
  }
  /// Without the lock pages may have moved.
  void forget_if_stale() {
    if (relocks_ != v_->relocks) used_ = 0;
    relocks_ = v_->relocks;
  }

  Dimension* nested_;
  Vcpu* v_;
  typename Dimension::WalkLock* lock_;
  std::array<Known, 4> known_{};
  std::size_t used_ = 0;
  std::uint64_t relocks_ = 0;
};

/// Where a walk of the guest's tables begins, or why a PDPTE names no table.
template <class GuestFormat>
[[nodiscard]] Expected<machine::WalkStart, machine::WalkStop> guest_root(const PagingContext& c,
                                                                         VA va) noexcept {
  std::uint64_t table = c.root.value();
  if constexpr (std::is_same_v<GuestFormat, machine::PaeFormat>) {
    if (const auto stop = machine::pdpte_stop(c, va)) return Unexpected{*stop};
    table = machine::PaeFormat::table_address(c.pdpte[va.value() >> kHugePageShift & 3]);
  }
  return machine::WalkStart{table & ~kPageMask, GuestFormat::kLevels, {}};
}

/// Whether what paging-structure caches hold was read under the same rules.
[[nodiscard]] inline bool same_table_rules(const PagingContext& a,
                                           const PagingContext& b) noexcept {
  return a.mode == b.mode && a.pse == b.pse && a.nxe == b.nxe && a.pcide == b.pcide &&
         a.huge_pages == b.huge_pages && a.maxphyaddr == b.maxphyaddr && a.pdpte == b.pdpte;
}

}  // namespace strata::nested
