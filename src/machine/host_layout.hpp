// Where things lie in a VMM process. The addresses are wishes, not promises: sanitizers and address
// randomisation may have taken them, and everything that uses one works from any other address.
#pragma once

#include <cstdint>

namespace strata::machine {

/// Host-virtual addresses and sizes, in bytes.
///
/// The executable lies below 2 GiB and the code caches between 1 and 2 GiB, so that translated code
/// reaches helpers with rel32 calls and data with disp32 (SDM 1 3.7.5.1). Machine memory lies far
/// away from both.
struct HostLayout {
  std::uint64_t code_cache_base = 0x4000'0000;
  std::uint64_t code_cache_end = 0x8000'0000;
  /// Wanted base of the machine memory window; must be a multiple of 1 GiB.
  std::uint64_t window_base = 0x2000'0000'0000;
  /// Size of the window: address space only. Halved until the host grants it.
  std::uint64_t window_bytes = 1ULL << 40;
  /// Size of segment 0, the system pool: sparse, only what is used costs memory.
  std::uint64_t system_pool_bytes = 16ULL << 30;
};

}  // namespace strata::machine
