#include "engines/bt/window.hpp"

#include <algorithm>

namespace strata::bt {
namespace {

std::uint64_t vpn_of(VA va) noexcept { return va.value() >> kPageShift; }

/// The part of an extent from `skip` pages on, `pages` long.
Extent part(const Extent& e, std::uint64_t skip, std::uint64_t pages) noexcept {
  Extent p = e;
  p.first = e.first + skip;
  p.host = e.host + skip * kPageSize;
  p.pages = pages;
  return p;
}

}  // namespace

Window::~Window() { release(); }

Window::Extents::const_iterator Window::find(std::uint64_t vpn) const noexcept {
  auto i = extents_.upper_bound(vpn);
  if (i == extents_.begin()) return extents_.end();
  --i;
  return vpn - i->first < i->second.pages ? i : extents_.end();
}

bool Window::allows(VA va, bool write) const noexcept {
  const auto i = find(vpn_of(va));
  return i != extents_.end() && (!write || i->second.write);
}

Window::Slice* Window::slice(VA va) noexcept {
  const std::size_t number = slice_of(va.value());
  for (Slice& s : slices_) {
    if (s.number == number) return &s;
  }
  return nullptr;
}

bool Window::map(VA va, const Extent& extent) {
  Slice* s = slice(va);
  if (s == nullptr) {
    const std::uint64_t base = pool_->take();
    if (base == 0) return false;
    s = &slices_.emplace_back(Slice{.number = slice_of(va.value()), .base = base});
  }
  const std::uint64_t offset = va.value() & (kSliceBytes - 1);
  const std::uint64_t bytes = extent.pages * kPageSize;
  if (offset + bytes > kSliceBytes) return false;
  forget(vpn_of(va), extent.pages);
  if (!SlicePool::map(s->base + offset, extent.host, bytes, extent.write)) return false;
  s->low = std::min(s->low, offset);
  s->high = std::max(s->high, offset + bytes);
  pages_ += extent.pages;
  any_large_ = any_large_ || extent.page_shift > kPageShift;
  extents_.emplace(vpn_of(va), extent);
  return true;
}

void Window::forget(std::uint64_t vpn, std::uint64_t pages) {
  const std::uint64_t end = vpn + pages;
  auto i = extents_.upper_bound(vpn);
  if (i != extents_.begin()) --i;
  while (i != extents_.end() && i->first < end) {
    const auto [at, extent] = *i;
    const std::uint64_t extent_end = at + extent.pages;
    if (extent_end <= vpn) {
      ++i;
      continue;
    }
    i = extents_.erase(i);
    pages_ -= extent.pages;
    if (at < vpn) {
      extents_.emplace(at, part(extent, 0, vpn - at));
      pages_ += vpn - at;
    }
    if (extent_end > end) {
      extents_.emplace(end, part(extent, end - at, extent_end - end));
      pages_ += extent_end - end;
    }
  }
}

void Window::unmap(VA va, std::uint64_t pages) {
  const Slice* s = slice(va);
  if (s == nullptr) return;
  forget(vpn_of(va), pages);
  const std::uint64_t offset = va.value() & (kSliceBytes - 1);
  SlicePool::unmap(s->base + offset, std::min(pages * kPageSize, kSliceBytes - offset));
}

void Window::unmap_page(VA va) {
  // Parts of the guest's page may be mapped though that of `va` is not (SDM 3A 4.10.4.1).
  if (slice(va) == nullptr) return;
  const std::uint64_t vpn = vpn_of(va);
  if (!any_large_) {
    if (find(vpn) != extents_.end()) unmap(va.page_base(), 1);
    return;
  }
  constexpr unsigned kHugeShift = 30;
  const std::uint64_t huge = vpn >> (kHugeShift - kPageShift) << (kHugeShift - kPageShift);
  auto i = extents_.upper_bound(huge);
  if (i != extents_.begin()) --i;
  std::vector<std::pair<VA, std::uint64_t>> hit;
  for (; i != extents_.end() && i->first <= huge + (1U << (kHugeShift - kPageShift)); ++i) {
    const auto& [at, e] = *i;
    const unsigned shift = e.page_shift - kPageShift;
    if (shift == 0) {
      if (vpn - at < e.pages) hit.emplace_back(va.page_base(), 1);
    } else if (at >> shift <= vpn >> shift && vpn >> shift <= (at + e.pages - 1) >> shift) {
      hit.emplace_back(VA{at << kPageShift}, e.pages);
    }
  }
  for (const auto& [from, pages] : hit) unmap(from, pages);
}

void Window::unmap_writable(PPN ppn) {
  std::vector<VA> hit;
  for (const auto& [vpn, e] : extents_) {
    if (e.write && ppn >= e.first && ppn - e.first < e.pages) {
      hit.push_back(VA{(vpn + (ppn - e.first)) << kPageShift});
    }
  }
  for (const VA va : hit) unmap(va, 1);
}

std::uint64_t Window::keep_if(const std::function<bool(VA, const Extent&)>& holds) {
  // Asking may make this lose more: what is asked about is as of now.
  const std::vector<std::pair<std::uint64_t, Extent>> known{extents_.begin(), extents_.end()};
  std::vector<std::pair<VA, std::uint64_t>> gone;
  for (const auto& [vpn, e] : known) {
    for (std::uint64_t n = 0; n < e.pages; ++n) {
      const VA va{(vpn + n) << kPageShift};
      if (holds(va, part(e, n, 1))) continue;
      if (!gone.empty() && gone.back().first + gone.back().second * kPageSize == va &&
          slice_of(gone.back().first.value()) == slice_of(va.value())) {
        ++gone.back().second;
      } else {
        gone.emplace_back(va, 1);
      }
    }
  }
  for (const auto& [va, pages] : gone) unmap(va, pages);
  return gone.size();
}

void Window::clear() {
  extents_.clear();
  pages_ = 0;
  any_large_ = false;
  for (Slice& s : slices_) {
    if (s.high > s.low) SlicePool::unmap(s.base + s.low, s.high - s.low);
    s.low = ~0ULL;
    s.high = 0;
  }
}

void Window::release() {
  clear();
  for (const Slice& s : slices_) pool_->give_back(s.base);
  slices_.clear();
}

void Window::enter(SliceTable& table) const noexcept {
  for (const Slice& s : slices_) {
    // The VA's bits from 40 on go, the slice's host address comes.
    const std::uint64_t high = static_cast<std::uint64_t>(
        static_cast<std::int64_t>(s.number << (64 - 8)) >> (64 - 8 - kSliceShift));
    table[s.number] = s.base - high;
  }
}

void Window::leave(SliceTable& table) const noexcept {
  for (const Slice& s : slices_) table[s.number] = no_window(s.number);
}

}  // namespace strata::bt
