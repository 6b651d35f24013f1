// A translator's windows: who executes through one, and what its faults lead to.
#include <algorithm>

#include "engines/bt/translator.hpp"

namespace strata::bt {

using interp::Core;

void Translator::choose_window() {
  count_cycles();
  windowed_ = false;
  if (!windows_) return;
  const auto& counters = core_.counters;
  const Executed now{core_.instructions(), counters.tlb_misses, counters.page_faults};
  Executed executed{};
  if (now.instructions > accounted_.instructions) {
    executed = {now.instructions - accounted_.instructions, now.misses - accounted_.misses,
                now.faults - accounted_.faults};
  }
  accounted_ = now;
  const bool every = core_.env.windows == interp::WindowUse::always;
  // The kernel changes address spaces and tables too often for windows to pay.
  if (core_.decode_mode.bits != 64 || core_.breakpoints.data || (core_.cpl != 3 && !every)) {
    return windows_->enter_none(executed);
  }
  const SpaceKey key{.pcid = core_.arch_pcid(), .mode = core_.data_mode};
  windowed_ = windows_->enter(key, core_.pcid, executed, core_.tlb_, neighbours_);
  if (windows_->stale()) revalidate();
}

/// Whether the guest's tables still say what the window does. To fill the TLB is what a processor
/// may do at any time (SDM 3A 4.10.2.3); but nobody else does, so that states that are compared
/// have none of it. Pages that a guest has marked as not accessed since are given up.
void Translator::revalidate() {
  windows_->revalidate([this](VA va, const Extent& known) {
    Extent now;
    return !core_.env.exact_state && neighbour(va, now) && now.host == known.host &&
           now.first == known.first && now.write == known.write &&
           now.page_shift == known.page_shift;
  });
}

std::uint64_t Translator::window(std::uint64_t va, std::uint32_t index) {
  const Site site = cache_.site(index);
  bool filled = windows_->stale();
  if (filled) revalidate();
  if (!windows_->active() || (site.aligned && (va & (site.size - 1U)) != 0)) return refuse(index);
  const Stamp before = stamp();
  const std::uint64_t pages = ((va & kPageMask) + site.size - 1) / kPageSize + 1;
  VA page{va};
  for (std::uint64_t n = 0; n < pages; ++n, page = page.page_base() + kPageSize) {
    if (windows_->allows(page, site.write)) continue;
    const auto refill = core_.refill(page.value(), 1, site.write);
    if (refill == Core::Refill::interpret) return refuse(index);
    if (refill == Core::Refill::refused) {
      rewind(site);
      return leave(core_.recorded_);
    }
    VA first = page;
    const Extent extent = around(first);
    if (before != stamp()) break;
    if (!windows_->fill(first, extent)) return refuse(index);
    filled = true;
  }
  if (before != stamp()) {
    rewind(site);
    return go_on(core_.rip);
  }
  return filled ? site.resume : refuse(index);
}

Extent Translator::around(VA& va) {
  // Of small pages as many as cost less to look up than another fill.
  constexpr std::uint64_t kMostBytes = 2U << 20, kSmallPages = 32 * kPageSize;
  va = va.page_base();
  Extent e = extent_of(core_.tlb_.slot(core_.data_mode, va, core_.pcid), va);
  if (e.page_shift == kPageShift && !neighbours_) return e;
  const std::uint64_t bytes = e.page_shift == kPageShift
                                  ? kSmallPages
                                  : std::min(std::uint64_t{1} << e.page_shift, kMostBytes);
  const VA begin{va.value() & ~(bytes - 1)};
  Extent other;
  for (VA next = va + kPageSize; next < begin + bytes; next = next + kPageSize) {
    if (!neighbour(next, other) || !continues(e, va, other, next)) break;
    ++e.pages;
  }
  while (begin < va) {
    const VA next{va.value() - kPageSize};
    if (!neighbour(next, other) || !continues(other, next, e, va)) break;
    e.first = other.first;
    e.host = other.host;
    ++e.pages;
    va = next;
  }
  return e;
}

bool Translator::neighbour(VA va, Extent& extent) {
  if (!core_.refill_unasked(va.value())) return false;
  extent = extent_of(core_.tlb_.slot(core_.data_mode, va, core_.pcid), va);
  return true;
}

std::uint64_t Translator::refuse(std::uint32_t index) {
  constexpr std::uint8_t kMostRefusals = 8;
  constexpr std::size_t kMostPages = 1024;
  Site& site = cache_.site(index);
  const Site copy = site;
  if (++site.refusals >= kMostRefusals) {
    const VA at{in_page(site.page_offset)};
    const interp::FetchEntry& e = core_.tlb_.fetch_slot(core_.cpl == 3, at);
    if (e.tag == interp::Tlb::tag(at, core_.pcid)) {
      if (refused_.size() >= kMostPages) refused_.clear();
      const PA pa{(e.pa_and_flags & ~kPageMask) | at.page_offset()};
      refused_[page_of(pa)].insert(copy.page_offset);
      drop(pa, 1);
    }
  }
  return interpret(copy);
}

}  // namespace strata::bt
