// Files that are no good overlays, and what an overlay's file holds when its process is killed.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <tuple>

#include "support.hpp"

namespace strata::storage::test {
namespace {

using testing::HasSubstr;

constexpr std::size_t kBytes = 20 * 64 * 1024 + 3 * kSectorBytes;
constexpr std::size_t kTableOffset = 4096;

class OverlayTest : public testing::Test {
 protected:
  OverlayTest() { write_file(options_.path, base_); }
  [[nodiscard]] std::string error() const {
    auto disk = open_disk(options_);
    return disk ? "" : disk.error().message;
  }
  /// An overlay with something in it.
  [[nodiscard]] Bytes make_overlay() const {
    const auto disk = open_started(options_);
    EXPECT_EQ(write(*disk, 5 * kSectorBytes, Bytes(kSectorBytes, 1)), Status::ok);
    EXPECT_EQ(flush(*disk), Status::ok);
    disk->drain();
    return read_file(options_.overlay);
  }

  TemporaryFolder folder_;
  Bytes base_ = random_bytes(1, kBytes);
  DiskOptions options_{.path = folder_.file("base"), .overlay = folder_.file("overlay")};
};

TEST_F(OverlayTest, NeverWritesItsBase) {
  {
    const auto disk = open_started(options_);
    EXPECT_EQ(write(*disk, 0, random_bytes(2, kBytes)), Status::ok);
    EXPECT_EQ(carry_out(*disk, {.operation = Operation::discard, .length = kBytes}), Status::ok);
    EXPECT_EQ(flush(*disk), Status::ok);
    disk->drain();
  }
  EXPECT_EQ(read_file(options_.path), base_);
}

TEST_F(OverlayTest, SharesItsBaseWithOthers) {
  const auto one = open_started(options_);
  const auto other = open_started({.path = options_.path, .overlay = folder_.file("other")});
  EXPECT_EQ(write(*one, 0, Bytes(kSectorBytes, 1)), Status::ok);
  EXPECT_EQ(write(*other, 0, Bytes(kSectorBytes, 2)), Status::ok);
  EXPECT_EQ(read(*one, 0, kSectorBytes), Bytes(kSectorBytes, 1));
  EXPECT_EQ(read(*other, 0, kSectorBytes), Bytes(kSectorBytes, 2));
  EXPECT_THAT(error(), HasSubstr("overlay is in use"));
  options_.overlay.clear();
  EXPECT_THAT(error(), HasSubstr("base is in use"));
}

TEST_F(OverlayTest, CanBeReadOnly) {
  options_.read_only = true;
  EXPECT_THAT(error(), HasSubstr("does not exist; a read-only disk makes none"));
  options_.read_only = false;
  const Bytes file = make_overlay();
  options_.read_only = true;
  {
    const auto disk = open_started(options_);
    EXPECT_EQ(read(*disk, 5 * kSectorBytes, kSectorBytes), Bytes(kSectorBytes, 1));
    EXPECT_EQ(write(*disk, 0, Bytes(kSectorBytes)), Status::read_only);
    disk->drain();
  }
  EXPECT_EQ(read_file(options_.overlay), file);
}

TEST_F(OverlayTest, TakesNoSpaceForWhatWasNotWritten) {
  std::ignore = make_overlay();
  struct stat status {};
  ASSERT_EQ(::stat(options_.overlay.c_str(), &status), 0);
  EXPECT_LT(status.st_blocks * 512, 3 * 64 * 1024);
}

TEST_F(OverlayTest, LeavesNothingElseBehind) {
  std::ignore = make_overlay();
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator{folder_.file("")}) {
    names.push_back(entry.path().filename());
  }
  EXPECT_THAT(names, testing::UnorderedElementsAre("base", "overlay"));
}

TEST_F(OverlayTest, RefusesForeignFiles) {
  for (const std::size_t size : {0U, 7U, 511U, 512U, 100'000U}) {
    const Bytes foreign = random_bytes(size, size);
    write_file(options_.overlay, foreign);
    EXPECT_THAT(error(), HasSubstr("is not an overlay of Strata"));
    EXPECT_EQ(read_file(options_.overlay), foreign);
  }
  options_.overlay = options_.path;
  EXPECT_THAT(error(), HasSubstr("cannot be the overlay of itself"));
  options_.overlay = folder_.file("");
  EXPECT_THAT(error(), HasSubstr("is a directory"));
  options_.overlay = folder_.file("none/overlay");
  EXPECT_THAT(error(), HasSubstr("cannot make overlay"));
}

TEST_F(OverlayTest, RefusesAnotherLength) {
  const Bytes good = make_overlay();
  for (const std::size_t size : {good.size() - 1, good.size() + 1, good.size() / 2,
                                 kTableOffset + 100, kTableOffset, std::size_t{512}}) {
    Bytes other = good;
    other.resize(size);
    write_file(options_.overlay, other);
    EXPECT_THAT(error(), HasSubstr("is damaged")) << size;
  }
}

TEST_F(OverlayTest, RefusesEveryFlippedBitOfHeaderAndTable) {
  const Bytes good = make_overlay();
  const std::string overlay = options_.overlay;
  write_file(overlay, good);
  ASSERT_EQ(error(), "");
  const int fd = ::open(overlay.c_str(), O_RDWR | O_CLOEXEC);
  for (const std::size_t sector : {std::size_t{0}, kTableOffset}) {
    for (std::size_t bit = 0; bit < kSectorBytes * 8; ++bit) {
      const std::size_t at = sector + bit / 8;
      const auto flipped = static_cast<std::uint8_t>(good[at] ^ (1U << (bit % 8)));
      ASSERT_EQ(::pwrite(fd, &flipped, 1, static_cast<off_t>(at)), 1);
      const std::string message = error();
      ASSERT_NE(message, "") << "byte " << at << " bit " << bit % 8;
      ASSERT_EQ(message.find('\n'), std::string::npos);
      ASSERT_EQ(::pwrite(fd, &good[at], 1, static_cast<off_t>(at)), 1);
    }
  }
  ::close(fd);
  EXPECT_EQ(error(), "");
}

TEST_F(OverlayTest, RefusesTheTableOfAnother) {
  Bytes file = make_overlay();
  options_.overlay = folder_.file("other");
  const Bytes other = make_overlay();
  std::copy_n(other.begin() + kTableOffset, kSectorBytes, file.begin() + kTableOffset);
  write_file(options_.overlay, file);
  EXPECT_THAT(error(), HasSubstr("is damaged: sector 0 of its table"));
}

TEST_F(OverlayTest, RefusesAnotherBase) {
  std::ignore = make_overlay();
  Bytes longer = base_;
  longer.resize(kBytes + kSectorBytes);
  write_file(options_.path, longer);
  EXPECT_THAT(error(), HasSubstr("was made for a disk of 1312256 bytes"));
  write_file(options_.path, base_);
  std::filesystem::last_write_time(
      options_.path, std::filesystem::file_time_type::clock::now() + std::chrono::nanoseconds{1});
  EXPECT_THAT(error(), HasSubstr("was changed after overlay"));
}

/// What a sector may hold after a crash: what was flushed, or anything written since.
class History {
 public:
  explicit History(const Bytes& base) {
    for (std::size_t at = 0; at < base.size(); at += kSectorBytes) {
      versions_.push_back({slice(base, at)});
    }
  }
  void written(std::uint64_t offset, const Bytes& bytes) {
    for (std::size_t at = 0; at < bytes.size(); at += kSectorBytes) {
      versions_[(offset + at) / kSectorBytes].push_back(slice(bytes, at));
    }
  }
  void flushed() {
    for (auto& versions : versions_) versions.erase(versions.begin(), versions.end() - 1);
  }
  void check(const Bytes& disk) const {
    for (std::size_t i = 0; i < versions_.size(); ++i) {
      ASSERT_THAT(versions_[i], testing::Contains(slice(disk, i * kSectorBytes))) << "sector " << i;
    }
  }

 private:
  static Bytes slice(const Bytes& bytes, std::size_t at) {
    const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    return {begin, begin + kSectorBytes};
  }
  std::vector<std::vector<Bytes>> versions_;
};

TEST_F(OverlayTest, HoldsWhatWasFlushedAtAnyTimeItIsKilled) {
  for (const auto engine : {Engine::synchronous, Engine::asynchronous}) {
    options_.engine = engine;
    options_.overlay += "+";
    History history{base_};
    std::mt19937_64 random{7};
    const auto disk = open_started(options_);
    for (int i = 0; i < 60; ++i) {
      const std::uint64_t sectors = 1 + random() % 300;
      const std::uint64_t offset = random() % (kBytes / kSectorBytes - sectors) * kSectorBytes;
      const Bytes bytes = random_bytes(random(), sectors * kSectorBytes);
      history.written(offset, bytes);
      ASSERT_EQ(write(*disk, offset, bytes), Status::ok);
      if (random() % 4 == 0) {
        ASSERT_EQ(flush(*disk), Status::ok);
        history.flushed();
      }
      const DiskOptions copy{.path = options_.path, .overlay = folder_.file("copy")};
      std::filesystem::copy_file(options_.overlay, copy.overlay,
                                 std::filesystem::copy_options::overwrite_existing);
      const auto revived = open_started(copy);
      ASSERT_NO_FATAL_FAILURE(history.check(read(*revived, 0, kBytes)));
    }
    disk->drain();
  }
}

TEST_F(OverlayTest, KeepsWhatWasNotFlushedWhenItEndsInOrder) {
  const Bytes bytes = random_bytes(8, kBytes);
  {
    const auto disk = open_started(options_);
    ASSERT_EQ(write(*disk, 0, bytes), Status::ok);
    disk->drain();
  }
  EXPECT_EQ(read(*open_started(options_), 0, kBytes), bytes);
}

}  // namespace
}  // namespace strata::storage::test
