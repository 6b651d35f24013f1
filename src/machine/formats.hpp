// Page-table formats. A format supplies bits; radix_table.hpp and walk.hpp supply the algorithms,
// once for all of them (design rule 5).
#pragma once

#include <algorithm>
#include <cstdint>

#include "mmu/fault.hpp"
#include "mmu/mmu.hpp"

namespace strata::machine {

/// What the entries of a walk allow together. Combined by intersection, level by level.
struct Rights {
  bool read = true;
  bool write = true;
  bool execute = true;
  bool user = true;  ///< x86 formats only: U/S set at every level
};

/// What the paging unit checks against `Rights`. Formats that do not use a field ignore it.
struct WalkControls {
  bool wp = false, smep = false, smap = false, pke = false, nxe = false, pse = false;
  bool huge_pages = true;
  bool accessed_dirty = true;  ///< the format sets A and D (EPTP bit 6 for EPT)
  std::uint8_t maxphyaddr = 40;
  std::uint32_t pkru = 0;
};

[[nodiscard]] constexpr WalkControls controls_of(const PagingContext& c) noexcept {
  return {c.wp, c.smep, c.smap, c.pke, c.nxe, c.pse, c.huge_pages, true, c.maxphyaddr, c.pkru};
}

/// Bits [from, to], both inclusive.
[[nodiscard]] constexpr std::uint64_t bit_range(unsigned from, unsigned to) noexcept {
  return (to >= 63 ? ~0ULL : (1ULL << (to + 1)) - 1) & ~((1ULL << from) - 1);
}

/// Common to the formats with 8-byte entries and 9 index bits a level.
struct WideEntries {
  using Entry = std::uint64_t;
  static constexpr unsigned index_bits(unsigned /*level*/) { return 9; }
  static constexpr unsigned shift(unsigned level) { return kPageShift + 9 * (level - 1); }
  static constexpr std::uint64_t kAddressMask = bit_range(12, 51);
  static constexpr std::uint64_t table_address(Entry e) { return e & kAddressMask; }
  static constexpr std::uint64_t page_address(Entry e, unsigned level) {
    return e & kAddressMask & ~((1ULL << shift(level)) - 1);
  }
  /// The bits of a leaf of `level` that say `address`; inverse of page_address().
  static constexpr std::uint64_t leaf_address(std::uint64_t address, unsigned level) {
    return address & kAddressMask & ~((1ULL << shift(level)) - 1);
  }
};

/// Bits that all x86 (not EPT) entries share (SDM 3A tables 4-4 to 4-20).
struct X86Bits {
  static constexpr std::uint64_t kPresent = 1ULL << 0;
  static constexpr std::uint64_t kWritable = 1ULL << 1;
  static constexpr std::uint64_t kUser = 1ULL << 2;
  static constexpr std::uint64_t kAccessed = 1ULL << 5;
  static constexpr std::uint64_t kDirty = 1ULL << 6;
  static constexpr std::uint64_t kLarge = 1ULL << 7;
  static constexpr std::uint64_t kGlobal = 1ULL << 8;
  static constexpr std::uint64_t kNoExecute = 1ULL << 63;

  static constexpr bool present(std::uint64_t e) { return (e & kPresent) != 0; }
  static constexpr bool global(std::uint64_t e) { return (e & kGlobal) != 0; }
};

/// The permission rules of SDM 3A 4.6 and the error code of 4.7, for formats with x86 bits.
struct X86Rules : X86Bits {
  static constexpr Rights combine(Rights r, std::uint64_t e, const WalkControls& c) {
    r.write = r.write && (e & kWritable) != 0;
    r.user = r.user && (e & kUser) != 0;
    r.execute = r.execute && !(c.nxe && (e & kNoExecute) != 0);
    return r;
  }
  /// 4 KiB leaves carry the protection key in bits 62:59, as larger ones do (SDM 3A 4.6.2).
  static constexpr unsigned protection_key(std::uint64_t leaf) {
    return static_cast<unsigned>(leaf >> 59 & 0xF);
  }
  /// Whether `kind` with this privilege is allowed; protection keys are looked at apart.
  static constexpr bool permits(Rights r, AccessKind kind, bool user, bool ac,
                                const WalkControls& c) {
    if (user && !r.user) return false;
    const bool supervisor_on_user = !user && r.user;
    if (kind == AccessKind::execute) return r.execute && !(supervisor_on_user && c.smep);
    if (supervisor_on_user && c.smap && !ac) return false;
    if (kind == AccessKind::write) return r.write || (!user && !c.wp);
    return true;
  }
  /// PKU applies to data accesses to user pages in long mode (SDM 3A 4.6.2).
  static constexpr bool key_denies(Rights r, std::uint64_t leaf, AccessKind kind, bool user,
                                   const WalkControls& c) {
    if (!c.pke || !r.user || kind == AccessKind::execute) return false;
    const std::uint32_t key = c.pkru >> (2 * protection_key(leaf)) & 3;
    if ((key & 1) != 0) return true;
    return kind == AccessKind::write && (key & 2) != 0 && (user || c.wp);
  }
};

/// How our own tables in x86 formats are written. Bit 7 of a 4 KiB leaf is PAT, not PS; ours leave
/// PAT clear, so larger and smaller leaves differ by address and PS alone (SDM 3A 4.3 to 4.5).
template <class Layout>
struct X86Entries : Layout, X86Rules {
  using Entry = typename Layout::Entry;
  static constexpr Entry make_table(std::uint64_t address) {
    return static_cast<Entry>(address | kPresent | kWritable | kUser);
  }
  static constexpr Entry make_leaf(std::uint64_t address, Rights r, unsigned level) {
    return static_cast<Entry>(Layout::leaf_address(address, level) | kPresent |
                              (r.write ? kWritable : 0) | (r.user ? kUser : 0) |
                              (r.execute ? 0 : kNoExecute) | (level > 1 ? kLarge : 0));
  }
  /// Entry number `index` of the table that stands for the large leaf `e` of `level`.
  static constexpr Entry child_leaf(Entry e, unsigned level, unsigned index) {
    const std::uint64_t base = Layout::page_address(e, level);
    const std::uint64_t marks = e & ~Layout::leaf_address(base, level) & ~kLarge;
    const std::uint64_t address = base + (std::uint64_t{index} << Layout::shift(level - 1));
    return static_cast<Entry>(marks | Layout::leaf_address(address, level - 1) |
                              (level > 2 ? kLarge : 0));
  }
};

/// Long mode, four levels (SDM 3A 4.5).
struct Long4Format : X86Entries<WideEntries> {
  static constexpr unsigned kLevels = 4;
  static constexpr bool kProtectionKeys = true;
  static constexpr bool large(Entry e, unsigned level, const WalkControls& /*c*/) {
    return (level == 2 || level == 3) && (e & kLarge) != 0;
  }
  static constexpr std::uint64_t reserved(Entry e, unsigned level, const WalkControls& c) {
    std::uint64_t bits = bit_range(c.maxphyaddr, 51);
    if (!c.nxe) bits |= kNoExecute;
    if (level == 4 || (level == 3 && !c.huge_pages)) bits |= kLarge;
    if (large(e, level, c)) bits |= bit_range(13, shift(level) - 1);
    return bits;
  }
};

/// PAE, from the page directory down: the four PDPTEs are registers (SDM 3A 4.4).
struct PaeFormat : X86Entries<WideEntries> {
  static constexpr unsigned kLevels = 2;
  static constexpr bool kProtectionKeys = false;
  static constexpr bool large(Entry e, unsigned level, const WalkControls& /*c*/) {
    return level == 2 && (e & kLarge) != 0;
  }
  static constexpr std::uint64_t reserved(Entry e, unsigned level, const WalkControls& c) {
    std::uint64_t bits = bit_range(c.maxphyaddr, 62);
    if (!c.nxe) bits |= kNoExecute;
    if (large(e, level, c)) bits |= bit_range(13, 20);
    return bits;
  }
};

/// 4-byte entries and 10 index bits a level.
struct NarrowEntries {
  using Entry = std::uint32_t;
  static constexpr unsigned index_bits(unsigned /*level*/) { return 10; }
  static constexpr unsigned shift(unsigned level) { return level == 1 ? 12 : 22; }
  static constexpr std::uint64_t table_address(Entry e) { return e & 0xFFFFF000U; }
  /// 4 MiB pages reach 40 physical address bits through PSE-36 (SDM 3A table 4-4).
  static constexpr std::uint64_t page_address(Entry e, unsigned level) {
    if (level == 1) return e & 0xFFFFF000U;
    return (e & 0xFFC00000U) | static_cast<std::uint64_t>(e & bit_range(13, 20)) << 19;
  }
  /// The bits of a leaf of `level` that say `address`; inverse of page_address().
  static constexpr std::uint64_t leaf_address(std::uint64_t address, unsigned level) {
    if (level == 1) return address & 0xFFFFF000U;
    return (address & 0xFFC00000U) | (address >> 19 & bit_range(13, 20));
  }
};

/// i386 two-level tables (SDM 3A 4.3).
struct I386Format : X86Entries<NarrowEntries> {
  static constexpr unsigned kLevels = 2;
  static constexpr bool kProtectionKeys = false;
  static constexpr bool large(Entry e, unsigned level, const WalkControls& c) {
    return level == 2 && c.pse && (e & kLarge) != 0;
  }
  static constexpr std::uint64_t reserved(Entry e, unsigned level, const WalkControls& c) {
    if (!large(e, level, c)) return 0;
    return bit_range(std::min<unsigned>(c.maxphyaddr, 40) - 19, 21);
  }
};

/// AMD nested tables: long-mode bits, every access a user access (APM 2 15.25.5).
struct NptFormat : Long4Format {
  static constexpr Entry make_table(std::uint64_t address) {
    return address | kPresent | kWritable | kUser | kAccessed;
  }
  static constexpr Entry make_leaf(std::uint64_t address, Rights r, unsigned level) {
    return address | kPresent | kUser | (r.write ? kWritable : 0) | (r.execute ? 0 : kNoExecute) |
           (level > 1 ? kLarge : 0);
  }
};

/// Intel extended page tables (SDM 3C 29.3.2).
struct EptFormat : WideEntries {
  static constexpr unsigned kLevels = 4;
  static constexpr bool kProtectionKeys = false;
  static constexpr std::uint64_t kRead = 1ULL << 0;
  static constexpr std::uint64_t kWrite = 1ULL << 1;
  static constexpr std::uint64_t kExecute = 1ULL << 2;
  static constexpr std::uint64_t kMemoryTypeWriteBack = 6ULL << 3;
  static constexpr std::uint64_t kLarge = 1ULL << 7;
  static constexpr std::uint64_t kAccessed = 1ULL << 8;
  static constexpr std::uint64_t kDirty = 1ULL << 9;

  static constexpr bool present(Entry e) { return (e & (kRead | kWrite | kExecute)) != 0; }
  static constexpr bool global(Entry /*e*/) { return false; }
  static constexpr bool large(Entry e, unsigned level, const WalkControls& /*c*/) {
    return (level == 2 || level == 3) && (e & kLarge) != 0;
  }
  /// Reserved bits and the write-only patterns of an EPT misconfiguration (SDM 3C 29.3.3.1).
  static constexpr std::uint64_t reserved(Entry e, unsigned level, const WalkControls& c) {
    std::uint64_t bits = bit_range(c.maxphyaddr, 51);
    if ((e & kRead) == 0) bits |= kWrite;
    if (level == 1) return bits;
    if (large(e, level, c)) return bits | bit_range(12, shift(level) - 1);
    return bits | bit_range(3, level == 4 ? 7 : 6);
  }
  static constexpr Rights combine(Rights r, Entry e, const WalkControls& /*c*/) {
    return {r.read && (e & kRead) != 0, r.write && (e & kWrite) != 0,
            r.execute && (e & kExecute) != 0, r.user};
  }
  static constexpr bool permits(Rights r, AccessKind kind, bool /*user*/, bool /*ac*/,
                                const WalkControls& /*c*/) {
    if (kind == AccessKind::write) return r.write;
    return kind == AccessKind::execute ? r.execute : r.read;
  }
  static constexpr bool key_denies(Rights, Entry, AccessKind, bool, const WalkControls&) {
    return false;
  }
  static constexpr Entry make_table(std::uint64_t address) {
    return address | kRead | kWrite | kExecute;
  }
  static constexpr Entry make_leaf(std::uint64_t address, Rights r, unsigned level) {
    return address | (r.read ? kRead : 0) | (r.write ? kWrite : 0) | (r.execute ? kExecute : 0) |
           kMemoryTypeWriteBack | (level > 1 ? kLarge : 0);
  }
  /// Entry number `index` of the table that stands for the large leaf `e` of `level`.
  static constexpr Entry child_leaf(Entry e, unsigned level, unsigned index) {
    return (e & ~(level > 2 ? 0 : kLarge)) + (std::uint64_t{index} << shift(level - 1));
  }
};

}  // namespace strata::machine
