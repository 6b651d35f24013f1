// One request on its way to a file: the calls of the host it takes, one after the other.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "storage/disk.hpp"

namespace strata::storage {

/// What an error number of the host means for a request.
[[nodiscard]] Status status_of(int error) noexcept;

/// A call on a file, for whoever makes it: by system call or through a ring.
struct HostCall {
  enum class Kind : std::uint8_t { readv, writev, fdatasync, fallocate };
  Kind kind = Kind::readv;
  const iovec* buffers = nullptr;  ///< readv, writev; stay until the call has ended
  unsigned count = 0;
  int mode = 0;  ///< fallocate
  std::uint64_t offset = 0;
  std::uint64_t length = 0;  ///< of the range, or of the bytes that are left
};

/// Makes `call` by system call. Bytes, 0, or a negative error number.
[[nodiscard]] std::int64_t make_call(int fd, const HostCall& call) noexcept;

/// Short transfers are continued, interrupted calls repeated, and what a file system does not have
/// is done in another way. One thread at a time.
class Transfer {
 public:
  /// `request` has been checked against the size of the disk. Keeps no reference to it.
  void begin(const Request& request);
  /// The call to make now. Valid until advance().
  [[nodiscard]] HostCall next() const noexcept;
  /// `result`: bytes, 0 of calls that count none, or a negative error number. The status once the
  /// request is over; otherwise next() is the following call.
  [[nodiscard]] std::optional<Status> advance(std::int64_t result);

 private:
  [[nodiscard]] bool moves_bytes() const noexcept {
    return operation_ == Operation::read || operation_ == Operation::write;
  }
  [[nodiscard]] std::optional<Status> failed(int error);
  void move_on(std::uint64_t bytes) noexcept;
  void take_zeroes();

  Operation operation_ = Operation::read;
  bool unmap_ = false;
  bool zeroing_ = false;  ///< writes zeroes, since the file system cannot make them
  unsigned attempt_ = 0;  ///< of the ways to make zeroes
  unsigned repeats_ = 0;  ///< calls in a row that were interrupted
  std::uint64_t offset_ = 0;
  std::uint64_t remaining_ = 0;
  std::vector<iovec> buffers_;
  std::size_t first_ = 0;  ///< of buffers_, not yet transferred
};

}  // namespace strata::storage
