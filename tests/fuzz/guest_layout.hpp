// Where things are in a random guest's memory (guest-physical; most linear maps are the identity).
#pragma once

#include <cstdint>

#include "cpu/vcpu_state.hpp"
#include "mmu/mmu.hpp"

namespace strata::fuzz {

namespace layout {
inline constexpr std::uint64_t kVectors = 0x0,  ///< real mode's interrupt vector table
    kGdt = 0x1000, kLdt = 0x2000, kIdt = 0x3000, kTss = 0x4000, kTss2 = 0x4800, kTss16 = 0x4C00,
                               kRoot = 0x5000,  ///< of the page tables; the others follow
    kTablesEnd = 0xC000, kStacks = 0xC000, kStacksEnd = 0x10000, kCode = 0x10000,
                               kCodeEnd = 0x18000, kData = 0x18000, kImageEnd = 0x20000;
/// Linear addresses at which a guest that modifies itself sees its code a second time.
inline constexpr std::uint64_t kAlias = 0x30000;
inline constexpr std::uint64_t kRamMib = 4, kRamEnd = kRamMib << 20;
inline constexpr std::uint64_t kRom = 5ULL << 20, kRomPages = 4;
inline constexpr std::uint64_t kMmio = 6ULL << 20, kMmioPages = 16;
inline constexpr std::uint64_t kSegmentMib = 8;
inline constexpr unsigned kDescriptors = 32;
}  // namespace layout

/// Numbers of the GDT's descriptors; a selector is eight times that. SYSCALL and SYSRET want some
/// of them in this order.
enum Descriptors : std::uint16_t {
  kCode64 = 1,
  kDataFlat,
  kCode32,
  kCode16,
  kData16,
  kUserCode32,
  kUserData,
  kUserCode64,
  kUserCode16,
  kUserData16,
  kConforming,
  kExpandDown,
  kCodeLevel1,
  kDataLevel1,
  kCodeLevel2,
  kDataLevel2,
  kTaskState,  ///< two slots, as the next three
  kLocalTable = kTaskState + 2,
  kCallGate = kLocalTable + 2,
  kOtherTask = kCallGate + 2,
  kCallGate16 = kOtherTask + 2,
  kTaskGate,
  kTask16,
  kJunk,  ///< from here on
};

enum class GuestMode : std::uint8_t {
  real,
  vm86,
  protected16,
  protected32,
  compat16,
  compat32,
  long64
};

/// What kind of guest a case is.
struct GuestPlan {
  GuestMode mode = GuestMode::real;
  PagingMode paging = PagingMode::off;
  unsigned cpl = 0;
  bool self_modifying = false;  ///< most of the code patches code

  [[nodiscard]] constexpr bool ia32e() const noexcept { return mode >= GuestMode::compat16; }
  [[nodiscard]] constexpr unsigned bits() const noexcept {
    switch (mode) {
      case GuestMode::long64:
        return 64;
      case GuestMode::protected32:
      case GuestMode::compat32:
        return 32;
      default:
        return 16;
    }
  }
};

}  // namespace strata::fuzz
