#include "boot/decompress.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "compress.hpp"

namespace strata::boot::test {
namespace {

using ::testing::HasSubstr;

/// Some of it compresses, some does not; calls and jumps for the x86 filter.
File sample(std::size_t bytes) {
  File data(bytes);
  std::mt19937 random{42};
  for (std::size_t i = 0; i < bytes; ++i) {
    const bool noisy = i / 5000 % 2 == 0;
    data[i] = noisy ? static_cast<std::byte>(random() & 0xFF)
                    : static_cast<std::byte>(i % 7 == 0 ? 0xE8 : i / 64 % 3);
  }
  return data;
}

class Decompress : public ::testing::TestWithParam<std::string_view> {};

TEST_P(Decompress, RoundTrip) {
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{4096}, std::size_t{300'001}}) {
    const File data = sample(bytes);
    const auto result = decompress_payload(compress(GetParam(), data), bytes);
    ASSERT_TRUE(result) << result.error().message;
    EXPECT_EQ(result->format, GetParam());
    EXPECT_TRUE(result->bytes == data);
  }
}

TEST_P(Decompress, LimitIsExact) {
  const auto result = decompress_payload(compress(GetParam(), sample(4096)), 4095);
  ASSERT_FALSE(result);
  EXPECT_THAT(result.error().message, HasSubstr("4096"));
}

TEST_P(Decompress, WrongTrailer) {
  for (const std::uint32_t claimed : {4095U, 4097U}) {
    File packed = compress(GetParam(), sample(4096));
    patch(packed, packed.size() - 4, claimed);
    const auto result = decompress_payload(packed, 1 << 20);
    ASSERT_FALSE(result) << claimed;
    EXPECT_THAT(result.error().message, HasSubstr(std::string{GetParam()}));
  }
}

/// The result's room ends inside a later block.
TEST_P(Decompress, TrailerFarTooSmall) {
  File packed = compress(GetParam(), sample(300'000));
  patch(packed, packed.size() - 4, 100'000U);
  const auto result = decompress_payload(packed, 1 << 20);
  ASSERT_FALSE(result);
  if (GetParam() == "lzo") {
    EXPECT_THAT(result.error().message, HasSubstr("gives more than its trailer says"));
  }
}

TEST_P(Decompress, EveryTruncation) {
  const File packed = compress(GetParam(), sample(2000));
  for (std::size_t length = 0; length < packed.size(); ++length) {
    const File cut(packed.begin(), packed.begin() + static_cast<std::ptrdiff_t>(length));
    EXPECT_FALSE(decompress_payload(cut, 1 << 16)) << length;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Decompress, ::testing::ValuesIn(kFormats),
                         [](const auto& format) { return std::string{format.param}; });

}  // namespace
}  // namespace strata::boot::test
