// The interface that every translating backend implements: VA -> MA for one VM.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "mmu/address.hpp"
#include "mmu/expected.hpp"
#include "mmu/fault.hpp"
#include "mmu/p2m.hpp"

namespace strata {

/// Which guest tables the paging unit walks (SDM 3A 4.1.1).
enum class PagingMode : std::uint8_t { off, i386, pae, long4 };

/// What the guest's control registers say about paging: the inputs of a guest walk.
struct PagingContext {
  PagingMode mode = PagingMode::off;
  PA root{};               ///< CR3's table address; unused in modes off and pae
  std::uint16_t pcid = 0;  ///< CR3[11:0] when CR4.PCIDE, else 0
  bool wp = false;         ///< CR0.WP
  bool pse = false;        ///< CR4.PSE
  bool pge = false;        ///< CR4.PGE
  bool pcide = false;      ///< CR4.PCIDE
  bool smep = false;       ///< CR4.SMEP
  bool smap = false;       ///< CR4.SMAP
  bool pke = false;        ///< CR4.PKE
  bool nxe = false;        ///< EFER.NXE
  bool huge_pages = true;  ///< CPUID 80000001h:EDX.Page1GB
  std::uint8_t maxphyaddr = 40;
  std::uint32_t pkru = 0;
  std::array<std::uint64_t, 4> pdpte{};  ///< mode pae: loaded with CR3 (SDM 3A 4.4.1)
  friend bool operator==(const PagingContext&, const PagingContext&) = default;
};

/// A translation that the engine may keep in its TLB until told otherwise. It holds for accesses
/// with the same `user` and `ac` as the one it was made for.
struct Translation {
  MA page{};  ///< base of the 4 KiB machine page
  PA pa{};    ///< base of the 4 KiB guest-physical page
  bool readable = false;
  /// Stores may go straight to `page` and be cached: the dirty bits on the way are set.
  bool writable = false;
  bool executable = false;
  bool global = false;
  /// The store that was asked for is allowed, but must be announced with guest_wrote() and may not
  /// be cached as writable: the page holds guest tables that the backend shadows.
  bool traced = false;
  unsigned page_shift = kPageShift;  ///< the guest's page size here: what INVLPG will flush
};

/// Events counted by every backend. Snapshot; monotonic.
struct MmuStats {
  std::uint64_t translations = 0;      ///< calls to translate(): engine TLB misses
  std::uint64_t walks = 0;             ///< walks of the backend's own structure
  std::uint64_t guest_references = 0;  ///< guest table entries read
  std::uint64_t table_references = 0;  ///< shadow or nested table entries read
  std::uint64_t ad_writes = 0;         ///< accessed/dirty updates written, any table
  std::uint64_t backend_misses = 0;    ///< shadow misses or EPT violations
  std::uint64_t guest_faults = 0;      ///< #PF handed to the guest
  std::uint64_t traced_writes = 0;     ///< stores to traced guest tables
  std::uint64_t invalidations = 0;     ///< INVLPG, INVPCID, CR3 loads that reached the backend
  std::uint64_t cache_hits = 0;        ///< paging-structure, nested-TLB or root-cache hits
  std::uint64_t table_bytes = 0;       ///< bytes of tables now
};

enum class FlushScope : std::uint8_t {
  address,         ///< one page in one PCID, not global (INVPCID 0)
  pcid,            ///< one PCID, globals stay (CR3 load; INVPCID 1)
  all_non_global,  ///< every PCID, globals stay (INVPCID 3)
  all,             ///< everything (CR4.PGE or PCIDE toggled, INVPCID 2)
};

using VcpuId = unsigned;

/// A translating backend. One per VM. translate() and the flush calls for one vCPU come from that
/// vCPU's thread; different vCPUs call concurrently. A call into the Mmu is a quiescent point of
/// the calling vCPU: it must not keep using a translation it got before, unless it checks that no
/// invalidation arrived in between.
class Mmu : public P2mObserver {
 public:
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;

  /// The guest changed what its control registers say. Cached translations stay unless flushed by
  /// invalidate(): the engine says separately what the architecture flushes.
  virtual void set_context(VcpuId vcpu, const PagingContext& context) = 0;

  /// Translates one access; sets accessed and dirty bits as the processor would. Page-crossing
  /// accesses are two calls. Faults: stage guest_table (deliver #PF), or stage p2m as P2m::resolve
  /// with `pa` the byte address.
  virtual Expected<Translation, Fault> translate(VcpuId vcpu, VA va, Access access) = 0;

  /// INVLPG: the page of `va` in the current PCID, global or not, and all paging-structure caches
  /// of that PCID (SDM 3A 4.10.4.1).
  virtual void invalidate_page(VcpuId vcpu, VA va) = 0;
  /// The other flushes. `va` matters for FlushScope::address only.
  virtual void invalidate(VcpuId vcpu, FlushScope scope, std::uint16_t pcid, VA va) = 0;

  /// `length` bytes at `pa` of a traced page were stored by a vCPU, a device or a loader.
  virtual void guest_wrote(PA pa, std::uint64_t length) = 0;

  /// A vCPU's store to a traced page and its guest_wrote() lie between these two calls, with
  /// nothing in between that can wait. Another vCPU may see the store before the backend hears of
  /// it; once it has invalidated the address, it must not find the old translation any more.
  virtual void traced_store_begins(VcpuId /*vcpu*/) noexcept {}
  virtual void traced_store_ends(VcpuId /*vcpu*/) noexcept {}

  [[nodiscard]] virtual MmuStats stats() const noexcept = 0;
};

}  // namespace strata
