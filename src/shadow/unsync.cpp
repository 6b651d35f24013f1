// Leaf tables out of sync: left unwatched by a store, compared with the guest's when a vCPU that
// has flushed uses them again. Who may use an outdated entry until then: flush_history.hpp.

#include <algorithm>

#include "shadow/guest_leaf.hpp"
#include "shadow/tables.hpp"

namespace strata::shadow {

using Format = machine::Long4Format;

namespace {

/// Tables out of sync at a time. INVLPG looks at each, so there should not be many; the one that
/// has been so for longest is traced again to make room.
constexpr std::size_t kMostUnsync = 64;

/// A table is traced again after so many resyncs in a row that found nothing: to trace it and to
/// end that again costs more than to compare it twice.
constexpr std::uint8_t kQuietResyncs = 3;

}  // namespace

bool ShadowTables::may_unsync(PPN ppn) const noexcept {
  if (!options_.unsync) return false;
  const std::uint32_t first = by_tag_.find(ppn.value());
  for (std::uint32_t n = first; n != kNone; n = tables_[n]->next_same_tag) {
    if (tables_[n]->key.level != 1) return false;
  }
  return first != kNone;
}

void ShadowTables::unsync(PPN ppn, Change& change) {
  const std::uint64_t now = clock_.next();
  for (std::uint32_t n = by_tag_.find(ppn.value()); n != kNone; n = tables_[n]->next_same_tag) {
    ShadowTable& t = *tables_[n];
    stop_settling(t);
    if (t.unsync) continue;
    t.settled = false;
    t.provenance.synced_at = now;
    set_unsync(n, true);
  }
  pages_.find(ppn)->set_traced(ReverseMap::offset_of(ppn), false);
  ++counters_.unsyncs;
  if (unsync_.size() <= kMostUnsync) return;
  const PPN oldest{tables_[unsync_.front()]->key.base};
  if (oldest != ppn && !pages_.traced(oldest)) trace_again(oldest, change);
}

void ShadowTables::set_unsync(std::uint32_t number, bool on) {
  tables_[number]->unsync = on;
  tables_[number]->quiet = 0;
  if (on) {
    unsync_.push_back(number);
  } else {
    unsync_.erase(std::find(unsync_.begin(), unsync_.end(), number));
  }
  unsync_count_.store(static_cast<std::uint32_t>(unsync_.size()), std::memory_order_release);
}

/// Begins to trace `ppn`; its mirrors are settled, and with that in sync, when all have passed.
void ShadowTables::trace_again(PPN ppn, Change& change) {
  begin_trace(ppn, change);
  for (std::uint32_t n = by_tag_.find(ppn.value()); n != kNone; n = tables_[n]->next_same_tag) {
    start_settling(n, change);
  }
}

void ShadowTables::start_settling(std::uint32_t number, Change& change) {
  ShadowTable& t = *tables_[number];
  if (!t.settling) unsettled_.fetch_add(1, std::memory_order_acq_rel);
  t.settling = true;
  t.serial = next_serial_++;
  change.settling.push_back({number, t.serial});
}

void ShadowTables::stop_settling(ShadowTable& t) noexcept {
  if (t.settling) unsettled_.fetch_sub(1, std::memory_order_acq_rel);
  t.settling = false;
  t.serial = next_serial_++;
}

bool ShadowTables::agrees_now(Slot slot, const GuestLeaves& leaves) const noexcept {
  const std::uint32_t number = slot / kEntries;
  const std::uint32_t index = slot % kEntries;
  return agrees(entry(slot), mapped_page(number, index), Format::kWritable | kTracedWrite,
                leaves.at(index));
}

bool ShadowTables::up_to_date(Slot slot) const noexcept {
  return agrees_now(slot, GuestLeaves{p2m_, window_, tables_[slot / kEntries]->key});
}

void ShadowTables::zap_leaf(Slot slot) noexcept {
  word(slot).store(0, std::memory_order_relaxed);
  detach(slot);
  ++counters_.zaps;
}

std::uint32_t ShadowTables::zap_outdated(std::uint32_t number) noexcept {
  const ShadowTable& t = *tables_[number];
  const GuestLeaves leaves{p2m_, window_, t.key};
  std::uint32_t found = 0;
  for (std::uint32_t i = 0; i < kEntries; ++i) {
    const Link* l = t.link(i);
    if (l == nullptr) {
      i += ShadowTable::kBlock - 1;  // no block: none of its entries
      continue;
    }
    if (!l->occupied() || agrees_now(number * kEntries + i, leaves)) continue;
    zap_leaf(number * kEntries + i);
    ++found;
  }
  counters_.outdated += found;
  return found;
}

void ShadowTables::resync(std::uint32_t number, const Tenure& by, std::uint64_t region,
                          Change& change) {
  if (number >= tables_.size() || !tables_[number] || !tables_[number]->unsync) return;
  ShadowTable& t = *tables_[number];
  t.provenance = {clock_.next(), by, region};
  ++counters_.resyncs;
  if (zap_outdated(number) != 0) {
    t.quiet = 0;
  } else if (t.quiet < kQuietResyncs) {
    ++t.quiet;
  }
  if (t.quiet >= kQuietResyncs && !t.settling) trace_again(PPN{t.key.base}, change);
}

void ShadowTables::check_entry(Slot slot) noexcept {
  const ShadowTable& t = *tables_[slot / kEntries];
  const Link* l = t.link(slot % kEntries);
  if (!t.unsync || l == nullptr || !l->occupied() || up_to_date(slot)) return;
  zap_leaf(slot);
  ++counters_.outdated;
}

void ShadowTables::check_address(VcpuId vcpu, std::uint64_t input) noexcept {
  const auto index = [&](unsigned level) {
    return static_cast<std::uint32_t>(input >> Format::shift(level) & (kEntries - 1));
  };
  // Where the address leads now, and wherever else an entry for it may be used by its provenance.
  for (const std::uint32_t root : roots_[vcpu]) {
    std::uint32_t number = root;
    for (unsigned level = 4; level > 1 && number != kNone; --level) {
      const Link* l = tables_[number]->link(index(level));
      number = l != nullptr && l->occupied() && l->to_table() ? l->child() : kNone;
    }
    if (number != kNone) check_entry(number * kEntries + index(1));
  }
  const std::uint64_t region = region_of(input);
  for (const std::uint32_t n : unsync_) {
    if (tables_[n]->provenance.region == region) check_entry(n * kEntries + index(1));
  }
}

void ShadowTables::note_maker(Slot slot, const Tenure& by, std::uint64_t region) noexcept {
  ShadowTable& t = *tables_[slot / kEntries];
  const Link* l = t.link(slot % kEntries);
  const std::uint32_t others = t.present - (l != nullptr && l->occupied() ? 1 : 0);
  t.provenance.add(by, region, others == 0);
}

}  // namespace strata::shadow
