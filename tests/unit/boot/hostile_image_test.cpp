// Kernel files that are wrong in one way, in every length, and at random.
#include <elf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "boot/kernel_image.hpp"
#include "boot/machine_layout.hpp"
#include "compress.hpp"
#include "images.hpp"

namespace strata::boot::test {
namespace {

using ::testing::HasSubstr;

/// What parse() promises of every image that it accepts.
void check_promises(const KernelImage& image) {
  std::uint64_t end = layout::kKernelBase;
  bool entry_inside = false;
  for (const LoadSegment& s : image.segments()) {
    EXPECT_GE(s.physical, end);
    EXPECT_GE(s.memory_bytes, s.data.size());
    end = s.physical + s.memory_bytes;
    EXPECT_LE(end, 1ULL << 32);
    entry_inside |= image.entry() >= s.physical && image.entry() - s.physical < s.data.size();
    // Touches every byte, so that a sanitizer sees a view that leaves the storage.
    unsigned sum = 0;
    for (const std::byte b : s.data) sum += std::to_integer<unsigned>(b);
    volatile unsigned sink = sum;
    (void)sink;
  }
  EXPECT_TRUE(entry_inside);
  EXPECT_GE(image.memory_end(), end);
}

/// Small limits keep absurd trailers cheap.
constexpr ImageOptions kSmall{.max_payload_bytes = 1 << 20};

struct BadCase {
  const char* name;
  File file;
  const char* message;
};

// Not inside the templates: GCC 12 breaks on ElfSpec's default initialisers there.
File plain_elf() { return make_elf(ElfSpec{}); }

File plain_bzimage() {
  BzSpec bz;
  bz.payload = compress("gzip", plain_elf());
  return make_bzimage(bz);
}

template <class T>
File elf_with(std::size_t at, T value) {
  File file = plain_elf();
  patch(file, at, value);
  return file;
}

template <class T>
File bz_with(std::size_t at, T value) {
  File file = plain_bzimage();
  patch(file, at, value);
  return file;
}

File segments(std::vector<TestSegment> list) {
  ElfSpec spec;
  spec.segments = std::move(list);
  return make_elf(spec);
}

File payload(File bytes) {
  BzSpec bz;
  bz.payload = std::move(bytes);
  return make_bzimage(bz);
}

File bytes_of(std::string_view text) {
  const auto* from = reinterpret_cast<const std::byte*>(text.data());
  return {from, from + text.size()};
}

constexpr std::size_t kPhdr = sizeof(Elf64_Ehdr);

std::vector<BadCase> bad_cases() {
  ElfSpec no_pvh;
  no_pvh.pvh = false;
  ElfSpec far_pvh;
  far_pvh.pvh_entry = 0x100800;  // in memory that the file does not fill
  ElfSpec odd_pvh;
  odd_pvh.pvh_bytes = 2;
  ElfSpec stray_entry;
  stray_entry.pvh = false;
  stray_entry.entry = 0x7000000;
  return {
      {"empty", File{}, "empty"},
      {"text", bytes_of("#!/bin/sh\n"), "neither an ELF executable nor a bzImage"},
      {"elf_class", elf_with(EI_CLASS, std::uint8_t{7}), "ELF class 7"},
      {"elf_big_endian", elf_with(EI_DATA, std::uint8_t{2}), "big-endian"},
      {"elf_arm", elf_with(18, std::uint16_t{183}), "ELF machine 183"},
      {"elf_i386_in_64", elf_with(18, std::uint16_t{3}), "ELF machine 3"},
      {"elf_shared", elf_with(16, std::uint16_t{3}), "ELF type 3"},
      {"no_headers", elf_with(56, std::uint16_t{0}), "0 program headers"},
      {"many_headers", elf_with(56, std::uint16_t{0xFFFF}), "65535 program headers"},
      {"header_size", elf_with(54, std::uint16_t{55}), "55 bytes"},
      {"headers_beyond", elf_with(32, std::uint64_t{1} << 60), "beyond the end"},
      {"headers_wrap", elf_with(32, ~std::uint64_t{0}), "beyond the end"},
      {"segment_offset", elf_with(kPhdr + 8, ~std::uint64_t{0}), "beyond the end of the file"},
      {"segment_file_size", elf_with(kPhdr + 32, ~std::uint64_t{0}), "beyond the end of the file"},
      {"segment_memory_size", elf_with(kPhdr + 40, std::uint64_t{3}), "more bytes in the file"},
      {"segment_low", segments({{0xFF000, "x", 0x1000}}), "not between 1 MiB and 4 GiB"},
      {"segment_high", segments({{0x100000000, "x", 0x1000}}), "not between 1 MiB and 4 GiB"},
      {"segment_wraps", segments({{0xFFFFF000, "x", 0x1001}}), "not between 1 MiB and 4 GiB"},
      {"segment_huge", elf_with(kPhdr + 40, ~std::uint64_t{0}), "not between 1 MiB and 4 GiB"},
      {"overlap", segments({{0x100000, "abcdef", 0x2001}, {0x102000, "b", 1}}), "overlap"},
      {"same_place", segments({{0x100000, "abcdef", 6}, {0x100000, "b", 1}}), "overlap"},
      {"nothing_to_load", segments({}), "no segment to load"},
      {"pvh_outside", make_elf(far_pvh), "is in no segment"},
      {"pvh_size", make_elf(odd_pvh), "2 bytes"},
      {"no_entry", make_elf(no_pvh), "neither a PVH entry note"},
      {"note_beyond", elf_with(kPhdr + 56 + 8, ~std::uint64_t{7}), "note segment lies beyond"},
      {"bz_flag", bz_with(0x1FE, std::uint16_t{0}), "AA55h"},
      {"bz_old", bz_with(0x206, std::uint16_t{0x020B}), "2.11"},
      {"bz_header_short", bz_with(0x201, std::uint8_t{0x10}), "setup header ends at"},
      {"bz_header_long", bz_with(0x201, std::uint8_t{0x8F}), "setup header ends at"},
      {"bz_zimage", bz_with(0x211, std::uint8_t{0}), "zImage"},
      {"bz_syssize", bz_with(0x1F4, std::uint32_t{0xFFFFFFFF}), "cut off"},
      {"bz_no_code", bz_with(0x1F4, std::uint32_t{0}), "cut off"},
      {"bz_setup", bz_with(0x1F1, std::uint8_t{255}), "cut off"},
      {"bz_payload_offset", bz_with(0x248, std::uint32_t{0xFFFFFFF0}), "payload lies beyond"},
      {"bz_payload_length", bz_with(0x24C, std::uint32_t{0xFFFFFFF0}), "payload lies beyond"},
      {"bz_low", bz_with(0x258, std::uint64_t{0x10000}), "preferred address"},
      {"bz_wraps", bz_with(0x258, ~std::uint64_t{0}), "preferred address"},
      {"bz_init_size", bz_with(0x260, std::uint32_t{0xFFFFFFFF}), "preferred address"},
      {"payload_none", payload({}), "unknown compression"},
      {"payload_unknown", payload(bytes_of("what is this")), "unknown compression"},
      {"payload_text", payload(compress("xz", bytes_of("no ELF"))), "not an ELF file"},
      {"payload_elf", payload(compress("xz", elf_with(18, std::uint16_t{183}))),
       "kernel payload: ELF machine 183"},
      {"payload_entry", payload(compress("xz", make_elf(stray_entry))), "entry address"},
      {"payload_absurd", payload(bytes_of({"\x1F\x8B\x08\0\0\0\0\0\xFF\xFF\xFF\xFF", 12})),
       "unpacks to 4294967295 bytes"},
      {"payload_zero", payload(bytes_of({"\x1F\x8B\x08\0\0\0\0\0\0\0\0\0", 12})),
       "unpacks to 0 bytes"},
      {"payload_short", payload(bytes_of("\x1F\x8B\x08")), "length of 3"},
  };
}

class BadImage : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadImage, IsRefusedWithItsReason) {
  const auto image = KernelImage::parse(GetParam().file, kSmall);
  ASSERT_FALSE(image);
  EXPECT_THAT(image.error().message, HasSubstr(GetParam().message));
  EXPECT_THAT(image.error().message, ::testing::Not(HasSubstr("\n")));
}
INSTANTIATE_TEST_SUITE_P(Each, BadImage, ::testing::ValuesIn(bad_cases()),
                         [](const auto& c) { return std::string{c.param.name}; });

/// A length is accepted only if nothing that the image uses is cut off.
void every_truncation(const File& file, std::size_t needed) {
  for (std::size_t length = 0; length < file.size(); ++length) {
    const File cut(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(length));
    const auto image = KernelImage::parse(cut, kSmall);
    if (length < needed) {
      EXPECT_FALSE(image) << length;
    }
    if (image) {
      check_promises(*image);
    } else {
      EXPECT_FALSE(image.error().message.empty());
    }
  }
}

TEST(Truncated, Elf64) {
  const File file = make_elf(ElfSpec{});
  every_truncation(file, file.size());
}

TEST(Truncated, Elf32) {
  ElfSpec spec;
  spec.is64 = false;
  spec.pvh_bytes = 4;
  const File file = make_elf(spec);
  every_truncation(file, file.size());
}

TEST(Truncated, BzImage) {
  for (const std::string_view format : kFormats) {
    SCOPED_TRACE(format);
    BzSpec bz;
    bz.payload = compress(format, make_elf(ElfSpec{}));
    const File file = make_bzimage(bz);
    every_truncation(file, 4 * 512 + 0x400 + bz.payload.size());
  }
}

/// Flips and overwrites bytes of `file`, mostly in its first `header` bytes.
void fuzz(const File& file, std::size_t header, unsigned seed, unsigned rounds) {
  std::mt19937 random{seed};
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  unsigned accepted = 0;
  for (unsigned round = 0; round < rounds; ++round) {
    File bad = file;
    for (std::size_t edits = 1 + below(4); edits > 0; --edits) {
      const std::size_t at = below(random() % 4 == 0 ? bad.size() : header);
      constexpr unsigned char kNasty[] = {0, 1, 0x7F, 0x80, 0xFF};
      bad[at] = random() % 2 == 0 ? bad[at] ^ static_cast<std::byte>(1U << below(8))
                                  : static_cast<std::byte>(kNasty[below(sizeof kNasty)]);
    }
    const auto image = KernelImage::parse(std::move(bad), kSmall);
    if (image) {
      ++accepted;
      check_promises(*image);
    }
  }
  // The point of small edits: many leave the file valid, so both sides are exercised.
  EXPECT_GT(accepted, 0U);
  EXPECT_LT(accepted, rounds);
}

TEST(Fuzz, Elf64) {
  ElfSpec spec;
  spec.segments = {{0x100000, "kernel code", 0x1000}, {0x200000, "more", 4}};
  fuzz(make_elf(spec), 240, 1, 10000);
}

TEST(Fuzz, Elf32) {
  ElfSpec spec;
  spec.is64 = false;
  spec.multiboot = true;
  fuzz(make_elf(spec), 160, 2, 10000);
}

TEST(Fuzz, BzImageHeader) {
  BzSpec bz;
  bz.payload = compress("lz4", make_elf(ElfSpec{}));
  File file = make_bzimage(bz);
  // The header moves to where edits strike: 1F1h to 26Ch only.
  std::mt19937 random{3};
  unsigned accepted = 0;
  for (unsigned round = 0; round < 10000; ++round) {
    File bad = file;
    bad[0x1F1 + random() % (0x26C - 0x1F1)] ^= static_cast<std::byte>(1U << random() % 8);
    for (const bool decompress : {true, false}) {
      const auto image = KernelImage::parse(
          bad, {.decompress = decompress, .max_payload_bytes = kSmall.max_payload_bytes});
      if (!image) continue;
      ++accepted;
      check_promises(*image);
    }
  }
  EXPECT_GT(accepted, 0U);
  EXPECT_LT(accepted, 20000U);
}

TEST(Fuzz, Payloads) {
  unsigned seed = 10;
  for (const std::string_view format : kFormats) {
    SCOPED_TRACE(format);
    BzSpec bz;
    bz.payload = compress(format, make_elf(ElfSpec{}));
    const File file = make_bzimage(bz);
    const std::size_t payload_at = 4 * 512 + 0x400;
    std::mt19937 random{++seed};
    for (unsigned round = 0; round < 2000; ++round) {
      File bad = file;
      bad[payload_at + random() % bz.payload.size()] = static_cast<std::byte>(random() & 0xFF);
      if (const auto image = KernelImage::parse(std::move(bad), kSmall)) check_promises(*image);
    }
  }
}

}  // namespace
}  // namespace strata::boot::test
