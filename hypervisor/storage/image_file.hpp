// An open disk image: a file or a block device that no other VM changes meanwhile.
#pragma once

#include <cstdint>
#include <string>

#include "machine/machine_memory.hpp"
#include "mmu/expected.hpp"
#include "storage/disk_error.hpp"

namespace strata::storage {

enum class Access : std::uint8_t { read_only, read_write };

struct ImageFile {
  machine::FileDescriptor file;
  /// Holds the lock. Another open file than `file`, which a ring lets go of only after a while.
  machine::FileDescriptor lock;
  std::uint64_t bytes = 0;
  std::int64_t changed_ns = 0;  ///< time of the last change since 1970; 0 of a block device
  bool block_device = false;
  bool punches = false;  ///< holes can be made in it
};

/// Opens `path` and locks it (F_OFD_SETLK; shared for read_only), for as long as
/// `lock` is open. Errors: missing, no permission, no file or block device, in use.
[[nodiscard]] Expected<ImageFile, DiskError> open_image(const std::string& path, Access access);

/// Error: `image` has no size that a disk can have.
[[nodiscard]] Expected<void, DiskError> check_disk_size(const std::string& path,
                                                        const ImageFile& image);

}  // namespace strata::storage
