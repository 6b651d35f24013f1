// What a shadow table stands for: the key under which it can be found and shared.
#pragma once

#include <array>
#include <cstdint>

#include "mmu/address.hpp"
#include "mmu/mmu.hpp"

namespace strata::shadow {

/// The bits of a PagingContext that change what guest entries mean to their shadow.
///
/// SMEP, SMAP, PKE, PKRU and PGE are not among them: shadow entries carry the guest's U/S, PK and G
/// bits unchanged, and the walk of the shadow table applies those controls as they are now. CR0.WP
/// is there only as `write_anywhere`: with WP=0 supervisor stores ignore R/W (SDM 3A 4.6.1), so
/// supervisor accesses use a shadow in which R/W of guest entries counts as set; user accesses
/// share the ordinary one.
struct Role {
  PagingMode mode = PagingMode::off;
  bool nxe = false;
  bool pse = false;
  bool huge_pages = false;
  bool write_anywhere = false;
  std::uint8_t maxphyaddr = 0;

  friend constexpr bool operator==(Role, Role) noexcept = default;
};

/// The role of `context`; `write_anywhere` asks for the one of supervisor accesses with WP=0.
[[nodiscard]] constexpr Role role_of(const PagingContext& c, bool write_anywhere) noexcept {
  if (c.mode == PagingMode::off) return {};
  Role role;
  role.mode = c.mode;
  // EFER.NXE makes bit 63 a permission instead of reserved; i386 entries have no such bit.
  role.nxe = c.nxe && c.mode != PagingMode::i386;
  role.pse = c.pse && c.mode == PagingMode::i386;
  role.huge_pages = c.huge_pages && c.mode == PagingMode::long4;
  role.write_anywhere = write_anywhere;
  role.maxphyaddr = c.maxphyaddr;
  return role;
}

enum class PageKind : std::uint8_t {
  mirror,  ///< entries mirror those of a guest table page, which is traced
  linear,  ///< maps consecutive PPNs: a piece of a guest large page, or of unpaged memory
  top,     ///< levels that the guest's format does not have: 4 and 3 of i386 and PAE
};

/// What a guest large page says about each of its pieces; part of a linear table's key.
struct LinearAttributes {
  bool global = false;
  std::uint8_t protection_key = 0;
  std::uint8_t guest_shift = kPageShift;  ///< log2 of the guest's page size
  friend constexpr bool operator==(const LinearAttributes&,
                                   const LinearAttributes&) noexcept = default;
};

/// Identity of a shadow table.
struct PageKey {
  /// mirror: the guest table's PPN; linear: the first PPN mapped; top: the CR3 page's PPN (i386)
  /// or a hash of the PDPTEs (PAE).
  std::uint64_t base = 0;
  PageKind kind = PageKind::mirror;
  std::uint8_t level = 1;  ///< 4 for roots, 1 for tables of 4 KiB leaves
  /// Which part of an i386 table this is: a 4 KiB table of 4-byte entries spans what takes four
  /// page directories, or two page tables, of 8-byte entries.
  std::uint8_t quadrant = 0;
  Role role{};
  LinearAttributes linear{};
  std::array<std::uint64_t, 4> pdpte{};  ///< top tables of PAE; zero otherwise

  friend bool operator==(const PageKey&, const PageKey&) noexcept = default;

  /// Hash key; mirrors hash by PPN alone, so that all mirrors of one guest page share a chain.
  [[nodiscard]] std::uint64_t tag() const noexcept {
    return base | static_cast<std::uint64_t>(kind) << 62;
  }
};

/// The key of the root table for `context` and `role`.
[[nodiscard]] inline PageKey root_key(const PagingContext& context, Role role) noexcept {
  PageKey key;
  key.level = 4;
  key.role = role;
  switch (context.mode) {
    case PagingMode::off:
      key.kind = PageKind::linear;
      break;
    case PagingMode::long4:
      // CR3[51:12]; the guest walk ignores the other bits, so must the key.
      key.base = page_of(context.root).value() & ((1ULL << 40) - 1);
      break;
    case PagingMode::i386:
      key.kind = PageKind::top;
      key.base = page_of(context.root).value() & ((1ULL << 20) - 1);  // CR3[31:12]
      break;
    case PagingMode::pae:
      key.kind = PageKind::top;
      key.pdpte = context.pdpte;
      for (const std::uint64_t e : context.pdpte) key.base = (key.base ^ e) * 0x9E3779B97F4A7C15ULL;
      key.base >>= 12;
      break;
  }
  return key;
}

/// log2 of the guest's page size for leaves in the table `key`: what INVLPG flushes.
[[nodiscard]] constexpr unsigned guest_page_shift(const PageKey& key) noexcept {
  if (key.kind == PageKind::linear) return key.linear.guest_shift;
  if (key.level == 1) return kPageShift;
  return key.role.mode == PagingMode::i386 ? 22 : kLargePageShift;
}

}  // namespace strata::shadow
