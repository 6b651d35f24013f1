#include "nested/nested_mmu.hpp"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#include "machine/guest_walk.hpp"
#include "machine/walk.hpp"
#include "nested/guest_dimension.hpp"
#include "nested/nested_dimension.hpp"
#include "nested/vcpu.hpp"

namespace strata::nested {
namespace {

using machine::WalkFault;
using machine::WalkResult;
using machine::WalkStop;

template <class TableFormat>
class Backend final : public NestedMmu {
 public:
  using Dimension = NestedDimension<TableFormat>;
  using WalkLock = typename Dimension::WalkLock;

  Backend(typename Dimension::Table::Radix radix, P2m& p2m, FrameSource& frames,
          FlushDomain& domain, const NestedOptions& options)
      : nested_{std::move(radix), p2m, frames, domain, options}, p2m_{&p2m} {
    p2m.add_observer(*this);
  }
  ~Backend() override { p2m_->remove_observer(*this); }

  [[nodiscard]] std::string_view name() const noexcept override {
    return format() == Format::ept ? "nested-ept" : "nested-npt";
  }
  [[nodiscard]] Format format() const noexcept override {
    return std::is_same_v<TableFormat, machine::EptFormat> ? Format::ept : Format::npt;
  }
  [[nodiscard]] MA root() const noexcept override { return nested_.root(); }

  void set_context(VcpuId id, const PagingContext& context) override {
    Vcpu& v = vcpu(id);
    const std::lock_guard lock{v.lock};
    if (!same_table_rules(v.context, context)) v.guest_tables.clear();
    v.context = context;
    v.controls = machine::controls_of(context);
  }

  Expected<Translation, Fault> translate(VcpuId id, VA va, Access access) override {
    Vcpu& v = vcpu(id);
    v.count.translations.add();
    WalkLock lock{v.lock};
    v.last = {};
    const auto result = translate_in_mode(v, lock, va, access);
    if (!result) {
      Fault fault = result.error();
      fault.va = va;
      if (fault.kind == FaultKind::page_fault) v.count.guest_faults.add();
      return Unexpected{fault};
    }
    const std::size_t last_bucket = v.count.references.size() - 1;
    v.count.references[std::min<std::size_t>(v.last.total(), last_bucket)].add();
    return result;
  }

  void invalidate_page(VcpuId id, VA /*va*/) override {
    // Whatever the address, all of the PCID goes (SDM 3A 4.10.4.1); TLB entries are the engine's.
    Vcpu& v = vcpu(id);
    const std::lock_guard lock{v.lock};
    v.count.invalidations.add();
    v.guest_tables.drop_tag(v.context.pcid);
  }
  void invalidate(VcpuId id, FlushScope scope, std::uint16_t pcid, VA /*va*/) override {
    Vcpu& v = vcpu(id);
    const std::lock_guard lock{v.lock};
    v.count.invalidations.add();
    // Paging-structure caches know no global entries.
    if (scope == FlushScope::address || scope == FlushScope::pcid) {
      v.guest_tables.drop_tag(pcid);
    } else {
      v.guest_tables.clear();
    }
  }

  /// Nothing here is derived from guest tables but per-vCPU caches, which the guest flushes itself.
  void guest_wrote(PA /*pa*/, std::uint64_t /*length*/) override {}
  void p2m_changed(PpnRange range, Flush& flush) override { nested_.drop(range, flush); }
  std::uint64_t join(PpnRange range, Flush& flush) override { return nested_.join(range, flush); }

  [[nodiscard]] MmuStats stats() const noexcept override {
    MmuStats s;
    for (const auto& v : nested_.vcpus()) {
      const VcpuCounters& c = v->count;
      s.translations += c.translations.value();
      s.walks += c.walks.value();
      s.guest_references += c.guest_references.value();
      s.table_references += c.nested_references.value();
      s.ad_writes += c.ad_writes.value();
      s.backend_misses += c.violations.value();
      s.guest_faults += c.guest_faults.value();
      s.invalidations += c.invalidations.value();
      s.cache_hits +=
          c.guest_cache_hits.value() + c.nested_tlb_hits.value() + c.nested_cache_hits.value();
    }
    s.table_bytes = nested_.tables() * kPageSize;
    return s;
  }

  [[nodiscard]] NestedStats nested_stats() const noexcept override {
    NestedStats s;
    for (const auto& v : nested_.vcpus()) {
      const VcpuCounters& c = v->count;
      for (std::size_t i = 0; i < s.references.size(); ++i) {
        s.references[i] += c.references[i].value();
      }
      s.guest_cache_hits += c.guest_cache_hits.value();
      s.nested_tlb_hits += c.nested_tlb_hits.value();
      s.nested_cache_hits += c.nested_cache_hits.value();
    }
    const TableCounters& t = nested_.counters();
    s.leaves_4k = t.leaves_4k.value();
    s.leaves_2m = t.leaves_2m.value();
    s.leaves_1g = t.leaves_1g.value();
    s.leaves_removed = t.leaves_removed.value();
    s.splits = t.splits.value();
    s.joins = t.joins.value();
    s.tables = nested_.tables();
    return s;
  }

  [[nodiscard]] WalkReferences last_walk(VcpuId id) const override {
    const Vcpu& v = vcpu(id);
    const std::lock_guard lock{v.lock};
    return v.last;
  }

 private:
  [[nodiscard]] Vcpu& vcpu(VcpuId id) const {
    // An id beyond max_vcpus is a bug of the VMM's; it must not become a wild access.
    if (id >= nested_.vcpus().size()) std::abort();
    return *nested_.vcpus()[id];
  }

  Expected<Translation, Fault> translate_in_mode(Vcpu& v, WalkLock& lock, VA va, Access access) {
    switch (v.context.mode) {
      case PagingMode::i386:
        return two_dimensional<machine::I386Format>(v, lock, low_half(va), access);
      case PagingMode::pae:
        return two_dimensional<machine::PaeFormat>(v, lock, low_half(va), access);
      case PagingMode::long4:
        return two_dimensional<machine::Long4Format>(v, lock, va, access);
      case PagingMode::off:
        break;
    }
    return one_dimensional(v, lock, low_half(va), access);
  }
  /// Linear addresses have 32 bits outside of long mode (SDM 1 3.3.7.1).
  [[nodiscard]] static VA low_half(VA va) { return VA{va.value() & 0xFFFFFFFFU}; }

  Expected<Translation, Fault> one_dimensional(Vcpu& v, WalkLock& lock, VA va, Access access) {
    const PA pa{va.value()};
    const auto page = nested_.reach(v, lock, pa, access.kind, false);
    if (!page) return Unexpected{page.error()};
    Translation t;
    t.page = page->page;
    t.pa = pa.page_base();
    t.readable = page->readable;
    t.writable = page->writable;
    t.executable = page->executable;
    return t;
  }

  template <class G>
  Expected<Translation, Fault> two_dimensional(Vcpu& v, WalkLock& lock, VA va, Access access) {
    GuestTables<TableFormat> memory{nested_, v, lock};
    const auto walk = walk_guest<G>(v, va, access, memory);
    if (!walk) {
      if (walk.error().stop == WalkStop::memory) return Unexpected{walk.error().memory_fault};
      const bool fetch_bit = machine::has_fetch_bit(v.context);
      const std::uint32_t code = machine::page_fault_code(walk.error(), access, fetch_bit);
      return Unexpected{Fault{Stage::guest_table, FaultKind::page_fault, code, va, {}}};
    }
    const PA pa{walk->address};
    const auto page = nested_.reach(v, lock, pa, access.kind, false);
    if (!page) return Unexpected{page.error()};
    return compose<G>(v, *walk, pa, *page, access);
  }

  /// The guest's half: from the root, or from where paging-structure caches know the way.
  template <class G>
  Expected<WalkResult, WalkFault> walk_guest(Vcpu& v, VA va, Access access,
                                             GuestTables<TableFormat>& memory) {
    const auto root = guest_root<G>(v.context, va);
    if (!root) return Unexpected{WalkFault{root.error(), 3, {}, {}}};
    const std::uint16_t pcid = v.context.pcid;
    if (!nested_.options().guest_caches) {
      return machine::walk<G>(*root, va.value(), access, v.controls, memory);
    }
    if (const auto start = v.guest_tables.template find<G>(va.value(), pcid)) {
      v.count.guest_cache_hits.add();
      auto walk = machine::walk<G>(*start, va.value(), access, v.controls, memory);
      if (walk) {
        v.guest_tables.template fill<G>(va.value(), pcid, *walk, start->level);
        return walk;
      }
      if (walk.error().stop == WalkStop::memory) return walk;
      // A fault is only delivered for what is in memory now: rights may have been added without a
      // flush, and a page fault drops what it was found with (SDM 3A 4.10.4.1 and 4.10.4.3).
      v.guest_tables.template drop<G>(va.value(), pcid);
    }
    auto walk = machine::walk<G>(*root, va.value(), access, v.controls, memory);
    if (walk) v.guest_tables.template fill<G>(va.value(), pcid, *walk, root->level);
    return walk;
  }

  /// What the engine may keep: the intersection of both tables' rights for this privilege.
  template <class G>
  [[nodiscard]] static Translation compose(const Vcpu& v, const WalkResult& walk, PA pa,
                                           const NestedPage& page, Access access) {
    const auto permits = [&](AccessKind kind) {
      if constexpr (G::kProtectionKeys) {
        if (G::key_denies(walk.rights, walk.leaf, kind, access.user, v.controls)) return false;
      }
      return G::permits(walk.rights, kind, access.user, access.ac, v.controls);
    };
    Translation t;
    t.page = page.page;
    t.pa = pa.page_base();
    t.readable = page.readable && permits(AccessKind::read);
    // A store that has to set D first must come back as a walk.
    t.writable = page.writable && (walk.leaf & G::kDirty) != 0 && permits(AccessKind::write);
    t.executable = page.executable && permits(AccessKind::execute);
    t.global = walk.global && v.context.pge;
    t.page_shift = walk.page_shift;
    return t;
  }

  Dimension nested_;
  P2m* p2m_;
};

template <class TableFormat>
std::unique_ptr<NestedMmu> make(P2m& p2m, FrameSource& frames, FlushDomain& domain,
                                const NestedOptions& options) {
  using Radix = machine::RadixTable<TableFormat>;
  auto radix = Radix::create(frames, FrameKind::nested_table, FrameKind::nested_table);
  if (!radix) return nullptr;
  return std::make_unique<Backend<TableFormat>>(*std::move(radix), p2m, frames, domain, options);
}

}  // namespace

std::unique_ptr<NestedMmu> make_nested(Format format, P2m& p2m, FrameSource& frames,
                                       FlushDomain& domain, const NestedOptions& options) {
  return format == Format::ept ? make<machine::EptFormat>(p2m, frames, domain, options)
                               : make<machine::NptFormat>(p2m, frames, domain, options);
}

}  // namespace strata::nested
