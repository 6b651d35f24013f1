// The executor as a child process: the same cases on another processor.
#pragma once

#include <sys/types.h>

#include <span>
#include <string>
#include <vector>

#include "case.hpp"
#include "machine/machine_memory.hpp"

namespace strata::differential {

class Oracle {
 public:
  /// `command`: what runs the executor, without its last argument. Throws std::runtime_error when
  /// it cannot be started.
  Oracle(std::vector<std::string> command, std::span<const std::uint8_t> pattern);
  ~Oracle();
  Oracle(const Oracle&) = delete;
  Oracle& operator=(const Oracle&) = delete;

  [[nodiscard]] Batch& batch() noexcept { return *batch_; }
  /// Starts on the batch.
  void start();
  /// Waits for the results. False: the executor died at batch().current; a new one waits for the
  /// rest.
  [[nodiscard]] bool finish();

 private:
  void spawn();
  void reap();

  std::vector<std::string> command_;
  machine::FileDescriptor shared_, to_, from_;
  Batch* batch_ = nullptr;
  pid_t child_ = -1;
};

}  // namespace strata::differential
