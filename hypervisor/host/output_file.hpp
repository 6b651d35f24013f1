// A file that is opened while the process may still open files, and written when a run ends.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "host/host_error.hpp"
#include "machine/machine_memory.hpp"
#include "mmu/expected.hpp"

namespace strata::host {

/// One thread. Errors of writing are kept and come out of finish().
class OutputFile {
 public:
  /// Makes the file if there is none; what it holds stays until restart(). Error: it cannot be
  /// written.
  [[nodiscard]] static Expected<OutputFile, HostError> open(const std::string& path);
  /// Throws away what the file holds. A pipe or a device is written on.
  void restart() noexcept;
  void write(std::span<const std::byte> bytes) noexcept;
  /// Closes it. False: something was not written (a full disk), or fail() was called.
  [[nodiscard]] bool finish() noexcept;
  /// The content cannot be made; finish() will say so.
  void fail() noexcept { failed_ = true; }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  OutputFile(std::string path, machine::FileDescriptor file) noexcept
      : path_{std::move(path)}, file_{std::move(file)} {}
  std::string path_;
  machine::FileDescriptor file_;
  bool failed_ = false;
};

}  // namespace strata::host
