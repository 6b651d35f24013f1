// Machine memory: memfd segments mapped into one reserved window of the host's address space. A
// machine address is an offset into that window; nothing else in Strata knows host addresses.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "machine/host_layout.hpp"
#include "mmu/expected.hpp"
#include "mmu/frames.hpp"

namespace strata::machine {

enum class MachineErrorKind : std::uint8_t {
  invalid_size,      ///< zero, too large for the window, or a range outside its segment
  no_address_space,  ///< the window has no hole that large
  no_memory,         ///< the host has no memory for it now (ENOMEM, ENOSPC, SIGBUS avoided)
  host,              ///< another system call failed; see `host_errno`
};

struct MachineError {
  MachineErrorKind kind = MachineErrorKind::host;
  int host_errno = 0;  ///< errno of the call that failed, or 0
};

/// Bytes [offset, offset + length) of a segment. Operations round outwards to 4 KiB pages, except
/// punch(), which takes whole pages only.
struct ByteRange {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

/// Owns a file descriptor.
class FileDescriptor {
 public:
  FileDescriptor() noexcept = default;
  explicit FileDescriptor(int fd) noexcept : fd_{fd} {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_{other.release()} {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor();
  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] bool valid() const noexcept { return fd_ >= 0; }
  /// Gives the descriptor away.
  int release() noexcept;

 private:
  int fd_ = -1;
};

/// A range of host addresses from mmap, unmapped at the end. Used for the window itself and for
/// sparse side arrays (bitmaps) whose untouched parts should cost nothing.
class HostMapping {
 public:
  HostMapping() noexcept = default;
  HostMapping(std::byte* base, std::uint64_t bytes) noexcept : base_{base}, bytes_{bytes} {}
  HostMapping(HostMapping&& other) noexcept;
  HostMapping& operator=(HostMapping&& other) noexcept;
  HostMapping(const HostMapping&) = delete;
  HostMapping& operator=(const HostMapping&) = delete;
  ~HostMapping();
  /// Private zeroed memory, populated on first touch.
  static Expected<HostMapping, MachineError> anonymous(std::uint64_t bytes);
  [[nodiscard]] std::byte* base() const noexcept { return base_; }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  std::byte* base_ = nullptr;
  std::uint64_t bytes_ = 0;
};

class WindowSpace;

/// A memfd mapped at its machine address. Thread-safe. Unmapped when the last SegmentRef goes; the
/// window's address space outlives every segment.
class Segment {
 public:
  Segment(std::shared_ptr<WindowSpace> space, FileDescriptor fd, MA base, std::uint64_t bytes,
          std::string name) noexcept;
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;
  ~Segment();

  [[nodiscard]] MA base() const noexcept { return base_; }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// The memfd; stays owned by the segment. For passing to another process.
  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  [[nodiscard]] bool contains(MA ma) const noexcept { return ma >= base_ && ma - base_ < bytes_; }

  /// Gives every page of `range` memory, without mapping it here (fallocate): for bulk loads.
  /// Errors: invalid_size, no_memory, host. What got memory before an error keeps it.
  Expected<void, MachineError> populate(ByteRange range);
  /// Gives the pages memory and maps them writable, as a first touch would, but with an error value
  /// instead of SIGBUS when the host has none (MADV_POPULATE_WRITE).
  Expected<void, MachineError> touch(ByteRange range);
  /// Gives the memory of whole pages back to the host; they read as zeroes afterwards.
  Expected<void, MachineError> punch(ByteRange range);
  /// Asks for huge pages behind `range` (MADV_COLLAPSE). Best effort: false when the host would
  /// not.
  bool collapse(ByteRange range) noexcept;
  /// Host memory that the segment holds now, in bytes (st_blocks).
  [[nodiscard]] std::uint64_t resident_bytes() const noexcept;

 private:
  [[nodiscard]] bool inside(ByteRange range) const noexcept;
  [[nodiscard]] std::byte* host(std::uint64_t offset) const noexcept;

  std::shared_ptr<WindowSpace> space_;
  FileDescriptor fd_;
  MA base_;
  std::uint64_t bytes_;
  std::string name_;
};

using SegmentRef = std::shared_ptr<Segment>;

/// The window and its segments. Thread-safe.
class MachineMemory {
 public:
  /// Reserves the window and makes segment 0. Errors: invalid_size, no_address_space, host.
  static Expected<std::unique_ptr<MachineMemory>, MachineError> create(
      const HostLayout& layout = {});

  /// A new sparse segment of `bytes` (rounded up to pages), at a machine address that is a multiple
  /// of 1 GiB. `name` shows in /proc/<pid>/maps. It can neither shrink nor grow afterwards, so a
  /// peer holding the descriptor cannot turn accesses into SIGBUS.
  Expected<SegmentRef, MachineError> create_segment(std::uint64_t bytes, std::string_view name);

  /// Maps a segment that another process made. `writable` false maps it read-only: the pool of
  /// shared pages. Errors as create_segment(), and invalid_size when the file is shorter.
  Expected<SegmentRef, MachineError> adopt_segment(FileDescriptor fd, std::uint64_t bytes,
                                                   std::string_view name, bool writable);

  /// Segment 0: tables, shared frames. At MA 0.
  [[nodiscard]] const SegmentRef& system_pool() const noexcept { return system_pool_; }
  [[nodiscard]] MachineWindow window() const noexcept;
  [[nodiscard]] std::uint64_t window_bytes() const noexcept;

 private:
  explicit MachineMemory(std::shared_ptr<WindowSpace> space) noexcept : space_{std::move(space)} {}
  Expected<SegmentRef, MachineError> map_segment(FileDescriptor fd, std::uint64_t bytes,
                                                 std::string_view name, bool writable);

  std::shared_ptr<WindowSpace> space_;
  SegmentRef system_pool_;
};

}  // namespace strata::machine
