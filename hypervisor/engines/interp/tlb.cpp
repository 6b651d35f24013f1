#include "engines/interp/tlb.hpp"

#include <algorithm>

namespace strata::interp {

namespace {

constexpr unsigned kGibShift = 30;
constexpr std::uint64_t kGlobalBit = 1, kListedBit = 1U << 7;

std::uint64_t pa_of(std::uint64_t pa_and_flags) { return pa_and_flags & ~kPageMask; }
unsigned shift_of(std::uint64_t pa_and_flags) {
  return static_cast<unsigned>(pa_and_flags >> 1 & 0x3F);
}

/// A valid tag of the entry, or kNoTag.
std::uint64_t any_tag(const TlbEntry& e) { return e.read_tag != kNoTag ? e.read_tag : e.write_tag; }
std::uint64_t any_tag(const FetchEntry& e) { return e.tag; }

}  // namespace

namespace {

std::size_t hashed(std::uint64_t number, unsigned bits) {
  return static_cast<std::size_t>(number * 0x9E3779B97F4A7C15ULL >> (64 - bits));
}

}  // namespace

void FetchedPages::note(bool user, VA va, std::uint64_t pa_and_flags) noexcept {
  Privilege& p = of_[user ? 1 : 0];
  p.any = true;
  if ((pa_and_flags & kGlobalBit) == 0) p.non_global = true;
  const unsigned shift = shift_of(pa_and_flags);
  if (shift > kRegionShift) {
    p.huge = true;
  } else if (shift > kPageShift) {
    p.regions.set(hashed(va.value() >> kRegionShift, kBits));
  } else {
    p.pages.set(hashed(va.value() >> kPageShift, kBits));
  }
}

void FetchedPages::stale(Privilege& p) noexcept {
  if (!p.any) return;
  const std::uint64_t next = p.generation + 1;
  p = Privilege{};
  p.generation = next;
}

void FetchedPages::flush_all() noexcept {
  for (Privilege& p : of_) stale(p);
}

void FetchedPages::flush_non_global() noexcept {
  for (Privilege& p : of_) {
    if (p.non_global) stale(p);
  }
}

void FetchedPages::flush_page(VA va) noexcept {
  for (Privilege& p : of_) {
    if (p.huge || p.pages.test(hashed(va.value() >> kPageShift, kBits)) ||
        p.regions.test(hashed(va.value() >> kRegionShift, kBits))) {
      stale(p);
    }
  }
}

bool HeldPages::may_hold(const PpnRange& range) const noexcept {
  // Beyond so many it is cheaper to search.
  constexpr std::uint64_t kMostPages = 64;
  if (range.count > kMostPages) return true;
  for (std::uint64_t n = 0; n < range.count; ++n) {
    if (held_.test(bit_of(range.first + n))) return true;
  }
  return false;
}

Tlb::Tlb() : data_(kTlbModes * kTlbBanks), fetch_(2), fragments_(1U << kFragmentBits) {
  restart_asids();
}

std::optional<std::uint16_t> Tlb::asid(std::uint16_t pcid) noexcept {
  if (asids_[pcid] != kNoAsid) return asids_[pcid];
  // The number is in the PCID's bank.
  const std::size_t bank = tlb_bank(pcid);
  if (next_asid_[bank] > 0x7FF) return {};
  asids_[pcid] = static_cast<std::uint16_t>(bank << 11 | next_asid_[bank]++);
  return asids_[pcid];
}

void Tlb::restart_asids() noexcept {
  asids_.assign(1U << 12, kNoAsid);
  next_asid_.fill(1);
}

void Tlb::note_size(VA va, unsigned page_shift) noexcept {
  if (page_shift <= kPageShift) return;
  if (page_shift > kRegionShift) {
    const std::uint64_t gib = va.value() >> kGibShift;
    if (std::find(huge_.begin(), huge_.end(), gib) == huge_.end()) huge_.push_back(gib);
    return;
  }
  const std::uint64_t region = va.value() >> kRegionShift;
  Fragments& f = fragments_of(va);
  if (f.region == kNoTag) f.region = region;
  if (f.many || f.region != region) {
    f.many = true;
    return;
  }
  const auto page = static_cast<std::uint16_t>(va.value() >> kPageShift &
                                               ((1U << (kRegionShift - kPageShift)) - 1));
  const auto known = f.page.begin() + f.count;
  if (std::find(f.page.begin(), known, page) != known) return;
  if (f.count == f.page.size()) {
    f.many = true;
  } else {
    f.page[f.count++] = page;
  }
}

void Tlb::fill(TlbMode mode, VA va, std::uint16_t pcid, const Translation& t, std::byte* page,
               bool cache_write) noexcept {
  TlbEntry& e = slot(mode, va, pcid);
  if ((e.pa_and_flags & kListedBit) == 0) filled_.push_back(&e);
  const std::uint64_t wanted = tag(va, pcid);
  e.read_tag = t.readable ? wanted : kNoTag;
  e.write_tag = t.writable && cache_write ? wanted : kNoTag;
  e.addend = reinterpret_cast<std::uint64_t>(page) - va.page_base().value();
  e.pa_and_flags = pack(t) | kListedBit;
  held_.note(page_of(t.pa));
  note_size(va, t.page_shift);
}

void Tlb::fill_fetch(bool user, VA va, std::uint16_t pcid, const Translation& t,
                     std::byte* page) noexcept {
  FetchEntry& e = fetch_slot(user, va);
  e.tag = tag(va, pcid);
  e.addend = reinterpret_cast<std::uint64_t>(page) - va.page_base().value();
  e.pa_and_flags = pack(t);
  held_.note(page_of(t.pa));
  note_size(va, t.page_shift);
}

template <class Predicate>
void Tlb::drop_if(Predicate&& predicate) noexcept {
  std::erase_if(filled_, [&](TlbEntry* e) {
    const std::uint64_t t = any_tag(*e);
    if (t != kNoTag && !predicate(t, e->pa_and_flags)) return false;
    e->read_tag = e->write_tag = kNoTag;
    e->pa_and_flags = 0;
    return true;
  });
  for (auto& mode : fetch_) {
    for (FetchEntry& e : mode) {
      const std::uint64_t t = any_tag(e);
      if (t != kNoTag && predicate(t, e.pa_and_flags)) e.tag = kNoTag;
    }
  }
}

/// drop_if() for the entries that can hold the 4 KiB page of `va`.
template <class Predicate>
void Tlb::drop_at(VA va, Predicate&& predicate) noexcept {
  for (auto& entries : data_) {
    for (std::uint16_t place = 0; place < kTlbPlaces; ++place) {
      TlbEntry& e = entries[tlb_index(va.value(), place)];
      const std::uint64_t t = any_tag(e);
      if (t != kNoTag && predicate(t, e.pa_and_flags)) e.read_tag = e.write_tag = kNoTag;
    }
  }
  for (const bool user : {false, true}) {
    FetchEntry& e = fetch_slot(user, va);
    if (e.tag != kNoTag && predicate(e.tag, e.pa_and_flags)) e.tag = kNoTag;
  }
}

void Tlb::flush_all() noexcept {
  if (mirror_ != nullptr) mirror_->flush_all();
  drop_if([](std::uint64_t, std::uint64_t) { return true; });
  held_.clear();
  std::fill(fragments_.begin(), fragments_.end(), Fragments{});
  huge_.clear();
}

void Tlb::flush_pcid(std::uint16_t pcid, bool every_pcid, bool keep_global) noexcept {
  if (mirror_ != nullptr) mirror_->flush_asid(pcid, every_pcid);
  drop_if([=](std::uint64_t t, std::uint64_t pa) {
    if (keep_global && (pa & kGlobalBit) != 0) return false;
    return every_pcid || (t & kPageMask) == pcid;
  });
}

void Tlb::flush_page(VA va, std::uint16_t pcid) noexcept {
  if (mirror_ != nullptr) mirror_->flush_page(va, pcid);
  // A large page enters as 4 KiB fragments that remember its size, so one INVLPG inside it finds
  // them all (SDM 3A 4.10.4.1).
  const auto hit = [=](std::uint64_t t, std::uint64_t pa) {
    if ((t & kPageMask) != pcid && (pa & kGlobalBit) == 0) return false;
    return ((t ^ va.value()) & ~kPageMask) >> shift_of(pa) == 0;
  };
  const Fragments& f = fragments_of(va);
  const bool huge = std::find(huge_.begin(), huge_.end(), va.value() >> kGibShift) != huge_.end();
  if (huge || f.many) return drop_if(hit);
  drop_at(va, hit);
  if (f.region != va.value() >> kRegionShift) return;
  for (std::size_t i = 0; i < f.count; ++i) {
    drop_at(VA{f.region << kRegionShift | std::uint64_t{f.page[i]} << kPageShift}, hit);
  }
}

bool Tlb::forget(VA va) noexcept {
  if (mirror_ != nullptr) mirror_->forget(va);
  const auto for_page = [va](std::uint64_t t) {
    return t != kNoTag && ((t ^ va.value()) & ~kPageMask) == 0;
  };
  for (auto& entries : data_) {
    for (std::uint16_t place = 0; place < kTlbPlaces; ++place) {
      TlbEntry& e = entries[tlb_index(va.value(), place)];
      if (for_page(any_tag(e))) e.read_tag = e.write_tag = kNoTag;
    }
  }
  bool fetch = false;
  for (const bool user : {false, true}) {
    FetchEntry& e = fetch_slot(user, va);
    if (!for_page(e.tag)) continue;
    e.tag = kNoTag;
    fetch = true;
  }
  return fetch;
}

void Tlb::flush_physical(const std::vector<PpnRange>& ranges) noexcept {
  if (mirror_ != nullptr) mirror_->flush_physical(ranges);
  // A page that the guest writes to for the first time is one of these, and mostly nobody's.
  const bool any = std::any_of(ranges.begin(), ranges.end(),
                               [this](const PpnRange& r) { return held_.may_hold(r); });
  if (!any) return;
  held_.clear();
  drop_if([&](std::uint64_t, std::uint64_t pa) {
    const PPN ppn{pa_of(pa) >> kPageShift};
    for (const PpnRange& range : ranges) {
      if (range.contains(ppn)) return true;
    }
    held_.note(ppn);
    return false;
  });
}

void Tlb::revoke_writes(PPN ppn) noexcept {
  if (mirror_ != nullptr) mirror_->revoke_writes(ppn);
  for (TlbEntry* e : filled_) {
    if (pa_of(e->pa_and_flags) >> kPageShift == ppn.value()) e->write_tag = kNoTag;
  }
}

void Tlb::revoke_all_writes() noexcept {
  if (mirror_ != nullptr) mirror_->revoke_all_writes();
  for (TlbEntry* e : filled_) e->write_tag = kNoTag;
}

}  // namespace strata::interp
