#include "storage/transfer.hpp"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>

namespace strata::storage {

namespace {

/// The kernel gives up a call for a signal or the end of a thread; it makes progress in the end.
constexpr unsigned kRepeats = 1000;

constexpr int kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
constexpr int kZero = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;

/// Zeroes to write where a file system cannot make them itself. Only ever read.
alignas(4096) constexpr std::array<std::byte, 64 * 1024> kZeroes{};
constexpr std::uint64_t kZeroBytesAtOnce = 16 * 1024 * 1024;

bool not_supported(int error) noexcept {
  // EINVAL: a block device whose blocks are larger than the range's ends are aligned to.
  return error == EOPNOTSUPP || error == ENOSYS || error == EINVAL || error == ENODEV ||
         error == EPERM;
}

}  // namespace

Status status_of(int error) noexcept {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:  // RLIMIT_FSIZE
      return Status::no_space;
    case EROFS:
    case EBADF:
      return Status::read_only;
    default:
      return Status::io_error;
  }
}

std::int64_t make_call(int fd, const HostCall& call) noexcept {
  const auto offset = static_cast<off_t>(call.offset);
  std::int64_t result = 0;
  switch (call.kind) {
    case HostCall::Kind::readv:
      result = ::preadv(fd, call.buffers, static_cast<int>(call.count), offset);
      break;
    case HostCall::Kind::writev:
      result = ::pwritev(fd, call.buffers, static_cast<int>(call.count), offset);
      break;
    case HostCall::Kind::fdatasync:
      result = ::fdatasync(fd);
      break;
    case HostCall::Kind::fallocate:
      result = ::fallocate(fd, call.mode, offset, static_cast<off_t>(call.length));
      break;
  }
  return result < 0 ? -errno : result;
}

void Transfer::begin(const Request& request) {
  operation_ = request.operation;
  unmap_ = request.unmap;
  zeroing_ = false;
  attempt_ = repeats_ = 0;
  offset_ = request.offset;
  remaining_ = request.operation == Operation::flush ? 0 : request.length;
  buffers_.clear();
  first_ = 0;
  if (!moves_bytes()) return;
  buffers_.assign(request.buffers.begin(), request.buffers.end());
  move_on(0);
}

HostCall Transfer::next() const noexcept {
  HostCall call;
  call.offset = offset_;
  call.length = remaining_;
  switch (operation_) {
    case Operation::read:
    case Operation::write:
      call.kind = operation_ == Operation::read ? HostCall::Kind::readv : HostCall::Kind::writev;
      call.buffers = buffers_.data() + first_;
      call.count = static_cast<unsigned>(std::min<std::size_t>(buffers_.size() - first_, IOV_MAX));
      break;
    case Operation::flush:
      call.kind = HostCall::Kind::fdatasync;
      break;
    case Operation::discard:
    case Operation::write_zeroes:
      call.kind = HostCall::Kind::fallocate;
      // The first way keeps space or gives it back as asked; the second only has to make zeroes.
      call.mode = operation_ == Operation::discard || (unmap_ && attempt_ == 0) ? kPunch : kZero;
      break;
  }
  return call;
}

std::optional<Status> Transfer::advance(std::int64_t result) {
  if (result < 0) return failed(static_cast<int>(-result));
  repeats_ = 0;
  if (!moves_bytes()) return Status::ok;
  // A read that ends early: the file became shorter than the disk.
  if (result == 0 && remaining_ > 0) return Status::io_error;
  move_on(static_cast<std::uint64_t>(result));
  if (remaining_ == 0) return Status::ok;
  if (zeroing_ && first_ == buffers_.size()) take_zeroes();
  return std::nullopt;
}

std::optional<Status> Transfer::failed(int error) {
  // ECANCELED: the thread that had submitted the request has ended (io_uring).
  if (error == EINTR || error == EAGAIN || error == ECANCELED) {
    if (++repeats_ <= kRepeats) return std::nullopt;
    return Status::io_error;
  }
  if (operation_ == Operation::discard && not_supported(error)) return Status::ok;  // a hint
  if (operation_ == Operation::write_zeroes && not_supported(error)) {
    if (unmap_ && attempt_ == 0) {
      attempt_ = 1;
    } else {
      operation_ = Operation::write;
      zeroing_ = true;
      take_zeroes();
    }
    return std::nullopt;
  }
  return status_of(error);
}

/// Forgets the next `bytes` bytes, which have been transferred, and buffers that are empty.
void Transfer::move_on(std::uint64_t bytes) noexcept {
  offset_ += bytes;
  remaining_ -= std::min(bytes, remaining_);
  while (first_ < buffers_.size() && bytes >= buffers_[first_].iov_len) {
    bytes -= buffers_[first_++].iov_len;
  }
  if (bytes == 0 || first_ == buffers_.size()) return;
  iovec& buffer = buffers_[first_];
  buffer.iov_base = static_cast<std::byte*>(buffer.iov_base) + bytes;
  buffer.iov_len -= bytes;
}

/// The next part of a range that is written with zeroes.
void Transfer::take_zeroes() {
  // writev does not change what its buffers point to.
  auto* const zeroes = const_cast<std::byte*>(kZeroes.data());
  buffers_.clear();
  first_ = 0;
  for (std::uint64_t left = std::min(remaining_, kZeroBytesAtOnce); left > 0;) {
    const std::uint64_t part = std::min<std::uint64_t>(left, kZeroes.size());
    buffers_.push_back({zeroes, part});
    left -= part;
  }
}

}  // namespace strata::storage
