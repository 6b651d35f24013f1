#include "host/output_file.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>

namespace strata::host {
namespace {

class OutputFileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "strata-test-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  [[nodiscard]] std::string path() const { return folder_ / "file"; }
  [[nodiscard]] std::string content() const {
    std::ifstream in{path()};
    return {std::istreambuf_iterator<char>{in}, {}};
  }
  static void write(OutputFile& file, std::string_view text) {
    file.write(std::as_bytes(std::span{text}));
  }
  std::filesystem::path folder_;
};

TEST_F(OutputFileTest, KeepsWhatIsThereUntilRestarted) {
  std::ofstream{path()} << "of an earlier run";
  auto file = OutputFile::open(path());
  ASSERT_TRUE(file);
  EXPECT_EQ(content(), "of an earlier run");
  file->restart();
  EXPECT_EQ(content(), "");
  write(*file, "this ");
  write(*file, "run");
  EXPECT_TRUE(file->finish());
  EXPECT_EQ(content(), "this run");
}

TEST_F(OutputFileTest, SaysWhereItCannotWrite) {
  const auto file = OutputFile::open(folder_.string());
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().message, "cannot write " + folder_.string() + ": Is a directory");
}

TEST_F(OutputFileTest, AFullDiskIsNoticed) {
  auto file = OutputFile::open("/dev/full");
  ASSERT_TRUE(file);
  file->restart();
  write(*file, "x");
  EXPECT_FALSE(file->finish());
}

TEST_F(OutputFileTest, WhatCannotBeMadeIsNoticed) {
  auto file = OutputFile::open(path());
  ASSERT_TRUE(file);
  file->fail();
  EXPECT_FALSE(file->finish());
}

}  // namespace
}  // namespace strata::host
