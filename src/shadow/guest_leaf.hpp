// The guest's own entry behind an entry of a shadow leaf table, read without its help: for looking
// whether a shadow entry still says what the guest's does, and for mapping neighbours of a miss.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "machine/formats.hpp"
#include "mmu/frames.hpp"
#include "mmu/p2m.hpp"
#include "shadow/role.hpp"

namespace strata::shadow {

/// What a shadow leaf takes over from a guest's 4 KiB leaf.
struct GuestLeaf {
  PPN ppn;
  std::uint64_t bits = 0;  ///< P, A, U/S, XD, G and protection key, as the shadow has them
  bool writable = false;   ///< R/W (or the role's leave) and D: stores need no walk of the guest's
};

/// The bits of GuestLeaf::bits.
inline constexpr std::uint64_t kTakenOver =
    machine::X86Bits::kPresent | machine::X86Bits::kAccessed | machine::X86Bits::kUser |
    machine::X86Bits::kNoExecute | machine::X86Bits::kGlobal | machine::bit_range(59, 62);

/// `e` as a leaf of level 1 under `role`. Nothing if it could not be in a TLB: not present, not
/// accessed (SDM 3A 4.10.2.2: only entries with A set are cached), or reserved bits set.
[[nodiscard]] constexpr std::optional<GuestLeaf> guest_leaf(std::uint64_t e, Role role) noexcept {
  using machine::X86Bits;
  constexpr std::uint64_t kWanted = X86Bits::kPresent | X86Bits::kAccessed;
  if ((e & kWanted) != kWanted) return std::nullopt;
  machine::WalkControls c;
  c.nxe = role.nxe;
  c.maxphyaddr = role.maxphyaddr;
  std::uint64_t reserved = 0;
  std::uint64_t taken = kTakenOver & ~machine::bit_range(59, 62);
  switch (role.mode) {
    case PagingMode::i386:
      taken &= ~X86Bits::kNoExecute;
      break;
    case PagingMode::pae:
      reserved = machine::PaeFormat::reserved(e, 1, c);
      break;
    default:
      reserved = machine::Long4Format::reserved(e, 1, c);
      taken = kTakenOver;
      break;
  }
  if ((e & reserved) != 0) return std::nullopt;
  GuestLeaf leaf;
  leaf.ppn = page_of(PA{machine::Long4Format::page_address(e, 1)});
  leaf.bits = e & taken;
  leaf.writable =
      (role.write_anywhere || (e & X86Bits::kWritable) != 0) && (e & X86Bits::kDirty) != 0;
  return leaf;
}

/// The entries of one guest table of leaves as they are now. Valid while the backend lock is held:
/// a page that goes elsewhere is announced by p2m_changed() first, which takes it exclusively.
class GuestLeaves {
 public:
  /// `key`: a mirror of level 1. Without frame behind the table (on its way elsewhere, a device)
  /// there are no leaves.
  GuestLeaves(const P2m& p2m, MachineWindow window, const PageKey& key) noexcept : key_{&key} {
    const P2mEntry entry = p2m.lookup(PPN{key.base}).entry;
    if (entry.mappable()) page_ = window.host(address_of(target_of(entry, p2m.zero_frame()).mpn));
  }
  [[nodiscard]] std::optional<GuestLeaf> at(std::uint32_t index) const noexcept {
    if (page_ == nullptr) return std::nullopt;
    if (key_->role.mode != PagingMode::i386)
      return guest_leaf(load<std::uint64_t>(index), key_->role);
    // A page table of 4-byte entries takes two mirrors (see PageKey::quadrant).
    constexpr std::uint32_t kMirrored = 512;
    return guest_leaf(load<std::uint32_t>(key_->quadrant * kMirrored + index), key_->role);
  }

 private:
  template <class Entry>
  [[nodiscard]] Entry load(std::uint32_t index) const noexcept {
    auto* entry = reinterpret_cast<Entry*>(page_ + index * sizeof(Entry));
    return std::atomic_ref<Entry>{*entry}.load(std::memory_order_acquire);
  }

  const PageKey* key_;
  std::byte* page_ = nullptr;
};

/// Whether shadow leaf `entry`, which maps `ppn`, says nothing that `now` does not.
[[nodiscard]] constexpr bool agrees(std::uint64_t entry, PPN ppn, std::uint64_t writable_bits,
                                    const std::optional<GuestLeaf>& now) noexcept {
  return now && now->ppn == ppn && (entry & kTakenOver) == now->bits &&
         ((entry & writable_bits) == 0 || now->writable);
}

}  // namespace strata::shadow
