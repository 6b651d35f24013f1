// What the parts of an overlay disk have in common.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "storage/cluster_table.hpp"
#include "storage/disk.hpp"

namespace strata::storage {

/// Which file of an overlay disk's engine is which.
inline constexpr unsigned kBaseFile = 0, kOverlayFile = 1;

struct SharedTable {
  std::mutex lock;  ///< of `table` and of whatever says so; never held when an engine is called
  ClusterTable table;
};

/// Counts requests that together are one, and keeps the first error among them.
class PartCount {
 public:
  /// `parts`: how often ended() will be called.
  void begin(unsigned parts) noexcept {
    status_.store(Status::ok, std::memory_order_relaxed);
    left_.store(parts, std::memory_order_release);
  }
  /// True for the last one.
  [[nodiscard]] bool ended(Status status) noexcept {
    Status none = Status::ok;
    if (status != Status::ok) status_.compare_exchange_strong(none, status);
    return left_.fetch_sub(1, std::memory_order_acq_rel) == 1;
  }
  /// After the last one.
  [[nodiscard]] Status status() const noexcept { return status_.load(std::memory_order_relaxed); }

 private:
  std::atomic<unsigned> left_{0};
  std::atomic<Status> status_{Status::ok};
};

/// Appends what bytes [offset, offset + length) of `buffers` are.
void append_slice(std::span<const iovec> buffers, std::uint64_t offset, std::uint64_t length,
                  std::vector<iovec>& to);

}  // namespace strata::storage
