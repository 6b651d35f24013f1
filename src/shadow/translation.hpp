// What a walk of a shadow table checks, and what its rights let an access do.
#pragma once

#include <cstdint>

#include "machine/formats.hpp"
#include "mmu/mmu.hpp"

namespace strata::shadow {

/// The controls under which a shadow table is walked for a guest in `c`; `anywhere` for the tables
/// of role write_anywhere.
[[nodiscard]] constexpr machine::WalkControls shadow_controls(const PagingContext& c,
                                                              bool anywhere) noexcept {
  machine::WalkControls s;
  // A shadow entry is read-only for reasons of ours too (dirty bits, tracing, the P2M), so even
  // supervisor stores have to respect it: shadow tables are always walked with CR0.WP set. That
  // guest supervisors with WP=0 ignore the guest's R/W is in the entries of their own role.
  s.wp = true;
  s.nxe = true;
  s.maxphyaddr = 52;  // machine addresses are not bound by the guest's MAXPHYADDR
  if (c.mode == PagingMode::off) return s;  // no permissions without paging (SDM 3A 4.1.1)
  s.smep = c.smep;
  s.smap = c.smap;
  s.pke = c.pke && c.mode == PagingMode::long4;
  // WD bits of PKRU bind supervisor stores only with WP=1 (SDM 3A 4.6.2).
  s.pkru = anywhere ? c.pkru & 0x55555555U : c.pkru;
  return s;
}

/// What `rights` and the protection key in `leaf` let accesses with the privilege of `access` do.
/// The caller fills in the addresses.
[[nodiscard]] constexpr Translation allowed_by(machine::Rights rights, std::uint64_t leaf,
                                               Access access,
                                               const machine::WalkControls& c) noexcept {
  using Format = machine::Long4Format;
  const auto allowed = [&](AccessKind kind) {
    return Format::permits(rights, kind, access.user, access.ac, c) &&
           !Format::key_denies(rights, leaf, kind, access.user, c);
  };
  Translation t;
  t.readable = allowed(AccessKind::read);
  t.writable = allowed(AccessKind::write);
  t.executable = allowed(AccessKind::execute);
  return t;
}

/// The part of `va` that tables are indexed by: 32 bits outside long mode.
[[nodiscard]] constexpr std::uint64_t table_input(PagingMode mode, VA va) noexcept {
  return mode == PagingMode::long4 ? va.value() : va.value() & 0xFFFFFFFFULL;
}

}  // namespace strata::shadow
