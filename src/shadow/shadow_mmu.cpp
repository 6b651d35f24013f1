#include "shadow/shadow_mmu.hpp"

#include <algorithm>
#include <mutex>
#include <shared_mutex>
#include <thread>

#include "shadow/translation.hpp"

namespace strata::shadow {

using Format = machine::Long4Format;

namespace {

/// Shadow tables in machine memory, for the one walker. They have A and D preset: a walk has
/// nothing to write to them.
struct ShadowMemory {
  MachineWindow window;
  std::uint64_t references = 0;

  template <class Entry>
  Expected<Entry, Fault> read(std::uint64_t address, unsigned /*level*/) noexcept {
    ++references;
    auto* word = reinterpret_cast<Entry*>(window.host(MA{address}));
    return std::atomic_ref<Entry>{*word}.load(std::memory_order_relaxed);
  }
};

}  // namespace

ShadowMmu::ShadowMmu(P2m& p2m, FrameSource& frames, FlushDomain& domain,
                     const ShadowOptions& options)
    : p2m_{p2m},
      domain_{domain},
      large_pages_{options.large_pages},
      prefetch_{options.prefetch},
      window_{frames.window()},
      tables_{std::make_shared<ShadowTables>(p2m, frames, options)} {
  for (unsigned i = 0; i < std::max(options.max_vcpus, 1U); ++i) {
    Vcpu& v = vcpus_.emplace_back(options);
    v.controls = {shadow_controls(v.context, false), shadow_controls(v.context, true)};
  }
  p2m_.add_observer(*this);
}

ShadowMmu::~ShadowMmu() { p2m_.remove_observer(*this); }

void ShadowMmu::set_context(VcpuId vcpu, const PagingContext& context) {
  if (vcpu >= vcpus_.size()) return;
  Vcpu& v = vcpus_[vcpu];
  const PageKey key = root_key(context, role_of(context, false));
  const bool same_tables = root_key(v.context, role_of(v.context, false)) == key;
  if (!same_tables || v.context.pcid != context.pcid) {
    v.history.enter(context.pcid, key, tables_->clock());
  }
  v.context = context;
  v.controls = {shadow_controls(context, false), shadow_controls(context, true)};
  if (same_tables) return;
  const std::shared_lock guard{tables_->lock()};
  for (const bool anywhere : {false, true}) {
    // Only roots that exist already; the first miss makes what is missing.
    const std::uint32_t root = tables_->find(root_key(context, role_of(context, anywhere)));
    if (root != kNone) {
      tables_->count_root(true);
      v.root_hits.add(1);
    }
    tables_->set_root(vcpu, anywhere, root);
  }
}

Expected<Translation, Fault> ShadowMmu::translate(VcpuId vcpu, VA va, Access access) {
  if (vcpu >= vcpus_.size()) return Unexpected{Fault{Stage::engine, FaultKind::retry, 0, va, {}}};
  Vcpu& v = vcpus_[vcpu];
  v.translations.add(1);
  const bool anywhere = needs_anywhere(v, access);
  for (unsigned attempt = 0; attempt < kAttempts; ++attempt) {
    const Hit h = hit(vcpu, va, access, anywhere);
    if (h.translation) return *h.translation;
    if (h.outdated == kNone) break;
    resync(vcpu, h.outdated, region_of(table_input(v.context.mode, va)));
  }
  return miss(vcpu, va, access, anywhere);
}

void ShadowMmu::resync(VcpuId vcpu, std::uint32_t number, std::uint64_t region) {
  Flush flush{domain_};
  {
    const std::unique_lock guard{tables_->lock()};
    Change change{flush};
    tables_->resync(number, vcpus_[vcpu].history.tenure(), region, change);
    tables_->finish(change);
  }
  flush.commit();
}

ShadowMmu::Hit ShadowMmu::hit(VcpuId vcpu, VA va, Access access, bool anywhere) {
  Vcpu& v = vcpus_[vcpu];
  const machine::WalkControls& controls = v.controls[anywhere ? 1 : 0];
  const std::shared_lock guard{tables_->lock()};
  const std::uint32_t root = tables_->root_of(vcpu, anywhere);
  if (root == kNone) return {};

  ShadowMemory memory{window_};
  const machine::WalkStart start{address_of(tables_->table(root).mpn).value(), 4, {}};
  const std::uint64_t input = table_input(v.context.mode, va);
  auto walk = machine::walk<Format>(start, input, access, controls, memory);
  v.walks.add(1);
  bool traced = false;
  if (!walk && access.kind == AccessKind::write &&
      walk.error().stop == machine::WalkStop::permission) {
    // Perhaps only tracing forbids the store. As a read it gets to the leaf, which says so; R/W
    // then has to come from the levels above it.
    const Access read{AccessKind::read, access.user, access.ac};
    walk = machine::walk<Format>(start, input, read, controls, memory);
    traced = walk && (walk->leaf & kTracedWrite) != 0;
    if (traced) walk->rights.write = walk->steps[walk->leaf_level + 1].rights.write;
    if (!traced) walk = Unexpected{machine::WalkFault{}};
  }
  v.table_references.add(memory.references);
  if (!walk) return {};
  const MA entry{walk->steps[walk->leaf_level].entry_address};
  const std::uint32_t number = tables_->in_frame(page_of(entry));
  const ShadowTable& table = tables_->table(number);
  if (table.unsync && !v.history.covers(table.provenance, region_of(input),
                                        walk->global && v.context.pge, tables_->relinked())) {
    return {std::nullopt, number};
  }
  return {translation_at(*walk, number, v, va, access, controls, traced), kNone};
}

/// What the shadow leaf that `walk` found says. Nothing if the leaf is out of date in the one way
/// it can be: read-only for a trace that has ended.
std::optional<Translation> ShadowMmu::translation_at(const machine::WalkResult& walk,
                                                     std::uint32_t number, const Vcpu& v, VA va,
                                                     Access access,
                                                     const machine::WalkControls& controls,
                                                     bool traced) {
  const MA entry{walk.steps[walk.leaf_level].entry_address};
  ShadowTable& table = tables_->table(number);
  const auto index = static_cast<std::uint32_t>(entry.page_offset() / sizeof(std::uint64_t));
  const std::uint64_t large_mask = (1ULL << (walk.page_shift - kPageShift)) - 1;
  const PPN ppn = tables_->mapped_page(number, index) + (va.value() >> kPageShift & large_mask);
  Translation t = allowed_by(walk.rights, walk.leaf, access, controls);
  if (traced && !(t.writable && tables_->pages().traced(ppn))) return std::nullopt;
  if (traced && tables_->may_unsync(ppn)) return std::nullopt;  // the miss makes it writable

  table.touch();
  if ((walk.leaf & kPrefetched) != 0) tables_->note_prefetch_used(number * kEntries + index);
  t.page = MA{walk.address}.page_base();
  t.pa = address_of(ppn);
  t.global = walk.global && v.context.pge;
  t.page_shift = guest_page_shift(table.key);
  t.traced = traced;
  t.writable = t.writable && !traced;
  return t;
}

void ShadowMmu::invalidate_page(VcpuId vcpu, VA va) {
  // Global or not, in this PCID or (by their provenance) others: more than INVLPG has to do.
  invalidate(vcpu, FlushScope::address, 0, va);
}

void ShadowMmu::invalidate(VcpuId vcpu, FlushScope scope, std::uint16_t pcid, VA va) {
  if (vcpu >= vcpus_.size()) return;
  Vcpu& v = vcpus_[vcpu];
  v.invalidations.add(1);
  await_traced_stores(vcpu);
  if (scope != FlushScope::address) return v.history.flush(scope, pcid, tables_->clock());
  forget_address(vcpu, va);
}

void ShadowMmu::traced_store_begins(VcpuId vcpu) noexcept {
  if (vcpu < vcpus_.size()) vcpus_[vcpu].traced_stores.fetch_add(1, std::memory_order_acq_rel);
}

void ShadowMmu::traced_store_ends(VcpuId vcpu) noexcept {
  if (vcpu < vcpus_.size()) vcpus_[vcpu].traced_stores.fetch_add(1, std::memory_order_release);
}

/// A vCPU that flushes after it has seen another's store to a table must meet the new entry (SDM 3A
/// 4.10.4.2), so the store's announcement has to have arrived. Nobody waits for this vCPU in
/// between: the storing one is on its way out of guest_wrote().
void ShadowMmu::await_traced_stores(VcpuId vcpu) const noexcept {
  for (const Vcpu& v : vcpus_) {
    const std::uint32_t seen = v.traced_stores.load(std::memory_order_acquire);
    if ((seen & 1) == 0 || &v == &vcpus_[vcpu]) continue;
    while (v.traced_stores.load(std::memory_order_acquire) == seen) std::this_thread::yield();
  }
}

void ShadowMmu::forget_address(VcpuId vcpu, VA va) {
  if (tables_->unsync_count() == 0) return;  // tables in step hold what the guest's say
  const std::unique_lock guard{tables_->lock()};
  tables_->check_address(vcpu, table_input(vcpus_[vcpu].context.mode, va));
}

namespace {

/// Calls visit(ppn, offset, length) for the part of [pa, pa + length) in each mirrored page.
/// Lengths come from guests and devices: regions without tables cost nothing. Pages whose mirrors
/// are out of sync are among them: a store that was traced when it was made may be announced only
/// now.
template <class Visit>
void for_each_mirrored(ReverseMap& pages, PA pa, std::uint64_t length, Visit visit) {
  if (length == 0) return;
  const std::uint64_t last = pa.value() + std::min(length - 1, ~pa.value());  // no wrap-around
  const PPN first_page = page_of(pa);
  const PpnRange range{first_page, page_of(PA{last}) - first_page + 1};
  pages.for_each(range, [&](const Region& r) {
    if (r.mirrored_pages == 0) return;
    const std::uint64_t begin = std::max(address_of(r.base).value(), pa.value());
    const std::uint64_t end = std::min(address_of(r.base).value() + (kLargePageSize - 1), last);
    for (std::uint64_t at = begin & ~kPageMask; at <= end; at += kPageSize) {
      const PPN ppn = page_of(PA{at});
      if (!r.mirrored(ReverseMap::offset_of(ppn))) continue;
      const std::uint64_t from = std::max(at, begin);
      visit(ppn, from - at, std::min(at + kPageMask, end) - from + 1);
    }
  });
}

}  // namespace

void ShadowMmu::guest_wrote(PA pa, std::uint64_t length) {
  bool apply = false;
  {
    const std::shared_lock guard{tables_->lock()};
    bool traced = false;
    for_each_mirrored(tables_->pages(), pa, length,
                      [&](PPN ppn, std::uint64_t offset, std::uint64_t part) {
                        traced = true;
                        apply = tables_->note_write(ppn, offset, part) || apply;
                      });
    if (!traced) return;
    // A miss that has read the old entry and waits for the lock must not install it.
    tables_->next_generation();
  }
  traced_writes_.fetch_add(1, std::memory_order_relaxed);
  if (!apply) return;
  Flush flush{domain_};
  {
    const std::unique_lock guard{tables_->lock()};
    Change change{flush};
    for_each_mirrored(tables_->pages(), pa, length,
                      [&](PPN ppn, std::uint64_t offset, std::uint64_t part) {
                        tables_->apply_write(ppn, offset, part, change);
                      });
    tables_->finish(change);
  }
  flush.commit();
}

void ShadowMmu::p2m_changed(PpnRange range, Flush& flush) {
  const std::unique_lock guard{tables_->lock()};
  Change change{flush};
  tables_->drop_pages(range, change);
  tables_->next_generation();
  tables_->finish(change);
}

MmuStats ShadowMmu::stats() const noexcept {
  MmuStats s;
  for (const Vcpu& v : vcpus_) {
    s.translations += v.translations.get();
    s.walks += v.walks.get();
    s.guest_references += v.guest_references.get();
    s.table_references += v.table_references.get();
    s.ad_writes += v.ad_writes.get();
    s.backend_misses += v.misses.get();
    s.guest_faults += v.faults.get();
    s.invalidations += v.invalidations.get();
    s.cache_hits += v.root_hits.get();
  }
  s.traced_writes = traced_writes_.load(std::memory_order_relaxed);
  s.table_bytes = tables_->table_bytes();
  return s;
}

ShadowStats ShadowMmu::shadow_stats() const {
  const std::shared_lock guard{tables_->lock()};
  ShadowStats s = tables_->stats();
  for (const Vcpu& v : vcpus_) {
    s.unlinked += v.unlinked.get();
    s.retries += v.retries.get();
  }
  return s;
}

std::unique_ptr<ShadowBackend> make_shadow_backend(P2m& p2m, FrameSource& frames,
                                                   FlushDomain& domain,
                                                   const ShadowOptions& options) {
  return std::make_unique<ShadowMmu>(p2m, frames, domain, options);
}

std::unique_ptr<Mmu> make_shadow(P2m& p2m, FrameSource& frames, FlushDomain& domain,
                                 const ShadowOptions& options) {
  return make_shadow_backend(p2m, frames, domain, options);
}

}  // namespace strata::shadow
