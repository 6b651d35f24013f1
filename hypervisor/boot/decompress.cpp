#include "boot/decompress.hpp"

#include <bzlib.h>
#include <lz4.h>
#include <lzma.h>
#include <lzo/lzo1x.h>
#include <zlib.h>
#include <zstd.h>

#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <string>

#include "boot/bytes.hpp"

namespace strata::boot {
namespace {

/// The kernel compresses with dictionaries of up to 128 MiB; more than this is an attack.
constexpr std::uint64_t kDecoderMemory = 256ULL << 20;
constexpr std::size_t kTrailerBytes = 4;

/// Each decoder fills `out` completely from `in` and nothing more, or says why it could not.
using Decoder = Result<void> (*)(ByteView in, std::span<std::byte> out);

Unexpected<Error> damaged(std::string_view format, std::string_view why) {
  return fail("kernel payload: the " + std::string{format} + " stream is damaged (" +
              std::string{why} + "); the file is corrupt or incomplete");
}

Result<void> check_filled(std::string_view format, std::uint64_t got, std::uint64_t wanted) {
  if (got == wanted) return {};
  return damaged(format, "it gives " + std::to_string(got) + " bytes, its trailer says " +
                             std::to_string(wanted));
}

Result<void> gunzip(ByteView in, std::span<std::byte> out) {
  z_stream stream{};
  constexpr int kGzipWrapper = 16;
  if (inflateInit2(&stream, MAX_WBITS + kGzipWrapper) != Z_OK) return fail("out of memory");
  // zlib's input pointer is not const although it only reads.
  stream.next_in = std::bit_cast<Bytef*>(in.bytes().data());
  stream.avail_in = static_cast<uInt>(in.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  const int result = inflate(&stream, Z_FINISH);
  const std::uint64_t got = stream.total_out;
  inflateEnd(&stream);
  // Checked even when everything arrived: the checksum comes after the data.
  if (result != Z_STREAM_END) return damaged("gzip", "no valid end within the expected size");
  return check_filled("gzip", got, out.size());
}

Result<void> run_lzma(lzma_stream& stream, std::string_view format, ByteView in,
                      std::span<std::byte> out) {
  stream.next_in = reinterpret_cast<const std::uint8_t*>(in.bytes().data());
  stream.avail_in = in.size();
  stream.next_out = reinterpret_cast<std::uint8_t*>(out.data());
  stream.avail_out = out.size();
  const lzma_ret result = lzma_code(&stream, LZMA_FINISH);
  const std::uint64_t got = stream.total_out;
  lzma_end(&stream);
  if (result == LZMA_MEMLIMIT_ERROR) return damaged(format, "it asks for a dictionary too large");
  if (result != LZMA_STREAM_END) return damaged(format, "no valid end within the expected size");
  return check_filled(format, got, out.size());
}

Result<void> unxz(ByteView in, std::span<std::byte> out) {
  lzma_stream stream = LZMA_STREAM_INIT;
  if (lzma_stream_decoder(&stream, kDecoderMemory, 0) != LZMA_OK) return fail("out of memory");
  return run_lzma(stream, "xz", in, out);
}

Result<void> unlzma(ByteView in, std::span<std::byte> out) {
  lzma_stream stream = LZMA_STREAM_INIT;
  if (lzma_alone_decoder(&stream, kDecoderMemory) != LZMA_OK) return fail("out of memory");
  return run_lzma(stream, "lzma", in, out);
}

Result<void> unzstd(ByteView in, std::span<std::byte> out) {
  const std::size_t got =
      ZSTD_decompress(out.data(), out.size(), in.bytes().data(), in.bytes().size());
  if (ZSTD_isError(got) != 0) return damaged("zstd", ZSTD_getErrorName(got));
  return check_filled("zstd", got, out.size());
}

Result<void> bunzip2(ByteView in, std::span<std::byte> out) {
  bz_stream stream{};
  if (BZ2_bzDecompressInit(&stream, 0, 0) != BZ_OK) return fail("out of memory");
  stream.next_in = std::bit_cast<char*>(in.bytes().data());
  stream.avail_in = static_cast<unsigned>(in.size());
  stream.next_out = reinterpret_cast<char*>(out.data());
  stream.avail_out = static_cast<unsigned>(out.size());
  const int result = BZ2_bzDecompress(&stream);
  const std::uint64_t got = out.size() - stream.avail_out;
  BZ2_bzDecompressEnd(&stream);
  if (result != BZ_STREAM_END) return damaged("bzip2", "no valid end within the expected size");
  return check_filled("bzip2", got, out.size());
}

/// LZ4's legacy frame (`lz4 -l`): magic, then blocks, each with its compressed size before it.
Result<void> unlz4(ByteView in, std::span<std::byte> out) {
  std::uint64_t from = 4;
  std::uint64_t to = 0;
  while (from < in.size()) {
    const auto length = in.at<std::uint32_t>(from);
    const auto block = length ? in.sub(from + 4, *length) : std::nullopt;
    if (!block || *length > static_cast<std::uint32_t>(LZ4_MAX_INPUT_SIZE)) {
      return damaged("lz4", "a block reaches beyond the end");
    }
    const int got =
        LZ4_decompress_safe(reinterpret_cast<const char*>(block->bytes().data()),
                            reinterpret_cast<char*>(out.data() + to), static_cast<int>(*length),
                            static_cast<int>(out.size() - to));
    if (got <= 0) return damaged("lz4", "a block does not decode");
    from += 4 + std::uint64_t{*length};
    to += static_cast<unsigned>(got);
  }
  return check_filled("lz4", to, out.size());
}

/// Reads the big-endian numbers of lzop's format one after the other.
class LzopReader {
 public:
  explicit LzopReader(ByteView in) : in_{in} {}

  std::uint32_t number(unsigned bytes) {
    std::uint32_t value = 0;
    for (unsigned i = 0; i < bytes; ++i) {
      const auto byte = in_.at<std::uint8_t>(at_++);
      ok_ = ok_ && byte.has_value();
      value = value << 8 | byte.value_or(0);
    }
    return value;
  }
  ByteView take(std::uint64_t bytes) {
    const auto range = in_.sub(at_, bytes);
    ok_ = ok_ && range.has_value();
    at_ += bytes;
    return range.value_or(ByteView{});
  }
  [[nodiscard]] bool ok() const { return ok_; }

 private:
  ByteView in_;
  std::uint64_t at_ = 0;
  bool ok_ = true;
};

constexpr std::string_view kLzopMagic{"\x89LZO\x00\x0D\x0A\x1A\x0A", 9};
constexpr std::uint32_t kLzopAdlerData = 1U << 0, kLzopAdlerPacked = 1U << 1,
                        kLzopCrcData = 1U << 8, kLzopCrcPacked = 1U << 9, kLzopFilter = 1U << 11;

/// Skips lzop's header; its flags say which checksums the blocks carry.
std::uint32_t lzop_header(LzopReader& reader) {
  reader.take(kLzopMagic.size());
  const std::uint32_t version = reader.number(2);
  constexpr std::uint32_t kLevelSince = 0x0940;
  reader.take(version >= kLevelSince ? 2 + 2 + 1 + 1 : 2 + 1);  // library, needed, method, level
  const std::uint32_t flags = reader.number(4);
  if ((flags & kLzopFilter) != 0) reader.take(4);
  reader.take(version >= kLevelSince ? 4 + 4 + 4 : 4 + 4);  // mode, time
  reader.take(reader.number(1));                            // name
  reader.take(4);                                           // checksum
  return flags;
}

Result<void> unlzo(ByteView in, std::span<std::byte> out) {
  LzopReader reader{in};
  const std::uint32_t flags = lzop_header(reader);
  const auto count = [&](std::uint32_t a, std::uint32_t b) {
    return ((flags & a) != 0 ? 4U : 0U) + ((flags & b) != 0 ? 4U : 0U);
  };
  std::uint64_t to = 0;
  for (;;) {
    const std::uint32_t plain = reader.number(4);
    if (!reader.ok()) return damaged("lzo", "a block header is cut off");
    if (plain == 0) break;
    const std::uint32_t packed = reader.number(4);
    reader.take(count(kLzopAdlerData, kLzopCrcData));
    if (packed < plain) reader.take(count(kLzopAdlerPacked, kLzopCrcPacked));
    const ByteView block = reader.take(packed);
    if (!reader.ok() || packed > plain) return damaged("lzo", "a block reaches beyond the end");
    if (plain > out.size() - to) return damaged("lzo", "it gives more than its trailer says");
    if (packed == plain) {
      std::memcpy(out.data() + to, block.bytes().data(), plain);
    } else {
      lzo_uint got = plain;
      const int result = lzo1x_decompress_safe(
          reinterpret_cast<const unsigned char*>(block.bytes().data()), packed,
          reinterpret_cast<unsigned char*>(out.data() + to), &got, nullptr);
      if (result != LZO_E_OK || got != plain) return damaged("lzo", "a block does not decode");
    }
    to += plain;
  }
  return check_filled("lzo", to, out.size());
}

struct Format {
  std::string_view name;
  std::string_view magic;
  Decoder decode;
  bool trailer_is_appended;  ///< false: the trailer belongs to the stream
};

constexpr std::array kFormats{
    Format{"gzip", {"\x1F\x8B", 2}, gunzip, false},
    Format{"xz",
           {"\xFD"
            "7zXZ\x00",
            6},
           unxz,
           true},
    Format{"zstd", {"\x28\xB5\x2F\xFD", 4}, unzstd, true},
    Format{"lz4", {"\x02\x21\x4C\x18", 4}, unlz4, true},
    Format{"bzip2", {"BZh", 3}, bunzip2, true},
    Format{"lzo", kLzopMagic, unlzo, true},
    Format{"lzma", {"\x5D\x00\x00", 3}, unlzma, true},
};

}  // namespace

Result<Payload> decompress_payload(std::span<const std::byte> payload, std::uint64_t max_bytes) {
  const ByteView view{payload};
  for (const Format& format : kFormats) {
    if (!view.starts_with(format.magic)) continue;
    if (view.size() < format.magic.size() + kTrailerBytes ||
        view.size() > std::numeric_limits<std::uint32_t>::max()) {
      return damaged(format.name,
                     "its length of " + std::to_string(view.size()) + " bytes can not be right");
    }
    const std::uint64_t body = view.size() - kTrailerBytes;
    const std::uint32_t wanted = view.get<std::uint32_t>(body);
    if (wanted == 0 || wanted > max_bytes || wanted > std::uint32_t{LZ4_MAX_INPUT_SIZE}) {
      return fail("kernel payload: its trailer says that it unpacks to " + std::to_string(wanted) +
                  " bytes; 1 to " + std::to_string(max_bytes) + " are accepted");
    }
    Payload result{std::vector<std::byte>(wanted), format.name};
    const auto stream = view.sub(0, format.trailer_is_appended ? body : view.size());
    if (auto done = format.decode(*stream, result.bytes); !done) return fail(done.error().message);
    return result;
  }
  return fail(
      "kernel payload: unknown compression; gzip, xz, zstd, lz4, bzip2, lzma and lzo are known");
}

}  // namespace strata::boot
