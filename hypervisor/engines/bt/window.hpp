// A window: what one guest address space has mapped, realised in the host's own MMU. The soft TLB
// of that address space, without the checks.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <tuple>
#include <vector>

#include "engines/bt/native_state.hpp"
#include "engines/bt/slice_pool.hpp"
#include "mmu/address.hpp"
#include "mmu/mmu.hpp"

namespace strata::bt {

/// What translated code adds to a VA, by bits 40 to 47 of it. Where there is no window the sum has
/// bit 47 set: whatever bits 48 to 63 of the VA are, it is not canonical or the host kernel's, so
/// that no VA reaches anything of the process. In a window's slice all sums but those of the
/// canonical VA are not canonical.
inline constexpr std::size_t kSlices = std::tuple_size_v<SliceTable>;
[[nodiscard]] constexpr std::size_t slice_of(std::uint64_t va) noexcept {
  return va >> kSliceShift & (kSlices - 1);
}
[[nodiscard]] constexpr std::uint64_t no_window(std::size_t slice) noexcept {
  return (0xC0 - static_cast<std::uint64_t>(slice)) << kSliceShift;
}

/// Pages that follow each other in guest-virtual, guest-physical and machine memory.
struct Extent {
  std::uint64_t pages = 0;
  PPN first{};
  std::byte* host = nullptr;
  bool write = false;
  std::uint8_t page_shift = kPageShift;  ///< of the guest's page
};

/// vCPU thread only.
class Window {
 public:
  explicit Window(SlicePool& pool) : pool_{&pool} {}
  Window(Window&&) noexcept = default;
  Window& operator=(Window&&) = delete;
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;
  ~Window();

  /// The page of `va` may be accessed so.
  [[nodiscard]] bool allows(VA va, bool write) const noexcept;
  /// False: the host has no room.
  bool map(VA va, const Extent& extent);
  /// Loses the pages from `va` on; the guest's page of `va`, whatever its size.
  void unmap(VA va, std::uint64_t pages);
  void unmap_page(VA va);
  /// Loses every writable page that is `ppn`.
  void unmap_writable(PPN ppn);
  /// Loses every extent with pages for which f(Extent) holds.
  template <class F>
  void unmap_if(F&& f) {
    for (auto i = extents_.begin(); i != extents_.end();) {
      const auto [vpn, extent] = *i++;
      if (f(extent)) unmap(VA{vpn << kPageShift}, extent.pages);
    }
  }
  /// Loses every page, seen as an extent of one, for which holds(VA, Extent) is false. How many
  /// ranges the host unmapped.
  std::uint64_t keep_if(const std::function<bool(VA, const Extent&)>& holds);
  void clear();
  /// Gives the slices back.
  void release();

  /// Makes translated code use this window, or no window at all any more.
  void enter(SliceTable& table) const noexcept;
  void leave(SliceTable& table) const noexcept;

  [[nodiscard]] std::size_t extents() const noexcept { return extents_.size(); }
  [[nodiscard]] std::uint64_t pages() const noexcept { return pages_; }

 private:
  struct Slice {
    std::size_t number = 0;               ///< bits 40 to 47 of its VAs
    std::uint64_t base = 0;               ///< host address
    std::uint64_t low = ~0ULL, high = 0;  ///< offsets between which something may be mapped
  };
  using Extents = std::map<std::uint64_t, Extent>;  ///< by VPN, apart
  [[nodiscard]] Slice* slice(VA va) noexcept;
  [[nodiscard]] Extents::const_iterator find(std::uint64_t vpn) const noexcept;
  /// Forgets the pages, without a change to what the host maps.
  void forget(std::uint64_t vpn, std::uint64_t pages);

  SlicePool* pool_;
  std::vector<Slice> slices_;
  Extents extents_;
  std::uint64_t pages_ = 0;
  bool any_large_ = false;  ///< an extent of a large page of the guest has been mapped
};

}  // namespace strata::bt
