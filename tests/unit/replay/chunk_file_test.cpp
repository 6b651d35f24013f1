// The container of saved VMs and recordings: what goes in comes out, and every damaged, cut-off or
// foreign file is refused.
#include "vmm/replay/chunk_file.hpp"

#include <gtest/gtest.h>

#include <random>

#include "temporary_file.hpp"

namespace strata::replay {
namespace {

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto view = std::as_bytes(std::span{text});
  return {view.begin(), view.end()};
}

/// Reads to the end chunk. The error's message, or "" and the number of chunks.
std::string read_all(const std::string& path, FileKind kind, unsigned* chunks = nullptr) {
  auto reader = ChunkReader::open(path, kind);
  if (!reader) return reader.error().message;
  for (unsigned n = 1;; ++n) {
    const auto chunk = (*reader)->next();
    if (!chunk) return chunk.error().message;
    if (chunk->type != ChunkType::end) continue;
    if (chunks != nullptr) *chunks = n;
    return "";
  }
}

class ChunkFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto writer = ChunkWriter::create(test::output(file_.path()), FileKind::recording);
    ASSERT_TRUE(writer);
    std::vector<std::byte> noise(70'000);
    std::mt19937 rng{7};
    for (auto& b : noise) b = static_cast<std::byte>(rng());
    (*writer)->write(ChunkType::memory, noise);
    (*writer)->write(ChunkType::events, bytes_of("some events"));
    (*writer)->write_json(ChunkType::end, nlohmann::json{{"answer", 42}});
    ASSERT_TRUE((*writer)->finish());
    whole_ = file_.read();
  }
  test::TemporaryFile file_;
  std::string whole_;
};

TEST_F(ChunkFileTest, WhatGoesInComesOut) {
  auto reader = ChunkReader::open(file_.path(), FileKind::recording);
  ASSERT_TRUE(reader);
  auto chunk = (*reader)->next();
  ASSERT_TRUE(chunk);
  EXPECT_EQ(chunk->type, ChunkType::memory);
  EXPECT_EQ(chunk->bytes.size(), 70'000U);
  chunk = (*reader)->next();
  ASSERT_TRUE(chunk);
  EXPECT_EQ(chunk->bytes, bytes_of("some events"));
  chunk = (*reader)->next();
  ASSERT_TRUE(chunk);
  const auto value = parse_cbor(chunk->bytes, "file");
  ASSERT_TRUE(value);
  EXPECT_EQ((*value)["answer"], 42);
  EXPECT_FALSE((*reader)->next());
}

TEST_F(ChunkFileTest, EveryCutIsNoticed) {
  for (std::size_t length = 0; length < whole_.size(); length += 1 + length / 50) {
    file_.write(whole_.substr(0, length));
    EXPECT_NE(read_all(file_.path(), FileKind::recording), "") << length;
  }
}

TEST_F(ChunkFileTest, EveryFlippedBitIsNoticed) {
  std::mt19937 rng{11};
  for (int i = 0; i < 300; ++i) {
    // Headers are a small part of the file: half of the cases hit the beginning.
    const std::size_t at = rng() % (i % 2 == 0 ? 48 : whole_.size());
    if (at >= 11 && at < 16) continue;  // reserved bytes of the header mean nothing yet
    std::string damaged = whole_;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << rng() % 8));
    file_.write(damaged);
    EXPECT_NE(read_all(file_.path(), FileKind::recording), "") << at;
  }
}

TEST_F(ChunkFileTest, ChunksCanNotChangePlaces) {
  // The events and end chunks are small and last: header 24 bytes each.
  const std::size_t second = whole_.find("some events");
  ASSERT_NE(second, std::string::npos) << "an incompressible chunk is stored as it is";
  std::string swapped = whole_.substr(0, 16) + whole_.substr(second - 40);
  file_.write(swapped);
  EXPECT_NE(read_all(file_.path(), FileKind::recording), "");
}

TEST_F(ChunkFileTest, ForeignFilesAreRefusedByName) {
  EXPECT_EQ(read_all(file_.path(), FileKind::state),
            file_.path() + ": is a recording, not a saved VM");
  file_.write("#!/bin/sh\necho this is something else entirely\n");
  EXPECT_EQ(read_all(file_.path(), FileKind::recording),
            file_.path() + ": is neither a saved VM nor a recording");
  std::string newer = whole_;
  newer[8] = 2;
  file_.write(newer);
  EXPECT_EQ(read_all(file_.path(), FileKind::recording),
            file_.path() + ": has format 2; this strata reads format 1");
  EXPECT_EQ(read_all("/nowhere/at/all", FileKind::recording), "/nowhere/at/all: cannot be read");
}

TEST(ChunkFile, AFullDiskIsNoticed) {
  auto writer = ChunkWriter::create(test::output("/dev/full"), FileKind::state);
  if (!writer) return;  // noticed already
  (*writer)->write(ChunkType::memory, std::vector<std::byte>(1 << 20, std::byte{1}));
  EXPECT_FALSE((*writer)->finish());
}

TEST(Cbor, DeepNestingAndNonsenseAreRefused) {
  const std::vector<std::byte> deep(4U << 20, std::byte{0x81});  // an array in an array in ...
  EXPECT_FALSE(parse_cbor(deep, "file"));
  std::vector<std::byte> huge{std::byte{0x9B}};  // an array of 2^64 - 2 elements
  for (int i = 0; i < 7; ++i) huge.push_back(std::byte{0xFF});
  huge.push_back(std::byte{0xFE});
  EXPECT_FALSE(parse_cbor(huge, "file"));
  EXPECT_FALSE(parse_cbor({}, "file"));
  std::mt19937 rng{3};
  for (int i = 0; i < 5000; ++i) {
    std::vector<std::byte> noise(rng() % 64);
    for (auto& b : noise) b = static_cast<std::byte>(rng());
    (void)parse_cbor(noise, "file");  // whatever it is, it is no crash
  }
}

}  // namespace
}  // namespace strata::replay
