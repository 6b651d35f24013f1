// How requests reach the host's files: through io_uring, or by system calls.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "storage/disk.hpp"

namespace strata::storage {

/// Carries out requests on a few open files. The files' owner keeps them open and checks offsets.
/// submit(), kick() and drain() as those of Disk. A flush that has failed stays failed: the host
/// drops pages that it could not write, so that a later success would be a lie.
class FileEngine {
 public:
  FileEngine() = default;
  FileEngine(const FileEngine&) = delete;
  FileEngine& operator=(const FileEngine&) = delete;
  virtual ~FileEngine() = default;

  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
  virtual void start() = 0;
  /// `file`: index into the files the engine was made for.
  virtual void submit(unsigned file, const Request& request, Completion& done) = 0;
  virtual void kick() = 0;
  virtual void drain() = 0;
};

/// Everything is over when submit() returns. No thread.
[[nodiscard]] std::unique_ptr<FileEngine> make_synchronous_engine(std::vector<int> files);

/// Null where the host has no io_uring for us (old, kernel.io_uring_disabled, a container's
/// filter). One thread, made by start().
[[nodiscard]] std::unique_ptr<FileEngine> make_uring_engine(std::vector<int> files);

}  // namespace strata::storage
