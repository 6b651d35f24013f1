// What can be plugged into a Core to execute blocks in another way than step by step: the binary
// translator. The Core stays the owner of the architectural state and of everything that happens
// between blocks (events, exits, positions); the accelerator runs code between two boundaries.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engines/engine.hpp"
#include "mmu/address.hpp"

namespace strata::interp {

class Core;

/// Whether a translator maps guest memory into the host's own MMU: where it pays, by measured cost;
/// never; or wherever it can, for tests.
enum class WindowUse : std::uint8_t { automatic, never, always };

/// vCPU thread only, poison() excepted.
class Accelerator {
 public:
  Accelerator() = default;
  Accelerator(const Accelerator&) = delete;
  Accelerator& operator=(const Accelerator&) = delete;
  virtual ~Accelerator() = default;

  /// Executes from core.rip on as long as it can. True: it did, and the Core says in the usual way
  /// why it stopped (Core::leave_). False: the next block is the interpreter's.
  virtual bool run(Core& core) = 0;
  /// Drops code made of the bytes. Returns how many blocks.
  virtual std::size_t drop(PA pa, std::uint64_t length) noexcept = 0;
  /// Code of the page is still cached.
  [[nodiscard]] virtual bool has_code(PPN ppn) const noexcept = 0;
  /// Drops everything.
  virtual void flush() noexcept = 0;
  /// Attention is wanted: run() returns soon. Any thread.
  virtual void attend() noexcept = 0;
  [[nodiscard]] virtual std::size_t bytes() const noexcept = 0;
  virtual void add_to(engine::VcpuStats& stats) const noexcept = 0;
};

}  // namespace strata::interp
