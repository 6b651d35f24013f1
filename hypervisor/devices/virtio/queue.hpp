// Split virtqueues (virtio 1.2, 2.7) of a driver that is not to be trusted.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>

#include "devices/virtio/chain.hpp"
#include "machine/guest_memory.hpp"

namespace strata::devices::virtio {

/// Where a driver put a queue.
struct QueueConfig {
  std::uint16_t size = 0;      ///< descriptors, a power of two
  std::uint16_t max_size = 0;  ///< what the device offered; bounds indirect tables
  PA descriptors{};
  PA available{};
  PA used{};
  bool indirect = false;   ///< RING_INDIRECT_DESC was negotiated
  bool event_idx = false;  ///< RING_EVENT_IDX was

  /// Powers of two, aligned (2.7), and nothing wraps around.
  [[nodiscard]] bool valid() const noexcept;
};

/// What the device knows of a queue beyond guest memory.
struct QueuePosition {
  std::uint16_t available = 0;  ///< entries of the available ring taken
  std::uint16_t used = 0;       ///< entries of the used ring written
  std::uint16_t signalled = 0;  ///< value of `used` when wants_interrupt() last looked
  bool signalled_valid = false;
  template <class Archive>
  void fields(Archive& a) {
    a("available", available);
    a("used", used);
    a("signalled", signalled);
    a("signalled_valid", signalled_valid);
  }
};

/// The device's side of one queue. All functions: any thread. Once something that no driver may do
/// was seen, broken() stays set and nothing is taken or given any more.
class Queue {
 public:
  enum class Popped : std::uint8_t { chain, empty, broken };

  /// `config` is valid. `memory` outlives the queue.
  Queue(machine::GuestMemory& memory, const QueueConfig& config,
        const QueuePosition& position = {}) noexcept;

  /// Takes the next chain. When there is none, the driver is asked to notify of the next one: who
  /// saw `empty` misses none.
  [[nodiscard]] Popped pop(Chain& chain);
  /// Gives the last `count` chains back that were popped, none of which was pushed: pop() finds
  /// them again. For a device that has no use for them yet. One thread pops.
  void unpop(std::uint16_t count);
  /// Gives a chain back of which the device wrote `written` bytes; the driver sees what was written
  /// before. In any order (2.7.8).
  void push(std::uint16_t head, std::uint32_t written);
  /// Whether the driver wants an interrupt for what was pushed since it was last asked (2.7.7,
  /// 2.7.10). Call after push(), once for several of them.
  [[nodiscard]] bool wants_interrupt();

  [[nodiscard]] bool broken() const noexcept { return broken_.load(std::memory_order_acquire); }
  [[nodiscard]] std::uint16_t size() const noexcept { return config_.size; }
  [[nodiscard]] machine::GuestMemory& memory() const noexcept { return memory_; }
  [[nodiscard]] QueuePosition position();

 private:
  struct Descriptor;
  [[nodiscard]] bool gather(std::uint16_t head, Chain& chain);
  [[nodiscard]] bool gather_table(PA table, std::uint32_t entries, std::uint16_t first, bool inner,
                                  Chain& chain);
  [[nodiscard]] std::optional<std::uint16_t> load(PA pa);
  void store(PA pa, std::uint16_t value);
  [[nodiscard]] std::optional<std::uint16_t> waiting();
  Popped fail() noexcept;

  machine::GuestMemory& memory_;
  const QueueConfig config_;
  std::atomic<bool> broken_{false};
  std::mutex mutex_;  ///< guards position_; held while guest memory is accessed
  QueuePosition position_;
};

}  // namespace strata::devices::virtio
