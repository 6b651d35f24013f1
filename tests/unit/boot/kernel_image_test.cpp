// Valid kernel files: what is read out of them.
#include "boot/kernel_image.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "compress.hpp"
#include "images.hpp"

namespace strata::boot::test {
namespace {

using ::testing::HasSubstr;

TEST(KernelImage, Elf64WithPvhNote) {
  ElfSpec spec;
  spec.segments = {{0x200000, "second", 6}, {0x100000, "first code", 0x1000}};
  const auto image = KernelImage::parse(make_elf(spec));
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_EQ(image->entry_kind(), EntryKind::pvh);
  EXPECT_EQ(image->entry(), 0x100004U);
  ASSERT_EQ(image->segments().size(), 2U);
  EXPECT_EQ(image->segments()[0].physical, 0x100000U);
  EXPECT_EQ(text_at(image->segments()[0].data, 0, 10), "first code");
  EXPECT_EQ(image->segments()[0].memory_bytes, 0x1000U);
  EXPECT_EQ(text_at(image->segments()[1].data, 0, 6), "second");
  EXPECT_EQ(image->memory_end(), 0x200006U);
  EXPECT_TRUE(image->setup_header().empty());
  EXPECT_EQ(image->description(), "ELF64, pvh");
}

TEST(KernelImage, PvhNoteOfFourBytesInElf32) {
  ElfSpec spec;
  spec.is64 = false;
  spec.pvh_bytes = 4;
  const auto image = KernelImage::parse(make_elf(spec));
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_EQ(image->entry_kind(), EntryKind::pvh);
  EXPECT_EQ(image->entry(), 0x100004U);
}

TEST(KernelImage, MultibootElf32) {
  ElfSpec spec;
  spec.is64 = false;
  spec.pvh = false;
  spec.multiboot = true;
  const auto image = KernelImage::parse(make_elf(spec));
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_EQ(image->entry_kind(), EntryKind::multiboot);
  EXPECT_EQ(image->entry(), 0x100000U);
}

TEST(KernelImage, MultibootElf64) {
  ElfSpec spec;
  spec.pvh = false;
  spec.multiboot = true;
  const auto image = KernelImage::parse(make_elf(spec));
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_EQ(image->entry_kind(), EntryKind::multiboot);
}

TEST(KernelImage, EmptySegmentsAreLeftOut) {
  ElfSpec spec;
  spec.segments.push_back({0, "", 0});
  const auto image = KernelImage::parse(make_elf(spec));
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_EQ(image->segments().size(), 1U);
}

class Compressed : public ::testing::TestWithParam<std::string_view> {};

TEST_P(Compressed, BzImageIsEnteredByPvh) {
  BzSpec bz;
  bz.payload = compress(GetParam(), make_elf(ElfSpec{}));
  const auto image = KernelImage::parse(make_bzimage(bz));
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_EQ(image->entry_kind(), EntryKind::pvh);
  EXPECT_EQ(image->entry(), 0x100004U);
  EXPECT_EQ(text_at(image->segments()[0].data, 0, 11), "kernel code");
  EXPECT_EQ(image->description(),
            "bzImage 9.9.9-test (" + std::string{GetParam()} + "), ELF64, pvh");
}
INSTANTIATE_TEST_SUITE_P(Formats, Compressed, ::testing::ValuesIn(kFormats),
                         [](const auto& format) { return std::string{format.param}; });

TEST(BzImage, WithoutPvhNoteTheLinuxEntryIsTaken) {
  ElfSpec elf;
  elf.pvh = false;
  BzSpec bz;
  bz.payload = compress("gzip", make_elf(elf));
  const auto image = KernelImage::parse(make_bzimage(bz));
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_EQ(image->entry_kind(), EntryKind::linux64);
  EXPECT_EQ(image->entry(), 0x100000U);
  elf.is64 = false;
  bz.payload = compress("gzip", make_elf(elf));
  const auto image32 = KernelImage::parse(make_bzimage(bz));
  ASSERT_TRUE(image32) << image32.error().message;
  EXPECT_EQ(image32->entry_kind(), EntryKind::linux32);
}

TEST(BzImage, SetupHeaderFields) {
  BzSpec bz;
  bz.payload = compress("zstd", make_elf(ElfSpec{}));
  bz.max_cmdline = 77;
  bz.initrd_limit = 0x37FFFFFF;
  const auto image = KernelImage::parse(make_bzimage(bz));
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_EQ(image->max_cmdline(), 77U);
  EXPECT_EQ(image->initrd_limit(), 0x37FFFFFFU);
  // From 1F1h to the end that the jump at 200h names.
  EXPECT_EQ(image->setup_header().size(), 0x26CU - 0x1F1U);
  EXPECT_EQ(text_at(image->setup_header(), 0x202 - 0x1F1, 4), "HdrS");
}

TEST(BzImage, LoadedAsABootLoaderWould) {
  BzSpec bz;
  bz.payload = compress("lz4", make_elf(ElfSpec{}));
  const auto image = KernelImage::parse(make_bzimage(bz), {.decompress = false});
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_EQ(image->entry_kind(), EntryKind::linux64);
  EXPECT_EQ(image->entry(), 0x1000200U);
  ASSERT_EQ(image->segments().size(), 1U);
  EXPECT_EQ(image->segments()[0].physical, 0x1000000U);
  EXPECT_EQ(text_at(image->segments()[0].data, 0x200, 7), "entry64");
  EXPECT_EQ(image->memory_end(), 0x1100000U);
  bz.entry64 = false;
  const auto image32 = KernelImage::parse(make_bzimage(bz), {.decompress = false});
  ASSERT_TRUE(image32) << image32.error().message;
  EXPECT_EQ(image32->entry_kind(), EntryKind::linux32);
  EXPECT_EQ(image32->entry(), 0x1000000U);
}

TEST(BzImage, UnknownVersion) {
  BzSpec bz;
  bz.payload = compress("gzip", make_elf(ElfSpec{}));
  bz.version = "\x01";
  const auto image = KernelImage::parse(make_bzimage(bz));
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_THAT(image->description(), HasSubstr("unknown version"));
}

TEST(ReadFile, ReadsAndSaysWhyNot) {
  const std::filesystem::path path = std::filesystem::path{::testing::TempDir()} /
                                     ("strata-kernel-image-" + std::to_string(::getpid()));
  const File elf = make_elf(ElfSpec{});
  std::ofstream{path, std::ios::binary}.write(reinterpret_cast<const char*>(elf.data()),
                                              static_cast<std::streamsize>(elf.size()));
  const auto image = KernelImage::read(path);
  ASSERT_TRUE(image) << image.error().message;
  const auto large = KernelImage::read(path, {.max_file_bytes = 10});
  ASSERT_FALSE(large);
  EXPECT_THAT(large.error().message, HasSubstr("at most 10"));
  std::ofstream{path, std::ios::trunc};
  const auto empty = KernelImage::read(path);
  ASSERT_FALSE(empty);
  EXPECT_THAT(empty.error().message, HasSubstr("empty"));
  std::filesystem::remove(path);
  const auto absent = KernelImage::read(path);
  ASSERT_FALSE(absent);
  EXPECT_THAT(absent.error().message, HasSubstr("No such file"));
  const auto folder = KernelImage::read(::testing::TempDir());
  ASSERT_FALSE(folder);
  EXPECT_THAT(folder.error().message, HasSubstr("not a regular file"));
}

}  // namespace
}  // namespace strata::boot::test
