#include "storage/open_disk.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "support.hpp"

namespace strata::storage::test {
namespace {

using testing::HasSubstr;

std::string error_of(const DiskOptions& options) {
  auto disk = open_disk(options);
  return disk ? "" : disk.error().message;
}

class OpenDiskTest : public testing::Test {
 protected:
  OpenDiskTest() { write_file(path_, Bytes(64 * kSectorBytes)); }
  TemporaryFolder folder_;
  const std::string path_ = folder_.file("disk");
};

TEST_F(OpenDiskTest, SaysWhatIsWrongWithAPath) {
  EXPECT_THAT(error_of({.path = folder_.file("none")}), HasSubstr("none does not exist"));
  EXPECT_THAT(error_of({.path = folder_.file("")}), HasSubstr("is a directory"));
  EXPECT_THAT(error_of({.path = path_ + "/x"}), HasSubstr("cannot open"));
  ASSERT_EQ(::mkfifo(folder_.file("pipe").c_str(), 0600), 0);
  EXPECT_THAT(error_of({.path = folder_.file("pipe")}), HasSubstr("neither a file nor a block"));
  EXPECT_THAT(error_of({.path = "/dev/full"}), HasSubstr("neither a file nor a block"));
}

TEST_F(OpenDiskTest, SaysWhatIsWrongWithASize) {
  write_file(path_, {});
  EXPECT_THAT(error_of({.path = path_}), HasSubstr("is empty"));
  write_file(path_, Bytes(1000));
  EXPECT_THAT(error_of({.path = path_}),
              HasSubstr("has 1000 bytes, which is no multiple of 512; `truncate -s 1024 "));
}

TEST_F(OpenDiskTest, OneWritesOrManyRead) {
  for (const auto engine : {Engine::asynchronous, Engine::synchronous}) {
    auto writer = open_disk({.path = path_, .engine = engine});
    ASSERT_TRUE(writer);
    EXPECT_THAT(error_of({.path = path_}), HasSubstr("in use by another VM"));
    EXPECT_THAT(error_of({.path = path_, .read_only = true}), HasSubstr("another VM writes it"));
    writer->reset();
    const auto reader = open_disk({.path = path_, .read_only = true, .engine = engine});
    ASSERT_TRUE(reader);
    EXPECT_TRUE((*reader)->read_only());
    EXPECT_EQ(error_of({.path = path_, .read_only = true}), "");
    EXPECT_THAT(error_of({.path = path_}), HasSubstr("only one alone can write it"));
  }
}

TEST_F(OpenDiskTest, ReadOnlyDisksDoNotChange) {
  for (const auto engine : {Engine::asynchronous, Engine::synchronous}) {
    const auto disk = open_started({.path = path_, .read_only = true, .engine = engine});
    EXPECT_FALSE(disk->discards());
    EXPECT_EQ(write(*disk, 0, Bytes(512, 1)), Status::read_only);
    for (const auto operation : {Operation::discard, Operation::write_zeroes}) {
      EXPECT_EQ(carry_out(*disk, {.operation = operation, .offset = 0, .length = 512}),
                Status::read_only);
    }
    EXPECT_EQ(flush(*disk), Status::ok);
    EXPECT_EQ(read(*disk, 512, 512), Bytes(512));
    disk->drain();
  }
}

}  // namespace
}  // namespace strata::storage::test
