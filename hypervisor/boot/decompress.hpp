// The compressions that Linux kernels come in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "boot/error.hpp"

namespace strata::boot {

struct Payload {
  std::vector<std::byte> bytes;
  std::string_view format;  ///< "gzip", "xz", ...
};

/// Decompresses a kernel payload: a compressed stream whose last four bytes hold the size of the
/// result (gzip has them anyway; the kernel's build appends them to the others). Errors: unknown
/// format, damaged stream, a result that is not of that size, a size above `max_bytes`.
/// Allocates at most that size plus the decompressor's dictionary. Thread-safe.
[[nodiscard]] Result<Payload> decompress_payload(std::span<const std::byte> payload,
                                                 std::uint64_t max_bytes);

}  // namespace strata::boot
