// Faults that translated code takes on the host: accesses that a window does not allow.
#pragma once

#include <cstdint>

namespace strata::bt {

class CodeCache;

/// While it lives, a fault of this thread in `cache` goes on at what CodeCache::find_fault() says
/// for the instruction, with all registers as they are. What it says nothing of is the process's
/// own: the handler from before gets it.
///
/// The kernel can not use the stack that it finds, for RSP is the guest's: the first one of a
/// thread gives it another (sigaltstack(2)).
class CatchHostFaults {
 public:
  explicit CatchHostFaults(const CodeCache& cache) noexcept;
  ~CatchHostFaults();
  CatchHostFaults(const CatchHostFaults&) = delete;
  CatchHostFaults& operator=(const CatchHostFaults&) = delete;

  /// Installs the handler, once for the process. False: the host refuses.
  static bool install() noexcept;

 private:
  const CodeCache* outer_;
};

}  // namespace strata::bt
