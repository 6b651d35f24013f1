// Disks in the sandbox of a VMM, and a ring as somebody sees it who has taken the VMM over.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstdlib>

#include "host/sandbox.hpp"
#include "machine/machine_memory.hpp"
#include "storage/ring.hpp"
#include "support.hpp"

namespace strata::storage::test {
namespace {

class RingTest : public testing::Test {
 protected:
  RingTest() {
    write_file(folder_.file("disk"), Bytes(kSectorBytes, 7));
    file_ = machine::FileDescriptor{::open(folder_.file("disk").c_str(), O_RDWR | O_CLOEXEC)};
    const std::array files{file_.get()};
    made_ = ring_.make(8, files);
  }
  void SetUp() override {
    if (!made_) GTEST_SKIP() << "this host has no io_uring for us";
  }
  /// What becomes of the request that `prepare` makes.
  template <class Prepare>
  int result_of(Prepare prepare) {
    io_uring_sqe* const entry = ::io_uring_get_sqe(ring_.get());
    prepare(entry);
    EXPECT_EQ(::io_uring_submit_and_wait(ring_.get(), 1), 1);
    io_uring_cqe* done = nullptr;
    EXPECT_EQ(::io_uring_peek_cqe(ring_.get(), &done), 0);
    const int result = done->res;
    ::io_uring_cqe_seen(ring_.get(), done);
    return result;
  }

  TemporaryFolder folder_;
  machine::FileDescriptor file_;
  Ring ring_;
  bool made_ = false;
  std::array<std::byte, kSectorBytes> bytes_{};
  iovec buffer_{bytes_.data(), bytes_.size()};
};

TEST_F(RingTest, ReadsFilesThatWereRegistered) {
  EXPECT_EQ(result_of([&](io_uring_sqe* entry) {
              ::io_uring_prep_readv(entry, 0, &buffer_, 1, 0);
              entry->flags = IOSQE_FIXED_FILE;
            }),
            512);
  EXPECT_EQ(bytes_[0], std::byte{7});
}

TEST_F(RingTest, ReadsNoOtherFiles) {
  const auto read = [&](int file, unsigned flags) {
    return result_of([&](io_uring_sqe* entry) {
      ::io_uring_prep_readv(entry, file, &buffer_, 1, 0);
      entry->flags = static_cast<std::uint8_t>(flags);
    });
  };
  EXPECT_EQ(read(file_.get(), 0), -EACCES);
  EXPECT_EQ(read(1, IOSQE_FIXED_FILE), -EBADF);
}

TEST_F(RingTest, DoesNothingElse) {
  const auto attempt = [&](auto prepare) {
    return result_of([&](io_uring_sqe* entry) {
      prepare(entry);
      entry->flags |= IOSQE_FIXED_FILE;
    });
  };
  EXPECT_EQ(attempt([](auto* e) { ::io_uring_prep_openat(e, AT_FDCWD, "/dev/null", 0, 0); }),
            -EACCES);
  EXPECT_EQ(attempt([](auto* e) {
              ::io_uring_prep_openat_direct(e, AT_FDCWD, "/dev/null", O_RDONLY, 0, 0);
            }),
            -EACCES);
  EXPECT_EQ(attempt([](auto* e) { ::io_uring_prep_socket(e, AF_INET, SOCK_STREAM, 0, 0); }),
            -EACCES);
  EXPECT_EQ(attempt([](auto* e) { ::io_uring_prep_unlink(e, "/nowhere", 0); }), -EACCES);
  EXPECT_EQ(attempt([](auto* e) {
              ::io_uring_prep_nop(e);
              e->flags |= IOSQE_ASYNC;
            }),
            -EACCES);
  const std::array files{0};
  EXPECT_EQ(::io_uring_register_files_update(ring_.get(), 0, files.data(), 1), -EACCES);
  EXPECT_EQ(::io_uring_unregister_files(ring_.get()), -EACCES);
}

class ConfinedDiskTest : public testing::TestWithParam<Engine> {};

TEST_P(ConfinedDiskTest, DoesAllItsWorkInTheSandbox) {
  if (!host::Sandbox::built()) GTEST_SKIP() << "this build has a sanitizer";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const TemporaryFolder folder;
  write_file(folder.file("base"), Bytes(5 * 64 * 1024, 7));
  const auto attempt = [&] {
    auto disk = open_disk(
        {.path = folder.file("base"), .overlay = folder.file("overlay"), .engine = GetParam()});
    auto sandbox = host::Sandbox::enter();
    if (!disk || !sandbox) std::_Exit(2);
    (*disk)->start();
    if (!sandbox->filter_system_calls({})) std::_Exit(3);
    bool good = write(**disk, 0, Bytes(kSectorBytes, 1)) == Status::ok;
    good &= write(**disk, 64 * 1024, Bytes(128 * 1024, 2)) == Status::ok;
    good &= flush(**disk) == Status::ok;
    for (const auto operation : {Operation::discard, Operation::write_zeroes}) {
      good &= carry_out(**disk, {.operation = operation, .length = kSectorBytes}) == Status::ok;
    }
    good &= read(**disk, 0, kSectorBytes) == Bytes(kSectorBytes);
    (*disk)->drain();
    disk->reset();
    std::_Exit(good ? 0 : 4);
  };
  EXPECT_EXIT(attempt(), testing::ExitedWithCode(0), "");
}

INSTANTIATE_TEST_SUITE_P(Engines, ConfinedDiskTest,
                         testing::Values(Engine::asynchronous, Engine::synchronous),
                         [](const auto& kind) {
                           return kind.param == Engine::synchronous ? "Synchronous" : "Uring";
                         });

}  // namespace
}  // namespace strata::storage::test
