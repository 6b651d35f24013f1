// The compressors that the kernel's build uses, for round trips.
#pragma once

#include <string_view>

#include "images.hpp"

namespace strata::boot::test {

/// `format` as decompress_payload() names it; with the size trailer that the kernel's build adds.
[[nodiscard]] File compress(std::string_view format, const File& data);

inline constexpr std::string_view kFormats[] = {"gzip",  "xz",   "zstd", "lz4",
                                                "bzip2", "lzma", "lzo"};

}  // namespace strata::boot::test
