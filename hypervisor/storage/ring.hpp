// An io_uring that reads and writes a few files, and can do nothing else.
#pragma once

#include <liburing.h>

#include <span>

namespace strata::storage {

/// Requests in a ring pass no filter of system calls: a process that was taken over must not open
/// files through it. What it takes is therefore limited for as long as it lives (docs/sandbox.md).
class Ring {
 public:
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring();

  /// Once. A ring for `depth` requests, on `files` by index. False: the host has none for us.
  [[nodiscard]] bool make(unsigned depth, std::span<const int> files);
  /// Every entry needs IOSQE_FIXED_FILE.
  [[nodiscard]] io_uring* get() noexcept { return &ring_; }

 private:
  [[nodiscard]] bool restrict_requests();

  io_uring ring_{};
  bool made_ = false;
};

}  // namespace strata::storage
