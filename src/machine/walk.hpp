// The one page-table walker. A format supplies bits; a Memory policy says how an entry is reached:
// guest tables through the P2M, guest tables through a nested table, or machine memory directly.
#pragma once

#include <array>
#include <cstdint>

#include "machine/formats.hpp"
#include "mmu/expected.hpp"

namespace strata::machine {

/// Where a walk starts: the root, or a lower table that a paging-structure cache remembered
/// together with the rights gathered on the way to it (SDM 3A 4.10.3).
struct WalkStart {
  std::uint64_t table = 0;  ///< address of the table at `level`
  unsigned level = 0;       ///< levels count down to 1, the table of 4 KiB leaves
  Rights rights{};
};

/// One entry that a walk used.
struct WalkStep {
  std::uint64_t entry_address = 0;
  std::uint64_t entry = 0;
  Rights rights{};  ///< gathered up to and including this entry
};

struct WalkResult {
  std::uint64_t address = 0;  ///< what the input translates to, byte-exact
  std::uint64_t leaf = 0;     ///< the leaf entry after A/D updates
  unsigned leaf_level = 1;
  unsigned page_shift = kPageShift;
  Rights rights{};
  bool global = false;
  unsigned ad_writes = 0;
  /// steps[level]: every entry the walk read; for filling paging-structure caches.
  std::array<WalkStep, 5> steps{};
};

enum class WalkStop : std::uint8_t {
  not_present,
  reserved,  ///< reserved bit (x86) or misconfiguration (EPT)
  permission,
  key,     ///< protection key
  memory,  ///< the Memory policy could not reach an entry; `memory_fault` says why
};

struct WalkFault {
  WalkStop stop = WalkStop::not_present;
  unsigned level = 0;  ///< of the entry at which the walk stopped
  Rights rights{};     ///< gathered up to there
  Fault memory_fault{};
};

/// The #PF error code for a fault of an x86-format walk (SDM 3A 4.7). The I/D bit exists only
/// where instruction fetches can fault on their own (NXE with PAE or long mode, or SMEP).
[[nodiscard]] constexpr std::uint32_t page_fault_code(const WalkFault& f, Access access,
                                                      bool fetch_bit) noexcept {
  std::uint32_t code = f.stop == WalkStop::not_present ? 0 : pf::kPresent;
  if (access.kind == AccessKind::write) code |= pf::kWrite;
  if (access.user) code |= pf::kUser;
  if (f.stop == WalkStop::reserved) code |= pf::kReserved;
  if (f.stop == WalkStop::key) code |= pf::kProtectionKey;
  if (access.kind == AccessKind::execute && fetch_bit) code |= pf::kFetch;
  return code;
}

namespace detail {

/// Whether the Memory policy lets a walk write to the tables.
template <class Format, class Memory>
concept Updates = requires(Memory& mem, typename Format::Entry e) {
  mem.compare_exchange(std::uint64_t{}, e, e);
};

/// Sets A on every step used and D on the leaf of a write. False: an entry changed under us.
template <class Format, class Memory>
Expected<bool, Fault> update_accessed_dirty(WalkResult& r, unsigned top, bool write, Memory& mem) {
  for (unsigned level = top; level >= r.leaf_level; --level) {
    WalkStep& step = r.steps[level];
    std::uint64_t wanted = step.entry | Format::kAccessed;
    if (level == r.leaf_level && write) wanted |= Format::kDirty;
    if (wanted == step.entry) continue;
    const auto swapped =
        mem.compare_exchange(step.entry_address, static_cast<typename Format::Entry>(step.entry),
                             static_cast<typename Format::Entry>(wanted));
    if (!swapped) return Unexpected{swapped.error()};
    if (!*swapped) return false;
    step.entry = wanted;
    ++r.ad_writes;
  }
  r.leaf = r.steps[r.leaf_level].entry;
  return true;
}

/// Every step used was used before.
template <class Format>
bool all_accessed(const WalkResult& r, unsigned top) {
  for (unsigned level = top; level >= r.leaf_level; --level) {
    if ((r.steps[level].entry & Format::kAccessed) == 0) return false;
  }
  return true;
}

/// Reads entries from `start` down to the leaf.
template <class Format, class Memory>
Expected<WalkResult, WalkFault> descend(const WalkStart& start, std::uint64_t input,
                                        const WalkControls& controls, Memory& mem) {
  WalkResult r;
  Rights rights = start.rights;
  std::uint64_t table = start.table;
  for (unsigned level = start.level;; --level) {
    using Entry = typename Format::Entry;
    const std::uint64_t index =
        input >> Format::shift(level) & ((1ULL << Format::index_bits(level)) - 1);
    const std::uint64_t address = table + index * sizeof(Entry);
    const auto read = mem.template read<Entry>(address, level);
    if (!read) return Unexpected{WalkFault{WalkStop::memory, level, rights, read.error()}};
    const Entry e = *read;
    if (!Format::present(e)) return Unexpected{WalkFault{WalkStop::not_present, level, rights, {}}};
    rights = Format::combine(rights, e, controls);
    if ((e & Format::reserved(e, level, controls)) != 0) {
      return Unexpected{WalkFault{WalkStop::reserved, level, rights, {}}};
    }
    r.steps[level] = {address, e, rights};
    if (level > 1 && !Format::large(e, level, controls)) {
      table = Format::table_address(e);
      continue;
    }
    r.leaf_level = level;
    r.page_shift = Format::shift(level);
    r.leaf = e;
    r.rights = rights;
    r.global = Format::global(e);
    r.address = Format::page_address(e, level) | (input & ((1ULL << r.page_shift) - 1));
    return r;
  }
}

}  // namespace detail

/// Walks from `start` and translates `input` for `access`, setting accessed and dirty bits.
///
/// Memory must offer
///   Expected<Entry, Fault> read<Entry>(std::uint64_t address, unsigned level);
///   Expected<bool, Fault> compare_exchange(std::uint64_t address, Entry seen, Entry wanted);
/// both atomic; without the second, walks leave A and D as they are. When an entry changes between
/// read and update the walk starts again, so a result always reflects entries that were in memory
/// with the bits set. Thread-safe as far as `mem` is.
template <class Format, class Memory>
Expected<WalkResult, WalkFault> walk(const WalkStart& start, std::uint64_t input, Access access,
                                     const WalkControls& controls, Memory& mem) {
  for (;;) {
    auto r = detail::descend<Format>(start, input, controls, mem);
    if (!r) return r;
    // Keys first: #PF sets PK whenever the key denies the access, whatever else does (SDM 3A 4.7).
    if constexpr (Format::kProtectionKeys) {
      if (Format::key_denies(r->rights, r->leaf, access.kind, access.user, controls)) {
        return Unexpected{WalkFault{WalkStop::key, r->leaf_level, r->rights, {}}};
      }
    }
    if (!Format::permits(r->rights, access.kind, access.user, access.ac, controls)) {
      return Unexpected{WalkFault{WalkStop::permission, r->leaf_level, r->rights, {}}};
    }
    if constexpr (detail::Updates<Format, Memory>) {
      if (!controls.accessed_dirty) return r;
      if (access.speculative && !detail::all_accessed<Format>(*r, start.level)) {
        return Unexpected{WalkFault{WalkStop::not_present, r->leaf_level, r->rights, {}}};
      }
      const auto updated = detail::update_accessed_dirty<Format>(
          *r, start.level, access.kind == AccessKind::write, mem);
      if (!updated) return Unexpected{WalkFault{WalkStop::memory, 0, r->rights, updated.error()}};
      if (*updated) return r;
    } else {
      return r;
    }
  }
}

}  // namespace strata::machine
