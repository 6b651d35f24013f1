// Distinct types for the three address spaces, so that mixing two does not compile.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace strata {

inline constexpr unsigned kPageShift = 12;
inline constexpr std::uint64_t kPageSize = 1ULL << kPageShift;
inline constexpr std::uint64_t kPageMask = kPageSize - 1;
/// 2 MiB and 1 GiB: the large pages of PAE, 4-level, EPT and NPT tables (SDM 3A 4.5).
inline constexpr unsigned kLargePageShift = 21;
inline constexpr std::uint64_t kLargePageSize = 1ULL << kLargePageShift;
inline constexpr unsigned kHugePageShift = 30;
inline constexpr std::uint64_t kHugePageSize = 1ULL << kHugePageShift;

/// A byte address in the space that `Space` names. Units: bytes.
template <class Space>
class Address {
 public:
  constexpr Address() noexcept = default;
  constexpr explicit Address(std::uint64_t value) noexcept : value_{value} {}
  [[nodiscard]] constexpr std::uint64_t value() const noexcept { return value_; }
  [[nodiscard]] constexpr std::uint64_t page_offset() const noexcept { return value_ & kPageMask; }
  [[nodiscard]] constexpr Address page_base() const noexcept {
    return Address{value_ & ~kPageMask};
  }
  friend constexpr Address operator+(Address a, std::uint64_t bytes) noexcept {
    return Address{a.value_ + bytes};
  }
  friend constexpr std::uint64_t operator-(Address a, Address b) noexcept {
    return a.value_ - b.value_;
  }
  friend constexpr auto operator<=>(Address, Address) noexcept = default;

 private:
  std::uint64_t value_ = 0;
};

/// The number of a 4 KiB page in the space that `Space` names.
template <class Space>
class PageNumber {
 public:
  constexpr PageNumber() noexcept = default;
  constexpr explicit PageNumber(std::uint64_t value) noexcept : value_{value} {}
  [[nodiscard]] constexpr std::uint64_t value() const noexcept { return value_; }
  friend constexpr PageNumber operator+(PageNumber a, std::uint64_t pages) noexcept {
    return PageNumber{a.value_ + pages};
  }
  friend constexpr std::uint64_t operator-(PageNumber a, PageNumber b) noexcept {
    return a.value_ - b.value_;
  }
  friend constexpr auto operator<=>(PageNumber, PageNumber) noexcept = default;

 private:
  std::uint64_t value_ = 0;
};

struct VirtualSpace;
struct PhysicalSpace;
struct MachineSpace;

using VA = Address<VirtualSpace>;   ///< guest-virtual
using PA = Address<PhysicalSpace>;  ///< guest-physical
using MA = Address<MachineSpace>;   ///< machine
using VPN = PageNumber<VirtualSpace>;
using PPN = PageNumber<PhysicalSpace>;
using MPN = PageNumber<MachineSpace>;

template <class Space>
[[nodiscard]] constexpr PageNumber<Space> page_of(Address<Space> a) noexcept {
  return PageNumber<Space>{a.value() >> kPageShift};
}
template <class Space>
[[nodiscard]] constexpr Address<Space> address_of(PageNumber<Space> n) noexcept {
  return Address<Space>{n.value() << kPageShift};
}

/// `count` guest-physical pages from `first`.
struct PpnRange {
  PPN first;
  std::uint64_t count = 0;
  [[nodiscard]] constexpr bool contains(PPN ppn) const noexcept {
    return ppn >= first && ppn - first < count;
  }
};

}  // namespace strata

template <class Space>
struct std::hash<strata::PageNumber<Space>> {
  std::size_t operator()(strata::PageNumber<Space> n) const noexcept {
    // Page numbers are dense and low-entropy; spread them (Fibonacci hashing).
    return static_cast<std::size_t>(n.value() * 0x9E3779B97F4A7C15ULL);
  }
};
