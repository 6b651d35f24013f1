#include "machine/p2m.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

namespace strata::machine {
namespace {

Unexpected<Fault> p2m_fault(FaultKind kind, PPN ppn) {
  return Unexpected{Fault{Stage::p2m, kind, 0, VA{}, address_of(ppn)}};
}

constexpr std::uint64_t kPages = 1ULL << (P2mTable::kAddressBits - kPageShift);

}  // namespace

Expected<std::unique_ptr<P2mTable>, OutOfFrames> P2mTable::create(FrameSource& frames,
                                                                  SegmentRef home,
                                                                  FlushDomain& domain) {
  static_assert(Table::span() == 1ULL << kAddressBits);
  auto table = Table::create(frames, FrameKind::p2m_node, FrameKind::p2m_leaf);
  if (!table) return Unexpected{table.error()};
  auto dirty =
      HostMapping::anonymous((home->bytes() / kPageSize + 63) / 64 * sizeof(std::uint64_t));
  if (!dirty) return Unexpected{OutOfFrames{}};
  const auto zero = frames.allocate(FrameKind::shared_page);
  if (!zero) return Unexpected{zero.error()};
  return std::unique_ptr<P2mTable>{
      new P2mTable{frames, std::move(home), domain, std::move(*table), *zero, std::move(*dirty)}};
}

P2mTable::P2mTable(FrameSource& frames, SegmentRef home, FlushDomain& domain, Table table, MPN zero,
                   HostMapping dirty)
    : frames_{&frames},
      home_{std::move(home)},
      domain_{&domain},
      window_{frames.window()},
      zero_frame_{zero},
      table_{std::move(table)},
      dirty_{std::move(dirty)} {}

P2mTable::~P2mTable() {
  alive_.reset();
  frames_->release(zero_frame_, FrameKind::shared_page);
}

// ---- regions ----

bool P2mTable::valid_range(PpnRange range, bool needs_home) const noexcept {
  const std::uint64_t end = needs_home ? home_->bytes() / kPageSize : kPages;
  const std::uint64_t limit = std::min(end, kPages);
  return range.count != 0 && range.first.value() < limit &&
         range.count <= limit - range.first.value();
}

bool P2mTable::range_is_absent(PpnRange range) const noexcept {
  bool absent = true;
  const PA first = address_of(range.first);
  table_.for_each(first.value(), first.value() + range.count * kPageSize - 1,
                  [&](std::uint64_t, const Slot& slot) {
                    const P2mEntry e{slot.value};
                    if (e.state() != PageState::absent || e.busy()) absent = false;
                  });
  return absent;
}

/// Calls `visit(ppn, Slot&)` with the largest entries that `range` can be made of, the tables above
/// them made as needed. OutOfFrames as soon as one cannot be.
template <class Visit>
Expected<void, OutOfFrames> P2mTable::cover(PpnRange range, Visit&& visit) {
  for (std::uint64_t done = 0; done < range.count;) {
    const PPN ppn = range.first + done;
    unsigned level = 3;  // 1 GiB: as large as host pages and nested entries get
    Slot slot;
    for (;; --level) {
      const std::uint64_t pages = Table::reach_of(level) / kPageSize;
      if (level > 1 && (ppn.value() % pages != 0 || range.count - done < pages)) continue;
      auto reached = table_.reach(address_of(ppn).value(), level);
      if (!reached) return Unexpected{reached.error()};
      slot = *reached;
      if (!Table::is_table(slot.value, level)) break;
    }
    visit(ppn, slot);
    done += Table::reach_of(level) / kPageSize;
  }
  return {};
}

Expected<void, EditError> P2mTable::add_region(PpnRange range, PageState state) {
  const std::lock_guard guard{edit_lock_};
  const ReaderGate::Section section{gate_};
  if (!range_is_absent(range)) return Unexpected{EditError::bad_range};
  // Tables first: once they are there nothing can fail, and nothing has been added before.
  if (!cover(range, [](PPN, Slot&) {})) return Unexpected{EditError::out_of_frames};
  const bool framed = P2mFormat::has_frame(state);
  const auto made = cover(range, [&](PPN ppn, Slot& slot) {
    const std::uint64_t payload = framed ? home_of(ppn).value() : 0;
    const P2mEntry old{slot.value};
    slot.store(old.with_state(state, payload).next_version().raw());
  });
  return made ? Expected<void, EditError>{} : Unexpected{EditError::out_of_frames};
}

Expected<void, EditError> P2mTable::add_ram(PpnRange range) {
  if (!valid_range(range, true)) return Unexpected{EditError::bad_range};
  return add_region(range, PageState::zero);
}

Expected<void, EditError> P2mTable::add_mmio(PpnRange range) {
  if (!valid_range(range, false)) return Unexpected{EditError::bad_range};
  return add_region(range, PageState::mmio);
}

Expected<void, EditError> P2mTable::add_rom(PpnRange range, std::span<const std::byte> image) {
  if (!valid_range(range, true) || image.size() > range.count * kPageSize) {
    return Unexpected{EditError::bad_range};
  }
  {
    const ReaderGate::Section section{gate_};
    if (!range_is_absent(range)) return Unexpected{EditError::bad_range};
  }
  const ByteRange bytes{range.first.value() * kPageSize, range.count * kPageSize};
  if (!home_->touch(bytes)) return Unexpected{EditError::out_of_frames};
  if (!image.empty()) {
    std::memcpy(window_.host(address_of(home_of(range.first))), image.data(), image.size());
  }
  auto added = add_region(range, PageState::rom);
  if (!added && range_is_absent(range)) (void)home_->punch(bytes);
  return added;
}

// ---- lookup and resolve ----

P2mLookup P2mTable::lookup_of(const Slot& slot, PPN ppn) const noexcept {
  const unsigned shift = P2mFormat::shift(slot.level);
  const std::uint64_t inside = ppn.value() & ((1ULL << (shift - kPageShift)) - 1);
  return {P2mEntry{P2mFormat::advance(slot.value, inside)}, std::min(shift, kLargePageShift)};
}

P2mLookup P2mTable::lookup(PPN ppn) const noexcept {
  if (ppn.value() >= kPages) return {};
  const ReaderGate::Section section{gate_};
  return lookup_of(table_.find(address_of(ppn).value()), ppn);
}

/// The 4 KiB entry, splitting runs as needed. Inside a ReaderGate::Section.
Expected<P2mTable::Slot, OutOfFrames> P2mTable::leaf_slot(PPN ppn) {
  return table_.reach(address_of(ppn).value(), 1);
}

Expected<P2mLookup, Fault> P2mTable::resolve(PPN ppn, AccessKind kind) {
  for (;;) {
    if (auto r = resolve_once(ppn, kind)) return *r;
  }
}

/// One attempt; nothing when the entry changed on the way.
std::optional<Expected<P2mLookup, Fault>> P2mTable::resolve_once(PPN ppn, AccessKind kind) {
  const P2mLookup now = lookup(ppn);
  const bool write = kind == AccessKind::write;
  if (now.entry.busy()) {
    // What keeps it busy may wait for somebody to run the domain's deferred actions.
    domain_->collect();
    if (lookup(ppn).entry.busy()) return p2m_fault(FaultKind::retry, ppn);
    return std::nullopt;
  }
  switch (now.entry.state()) {
    case PageState::zero:
    case PageState::shared:
      if (write) return make_private(ppn);
      return now;
    case PageState::private_page:
      if (!write || !now.entry.logged()) return now;
      note_dirty(ppn);
      return std::nullopt;
    case PageState::rom:
      if (write) return p2m_fault(FaultKind::rom_write, ppn);
      return now;
    case PageState::ballooned:
      return take_back(ppn);
    case PageState::compressed:
    case PageState::swapped:
    case PageState::image_backed:
      return p2m_fault(FaultKind::paused, ppn);
    case PageState::poisoned:
      return p2m_fault(FaultKind::poisoned, ppn);
    default:
      return p2m_fault(FaultKind::mmio, ppn);
  }
}

/// The guest touches a page that it gave back: it is untouched memory again. No translation led
/// there, so there is nobody to tell.
std::optional<Expected<P2mLookup, Fault>> P2mTable::take_back(PPN ppn) {
  const ReaderGate::Section section{gate_};
  auto slot = leaf_slot(ppn);
  if (!slot) return p2m_fault(FaultKind::out_of_memory, ppn);
  const P2mEntry seen{slot->value};
  if (seen.state() == PageState::ballooned && !seen.busy()) {
    slot->compare_exchange(seen.with_state(PageState::zero, 0).next_version().raw());
  }
  return std::nullopt;
}

/// Gives a zero or shared page its home frame, with the contents it had.
std::optional<Expected<P2mLookup, Fault>> P2mTable::make_private(PPN ppn) {
  Slot slot;
  P2mEntry seen;
  {
    const ReaderGate::Section section{gate_};
    auto reached = leaf_slot(ppn);
    if (!reached) return p2m_fault(FaultKind::out_of_memory, ppn);
    slot = *reached;
    seen = P2mEntry{slot.value};
    const bool expected = seen.state() == PageState::zero || seen.state() == PageState::shared;
    if (!expected || seen.busy()) return std::nullopt;
    // A device reads the shared frame; it cannot be let go before the pin is.
    if (seen.pins() != 0) return p2m_fault(FaultKind::retry, ppn);
    if (!slot.compare_exchange(seen.with_busy(true).next_version().raw())) return std::nullopt;
  }
  // Busy: the entry is ours alone, and keeps its table from being joined away.
  if (!fill_home(ppn, seen)) {
    finish(slot, ppn, {seen.state(), seen.payload()});
    return p2m_fault(FaultKind::out_of_memory, ppn);
  }
  Flush flush{*domain_};
  tell_observers({ppn, 1}, flush);
  drop_payload(ppn, seen, flush);
  const P2mEntry done =
      finish(slot, ppn, {PageState::private_page, home_of(ppn).value(), false, true});
  // Readers of the old frame hear of it before the caller can store to the new one.
  flush.commit();
  return P2mLookup{done, kPageShift};
}

bool P2mTable::charge_private() noexcept {
  if (private_pages_.fetch_add(1) < private_limit_.load()) return true;
  private_pages_.fetch_sub(1);
  return false;
}

/// Puts what `from` stands for into the home frame. False: over the limit, or no host memory.
bool P2mTable::fill_home(PPN ppn, P2mEntry from) {
  if (!charge_private()) return false;
  if (!home_->touch({ppn.value() * kPageSize, kPageSize})) {
    private_pages_.fetch_sub(1);
    return false;
  }
  if (from.state() == PageState::shared) {
    std::memcpy(window_.host(address_of(home_of(ppn))), window_.host(address_of(from.mpn())),
                kPageSize);
  }
  return true;
}

/// Ends a change of a busy entry. A loop, because dirty logging may mark it meanwhile.
P2mEntry P2mTable::finish(Slot slot, PPN ppn, const Outcome& outcome) {
  slot.value = slot.load();
  for (;;) {
    const P2mEntry now{slot.value};
    const bool dirty = outcome.written && now.logged();
    P2mEntry next = now.with_state(outcome.state, outcome.payload).with_busy(outcome.busy);
    if (dirty) next = next.with_logged(false);
    next = next.next_version();
    if (!slot.compare_exchange(next.raw())) continue;
    if (dirty) record_dirty(ppn, 1);
    return next;
  }
}

void P2mTable::tell_observers(PpnRange range, Flush& flush) {
  flush.add(range);
  const std::shared_lock guard{observers_lock_};
  for (P2mObserver* observer : observers_) observer->p2m_changed(range, flush);
}

void P2mTable::add_observer(P2mObserver& observer) {
  const std::lock_guard guard{observers_lock_};
  observers_.push_back(&observer);
}

void P2mTable::remove_observer(P2mObserver& observer) {
  const std::lock_guard guard{observers_lock_};
  std::erase(observers_, &observer);
}

void P2mTable::set_payload_owner(PageState state, PayloadOwner* owner) noexcept {
  owners_[static_cast<std::size_t>(state)].store(owner);
}

/// Tells whoever owns the payload of `old`, once nobody can use it, that this page no longer does.
void P2mTable::drop_payload(PPN ppn, P2mEntry old, Flush& flush) {
  PayloadOwner* owner = owners_[static_cast<std::size_t>(old.state())].load();
  if (owner == nullptr) return;
  flush.defer([owner, ppn, old] { owner->payload_dropped(ppn, old); });
}

// ---- pins ----

Expected<PinnedPage, Fault> P2mTable::pin(PPN ppn, AccessKind kind) {
  for (;;) {
    const auto resolved = resolve(ppn, kind);
    if (!resolved) return Unexpected{resolved.error()};
    const P2mEntry entry = resolved->entry;
    if (entry.state() == PageState::zero) return PinnedPage{zero_frame_, false};
    if (entry.state() == PageState::rom) return PinnedPage{entry.mpn(), false};
    const ReaderGate::Section section{gate_};
    auto slot = leaf_slot(ppn);
    if (!slot) return p2m_fault(FaultKind::out_of_memory, ppn);
    if (slot->value != entry.raw()) continue;
    if (entry.pins() == P2mEntry::kMaxPins) return p2m_fault(FaultKind::retry, ppn);
    const P2mEntry pinned = entry.with_pins(entry.pins() + 1).next_version();
    if (slot->compare_exchange(pinned.raw())) return PinnedPage{entry.mpn(), true};
  }
}

void P2mTable::unpin(PPN ppn, AccessKind kind) noexcept {
  {
    const ReaderGate::Section section{gate_};
    Slot slot = table_.find(address_of(ppn).value());
    for (;;) {
      const P2mEntry now{slot.value};
      if (slot.level != 1 || now.pins() == 0) std::abort();  // an unpin too many
      const P2mEntry next = now.with_pins(now.pins() - 1).next_version();
      if (slot.compare_exchange(next.raw())) break;
    }
  }
  // The device may have stored at any time until now, also after the page was marked again.
  if (kind == AccessKind::write && logging_.load()) record_dirty(ppn, 1);
}

P2mTableBytes P2mTable::table_bytes() const noexcept {
  const TableFrames frames = table_.table_frames();
  return {frames.nodes * kPageSize, frames.leaves * kPageSize};
}

}  // namespace strata::machine
