// The shadow-paging backend: x86-format tables in machine memory that map VA straight to MA.
#pragma once

#include <cstdint>
#include <memory>

#include "mmu/frames.hpp"
#include "mmu/mmu.hpp"
#include "shadow/options.hpp"

namespace strata::shadow {

/// What the shadow tables are, and what happened to them. Counters are monotonic; `*_bytes`,
/// `pages` and `mappings` are now. Bytes are of host memory beyond the tables' own frames.
struct ShadowStats {
  std::uint64_t pages = 0;           ///< shadow tables now
  std::uint64_t pages_created = 0;   ///< shadow tables ever made
  std::uint64_t retiring = 0;        ///< frames of dropped tables that wait for a flush, now
  std::uint64_t roots = 0;           ///< of `pages`, those that are roots
  std::uint64_t mappings = 0;        ///< shadow leaves now
  std::uint64_t rmap_bytes = 0;      ///< reverse map: regions and their index
  std::uint64_t metadata_bytes = 0;  ///< descriptors of shadow tables, their links and indices
  std::uint64_t zaps = 0;            ///< present shadow entries taken away
  std::uint64_t traces = 0;          ///< guest pages whose tracing began
  std::uint64_t traced_writes = 0;   ///< guest_wrote() calls that touched a traced page
  std::uint64_t floods = 0;          ///< shadow tables given up because of write floods
  std::uint64_t root_hits = 0;       ///< roots found in the cache
  std::uint64_t root_misses = 0;     ///< roots that had to be made
  std::uint64_t evictions = 0;       ///< shadow tables dropped to stay within the limit
  std::uint64_t limit_bytes = 0;     ///< ShadowOptions::memory_limit as it is in force
  std::uint64_t unsyncs = 0;         ///< leaf tables left unwatched after a store
  std::uint64_t unsync_now = 0;      ///< of `pages`, those that may be out of date
  std::uint64_t resyncs = 0;         ///< whole tables compared with the guest's after a flush
  std::uint64_t outdated = 0;        ///< entries found out of date by that, or by INVLPG
  std::uint64_t prefetched = 0;      ///< shadow leaves made for neighbours of a miss
  std::uint64_t prefetch_used = 0;   ///< of these, leaves that a translation used
  std::uint64_t large_leaves = 0;    ///< 2 MiB shadow leaves installed
  std::uint64_t fragmented = 0;      ///< tables made to map a guest large page in smaller pieces
  std::uint64_t unlinked = 0;        ///< misses answered without installing (see shadow_mmu.hpp)
  std::uint64_t retries = 0;         ///< misses that raced with a change and started again
};

/// An Mmu that also says what its tables cost.
class ShadowBackend : public Mmu {
 public:
  /// Thread-safe; takes the backend lock shared.
  [[nodiscard]] virtual ShadowStats shadow_stats() const = 0;
};

/// Makes the shadow backend of one VM.
///
/// `p2m`, `frames` and `domain` must outlive the backend; `frames` must also outlive what the
/// backend deferred into `domain` (collect it first). The backend observes `p2m` while it lives.
/// No vCPU may be inside the backend, or enter it, when it is destroyed.
[[nodiscard]] std::unique_ptr<ShadowBackend> make_shadow_backend(P2m& p2m, FrameSource& frames,
                                                                 FlushDomain& domain,
                                                                 const ShadowOptions& options);

/// As make_shadow_backend(), for users who need only the common interface.
[[nodiscard]] std::unique_ptr<Mmu> make_shadow(P2m& p2m, FrameSource& frames, FlushDomain& domain,
                                               const ShadowOptions& options);

}  // namespace strata::shadow
