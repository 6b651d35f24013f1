// VA -> PA through the guest's own tables, reached through the P2M.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "machine/walk.hpp"
#include "mmu/expected.hpp"
#include "mmu/frames.hpp"
#include "mmu/mmu.hpp"
#include "mmu/p2m.hpp"

namespace strata::machine {

/// Counted by guest_walk(). Not synchronised: one per vCPU.
struct GuestWalkCounters {
  std::uint64_t walks = 0;       ///< calls with paging on
  std::uint64_t references = 0;  ///< guest table entries read
  std::uint64_t ad_writes = 0;   ///< accessed/dirty updates written
  std::uint64_t faults = 0;      ///< walks that ended in a guest #PF
};

struct GuestWalk {
  PA pa{};          ///< byte-exact
  Rights rights{};  ///< together from every level; what a TLB may cache for other accesses
  unsigned page_shift = kPageShift;
  bool global = false;     ///< the leaf's G bit, where CR4.PGE honours it
  bool dirty = false;      ///< the leaf's D bit is set: stores need no further walk
  std::uint64_t leaf = 0;  ///< the leaf entry after A/D updates; 0 in mode off
  unsigned leaf_level = 1;
  /// steps[level] for level = leaf_level .. top_level: the entries the walk used.
  std::array<WalkStep, 5> steps{};
  unsigned top_level = 0;  ///< 0 in mode off
};

/// Translates `va` for `access` with the tables `context` describes, setting A and D bits.
///
/// Table entries are read through P2m::resolve(read): a table in an untouched page reads as zeroes
/// (not present) and costs no frame. A table in MMIO or absent memory reads as all ones, what a
/// read that no device claims returns on the bus; with PAE and long mode that meets reserved bits
/// and gives #PF with RSVD (SDM 3A 4.7). A/D updates go through resolve(write); those to ROM or to
/// no memory are dropped, as any other store there.
///
/// Addresses are truncated to 32 bits except in mode long4, where the caller has checked that `va`
/// is canonical (SDM 1 3.3.7.1). CR3 and PDPTE cacheability bits and PAT do not matter here.
///
/// Errors: stage guest_table, kind page_fault with `error_code` and `va` (SDM 3A 4.7); or stage p2m
/// with `va` and `pa` (of the table page) when a table page is busy, stored away, poisoned, or the
/// host is out of memory. Thread-safe; `counters` is the caller's own.
Expected<GuestWalk, Fault> guest_walk(const PagingContext& context, VA va, Access access, P2m& p2m,
                                      MachineWindow window, GuestWalkCounters& counters);

/// Why the PDPTE register of `va` gives no page directory, or nothing where it does. MOV to CR3
/// refuses a present one with reserved bits (2:1, 8:5 and everything above the physical address;
/// SDM 3A table 4-8), but a restored or hostile state may hold them.
[[nodiscard]] std::optional<WalkStop> pdpte_stop(const PagingContext& context, VA va) noexcept;

/// Whether a fetch's #PF sets the I/D bit (SDM 3A 4.7): SMEP, or NXE with PAE or long-mode tables.
[[nodiscard]] constexpr bool has_fetch_bit(const PagingContext& c) noexcept {
  return c.smep || (c.nxe && (c.mode == PagingMode::pae || c.mode == PagingMode::long4));
}

}  // namespace strata::machine
