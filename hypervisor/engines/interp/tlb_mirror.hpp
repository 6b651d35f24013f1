// Who keeps translations besides a Tlb, and has to lose what the Tlb loses: windows in the host's
// MMU.
#pragma once

#include <cstdint>
#include <vector>

#include "mmu/address.hpp"
#include "mmu/mmu.hpp"

namespace strata::interp {

/// Told before the Tlb's own entries go. vCPU thread only. More may be dropped than is asked for.
class TlbMirror {
 public:
  TlbMirror() = default;
  TlbMirror(const TlbMirror&) = delete;
  TlbMirror& operator=(const TlbMirror&) = delete;
  virtual ~TlbMirror() = default;

  virtual void flush_all() noexcept = 0;
  /// `asid` as in Tlb::asid(); all of them with `every`.
  virtual void flush_asid(std::uint16_t asid, bool every) noexcept = 0;
  /// The page of `va`, whatever its size, of `asid` or global.
  virtual void flush_page(VA va, std::uint16_t asid) noexcept = 0;
  /// The 4 KiB page of `va`, of any address space.
  virtual void forget(VA va) noexcept = 0;
  virtual void flush_physical(const std::vector<PpnRange>& ranges) noexcept = 0;
  virtual void revoke_writes(PPN ppn) noexcept = 0;
  virtual void revoke_all_writes() noexcept = 0;
};

}  // namespace strata::interp
