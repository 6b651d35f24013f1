#include "engines/bt/windows.hpp"

#include <algorithm>

namespace strata::bt {

namespace {

// Costs in guest instructions: on as many a window saves what it costs, at about 0.3 cycles each
// (docs/binary-translation.md has the measurements).
constexpr std::int64_t kFillCost = 100'000;  ///< a host fault and the calls that map a range
constexpr std::int64_t kUnmapCost = 40'000;  ///< the call that unmaps one
constexpr std::int64_t kPageCost = 1'000;    ///< a page looked up in the guest's tables
/// What a window saves besides: a miss of the soft TLB.
constexpr std::int64_t kMissCost = 2'000;
/// Misses are expected to come as often as on the last so many instructions without a window.
constexpr std::uint64_t kRemembered = 16'000'000;
/// What an address space executes before it gets a window, at first, and on top of what the window
/// costs to begin with.
constexpr std::int64_t kPromotion = 5'000'000;
constexpr std::int64_t kLongestPromotion = kPromotion << 6;
/// More than this is not saved up for bad times.
constexpr std::int64_t kMostCredit = 100'000'000;
/// Host mappings of one vCPU; Linux gives a process 65,530 of them.
constexpr std::size_t kMostExtents = 12'000;
constexpr std::size_t kMostSpaces = 64;
constexpr std::uint16_t kNoAsid = 0xFFFF;
/// What Linux keeps for a mapping, and a page's share of tables.
constexpr std::size_t kMappingBytes = 2 * 200 + sizeof(Extent) + 64;

}  // namespace

Extent extent_of(const interp::TlbEntry& e, VA va) noexcept {
  return {.pages = 1,
          .first = page_of(PA{e.pa_and_flags & ~kPageMask}),
          .host = reinterpret_cast<std::byte*>(va.page_base().value() + e.addend),
          .write = e.write_tag != interp::kNoTag,
          .page_shift = static_cast<std::uint8_t>(e.pa_and_flags >> 1 & 0x3F)};
}

bool continues(const Extent& e, VA at, const Extent& next, VA next_at) noexcept {
  const std::uint64_t bytes = e.pages * kPageSize;
  return next_at.value() == at.value() + bytes && next.host == e.host + bytes &&
         next.first == e.first + e.pages && next.write == e.write &&
         next.page_shift == e.page_shift && slice_of(at.value()) == slice_of(next_at.value());
}

struct Windows::Space {
  Space(SlicePool& pool) : window{pool} {}
  Window window;
  std::uint16_t asid = kNoAsid;  ///< of the TLB entries that the window stands for
  bool promoted = false;
  bool stale = false;       ///< nothing of the window may be used before it is looked at again
  std::int64_t credit = 0;  ///< what windows would have saved and did, less their costs
  Executed without{};       ///< lately, without a window
  std::int64_t price = kPromotion;  ///< credit that a window takes, empty
  std::int64_t due = kPromotion;    ///< ... with what it would have had when last thought of
  std::uint64_t used = 0;           ///< when it was last entered
};

Windows::Windows(SliceTable& table, interp::WindowUse use) : table_{table}, use_{use} {
  for (std::size_t n = 0; n < kSlices; ++n) table_[n] = no_window(n);
}

Windows::~Windows() { switch_to(nullptr); }

void Windows::switch_to(Space* next) noexcept {
  if (current_ != nullptr) current_->window.leave(table_);
  current_ = next;
  if (active()) current_->window.enter(table_);
}

void Windows::account(Executed executed) noexcept {
  if (current_ == nullptr) return;
  Space& s = *current_;
  if (s.promoted) {
    counts_.instructions += executed.instructions;
    // With a window nothing misses that would have, and its fills have been paid for.
    executed.misses = executed.instructions * s.without.misses /
                      std::max<std::uint64_t>(s.without.instructions, 1);
    executed.faults = 0;
  } else {
    s.without.instructions += executed.instructions;
    s.without.misses += executed.misses;
    if (s.without.instructions > kRemembered) {
      s.without.instructions /= 2;
      s.without.misses /= 2;
    }
  }
  // Behind a page fault there is a page that a window would have to be filled with.
  const auto saved = static_cast<std::int64_t>(executed.instructions) +
                     static_cast<std::int64_t>(executed.misses) * kMissCost -
                     static_cast<std::int64_t>(executed.faults) * kFillCost;
  s.credit = std::min(s.credit + saved, std::max(s.due, kMostCredit));
  if (!s.promoted) s.credit = std::max<std::int64_t>(s.credit, 0);
  if (s.promoted && use_ == interp::WindowUse::automatic && s.credit < 0) demote(s);
}

Windows::Space& Windows::space(SpaceKey key) {
  if (const auto known = spaces_.find(key); known != spaces_.end()) return known->second;
  if (spaces_.size() == kMostSpaces) {
    switch_to(nullptr);
    spaces_.clear();
  }
  return spaces_.try_emplace(key, pool_).first->second;
}

void Windows::enter_none(Executed executed) {
  if (current_ == nullptr) return;
  account(executed);
  switch_to(nullptr);
}

bool Windows::enter(SpaceKey key, std::uint16_t asid, Executed executed, interp::Tlb& tlb,
                    const LookUpPage& look_up) {
  account(executed);
  Space& s = space(key);
  if (&s != current_) switch_to(&s);
  if (s.asid != asid) {
    flush(s);
    s.asid = asid;
  }
  if (!s.promoted && (use_ == interp::WindowUse::always || s.credit >= s.due)) {
    const std::uint64_t before = heard_;
    const auto ranges = ranges_of(key.mode, asid, tlb, look_up);
    // Looking may have met a flush: another time.
    if (before == heard_) promote(s, ranges);
  }
  return s.promoted;
}

std::vector<Windows::Range> Windows::ranges_of(std::uint8_t mode, std::uint16_t asid,
                                               interp::Tlb& tlb, const LookUpPage& look_up) {
  std::vector<Range> known;
  tlb.for_each(static_cast<interp::TlbMode>(mode), asid,
               [&known](VA va, const interp::TlbEntry& e) {
                 if (e.read_tag != interp::kNoTag) known.emplace_back(va, extent_of(e, va));
               });
  std::sort(known.begin(), known.end(),
            [](const auto& x, const auto& y) { return x.first < y.first; });
  std::vector<Range> ranges;
  for (const auto& [va, e] : known) {
    if (!ranges.empty() && look_up) bridge(ranges.back(), {va, e}, look_up);
    if (!ranges.empty() && continues(ranges.back().second, ranges.back().first, e, va)) {
      ++ranges.back().second.pages;
    } else {
      ranges.emplace_back(va, e);
    }
  }
  return ranges;
}

void Windows::bridge(Range& range, const Range& next, const LookUpPage& look_up) {
  constexpr std::uint64_t kMostPages = 32;  // to look up so many costs a third of a fill
  auto& [va, e] = range;
  const VA end = va + e.pages * kPageSize;
  const std::uint64_t gap = (next.first.value() - end.value()) / kPageSize;
  if (gap == 0 || gap > kMostPages) return;
  Extent whole = e;
  whole.pages += gap;
  if (!continues(whole, va, next.second, next.first)) return;
  for (std::uint64_t n = 0; n < gap; ++n) {
    const VA between = end + n * kPageSize;
    Extent page;
    if (!look_up(between, page) || !continues(e, va, page, between)) return;
    ++e.pages;
  }
}

void Windows::promote(Space& s, const std::vector<Range>& ranges) {
  const auto cost = static_cast<std::int64_t>(ranges.size()) * kFillCost;
  s.due = s.price + cost;
  if (use_ == interp::WindowUse::automatic && s.credit < s.due) return;
  ++counts_.promotions;
  s.promoted = true;
  for (const auto& [va, extent] : ranges) {
    if (!map(s, va, extent)) break;
  }
  s.window.enter(table_);
}

void Windows::demote(Space& s) noexcept {
  ++counts_.demotions;
  if (&s == current_) s.window.leave(table_);
  s.window.release();
  s.promoted = s.stale = false;
  s.credit = 0;
  s.due = s.price = std::min(2 * s.price, kLongestPromotion);
}

void Windows::flush(Space& s) noexcept {
  s.asid = kNoAsid;
  if (s.stale || s.window.extents() == 0) return;
  ++counts_.flushes;
  s.stale = true;
  if (&s == current_) s.window.leave(table_);
}

bool Windows::map(Space& s, VA va, const Extent& e) {
  if (s.window.extents() >= kMostExtents) make_room(s);
  ++counts_.fills;
  counts_.filled_pages += e.pages;
  s.credit -= kFillCost + static_cast<std::int64_t>(e.pages) * kPageCost;
  if (s.window.map(va, e)) return true;
  make_room(s);
  return s.window.map(va, e);
}

/// Nobody but `wanted` keeps anything.
void Windows::make_room(Space& wanted) noexcept {
  for (auto& [key, s] : spaces_) {
    if (&s == &wanted) {
      s.window.clear();
      s.stale = false;
    } else if (s.promoted) {
      demote(s);
    }
  }
}

bool Windows::active() const noexcept {
  return current_ != nullptr && current_->promoted && !current_->stale;
}

bool Windows::stale() const noexcept {
  return current_ != nullptr && current_->promoted && current_->stale;
}

void Windows::revalidate(const std::function<bool(VA, const Extent&)>& holds) {
  Space& s = *current_;
  s.stale = false;
  const std::uint64_t pages = s.window.pages();
  const std::uint64_t unmapped = s.window.keep_if(holds);
  counts_.checked_pages += pages;
  s.credit -= static_cast<std::int64_t>(pages) * kPageCost +
              static_cast<std::int64_t>(unmapped) * kUnmapCost;
  if (!s.stale) s.window.enter(table_);  // asking may have met another flush
}

bool Windows::allows(VA va, bool write) const noexcept {
  return active() && current_->window.allows(va, write);
}

bool Windows::fill(VA va, const Extent& e) {
  if (!active() || !map(*current_, va, e)) return false;
  current_->window.enter(table_);
  return true;
}

void Windows::flush_all() noexcept {
  ++heard_;
  for (auto& [key, s] : spaces_) {
    if (&s == current_) {
      const std::uint16_t asid = s.asid;
      flush(s);
      s.asid = asid;
    } else {
      s.asid = kNoAsid;
    }
  }
}

void Windows::flush_asid(std::uint16_t asid, bool every) noexcept {
  ++heard_;
  if (every) return flush_all();
  for (auto& [key, s] : spaces_) {
    if (s.asid != asid) continue;
    if (&s == current_) {
      flush(s);
      s.asid = asid;
    } else {
      s.asid = kNoAsid;
    }
  }
}

void Windows::flush_page(VA va, std::uint16_t /*asid*/) noexcept {
  ++heard_;
  // Of every address space: it may be global.
  for (auto& [key, s] : spaces_) {
    if (s.promoted) s.window.unmap_page(va);
  }
}

void Windows::forget(VA va) noexcept {
  ++heard_;
  for (auto& [key, s] : spaces_) {
    if (s.promoted && (s.window.allows(va, false))) s.window.unmap(va.page_base(), 1);
  }
}

void Windows::flush_physical(const std::vector<PpnRange>& ranges) noexcept {
  ++heard_;
  for (auto& [key, s] : spaces_) {
    s.window.unmap_if([&](const Extent& e) {
      return std::any_of(ranges.begin(), ranges.end(), [&e](const PpnRange& r) {
        return e.first < r.first + r.count && r.first < e.first + e.pages;
      });
    });
  }
}

void Windows::revoke_writes(PPN ppn) noexcept {
  ++heard_;
  for (auto& [key, s] : spaces_) s.window.unmap_writable(ppn);
}

void Windows::revoke_all_writes() noexcept {
  ++heard_;
  for (auto& [key, s] : spaces_) {
    s.window.unmap_if([](const Extent& e) { return e.write; });
  }
}

std::size_t Windows::bytes() const noexcept {
  std::size_t bytes = 0;
  for (const auto& [key, s] : spaces_) {
    bytes += sizeof(Space) + s.window.extents() * kMappingBytes + s.window.pages() * 8;
  }
  return bytes;
}

}  // namespace strata::bt
