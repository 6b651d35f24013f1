#include "compress.hpp"

#include <bzlib.h>
#include <lz4.h>
#include <lzma.h>
#include <lzo/lzo1x.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <stdexcept>

namespace strata::boot::test {
namespace {

void require(bool good) {
  if (!good) throw std::runtime_error{"a compressor failed"};
}

const std::uint8_t* u8(const File& f) { return reinterpret_cast<const std::uint8_t*>(f.data()); }
std::uint8_t* u8(File& f) { return reinterpret_cast<std::uint8_t*>(f.data()); }

File gzip(const File& data) {
  z_stream s{};
  require(deflateInit2(&s, 9, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  File out(deflateBound(&s, data.size()) + 64);
  File in = data;
  s.next_in = u8(in);
  s.avail_in = static_cast<uInt>(in.size());
  s.next_out = u8(out);
  s.avail_out = static_cast<uInt>(out.size());
  require(deflate(&s, Z_FINISH) == Z_STREAM_END);
  out.resize(s.total_out);
  deflateEnd(&s);
  return out;
}

File with_lzma(lzma_stream& s, const File& data) {
  File out(data.size() * 2 + 4096);
  s.next_in = u8(data);
  s.avail_in = data.size();
  s.next_out = u8(out);
  s.avail_out = out.size();
  require(lzma_code(&s, LZMA_FINISH) == LZMA_STREAM_END);
  out.resize(s.total_out);
  lzma_end(&s);
  return out;
}

/// As the kernel does it: the x86 branch filter, then LZMA2, and a CRC32.
File xz(const File& data) {
  lzma_options_lzma options{};
  require(!lzma_lzma_preset(&options, 6));
  const lzma_filter filters[] = {
      {LZMA_FILTER_X86, nullptr}, {LZMA_FILTER_LZMA2, &options}, {LZMA_VLI_UNKNOWN, nullptr}};
  lzma_stream s = LZMA_STREAM_INIT;
  require(lzma_stream_encoder(&s, filters, LZMA_CHECK_CRC32) == LZMA_OK);
  return with_lzma(s, data);
}

File lzma(const File& data) {
  lzma_options_lzma options{};
  require(!lzma_lzma_preset(&options, 6));
  lzma_stream s = LZMA_STREAM_INIT;
  require(lzma_alone_encoder(&s, &options) == LZMA_OK);
  return with_lzma(s, data);
}

File zstd(const File& data) {
  File out(ZSTD_compressBound(data.size()));
  const std::size_t n = ZSTD_compress(out.data(), out.size(), data.data(), data.size(), 19);
  require(ZSTD_isError(n) == 0);
  out.resize(n);
  return out;
}

File bzip2(const File& data) {
  File out(data.size() * 2 + 1024);
  File in = data;
  auto n = static_cast<unsigned>(out.size());
  require(BZ2_bzBuffToBuffCompress(reinterpret_cast<char*>(out.data()), &n,
                                   reinterpret_cast<char*>(in.data()),
                                   static_cast<unsigned>(in.size()), 9, 0, 0) == BZ_OK);
  out.resize(n);
  return out;
}

/// Small blocks, so that there are several.
constexpr std::size_t kBlock = 64 * 1024;

void number(File& out, std::uint32_t value, bool big_endian, unsigned bytes = 4) {
  for (unsigned i = 0; i < bytes; ++i) {
    const unsigned shift = 8 * (big_endian ? bytes - 1 - i : i);
    out.push_back(static_cast<std::byte>(value >> shift & 0xFF));
  }
}

File lz4(const File& data) {
  File out;
  number(out, 0x184C2102, false);
  for (std::size_t at = 0; at < data.size(); at += kBlock) {
    const std::size_t n = std::min(kBlock, data.size() - at);
    std::vector<char> block(static_cast<std::size_t>(LZ4_compressBound(static_cast<int>(n))));
    const int packed =
        LZ4_compress_default(reinterpret_cast<const char*>(data.data() + at), block.data(),
                             static_cast<int>(n), static_cast<int>(block.size()));
    require(packed > 0);
    number(out, static_cast<std::uint32_t>(packed), false);
    for (int i = 0; i < packed; ++i) out.push_back(static_cast<std::byte>(block[std::size_t(i)]));
  }
  return out;
}

/// lzop's file format with Adler-32 checksums, which the reader skips.
File lzo(const File& data) {
  File out;
  for (const int c : {0x89, 0x4C, 0x5A, 0x4F, 0, 0x0D, 0x0A, 0x1A, 0x0A}) {
    out.push_back(static_cast<std::byte>(c));
  }
  number(out, 0x1040, true, 2);
  number(out, 0x2080, true, 2);
  number(out, 0x0940, true, 2);
  number(out, 0x0301, true, 2);                      // method, level
  number(out, 0x0000003, true);                      // Adler-32 of the data, and of packed blocks
  for (int i = 0; i < 3; ++i) number(out, 0, true);  // mode, time
  number(out, 1, true, 1);
  number(out, 'k', true, 1);
  number(out, 0, true);  // header checksum
  std::vector<unsigned char> work(LZO1X_1_MEM_COMPRESS);
  require(lzo_init() == LZO_E_OK);
  for (std::size_t at = 0; at < data.size(); at += kBlock) {
    const std::size_t n = std::min(kBlock, data.size() - at);
    std::vector<unsigned char> block(n + n / 16 + 128);
    lzo_uint packed = block.size();
    require(lzo1x_1_compress(u8(data) + at, n, block.data(), &packed, work.data()) == LZO_E_OK);
    const bool stored = packed >= n;
    number(out, static_cast<std::uint32_t>(n), true);
    number(out, static_cast<std::uint32_t>(stored ? n : packed), true);
    number(out, 0, true);
    if (!stored) number(out, 0, true);
    const unsigned char* from = stored ? u8(data) + at : block.data();
    for (std::size_t i = 0; i < (stored ? n : packed); ++i) {
      out.push_back(static_cast<std::byte>(from[i]));
    }
  }
  number(out, 0, true);
  return out;
}

}  // namespace

File compress(std::string_view format, const File& data) {
  if (format == "gzip") return gzip(data);  // its last four bytes are the size already
  File out = format == "xz"      ? xz(data)
             : format == "lzma"  ? lzma(data)
             : format == "zstd"  ? zstd(data)
             : format == "bzip2" ? bzip2(data)
             : format == "lz4"   ? lz4(data)
                                 : lzo(data);
  number(out, static_cast<std::uint32_t>(data.size()), false);
  return out;
}

}  // namespace strata::boot::test
