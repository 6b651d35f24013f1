// The editing half of the P2M: replace, discard and remove, dirty logging, joining.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "machine/p2m.hpp"

namespace strata::machine {
namespace {

/// Translations can lead to a page in this state.
constexpr bool mapped(PageState s) {
  return s == PageState::zero || s == PageState::private_page || s == PageState::shared ||
         s == PageState::rom;
}

/// Guest memory, wherever its contents are: what services may edit and dirty logging covers.
constexpr bool is_ram(PageState s) {
  switch (s) {
    case PageState::zero:
    case PageState::private_page:
    case PageState::shared:
    case PageState::ballooned:
    case PageState::compressed:
    case PageState::swapped:
    case PageState::image_backed:
    case PageState::poisoned:
      return true;
    default:
      return false;
  }
}

/// The part of `e` that says where the page is.
constexpr bool same_place(P2mEntry a, P2mEntry b) {
  return a.state() == b.state() && a.payload() == b.payload();
}

void append(std::vector<PpnRange>& ranges, PPN first, std::uint64_t count) {
  if (!ranges.empty() && ranges.back().first + ranges.back().count == first) {
    ranges.back().count += count;
  } else {
    ranges.push_back({first, count});
  }
}

constexpr std::uint64_t kRunPages = kLargePageSize / kPageSize;

}  // namespace

// ---- replace ----

/// Whether `current` may become `wanted`, before anything is touched.
std::optional<EditError> P2mTable::refuses(PPN ppn, P2mEntry current, P2mEntry seen,
                                           P2mEntry wanted) const noexcept {
  if (current != seen) {
    return current.busy() && !seen.busy() ? EditError::busy : EditError::changed;
  }
  if (!is_ram(seen.state()) || !is_ram(wanted.state())) return EditError::bad_range;
  const bool at_home = wanted.payload() == home_of(ppn).value();
  if (wanted.state() == PageState::private_page && !at_home) return EditError::bad_range;
  if (seen.pins() != 0) return EditError::pinned;
  return std::nullopt;
}

Expected<P2mEntry, EditError> P2mTable::replace(PPN ppn, P2mEntry seen, P2mEntry wanted,
                                                Flush& flush) {
  if (!valid_range({ppn, 1}, true)) return Unexpected{EditError::bad_range};
  const bool leaves =
      seen.state() == PageState::private_page && wanted.state() != PageState::private_page;
  const bool enters =
      seen.state() != PageState::private_page && wanted.state() == PageState::private_page;
  Slot slot;
  {
    const ReaderGate::Section section{gate_};
    // Before splitting a run, which would be for nothing.
    const P2mEntry now = lookup_of(table_.find(address_of(ppn).value()), ppn).entry;
    if (const auto error = refuses(ppn, now, seen, wanted)) return Unexpected{*error};
    auto reached = leaf_slot(ppn);
    if (!reached) return Unexpected{EditError::out_of_frames};
    slot = *reached;
    if (const auto error = refuses(ppn, P2mEntry{slot.value}, seen, wanted)) {
      return Unexpected{*error};
    }
    if (enters && !charge_private()) return Unexpected{EditError::out_of_frames};
    if (!slot.compare_exchange(seen.with_busy(true).next_version().raw())) {
      if (enters) private_pages_.fetch_sub(1);
      return Unexpected{EditError::changed};
    }
  }
  // Translations of a page that was busy before are gone already.
  if (mapped(seen.state()) && !seen.busy()) tell_observers({ppn, 1}, flush);
  if (!same_place(seen, wanted)) drop_payload(ppn, seen, flush);
  const P2mEntry done =
      finish(slot, ppn, {wanted.state(), wanted.payload(), wanted.busy() || leaves, false});
  if (leaves) defer_release({{ppn, 1}, {{ppn, 1}}, 1}, flush);
  return done;
}

// ---- discard and remove ----

/// What a reset has done so far.
struct P2mTable::Reset {
  PageState to = PageState::zero;
  Flush* flush = nullptr;
  std::vector<PpnRange> moved;  ///< busy until the flush is through
  std::uint64_t private_pages = 0;
};

/// Resets the entry at `ppn`, of which at most `left` pages are wanted. Returns pages done; 0 when
/// the entry changed or was split: look again.
Expected<std::uint64_t, EditError> P2mTable::reset_one(PPN ppn, std::uint64_t left, Reset& reset) {
  const ReaderGate::Section section{gate_};
  Slot slot = table_.find(address_of(ppn).value());
  const P2mEntry seen{slot.value};
  const std::uint64_t pages = Table::reach_of(slot.level) / kPageSize;
  const std::uint64_t inside = ppn.value() % pages;
  const bool discarding = reset.to == PageState::zero;
  if (seen.busy()) return Unexpected{EditError::busy};
  if (discarding && !is_ram(seen.state())) return Unexpected{EditError::bad_range};
  if (seen.state() == reset.to) return std::min(left, pages - inside);
  if (seen.pins() != 0) return Unexpected{EditError::pinned};
  if (inside != 0 || left < pages) {
    if (!table_.reach(address_of(ppn).value(), slot.level - 1)) {
      return Unexpected{EditError::out_of_frames};
    }
    return 0;
  }
  const bool was_mapped = mapped(seen.state());
  const P2mEntry next = seen.with_state(reset.to, 0).with_busy(was_mapped).next_version();
  if (!slot.compare_exchange(next.raw())) return 0;
  if (was_mapped) append(reset.moved, ppn, pages);
  if (seen.state() == PageState::private_page) reset.private_pages += pages;
  for (std::uint64_t i = 0; slot.level == 1 && i < pages; ++i) {
    drop_payload(ppn + i, seen, *reset.flush);
  }
  return pages;
}

Expected<std::uint64_t, EditError> P2mTable::reset_range(PpnRange range, PageState to,
                                                         Flush& flush) {
  Reset reset{.to = to, .flush = &flush, .moved = {}, .private_pages = 0};
  std::uint64_t done = 0;
  std::optional<EditError> stopped;
  while (done < range.count && !stopped) {
    const auto step = reset_one(range.first + done, range.count - done, reset);
    if (step) {
      done += *step;
    } else {
      stopped = step.error();
    }
  }
  // The entries are busy: nobody derives anything from them between the change and this.
  for (const PpnRange& moved : reset.moved) tell_observers(moved, flush);
  if (!reset.moved.empty()) {
    defer_release({{range.first, done}, std::move(reset.moved), reset.private_pages}, flush);
  }
  if (stopped && done == 0) return Unexpected{*stopped};
  return done;
}

Expected<std::uint64_t, EditError> P2mTable::discard(PpnRange range, Flush& flush) {
  if (!valid_range(range, true)) return Unexpected{EditError::bad_range};
  return reset_range(range, PageState::zero, flush);
}

Expected<std::uint64_t, EditError> P2mTable::remove(PpnRange range, Flush& flush) {
  if (!valid_range(range, false)) return Unexpected{EditError::bad_range};
  return reset_range(range, PageState::absent, flush);
}

void P2mTable::defer_release(Release release, Flush& flush) {
  flush.defer([this, alive = std::weak_ptr{alive_}, release = std::move(release)] {
    if (alive.lock() != nullptr) release_home(release);
  });
}

/// Runs when no holder has a translation any more: gives the frames back and ends the busy time.
void P2mTable::release_home(const Release& release) noexcept {
  const std::uint64_t end = release.edited.first.value() + release.edited.count;
  for (const PpnRange& range : release.moved) {
    // MMIO may lie beyond the segment, but was never mapped and so is not here. A host that cannot
    // punch keeps the memory and its contents, which then must not show through a zero page.
    const ByteRange bytes{range.first.value() * kPageSize, range.count * kPageSize};
    if (!home_->punch(bytes)) {
      std::memset(window_.host(address_of(home_of(range.first))), 0, bytes.length);
    }
    clear_busy(range);
    // Runs that the edit covered as a whole are likely uniform now. One that several moved ranges
    // touch is tried with each; until the last the first busy entry ends the attempt.
    for (std::uint64_t run = range.first.value() / kRunPages * kRunPages;
         run < range.first.value() + range.count; run += kRunPages) {
      if (PPN{run} >= release.edited.first && run + kRunPages <= end) join(PPN{run});
    }
  }
  private_pages_.fetch_sub(release.private_pages);
}

void P2mTable::clear_busy(PpnRange pages) noexcept {
  const ReaderGate::Section section{gate_};
  for (std::uint64_t done = 0; done < pages.count;) {
    Slot slot = table_.find(address_of(pages.first + done).value());
    const P2mEntry now{slot.value};
    if (!slot.compare_exchange(now.with_busy(false).next_version().raw())) continue;
    done += Table::reach_of(slot.level) / kPageSize;
  }
}

// ---- dirty logging ----

void P2mTable::record_dirty(PPN ppn, std::uint64_t count) noexcept {
  auto* words = reinterpret_cast<std::uint64_t*>(dirty_.base());
  for (std::uint64_t p = ppn.value(); p < ppn.value() + count; ++p) {
    std::atomic_ref<std::uint64_t>{words[p / 64]}.fetch_or(1ULL << (p % 64));
  }
}

void P2mTable::note_dirty(PPN ppn) noexcept {
  const ReaderGate::Section section{gate_};
  for (;;) {
    Slot slot = table_.find(address_of(ppn).value());
    if (!P2mEntry{slot.value}.logged()) return;
    if (slot.level > 1) {
      // Without a frame for the split the whole run counts as dirty: more to copy, nothing lost.
      const auto leaf = leaf_slot(ppn);
      if (leaf) slot = *leaf;
    }
    const P2mEntry now{slot.value};
    // The mark goes before the page is recorded: a collector that comes in between finds no record
    // and marks again, and the record is there for the next one. The other way round it could take
    // the record, see the mark still on, copy, and miss the write.
    if (!slot.compare_exchange(now.with_logged(false).next_version().raw())) continue;
    const std::uint64_t pages = Table::reach_of(slot.level) / kPageSize;
    if (now.logged()) record_dirty(PPN{ppn.value() / pages * pages}, pages);
    return;
  }
}

/// Marks the entry at `ppn`. Returns pages done, 0 to look again.
Expected<std::uint64_t, EditError> P2mTable::log_one(PPN ppn, std::uint64_t left,
                                                     std::vector<PpnRange>& downgraded) {
  const ReaderGate::Section section{gate_};
  Slot slot = table_.find(address_of(ppn).value());
  const P2mEntry seen{slot.value};
  const std::uint64_t pages = Table::reach_of(slot.level) / kPageSize;
  const std::uint64_t inside = ppn.value() % pages;
  if (!is_ram(seen.state()) || seen.logged()) return std::min(left, pages - inside);
  if (inside != 0 || left < pages) {
    if (!table_.reach(address_of(ppn).value(), slot.level - 1)) {
      return Unexpected{EditError::out_of_frames};
    }
    return 0;
  }
  if (!slot.compare_exchange(seen.with_logged(true).next_version().raw())) return 0;
  if (seen.state() == PageState::private_page) append(downgraded, ppn, pages);
  return pages;
}

Expected<void, EditError> P2mTable::log_dirty(PpnRange range, Flush& flush) {
  if (!valid_range(range, true)) return Unexpected{EditError::bad_range};
  std::vector<PpnRange> downgraded;
  std::optional<EditError> stopped;
  logging_.store(true);
  {
    // A join must not lose a mark that lands on an entry it is about to take out.
    const std::lock_guard guard{edit_lock_};
    for (std::uint64_t done = 0; done < range.count && !stopped;) {
      const auto step = log_one(range.first + done, range.count - done, downgraded);
      if (step) {
        done += *step;
      } else {
        stopped = step.error();
      }
    }
  }
  for (const PpnRange& pages : downgraded) tell_observers(pages, flush);
  if (stopped) return Unexpected{*stopped};
  return {};
}

std::vector<PpnRange> P2mTable::collect_dirty(PpnRange range) {
  std::vector<PpnRange> found;
  if (!valid_range(range, true)) return found;
  auto* words = reinterpret_cast<std::uint64_t*>(dirty_.base());
  const std::uint64_t end = range.first.value() + range.count;
  for (std::uint64_t p = range.first.value(); p < end;) {
    const std::uint64_t next = std::min(end, (p / 64 + 1) * 64);
    const std::uint64_t mask =
        bit_range(static_cast<unsigned>(p % 64), static_cast<unsigned>((next - 1) % 64));
    const std::atomic_ref<std::uint64_t> word{words[p / 64]};
    // Reading first leaves untouched parts of the bitmap without memory.
    std::uint64_t bits = word.load() & mask;
    if (bits != 0) bits = word.fetch_and(~mask) & mask;
    for (std::uint64_t i = p / 64 * 64; bits != 0; ++i, bits >>= 1) {
      if ((bits & 1) != 0) append(found, PPN{i}, 1);
    }
    p = next;
  }
  return found;
}

// ---- joining ----

/// Makes the 512 leaves below `slot` busy if they are one run, and says which. False: nothing done.
std::optional<P2mEntry> P2mTable::lock_leaves(PPN first, MPN table) {
  const auto leaf = [&](std::uint64_t i) {
    return table_.slot_in(table, 1, address_of(first + i).value());
  };
  const P2mEntry model{leaf(0).value};
  unsigned version = 0;
  for (std::uint64_t i = 0; i < kRunPages; ++i) {
    const P2mEntry e{leaf(i).value};
    const P2mEntry wanted{P2mFormat::advance(model.raw(), i)};
    const bool fits = same_place(e, wanted) && e.logged() == model.logged();
    if (!fits || e.busy() || e.pins() != 0) return std::nullopt;
    version = std::max(version, e.version());
  }
  std::uint64_t locked = 0;
  for (; locked < kRunPages; ++locked) {
    Slot slot = leaf(locked);
    const P2mEntry e{slot.value};
    const P2mEntry wanted{P2mFormat::advance(model.raw(), locked)};
    if (!same_place(e, wanted) || e.logged() != model.logged() || e.busy() || e.pins() != 0) break;
    version = std::max(version, e.version());
    if (!slot.compare_exchange(e.with_busy(true).next_version().raw())) break;
  }
  if (locked == kRunPages) {
    // Newer than any of the 512, so that no old compare-and-swap fits the run or what it splits to.
    const P2mEntry run = P2mEntry::make(model.state(), model.payload());
    const std::uint64_t next = (std::uint64_t{version} + 2) << 52;
    return P2mEntry{run.with_logged(model.logged()).raw() | next};
  }
  clear_busy({first, locked});
  return std::nullopt;
}

bool P2mTable::join(PPN ppn) {
  const PPN first{ppn.value() / kRunPages * kRunPages};
  if (!valid_range({first, kRunPages}, false)) return false;
  const std::uint64_t pa = address_of(first).value();
  std::optional<std::pair<MPN, FrameKind>> freed;
  {
    const std::lock_guard guard{edit_lock_};
    const ReaderGate::Section section{gate_};
    const Slot slot = table_.find(pa, 2);
    if (!Table::is_table(slot.value, slot.level)) return true;
    const auto run = lock_leaves(first, Table::table_of(slot.value));
    if (!run) return false;
    // The leaves are ours, so their table is where it was.
    table_.replace_table(slot, run->raw(), [&](MPN mpn, FrameKind kind) { freed = {mpn, kind}; });
  }
  if (!freed) return false;
  gate_.synchronize();
  frames_->release(freed->first, freed->second);
  return true;
}

std::uint64_t P2mTable::join_range(PpnRange range) {
  const std::uint64_t before = table_.table_frames().leaves;
  const std::uint64_t end = range.first.value() + range.count;
  const std::uint64_t first = (range.first.value() + kRunPages - 1) / kRunPages * kRunPages;
  for (std::uint64_t p = first; p + kRunPages <= end; p += kRunPages) join(PPN{p});
  const std::uint64_t after = table_.table_frames().leaves;
  return before > after ? before - after : 0;
}

}  // namespace strata::machine
