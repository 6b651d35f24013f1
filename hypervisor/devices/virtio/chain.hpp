// One request of a driver: the buffers of a descriptor chain (virtio 1.2, 2.7.4 to 2.7.5).
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <thread>
#include <vector>

#include "machine/guest_memory.hpp"

namespace strata::devices::virtio {

/// A part of guest memory; not wrapping around. Whether it is memory shows at the access.
struct Segment {
  PA pa{};
  std::uint32_t length = 0;  ///< bytes, not 0
};

/// Buffers held in place, as vectors of host addresses. Keeps its room when cleared.
struct PinnedBuffers {
  std::vector<machine::Pin> pins;
  std::vector<iovec> vectors;
  void clear() noexcept {
    vectors.clear();
    pins.clear();
  }
};

/// Buffers in order: what the device reads, then what it writes. Offsets count from the first byte
/// of either part. Accesses go on where a page is busy for a moment; where it stays so they fail,
/// as at addresses that are not memory, with bytes before the fault transferred. One thread.
class Chain {
 public:
  [[nodiscard]] std::uint16_t head() const noexcept { return head_; }
  [[nodiscard]] std::span<const Segment> readable() const noexcept {
    return std::span{segments_}.first(readable_);
  }
  [[nodiscard]] std::span<const Segment> writable() const noexcept {
    return std::span{segments_}.subspan(readable_);
  }
  [[nodiscard]] std::uint64_t readable_bytes() const noexcept { return readable_bytes_; }
  [[nodiscard]] std::uint64_t writable_bytes() const noexcept { return writable_bytes_; }

  /// Bytes [offset, offset + out.size()) of the readable part; false where they do not exist.
  [[nodiscard]] bool read(machine::GuestMemory& memory, std::uint64_t offset,
                          std::span<std::byte> out) const;
  /// ... into the writable part.
  [[nodiscard]] bool write(machine::GuestMemory& memory, std::uint64_t offset,
                           std::span<const std::byte> in) const;
  enum class Held : std::uint8_t { yes, no, busy };
  /// Adds `length` bytes at `offset` of the readable part to `buffers`, for reading. At most
  /// machine::GuestMemory::kMaxPinBytes. `no`: they do not exist; `busy`: a page stays busy, or has
  /// as many pins as one can have. `buffers` then has only some of them.
  [[nodiscard]] Held pin_readable(machine::GuestMemory& memory, std::uint64_t offset,
                                  std::uint64_t length, PinnedBuffers& buffers) const;
  /// ... of the writable part, for writing. Releasing them tells the listeners of GuestMemory.
  [[nodiscard]] Held pin_writable(machine::GuestMemory& memory, std::uint64_t offset,
                                  std::uint64_t length, PinnedBuffers& buffers) const;

  // For Queue, which makes them.
  void begin(std::uint16_t head) noexcept;
  /// False: readable after writable, wrapping, or more than 2^32 bytes in all.
  [[nodiscard]] bool add(PA pa, std::uint32_t length, bool writable);

 private:
  std::uint16_t head_ = 0;
  std::size_t readable_ = 0;
  std::uint64_t readable_bytes_ = 0;
  std::uint64_t writable_bytes_ = 0;
  std::vector<Segment> segments_;
};

/// Calls `access()`, which returns an Expected with a Fault, again while the fault is that a page
/// is busy, at most `tries` times. A page is moved or shared in microseconds.
template <class Access>
auto patiently(Access&& access, unsigned tries = 1000) {
  for (;; --tries) {
    auto done = access();
    if (done || done.error().kind != FaultKind::retry || tries <= 1) return done;
    std::this_thread::yield();
  }
}

}  // namespace strata::devices::virtio
