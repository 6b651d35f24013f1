// A disk as a device model sees it: blocks that are read, written, flushed and given back.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <string_view>

namespace strata::storage {

/// Offsets and lengths of requests are multiples of this many bytes.
inline constexpr std::uint64_t kSectorBytes = 512;

enum class Operation : std::uint8_t {
  read,
  write,
  flush,        ///< all writes that were completed before are on stable storage
  discard,      ///< contents no longer matter; a hint
  write_zeroes  ///< reads as zeroes afterwards
};

enum class Status : std::uint8_t {
  ok,
  out_of_range,  ///< beyond the end, or not whole sectors
  read_only,     ///< a change of a disk that takes none
  unsupported,   ///< an operation that the disk does not have
  no_space,      ///< the host has no room; nothing or a part was written
  io_error       ///< anything else that the host's storage reported
};

/// One request. What `buffers` point to stays valid and in place until it is completed.
struct Request {
  Operation operation = Operation::read;
  std::uint64_t offset = 0;  ///< bytes from the start of the disk; not for flush
  std::uint64_t length = 0;  ///< bytes; of read and write the sum of `buffers`; not for flush
  std::span<const iovec> buffers{};
  bool unmap = false;  ///< write_zeroes: space may be given back to the host
};

/// Hears how a request ended.
class Completion {
 public:
  Completion() = default;
  Completion(const Completion&) = delete;
  Completion& operator=(const Completion&) = delete;
  virtual ~Completion() = default;
  /// Once per request, from inside Disk::submit() or kick(), or on a thread of the disk; no lock of
  /// the disk is held. May submit further requests; those get under way without a kick().
  virtual void completed(Status status) noexcept = 0;
};

/// Thread-safe once started.
class Disk {
 public:
  Disk() = default;
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;
  /// After drain().
  virtual ~Disk() = default;

  [[nodiscard]] virtual std::uint64_t bytes() const noexcept = 0;  ///< a multiple of kSectorBytes
  [[nodiscard]] virtual bool read_only() const noexcept = 0;
  /// discard gives space back.
  [[nodiscard]] virtual bool discards() const noexcept = 0;
  /// How the host is asked: "io_uring" or "synchronous"; "none" without a host behind it.
  [[nodiscard]] virtual std::string_view engine() const noexcept { return "none"; }

  /// Makes the threads that the disk needs; the process may make none later (docs/sandbox.md).
  /// Once, before the first request. Throws std::system_error if the host has no thread left.
  virtual void start() = 0;
  /// Checks and begins `request`; `done` must live until it has been called. The array that
  /// `request.buffers` names may go when submit() returns, what its elements point to may not.
  virtual void submit(const Request& request, Completion& done) = 0;
  /// Requests submitted so far get under way; until then they may wait for more to come.
  virtual void kick() = 0;
  /// Returns when nothing is under way. Nobody submits meanwhile.
  virtual void drain() = 0;
};

}  // namespace strata::storage
