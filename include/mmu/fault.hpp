// Accesses, and why a translation can fail. A fault names its stage (design rule 4).
#pragma once

#include <cstdint>

#include "mmu/address.hpp"

namespace strata {

enum class AccessKind : std::uint8_t { read, write, execute };

/// One access as the paging unit sees it (SDM 3A 4.6).
struct Access {
  AccessKind kind = AccessKind::read;
  /// CPL 3 and not an implicit supervisor access (SDM 3A 4.6.1).
  bool user = false;
  /// EFLAGS.AC as SMAP honours it: true lets explicit supervisor data accesses reach user pages.
  /// Implicit supervisor accesses (descriptor tables, TSS) pass false.
  bool ac = false;
  /// Nobody makes it: where it would set an accessed bit it is a page fault, as nobody is to see
  /// that it was asked for.
  bool speculative = false;
};

/// Where a translation stopped.
enum class Stage : std::uint8_t {
  guest_table,  ///< VA -> PA: the guest's own tables; delivered to the guest as #PF
  p2m,          ///< PA -> MA: the VMM's business
  engine,       ///< the engine's own (alignment, canonicality, resources)
};

enum class FaultKind : std::uint8_t {
  page_fault,     ///< guest_table: deliver #PF with `error_code`, CR2 = `va`
  mmio,           ///< p2m: a device (or nothing) answers at `pa`; exit and complete in two phases
  rom_write,      ///< p2m: a store to read-only memory; the store is dropped
  retry,          ///< p2m: the page is busy; run the instruction again
  paused,         ///< p2m: the page must come back from storage first
  poisoned,       ///< p2m: the host lost the page; #MC
  out_of_memory,  ///< p2m: the host has no frame for it
};

/// Page-fault error code bits (SDM 3A 4.7).
namespace pf {
inline constexpr std::uint32_t kPresent = 1U << 0;
inline constexpr std::uint32_t kWrite = 1U << 1;
inline constexpr std::uint32_t kUser = 1U << 2;
inline constexpr std::uint32_t kReserved = 1U << 3;
inline constexpr std::uint32_t kFetch = 1U << 4;
inline constexpr std::uint32_t kProtectionKey = 1U << 5;
}  // namespace pf

struct Fault {
  Stage stage = Stage::engine;
  FaultKind kind = FaultKind::retry;
  std::uint32_t error_code = 0;  ///< pf:: bits; meaningful for page_fault only
  VA va{};                       ///< the byte address of the access
  PA pa{};                       ///< byte address; meaningful for stage p2m only
};

}  // namespace strata
