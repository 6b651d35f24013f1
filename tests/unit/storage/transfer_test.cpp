#include "storage/transfer.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <array>
#include <cerrno>

namespace strata::storage::test {
namespace {

class TransferTest : public testing::Test {
 protected:
  void begin(Operation operation, bool unmap = false) {
    transfer_.begin({.operation = operation,
                     .offset = 4096,
                     .length = 1536,
                     .buffers = buffers_,
                     .unmap = unmap});
  }
  std::array<std::byte, 1536> bytes_{};
  std::array<iovec, 4> buffers_{iovec{bytes_.data(), 512}, iovec{nullptr, 0},
                                iovec{bytes_.data() + 512, 512}, iovec{bytes_.data() + 1024, 512}};
  Transfer transfer_;
};

TEST_F(TransferTest, ContinuesWhereACallEnded) {
  for (const auto operation : {Operation::read, Operation::write}) {
    begin(operation);
    EXPECT_EQ(transfer_.next().kind,
              operation == Operation::read ? HostCall::Kind::readv : HostCall::Kind::writev);
    EXPECT_EQ(transfer_.next().count, 4U);
    ASSERT_FALSE(transfer_.advance(700));
    HostCall call = transfer_.next();
    EXPECT_EQ(call.offset, 4796U);
    ASSERT_EQ(call.count, 2U);
    EXPECT_EQ(call.buffers[0].iov_base, bytes_.data() + 700);
    EXPECT_EQ(call.buffers[0].iov_len, 324U);
    ASSERT_FALSE(transfer_.advance(324));
    call = transfer_.next();
    ASSERT_EQ(call.count, 1U);
    EXPECT_EQ(call.buffers[0].iov_base, bytes_.data() + 1024);
    EXPECT_EQ(transfer_.advance(512), Status::ok);
  }
}

TEST_F(TransferTest, RepeatsInterruptedCalls) {
  for (const int error : {EINTR, EAGAIN, ECANCELED}) {
    begin(Operation::read);
    ASSERT_FALSE(transfer_.advance(-error));
    EXPECT_EQ(transfer_.next().offset, 4096U);
    EXPECT_EQ(transfer_.advance(1536), Status::ok);
    begin(Operation::flush);
    ASSERT_FALSE(transfer_.advance(-error));
    EXPECT_EQ(transfer_.advance(0), Status::ok);
  }
}

TEST_F(TransferTest, GivesUpACallThatIsAlwaysInterrupted) {
  begin(Operation::write);
  int calls = 1;
  while (!transfer_.advance(-EAGAIN)) ++calls;
  EXPECT_GT(calls, 100);
  EXPECT_LT(calls, 10'000);
}

TEST_F(TransferTest, AReadBehindTheFilesEndIsAnError) {
  begin(Operation::read);
  ASSERT_FALSE(transfer_.advance(512));
  EXPECT_EQ(transfer_.advance(0), Status::io_error);
}

TEST_F(TransferTest, TellsErrorsApart) {
  EXPECT_EQ(status_of(ENOSPC), Status::no_space);
  EXPECT_EQ(status_of(EDQUOT), Status::no_space);
  EXPECT_EQ(status_of(EFBIG), Status::no_space);
  EXPECT_EQ(status_of(EIO), Status::io_error);
  begin(Operation::write);
  ASSERT_FALSE(transfer_.advance(512));
  EXPECT_EQ(transfer_.advance(-ENOSPC), Status::no_space);
  begin(Operation::write_zeroes);
  EXPECT_EQ(transfer_.advance(-ENOSPC), Status::no_space);
}

TEST_F(TransferTest, DiscardsWithHolesOrNotAtAll) {
  begin(Operation::discard);
  const HostCall call = transfer_.next();
  EXPECT_EQ(call.kind, HostCall::Kind::fallocate);
  EXPECT_EQ(call.mode, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
  EXPECT_EQ(call.length, 1536U);
  EXPECT_EQ(transfer_.advance(-EOPNOTSUPP), Status::ok);
  begin(Operation::discard);
  EXPECT_EQ(transfer_.advance(-EIO), Status::io_error);
}

TEST_F(TransferTest, MakesZeroesInTheWaysThatAFileSystemHas) {
  begin(Operation::write_zeroes);
  EXPECT_EQ(transfer_.next().mode, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE);
  ASSERT_FALSE(transfer_.advance(-EOPNOTSUPP));
  EXPECT_EQ(transfer_.next().kind, HostCall::Kind::writev);

  begin(Operation::write_zeroes, true);
  EXPECT_EQ(transfer_.next().mode, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
  ASSERT_FALSE(transfer_.advance(-EOPNOTSUPP));
  EXPECT_EQ(transfer_.next().mode, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE);
  ASSERT_FALSE(transfer_.advance(-EINVAL));
  EXPECT_EQ(transfer_.next().kind, HostCall::Kind::writev);
  EXPECT_EQ(transfer_.advance(1536), Status::ok);
}

TEST_F(TransferTest, WritesZeroesInParts) {
  constexpr std::uint64_t kLength = 40 * 1024 * 1024 + 512;
  transfer_.begin({.operation = Operation::write_zeroes, .offset = 512, .length = kLength});
  ASSERT_FALSE(transfer_.advance(-EOPNOTSUPP));
  std::uint64_t written = 0;
  while (true) {
    const HostCall call = transfer_.next();
    ASSERT_EQ(call.offset, 512 + written);
    std::int64_t part = 0;
    for (unsigned i = 0; i < call.count; ++i) {
      part += static_cast<std::int64_t>(call.buffers[i].iov_len);
      const auto* const bytes = static_cast<const std::uint8_t*>(call.buffers[i].iov_base);
      ASSERT_EQ(bytes[0] | bytes[call.buffers[i].iov_len - 1], 0);
    }
    written += static_cast<std::uint64_t>(part);
    const auto status = transfer_.advance(part);
    if (!status) continue;
    EXPECT_EQ(*status, Status::ok);
    break;
  }
  EXPECT_EQ(written, kLength);
}

}  // namespace
}  // namespace strata::storage::test
