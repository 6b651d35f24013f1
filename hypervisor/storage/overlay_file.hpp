// The file of a copy-on-write overlay: clusters of a disk that differ from its base image. Format
// in docs/storage.md.
#pragma once

#include <cstdint>
#include <string>

#include "mmu/expected.hpp"
#include "storage/cluster_table.hpp"
#include "storage/disk_error.hpp"
#include "storage/image_file.hpp"

namespace strata::storage {

struct OverlayFile {
  ImageFile image;
  ClusterTable table;
  /// Of the file. A byte of the disk is at its own offset behind it.
  std::uint64_t data_offset = 0;

  static constexpr std::uint64_t kTableOffset = 4096;
};

/// Opens and locks the overlay of `base` at `path`; makes an empty one if there is none and it can
/// be written. `base_path` is for messages. Errors: those of open_image(); the file is no overlay,
/// is damaged, or belongs to another base or to what the base was before it was changed.
[[nodiscard]] Expected<OverlayFile, DiskError> open_overlay(const std::string& path,
                                                            const std::string& base_path,
                                                            const ImageFile& base, Access access);

}  // namespace strata::storage
