// Hosts that have no room, no io_uring, or cannot flush.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "host/sandbox.hpp"
#include "machine/machine_memory.hpp"
#include "storage/file_engine.hpp"
#include "storage/overlay_file.hpp"
#include "support.hpp"

namespace strata::storage::test {
namespace {

Status carry_out(FileEngine& engine, const Request& request) {
  Waiter done;
  engine.submit(0, request, done);
  engine.kick();
  return done.wait();
}

Status write_one_sector(FileEngine& engine) {
  Bytes bytes(kSectorBytes, 1);
  const iovec buffer{bytes.data(), bytes.size()};
  return carry_out(
      engine, {.operation = Operation::write, .length = kSectorBytes, .buffers = {&buffer, 1}});
}

class HostErrorsTest : public testing::TestWithParam<Engine> {
 protected:
  [[nodiscard]] static std::unique_ptr<FileEngine> make(int file) {
    auto engine = GetParam() == Engine::synchronous ? make_synchronous_engine({file})
                                                    : make_uring_engine({file});
    engine->start();
    return engine;
  }
  TemporaryFolder folder_;
};

TEST_P(HostErrorsTest, AFullHostIsSaidToBe) {
  const machine::FileDescriptor full{::open("/dev/full", O_RDWR | O_CLOEXEC)};
  const auto engine = make(full.get());
  EXPECT_EQ(write_one_sector(*engine), Status::no_space);
}

TEST_P(HostErrorsTest, AFlushThatFailedStaysFailed) {
  // A character device cannot be flushed; the file that takes its place could be. (A ring goes on
  // to flush the device.)
  const machine::FileDescriptor file{::open("/dev/full", O_RDWR | O_CLOEXEC)};
  const auto engine = make(file.get());
  EXPECT_EQ(carry_out(*engine, {.operation = Operation::flush}), Status::io_error);
  const machine::FileDescriptor good{::open(folder_.file("good").c_str(), O_RDWR | O_CREAT, 0600)};
  ASSERT_EQ(::dup3(good.get(), file.get(), O_CLOEXEC), file.get());
  EXPECT_EQ(carry_out(*engine, {.operation = Operation::flush}), Status::io_error);
  EXPECT_EQ(write_one_sector(*engine), Status::ok);
}

TEST_P(HostErrorsTest, AnOverlayWithoutRoomKeepsWhatItHas) {
  constexpr std::size_t kBytes = 4 * kClusterBytes;
  const Bytes base = random_bytes(1, kBytes);
  write_file(folder_.file("base"), base);
  const auto disk = open_started(
      {.path = folder_.file("base"), .overlay = folder_.file("overlay"), .engine = GetParam()});
  ASSERT_EQ(write(*disk, 0, Bytes(kSectorBytes, 1)), Status::ok);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* const handler = std::signal(SIGXFSZ, SIG_IGN);
  // Room for the first cluster only: the data begins at 64 KiB.
  const rlimit tight{2 * kClusterBytes, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  const Status outside = write(*disk, 2 * kClusterBytes + kSectorBytes, Bytes(kSectorBytes, 2));
  const Status inside = write(*disk, kSectorBytes, Bytes(kSectorBytes, 3));
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(outside, Status::no_space);
  EXPECT_EQ(inside, Status::ok);
  EXPECT_EQ(flush(*disk), Status::ok);
  Bytes expected = base;
  std::fill_n(expected.begin(), kSectorBytes, std::uint8_t{1});
  std::fill_n(expected.begin() + kSectorBytes, kSectorBytes, std::uint8_t{3});
  EXPECT_EQ(read(*disk, 0, kBytes), expected);
  ASSERT_EQ(write(*disk, 2 * kClusterBytes + kSectorBytes, Bytes(kSectorBytes, 2)), Status::ok);
  disk->drain();
}

TEST_P(HostErrorsTest, AFileThatBecameShorterIsAnErrorNotZeroes) {
  const std::string path = folder_.file("disk");
  write_file(path, Bytes(64 * kSectorBytes, 1));
  const auto disk = open_started({.path = path, .engine = GetParam()});
  ASSERT_EQ(::truncate(path.c_str(), 10 * kSectorBytes), 0);
  Bytes bytes(4 * kSectorBytes);
  EXPECT_EQ(transfer(*disk, Operation::read, 8 * kSectorBytes, bytes), Status::io_error);
  EXPECT_EQ(read(*disk, 0, kSectorBytes), Bytes(kSectorBytes, 1));
  disk->drain();
}

INSTANTIATE_TEST_SUITE_P(Engines, HostErrorsTest,
                         testing::Values(Engine::asynchronous, Engine::synchronous),
                         [](const auto& kind) {
                           return kind.param == Engine::synchronous ? "Synchronous" : "Uring";
                         });

TEST(NoUringTest, SystemCallsAreUsedInstead) {
  if (!host::Sandbox::built()) GTEST_SKIP() << "sanitizers need descriptors of their own";
  TemporaryFolder folder;
  write_file(folder.file("disk"), Bytes(kSectorBytes));
  // The disk takes two descriptors, so that none is left for a ring.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const machine::FileDescriptor next{::open("/dev/null", O_RDONLY | O_CLOEXEC)};
  const auto first_free = static_cast<rlim_t>(next.get()) + 1;
  const rlimit two_more{first_free + 2, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &two_more), 0);
  auto disk = open_disk({.path = folder.file("disk")});
  ::setrlimit(RLIMIT_NOFILE, &before);
  ASSERT_TRUE(disk);
  (*disk)->start();
  EXPECT_EQ((*disk)->engine(), "synchronous");
  EXPECT_EQ(write(**disk, 0, Bytes(kSectorBytes, 5)), Status::ok);
  EXPECT_EQ(read(**disk, 0, kSectorBytes), Bytes(kSectorBytes, 5));
}

}  // namespace
}  // namespace strata::storage::test
