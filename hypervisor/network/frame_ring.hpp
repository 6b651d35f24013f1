// Frames on their way between threads.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "network/link.hpp"

namespace strata::network {

/// A queue of bounded length. Any number of threads push, one takes.
class FrameRing {
 public:
  explicit FrameRing(std::size_t frames);

  enum class Pushed {
    first,  ///< the ring was empty: the taker may sleep
    more,
    dropped  ///< no room, or no frame: shorter than a header or too long
  };
  /// Copies the pieces of one frame.
  Pushed push(std::span<const iovec> frame) noexcept;
  /// The oldest frame, which the taker may change, until pop(); empty: there is none.
  [[nodiscard]] std::span<std::byte> front() noexcept;
  /// Removes it.
  void pop() noexcept;

 private:
  const std::size_t slots_;
  /// kMaxFrameBytes for each slot. A slot in use belongs to the taker and is not under the lock.
  const std::unique_ptr<std::byte[]> bytes_;
  std::mutex mutex_;  ///< guards what follows, and free slots; a leaf
  std::vector<std::size_t> lengths_;
  std::size_t first_ = 0;
  std::size_t count_ = 0;
};

/// Bytes in all pieces.
[[nodiscard]] std::size_t length_of(std::span<const iovec> frame) noexcept;

}  // namespace strata::network
