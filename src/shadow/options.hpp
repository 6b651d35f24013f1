// What the shadow backend may cost and which of its techniques are on. docs/shadow-techniques.md
// says what each does and what it is worth.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace strata::shadow {

/// The most that one shadow table costs the host, in bytes: its frame, its descriptor, the links
/// of 512 entries and its place in the indices. What a limit is divided by, so that it holds for
/// whatever shape of tables a guest makes.
inline constexpr std::uint64_t kTableCost = 11 << 10;

/// Set when the backend is made; not changed afterwards.
struct ShadowOptions {
  /// Bytes that shadow tables may cost together, those waiting for a flush to be freed included.
  /// Raised to 8 tables if smaller: one miss needs up to 4 at a time. When it is reached, the least
  /// recently used root that no vCPU runs on goes with what only it needs, then tables that were
  /// not used lately; never those on the path of the miss at work.
  std::uint64_t memory_limit = 32ULL << 20;
  /// Leave a leaf table unwatched after a store to it, until a vCPU that has flushed uses it again.
  bool unsync = true;
  /// Traced writes to a guest table, without its shadow being used in between, after which the
  /// shadow is given up and the page left untraced; 0: never. Page directories and above tolerate
  /// 16 times as many: giving one up costs everything below it.
  std::uint16_t write_flood_limit = 12;
  /// On a miss also map the neighbours in the aligned group of 8 entries that need no help from the
  /// guest or the P2M.
  bool prefetch = true;
  /// Leaves of global pages stay good in tables out of sync when CR3 is loaded (SDM 3A 4.10.2.4).
  bool global_pages = true;
  /// Tables out of sync stay good when a vCPU comes back to a PCID without a flush (SDM 3A
  /// 4.10.4.1: MOV to CR3 with bit 63 set).
  bool pcid = true;
  /// Map 2 MiB of a guest's large page by one shadow entry where the P2M is contiguous too.
  bool large_pages = true;
  /// vCPU numbers run from 0 to max_vcpus - 1.
  unsigned max_vcpus = 64;
};

/// A technique that can be turned off, as `--mmu shadow,no-NAME` does.
struct Technique {
  std::string_view name;
  std::string_view meaning;  ///< one line for --help
  void (*turn_off)(ShadowOptions&);
};

/// All of them, in the order of the documentation. Thread-safe.
[[nodiscard]] std::span<const Technique> techniques() noexcept;

/// Options with every technique off: what the others are compared with.
[[nodiscard]] ShadowOptions plain_options();

/// The memory limit that a VM with `ram_bytes` gets if nobody says otherwise: 1/32 of it, at least
/// 4 MiB. Mapping all of it once by 4 KiB leaves takes a sixth of that.
[[nodiscard]] constexpr std::uint64_t default_memory_limit(std::uint64_t ram_bytes) noexcept {
  constexpr std::uint64_t kLeast = 4ULL << 20;
  return ram_bytes / 32 > kLeast ? ram_bytes / 32 : kLeast;
}

}  // namespace strata::shadow
