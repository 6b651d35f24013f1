// The setup header of a bzImage (Linux, Documentation/arch/x86/boot.rst). Internal to this folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "boot/error.hpp"

namespace strata::boot {

struct BzImage {
  std::uint16_t protocol = 0;  ///< 0x020F is 2.15
  bool entry64 = false;        ///< XLF_KERNEL_64: a 64-bit kernel with its entry at +200h
  std::string version;         ///< e.g. "6.1.0-56-cloud-amd64"; may be empty
  std::span<const std::byte> setup_header;    ///< the file from 1F1h to the header's end
  std::span<const std::byte> protected_code;  ///< what a boot loader loads
  std::span<const std::byte> payload;         ///< the compressed kernel, its size trailer included
  std::uint64_t preferred_address = 0;
  std::uint32_t init_bytes = 0;
  std::uint32_t max_cmdline = 0;
  std::uint32_t initrd_limit = 0;
};

[[nodiscard]] bool looks_like_bzimage(std::span<const std::byte> file) noexcept;

/// Parses and checks `file`; the result views it.
[[nodiscard]] Result<BzImage> parse_bzimage(std::span<const std::byte> file);

}  // namespace strata::boot
