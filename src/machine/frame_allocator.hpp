// Single 4 KiB frames of one segment (the system pool), for tables and shared pages.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>

#include "machine/machine_memory.hpp"
#include "mmu/frames.hpp"

namespace strata::machine {

/// Hands out zeroed frames. Thread-safe. Each thread keeps a small cache per allocator, so that the
/// common case takes no lock another thread wants; a thread's cache goes back when the thread ends,
/// and is taken back when another thread would otherwise fail. Any number of allocators can live at
/// once, each on a segment of its own.
///
/// Frame 0 of the pool is never handed out: machine address 0 stays free to mean "none".
class FrameAllocator final : public FrameSource {
 public:
  static constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();

  /// `budget`: how many frames may be in use at once.
  explicit FrameAllocator(MachineMemory& memory, std::uint64_t budget = kUnlimited);
  FrameAllocator(SegmentRef pool, MachineWindow window, std::uint64_t budget = kUnlimited);
  ~FrameAllocator() override;

  /// OutOfFrames when the budget is used up, the segment is full, or the host has no memory.
  Expected<MPN, OutOfFrames> allocate(FrameKind kind) override;
  /// Aborts when `mpn` is not an allocated frame of this allocator: a double free is our own bug.
  void release(MPN mpn, FrameKind kind) noexcept override;
  [[nodiscard]] MachineWindow window() const noexcept override;
  [[nodiscard]] std::array<std::uint64_t, kFrameKinds> in_use() const noexcept override;

  /// Takes effect for later allocations; frames beyond a lower budget stay in use.
  void set_budget(std::uint64_t frames) noexcept;
  /// Frames that cost host memory now: in use, cached by threads, or kept in reserve.
  [[nodiscard]] std::uint64_t resident_frames() const noexcept;
  /// Gives every cached and reserved frame back to the host.
  void trim() noexcept;

  class Central;

 private:
  std::shared_ptr<Central> central_;
};

}  // namespace strata::machine
