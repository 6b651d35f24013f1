// Disks of a VM from files and block devices of the host.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "mmu/expected.hpp"
#include "storage/disk.hpp"
#include "storage/disk_error.hpp"

namespace strata::storage {

enum class Engine : std::uint8_t {
  asynchronous,  ///< io_uring; synchronous where the host has none
  synchronous    ///< requests are over when submit() returns: runs that must repeat exactly
};

struct DiskOptions {
  std::string path{};  ///< raw: the bytes of the file or block device are those of the disk
  bool read_only = false;
  /// Not empty: changes go to this file, which is made if there is none, and `path` is only read
  /// (docs/storage.md). With read_only the file must exist.
  std::string overlay{};
  Engine engine = Engine::asynchronous;
};

/// Opens and locks what `options` name. The error is one line without a full stop that says what
/// would be right.
[[nodiscard]] Expected<std::unique_ptr<Disk>, DiskError> open_disk(const DiskOptions& options);

}  // namespace strata::storage
