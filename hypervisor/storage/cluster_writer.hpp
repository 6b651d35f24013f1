// Writes to an overlay: what a cluster of the base has beside the sectors written comes with it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "storage/file_engine.hpp"
#include "storage/shared_table.hpp"

namespace strata::storage {

/// Thread-safe. A cluster joins the table when all of it is in the overlay's file.
class ClusterWriter {
 public:
  /// `data_offset`: of the overlay's file; `bytes`: of the disk.
  ClusterWriter(FileEngine& engine, SharedTable& shared, std::uint64_t data_offset,
                std::uint64_t bytes) noexcept;
  ~ClusterWriter();
  ClusterWriter(const ClusterWriter&) = delete;
  ClusterWriter& operator=(const ClusterWriter&) = delete;
  /// A write or write_zeroes that has been checked.
  void submit(const Request& request, Completion& done);

 private:
  /// The rest of the first and of the last cluster of a request.
  struct Bounce {
    std::array<std::byte, kClusterBytes> head, tail;
  };
  class Job;
  /// Each may hold a Bounce: a guest decides how many there could be.
  static constexpr std::size_t kRunning = 32;

  [[nodiscard]] Job& take_job();
  [[nodiscard]] bool begin_if_possible(Job& job);
  void finish(Job& job, Status status);

  FileEngine& engine_;
  SharedTable& shared_;
  const std::uint64_t data_offset_;
  const std::uint64_t bytes_;

  // Guarded by shared_.lock.
  std::vector<std::unique_ptr<Job>> jobs_;
  std::vector<Job*> free_;
  std::vector<Job*> running_;
  std::deque<Job*> waiting_;  ///< for clusters that a running one writes, or for one to end
  std::vector<std::unique_ptr<Bounce>> bounces_;
};

}  // namespace strata::storage
