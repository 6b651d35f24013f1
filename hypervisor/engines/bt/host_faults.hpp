// Faults that translated code takes on the host: accesses that a window does not allow.
#pragma once

#include <cstdint>

#include "engines/bt/native_state.hpp"

namespace strata::bt {

class CodeCache;

/// While it lives, a fault of this thread in `cache` goes on at what CodeCache::find_fault() says
/// for the instruction, with all registers as they are. What it says nothing of is the process's
/// own: the handler from before gets it.
///
/// The kernel can not use the stack that it finds, for RSP is the guest's: the first one of a
/// thread gives it another (sigaltstack(2)). Hosts below which a hypervisor carries IRET out in
/// software may not return to an RSP that is not canonical either: whatever led into the kernel, a
/// timer's interrupt too, comes back as a general-protection or invalid-opcode exception of the
/// next instruction. The way on then leads over Stubs::fault, which loads RSP itself.
class CatchHostFaults {
 public:
  CatchHostFaults(const CodeCache& cache, NativeState& state, const Stubs& stubs) noexcept;
  ~CatchHostFaults();
  CatchHostFaults(const CatchHostFaults&) = delete;
  CatchHostFaults& operator=(const CatchHostFaults&) = delete;

  /// Installs the handler, once for the process. False: the host refuses.
  static bool install() noexcept;

  /// Where a thread goes on that took exception `vector` at `rip`, and with which `rsp`: both are
  /// changed. False: the fault is not translated code's.
  bool redirect(std::uint64_t& rip, std::uint64_t& rsp, unsigned vector) const noexcept;

 private:
  const CodeCache& cache_;
  NativeState& state_;
  const Stubs& stubs_;
  const CatchHostFaults* outer_;
};

}  // namespace strata::bt
