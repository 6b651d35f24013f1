// From a guest-physical page to the shadow leaves that map it, and whether it is traced.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "mmu/address.hpp"
#include "shadow/flat_index.hpp"

namespace strata::shadow {

inline constexpr unsigned kRegionShift = kLargePageShift - kPageShift;
inline constexpr std::uint32_t kRegionPages = 1U << kRegionShift;

/// The 2 MiB of guest-physical memory from page `base`. Heads start chains of slots (see
/// links.hpp).
struct Region {
  explicit Region(PPN first) noexcept : base{first} { heads.fill(kNone); }

  using PageBits = std::array<std::uint64_t, kRegionPages / 64>;

  /// Stores to the page have to be announced.
  [[nodiscard]] bool traced(std::uint32_t offset) const noexcept {
    return test(traced_bits, offset);
  }
  /// Some shadow table mirrors the page; a table out of sync is mirrored and not traced.
  [[nodiscard]] bool mirrored(std::uint32_t offset) const noexcept {
    return test(mirrored_bits, offset);
  }
  void set_traced(std::uint32_t offset, bool on) noexcept { put(traced_bits, offset, on); }
  void set_mirrored(std::uint32_t offset, bool on) noexcept {
    if (mirrored(offset) != on) {
      mirrored_pages = static_cast<std::uint16_t>(mirrored_pages + (on ? 1 : -1));
    }
    put(mirrored_bits, offset, on);
  }

  PPN base;
  std::array<std::uint32_t, kRegionPages> heads;  ///< 4 KiB leaves, by page
  std::uint32_t large = kNone;                    ///< 2 MiB leaves of the whole region
  std::uint16_t mirrored_pages = 0;
  PageBits traced_bits{};
  PageBits mirrored_bits{};

 private:
  [[nodiscard]] static bool test(const PageBits& bits, std::uint32_t offset) noexcept {
    return (bits[offset / 64] >> (offset % 64) & 1) != 0;
  }
  static void put(PageBits& bits, std::uint32_t offset, bool on) noexcept {
    const std::uint64_t bit = 1ULL << (offset % 64);
    bits[offset / 64] = on ? bits[offset / 64] | bit : bits[offset / 64] & ~bit;
  }
};

/// All regions that were ever mapped or traced: about 0.1 % of the guest memory they describe, and
/// bounded by it, since only pages that the P2M resolves get here. Pages are named by a 31-bit
/// reference, region number and offset. Not thread-safe: guarded by its owner's lock.
class ReverseMap {
 public:
  /// The region of `ppn`, or null if nothing there was ever mapped or traced.
  [[nodiscard]] Region* find(PPN ppn) noexcept {
    const std::uint32_t id = index_.find(ppn.value() >> kRegionShift);
    return id == kNone ? nullptr : regions_[id].get();
  }
  [[nodiscard]] const Region* find(PPN ppn) const noexcept {
    const std::uint32_t id = index_.find(ppn.value() >> kRegionShift);
    return id == kNone ? nullptr : regions_[id].get();
  }

  /// The reference of `ppn`; makes its region if there is none.
  [[nodiscard]] std::uint32_t reference(PPN ppn) {
    const std::uint64_t number = ppn.value() >> kRegionShift;
    std::uint32_t id = index_.find(number);
    if (id == kNone) {
      id = static_cast<std::uint32_t>(regions_.size());
      regions_.push_back(std::make_unique<Region>(PPN{number << kRegionShift}));
      index_.set(number, id);
    }
    return id << kRegionShift | offset_of(ppn);
  }

  [[nodiscard]] Region& region(std::uint32_t reference) noexcept {
    return *regions_[reference >> kRegionShift];
  }
  [[nodiscard]] PPN ppn(std::uint32_t reference) const noexcept {
    return regions_[reference >> kRegionShift]->base + (reference & (kRegionPages - 1));
  }
  [[nodiscard]] static std::uint32_t offset_of(PPN ppn) noexcept {
    return static_cast<std::uint32_t>(ppn.value() & (kRegionPages - 1));
  }

  [[nodiscard]] bool traced(PPN ppn) const noexcept {
    const Region* r = find(ppn);
    return r != nullptr && r->traced(offset_of(ppn));
  }

  /// Calls visit(Region&) for every region that overlaps `range`.
  template <class Visit>
  void for_each(PpnRange range, Visit visit) {
    if (range.count == 0) return;
    const std::uint64_t first = range.first.value() >> kRegionShift;
    const std::uint64_t last = (range.first.value() + range.count - 1) >> kRegionShift;
    if (last - first >= regions_.size()) {
      for (const auto& r : regions_) {
        const std::uint64_t number = r->base.value() >> kRegionShift;
        if (number >= first && number <= last) visit(*r);
      }
      return;
    }
    for (std::uint64_t number = first; number <= last; ++number) {
      if (Region* r = find(PPN{number << kRegionShift}); r != nullptr) visit(*r);
    }
  }

  [[nodiscard]] std::uint64_t bytes() const noexcept {
    return regions_.size() * sizeof(Region) + regions_.capacity() * sizeof(regions_[0]) +
           index_.bytes();
  }

 private:
  FlatIndex index_;
  std::vector<std::unique_ptr<Region>> regions_;
};

}  // namespace strata::shadow
