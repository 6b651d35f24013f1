// ELF kernels: load segments, the PVH entry note, the Multiboot header. Internal to this folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "boot/error.hpp"
#include "boot/kernel_image.hpp"

namespace strata::boot {

struct ElfImage {
  bool is64 = false;
  std::uint64_t entry = 0;            ///< e_entry
  std::vector<LoadSegment> segments;  ///< sorted by address, disjoint, none empty
  std::optional<std::uint64_t> pvh_entry;
  bool multiboot = false;  ///< has a Multiboot 1 header that asks for nothing we lack
};

[[nodiscard]] bool looks_like_elf(std::span<const std::byte> file) noexcept;

/// Parses and checks `file`; the segments view it. `what` names it in errors ("kernel", "kernel
/// payload").
[[nodiscard]] Result<ElfImage> parse_elf(std::span<const std::byte> file, const char* what);

/// Whether `address` lies in the part of a segment that comes from the file: where code can be.
[[nodiscard]] bool in_file_data(std::span<const LoadSegment> segments,
                                std::uint64_t address) noexcept;

}  // namespace strata::boot
