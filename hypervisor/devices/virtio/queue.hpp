// Split virtqueues (virtio 1.2, 2.7), the device's side. Everything in them is the guest's: what
// does not obey the rules is an error, and the device asks to be reset.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "devices/state_result.hpp"
#include "machine/guest_memory.hpp"
#include "mmu/address.hpp"
#include "mmu/expected.hpp"

namespace strata::devices::virtio {

/// Feature bits that queues depend on (virtio 1.2, 6).
inline constexpr std::uint64_t kRingIndirectDesc = 1ULL << 28, kRingEventIdx = 1ULL << 29,
                               kVersion1 = 1ULL << 32;

/// Most descriptors a queue can have here.
inline constexpr std::uint16_t kMaxQueueSize = 1024;

enum class QueueError : std::uint8_t {
  bad_layout,  ///< size or alignment of the rings
  bad_index,   ///< the driver made more available than the queue holds, or a head beyond it
  bad_chain,   ///< loop, too long, a device-readable part behind a writable one, bad indirect table
  bad_memory,  ///< a ring or table is not guest memory
};

/// A part of a buffer, contiguous in guest-physical memory.
struct Segment {
  PA address{};
  std::uint32_t length = 0;
};

/// One buffer that the driver made available: parts to read, then parts to write.
struct Chain {
  std::uint16_t head = 0;
  std::vector<Segment> readable{};
  std::vector<Segment> writable{};
};

[[nodiscard]] std::uint64_t total_length(std::span<const Segment> segments) noexcept;
/// Bytes [offset, offset + length) of `segments`; the part of it that is there.
[[nodiscard]] std::vector<Segment> slice(std::span<const Segment> segments, std::uint64_t offset,
                                         std::uint64_t length);

/// Copies between `segments` and host memory until one of them ends; returns how many bytes, or
/// nothing where a segment is not guest memory.
[[nodiscard]] std::optional<std::uint64_t> copy_out(machine::GuestMemory& memory,
                                                    std::span<const Segment> segments,
                                                    std::span<std::byte> to);
[[nodiscard]] std::optional<std::uint64_t> copy_in(machine::GuestMemory& memory,
                                                   std::span<const Segment> segments,
                                                   std::span<const std::byte> from);

/// Where the driver put a queue (virtio 1.2, 2.7).
struct QueueLayout {
  std::uint16_t size = 0;  ///< descriptors, a power of two
  std::uint64_t descriptors = 0;
  std::uint64_t available = 0;  ///< the driver area
  std::uint64_t used = 0;       ///< the device area
  friend bool operator==(const QueueLayout&, const QueueLayout&) = default;
};

/// One queue. Not thread-safe: its device's lock guards it. The driver's vCPUs run all the while.
class Queue {
 public:
  explicit Queue(machine::GuestMemory& memory) noexcept : memory_{&memory} {}

  /// Takes a layout and forgets everything else. Errors: bad_layout.
  Expected<void, QueueError> enable(const QueueLayout& layout, std::uint64_t features);
  void disable() noexcept { *this = Queue{*memory_}; }
  [[nodiscard]] bool enabled() const noexcept { return layout_.size != 0; }

  /// The next buffer; nothing: none is available, and the driver will notify when one is.
  Expected<std::optional<Chain>, QueueError> pop();
  /// Gives a buffer back, of which `written` bytes were written.
  Expected<void, QueueError> push(std::uint16_t head, std::uint32_t written);
  /// The driver wants an interrupt for what was pushed since this was asked last.
  [[nodiscard]] bool wants_interrupt();

  /// As a device's. The layout is saved with it.
  template <class Archive>
  void fields(Archive& a) {
    a("size", layout_.size, kMaxQueueSize);
    a("descriptors", layout_.descriptors);
    a("available", layout_.available);
    a("used", layout_.used);
    a("indirect", indirect_);
    a("event_idx", event_idx_);
    a("next_available", next_available_);
    a("next_used", next_used_);
    a("signalled", signalled_);
    a.require("size", layout_.size == 0 || valid(layout_));
  }
  [[nodiscard]] static bool valid(const QueueLayout& layout) noexcept;

 private:
  struct Descriptor {
    std::uint64_t address = 0;
    std::uint32_t length = 0;
    std::uint16_t flags = 0;
    std::uint16_t next = 0;
  };
  static_assert(sizeof(Descriptor) == 16);

  template <class T>
  [[nodiscard]] std::optional<T> read(std::uint64_t address);
  template <class T>
  [[nodiscard]] bool write(std::uint64_t address, const T& value);
  [[nodiscard]] std::optional<std::uint16_t> available_index();
  Expected<Chain, QueueError> follow(std::uint16_t head);
  Expected<void, QueueError> follow_table(std::uint64_t table, std::uint32_t entries,
                                          std::uint16_t first, bool nested, Chain& chain);
  Expected<void, QueueError> add(const Descriptor& d, Chain& chain);

  machine::GuestMemory* memory_;
  QueueLayout layout_;
  bool indirect_ = false;
  bool event_idx_ = false;
  std::uint16_t next_available_ = 0;
  std::uint16_t next_used_ = 0;
  std::uint16_t signalled_ = 0;  ///< next_used_ when an interrupt was last thought about
};

}  // namespace strata::devices::virtio
