// The loader's one way into guest memory (design rule 10), so that this folder needs no machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "boot/error.hpp"
#include "mmu/address.hpp"

namespace strata::boot {

/// Where load() writes. Called by one thread, before the guest runs.
class MemorySink {
 public:
  MemorySink() = default;
  MemorySink(const MemorySink&) = delete;
  MemorySink& operator=(const MemorySink&) = delete;
  virtual ~MemorySink() = default;
  /// Stores `bytes` at `pa`. Error: the range is not guest RAM, or the host has no frame for it.
  virtual Result<void> write(PA pa, std::span<const std::byte> bytes) = 0;
  /// Makes `length` bytes at `pa` read as zero. Memory that was never written may be left alone.
  virtual Result<void> zero(PA pa, std::uint64_t length) = 0;
};

}  // namespace strata::boot
