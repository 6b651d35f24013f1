// PA -> MA: walks of the nested table, violations, and what P2M changes take out again.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

#include "machine/formats.hpp"
#include "machine/walk.hpp"
#include "mmu/flush.hpp"
#include "mmu/frames.hpp"
#include "mmu/p2m.hpp"
#include "nested/caches.hpp"
#include "nested/nested_mmu.hpp"
#include "nested/nested_table.hpp"
#include "nested/vcpu.hpp"

namespace strata::nested {

/// Counted under the fill lock, read by any thread.
struct TableCounters {
  Counter leaves_4k, leaves_2m, leaves_1g, leaves_removed, splits, joins;
};

/// The nested half of the backend.
///
/// Locks, in this order: fill lock, then vCPU locks by id. A violation is filled with the vCPU's
/// own lock let go, because P2m::resolve() may call back into p2m_changed(). The P2M's observer
/// lock comes before both; nothing of the P2M that locks is called under them.
template <class Format>
class NestedDimension {
 public:
  using Table = NestedTable<Format>;
  using WalkLock = std::unique_lock<std::mutex>;

  NestedDimension(typename Table::Radix radix, P2m& p2m, FrameSource& frames, FlushDomain& domain,
                  const NestedOptions& options)
      : table_{std::move(radix)},
        p2m_{&p2m},
        frames_{&frames},
        domain_{&domain},
        window_{frames.window()},
        options_{options},
        controls_{walk_controls(options)} {
    for (unsigned i = 0; i < options.max_vcpus; ++i) vcpus_.push_back(std::make_unique<Vcpu>());
  }

  [[nodiscard]] const Vcpus& vcpus() const noexcept { return vcpus_; }
  [[nodiscard]] MachineWindow window() const noexcept { return window_; }
  [[nodiscard]] const NestedOptions& options() const noexcept { return options_; }
  [[nodiscard]] MA root() const noexcept { return table_.root(); }
  [[nodiscard]] std::uint64_t tables() const noexcept { return table_.tables(); }
  [[nodiscard]] const TableCounters& counters() const noexcept { return count_; }

  /// Translates `pa` for `kind`, filling violations. `lock` is `v`'s and held; it is let go and
  /// taken again around a fill, which v.relocks shows. The page returned stays where it is while
  /// the lock is held. `guest_table`: the access is one to a guest table entry.
  ///
  /// Errors: as P2m::resolve with `pa` exact; retry also when the page kept changing; poisoned when
  /// the nested entry itself is broken (an EPT misconfiguration, SDM 3C 29.3.3.1).
  Expected<NestedPage, Fault> reach(Vcpu& v, WalkLock& lock, PA pa, AccessKind kind,
                                    bool guest_table) {
    for (unsigned attempt = 0; attempt < kAttempts; ++attempt) {
      const auto page = walk(v, pa, kind, guest_table);
      if (page) return *page;
      if (page.error() == machine::WalkStop::reserved) return fault(FaultKind::poisoned, pa);
      v.count.violations.add();
      ++v.last.violations;
      lock.unlock();
      auto filled = fill(page_of(pa), kind);
      lock.lock();
      ++v.relocks;
      if (!filled) {
        Fault f = filled.error();
        f.pa = pa;
        return Unexpected{f};
      }
    }
    return fault(FaultKind::retry, pa);
  }

  /// P2mObserver: drops what maps `range`. Freed tables wait in `flush` as long as holders need.
  void drop(PpnRange range, Flush& flush) {
    const std::uint64_t pages = Table::span() >> kPageShift;
    if (range.count == 0 || range.first.value() >= pages) return;
    const std::uint64_t count = std::min(range.count, pages - range.first.value());
    const std::uint64_t first = address_of(range.first).value();
    const std::uint64_t last = first + (count << kPageShift) - 1;
    const std::lock_guard guard{fill_lock_};
    // First touches change the P2M all the time, mostly where nothing is mapped yet.
    if (!table_.any(first, last)) return;
    const AllVcpusStopped stopped{vcpus_};
    auto removed = table_.remove(first, last);
    count_.leaves_removed.add(removed.leaves);
    count_.splits.add(removed.splits);
    forget(removed.first, removed.last, !removed.tables.empty());
    release_later(std::move(removed.tables), flush);
  }

  /// See NestedMmu::join.
  std::uint64_t join(PpnRange range, Flush& flush) {
    const std::lock_guard guard{fill_lock_};
    std::uint64_t joined = 0;
    for (const PPN ppn : joinable(range)) {
      const std::uint64_t before = count_.joins.value();
      (void)install_locked(ppn, flush);
      joined += count_.joins.value() - before;
    }
    return joined;
  }

 private:
  /// A page that changes this often between fill and walk is one to come back to.
  static constexpr unsigned kAttempts = 64;
  static constexpr unsigned kFillAttempts = 8;

  /// How the walker reaches entries of the nested table: directly.
  class TableMemory {
   public:
    TableMemory(MachineWindow window, Vcpu& v) noexcept : window_{window}, v_{&v} {}
    template <class Entry>
    Expected<Entry, Fault> read(std::uint64_t address, unsigned /*level*/) noexcept {
      v_->count.nested_references.add();
      ++v_->last.nested;
      return word<Entry>(address).load(std::memory_order_acquire);
    }
    template <class Entry>
    Expected<bool, Fault> compare_exchange(std::uint64_t address, Entry seen,
                                           Entry wanted) noexcept {
      if (!word<Entry>(address).compare_exchange_strong(seen, wanted)) return false;
      v_->count.ad_writes.add();
      ++v_->last.ad_writes;
      return true;
    }

   private:
    template <class Entry>
    [[nodiscard]] std::atomic_ref<Entry> word(std::uint64_t address) const noexcept {
      return std::atomic_ref<Entry>{*reinterpret_cast<Entry*>(window_.host(MA{address}))};
    }
    MachineWindow window_;
    Vcpu* v_;
  };

  [[nodiscard]] static machine::WalkControls walk_controls(const NestedOptions& options) {
    machine::WalkControls c;
    // NPT has A/D bits whenever it is on; EPT when EPTP bit 6 says so (SDM 3C 29.3.5).
    c.accessed_dirty = std::is_same_v<Format, machine::NptFormat> || options.accessed_dirty;
    c.nxe = true;       // the hypervisor's EFER rules NPT entries (APM 2 15.25.6)
    c.maxphyaddr = 52;  // machine addresses use whatever the window needs
    return c;
  }
  [[nodiscard]] static Unexpected<Fault> fault(FaultKind kind, PA pa) {
    return Unexpected{Fault{Stage::p2m, kind, 0, {}, pa}};
  }

  /// One walk of the nested table, or what caches know of it.
  Expected<NestedPage, machine::WalkStop> walk(Vcpu& v, PA pa, AccessKind kind, bool guest_table) {
    if (pa.value() >= Table::span()) return Unexpected{machine::WalkStop::not_present};
    const PPN ppn = page_of(pa);
    if (options_.nested_tlb) {
      const NestedPage* known = v.nested_tlb.find(ppn);
      if (known != nullptr && known->allows(kind) && !(guest_table && known->clean)) {
        v.count.nested_tlb_hits.add();
        return *known;
      }
    }
    for (;;) {
      const machine::WalkStart start = start_of(v, pa);
      TableMemory memory{window_, v};
      v.count.walks.add();
      // Every access through NPT is a user access (APM 2 15.25.5); EPT knows no privilege.
      const auto r =
          machine::walk<Format>(start, pa.value(), Access{kind, true, false}, controls_, memory);
      if (!r) return Unexpected{r.error().stop};
      NestedPage page = page_from(*r);
      if (guest_table && page.clean && !make_dirty(*r, page, memory)) continue;
      if (options_.nested_caches) {
        v.nested_tables.template fill<Format>(pa.value(), 0, *r, start.level);
      }
      if (options_.nested_tlb) v.nested_tlb.put(ppn, page);
      return page;
    }
  }

  [[nodiscard]] machine::WalkStart start_of(Vcpu& v, PA pa) const {
    if (options_.nested_caches) {
      if (const auto start = v.nested_tables.template find<Format>(pa.value(), 0)) {
        v.count.nested_cache_hits.add();
        return *start;
      }
    }
    return {table_.root().value(), Format::kLevels, {}};
  }

  [[nodiscard]] NestedPage page_from(const machine::WalkResult& r) const {
    const bool dirty = !controls_.accessed_dirty || (r.leaf & Format::kDirty) != 0;
    return {MA{r.address}.page_base(), r.rights.read, r.rights.write && dirty, r.rights.execute,
            r.rights.write && !dirty};
  }

  /// The processor's accesses to guest tables are writes to the nested table, so they set D
  /// (SDM 3C 29.3.3.2 and 29.3.5; APM 2 15.25.6). Where writing is not permitted ours stay reads: a
  /// guest table in a shared or untouched page then costs no frame, one in ROM works as on the bare
  /// machine. False: the entry has changed, walk again.
  static bool make_dirty(const machine::WalkResult& r, NestedPage& page, TableMemory& memory) {
    using Entry = typename Format::Entry;
    const auto seen = static_cast<Entry>(r.leaf);
    const auto set = memory.compare_exchange(r.steps[r.leaf_level].entry_address, seen,
                                             static_cast<Entry>(seen | Format::kDirty));
    page.writable = true;
    page.clean = false;
    return set && *set;
  }

  /// Answers a violation: has the P2M make the page usable, then installs what it says.
  /// No lock is held. Errors as P2m::resolve.
  Expected<void, Fault> fill(PPN ppn, AccessKind kind) {
    for (unsigned attempt = 0; attempt < kFillAttempts; ++attempt) {
      const auto resolved = p2m_->resolve(ppn, kind);
      if (!resolved) return Unexpected{resolved.error()};
      // Nothing can be mapped beyond what four levels reach.
      if (address_of(ppn).value() >= Table::span()) return fault(FaultKind::mmio, address_of(ppn));
      if (kind == AccessKind::write && resolved->entry.logged()) {
        p2m_->note_dirty(ppn);
        continue;
      }
      Flush flush{*domain_};
      const auto installed = install(ppn, flush);
      flush.commit();
      if (!installed) return Unexpected{installed.error()};
      if (*installed) return {};
    }
    return fault(FaultKind::retry, address_of(ppn));
  }

  Expected<bool, Fault> install(PPN ppn, Flush& flush) {
    const std::lock_guard guard{fill_lock_};
    return install_locked(ppn, flush);
  }

  /// Installs what the P2M says now. Under the fill lock this can not go stale unnoticed: the P2M
  /// marks an entry busy before it tells drop(), so either we see the mark, or drop() comes after
  /// us. False: the page can not be mapped at this moment.
  Expected<bool, Fault> install_locked(PPN ppn, Flush& flush) {
    const P2mLookup now = p2m_->lookup(ppn);
    if (!now.entry.mappable()) return false;
    const P2mTarget target = target_of(now.entry, p2m_->zero_frame());
    const Leaf leaf = leaf_of(ppn, now, target);
    std::uint64_t splits = 0;
    const auto installed = table_.install(leaf, splits);
    if (!installed) return fault(FaultKind::out_of_memory, address_of(ppn));
    count_.splits.add(splits);
    if (*installed == Installed::in_the_way) replace(leaf, flush);
    count_leaf(leaf.level);
    return true;
  }

  void replace(const Leaf& leaf, Flush& flush) {
    const AllVcpusStopped stopped{vcpus_};
    auto freed = table_.replace(leaf);
    // Something was in the way at this level, so the tables above it exist: no frame was needed.
    if (!freed) std::abort();
    const std::uint64_t first = leaf.page.value();
    forget(first, first + (Table::bytes_of(leaf.level) - 1), !freed->empty());
    if (!freed->empty()) count_.joins.add();
    release_later(std::move(*freed), flush);
  }

  /// The largest level at which the P2M's run around `ppn` can be one leaf.
  [[nodiscard]] unsigned level_of(PPN ppn, const P2mLookup& now) const {
    // The zero frame is one frame: a large leaf over it would show what lies beyond.
    if (now.entry.state() == PageState::zero) return 1;
    unsigned level = Table::kMaxLeafLevel;
    if (!options_.huge_pages) level = 2;
    if (!options_.large_pages) level = 1;
    for (; level > 1; --level) {
      const std::uint64_t pages = Table::bytes_of(level) >> kPageShift;
      const std::uint64_t inside = ppn.value() & (pages - 1);
      const bool aligned = (now.entry.mpn().value() & (pages - 1)) == inside;
      if (now.run_shift >= Format::shift(level) && aligned) return level;
    }
    return level;
  }

  [[nodiscard]] Leaf leaf_of(PPN ppn, const P2mLookup& now, P2mTarget target) const {
    const unsigned level = level_of(ppn, now);
    const std::uint64_t inside = Table::bytes_of(level) - 1;
    return {PA{address_of(ppn).value() & ~inside},
            MA{address_of(target.mpn).value() & ~inside},
            {true, target.writable, true, true},
            level};
  }

  /// Drops what every vCPU remembers of [first, last]. All vCPUs are stopped.
  void forget(std::uint64_t first, std::uint64_t last, bool tables_gone) {
    const PpnRange range{page_of(PA{first}), (last - first + 1) >> kPageShift};
    for (const auto& v : vcpus_) {
      v->nested_tlb.drop(range);
      if (tables_gone) v->nested_tables.clear();
    }
  }

  void release_later(std::vector<MPN> tables, Flush& flush) {
    if (tables.empty()) return;
    flush.defer([frames = frames_, freed = std::move(tables)] {
      for (const MPN mpn : freed) frames->release(mpn, FrameKind::nested_table);
    });
  }

  /// First pages of the runs in `range` that are mapped by leaves smaller than they could be.
  [[nodiscard]] std::vector<PPN> joinable(PpnRange range) const {
    std::vector<PPN> found;
    const std::uint64_t pages = Table::span() >> kPageShift;
    if (range.count == 0 || range.first.value() >= pages) return found;
    const std::uint64_t count = std::min(range.count, pages - range.first.value());
    const std::uint64_t first = address_of(range.first).value();
    const std::uint64_t end = first + (count << kPageShift);
    std::uint64_t next = first;
    table_.for_each_leaf(first, end - 1, [&](PA at, unsigned level) {
      if (at.value() < next) return;
      const PPN ppn = page_of(at);
      const P2mLookup now = p2m_->lookup(ppn);
      const unsigned wanted = now.entry.mappable() ? level_of(ppn, now) : 1;
      const std::uint64_t bytes = Table::bytes_of(wanted);
      const std::uint64_t base = at.value() & ~(bytes - 1);
      if (wanted <= level || base < first || base + bytes > end) return;
      found.push_back(ppn);
      next = base + bytes;
    });
    return found;
  }

  void count_leaf(unsigned level) {
    if (level == 1) count_.leaves_4k.add();
    if (level == 2) count_.leaves_2m.add();
    if (level == 3) count_.leaves_1g.add();
  }

  /// Guards changes of the table, its walkers' A/D updates apart, and count_.
  std::mutex fill_lock_;
  Table table_;
  P2m* p2m_;
  FrameSource* frames_;
  FlushDomain* domain_;
  MachineWindow window_;
  NestedOptions options_;
  machine::WalkControls controls_;
  Vcpus vcpus_;
  TableCounters count_;
};

}  // namespace strata::nested
