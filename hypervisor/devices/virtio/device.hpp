// What a virtio device is to the transport that a guest finds it on, and the other way around.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>

#include "devices/state_result.hpp"
#include "devices/virtio/queue.hpp"

namespace strata::devices::virtio {

/// Device types (virtio 1.2, 5).
enum class DeviceType : std::uint8_t { network = 1, block = 2, console = 3, entropy = 4 };

// Feature bits that are not a device type's own (virtio 1.2, 6). The transport offers them.
inline constexpr std::uint64_t kRingIndirectDesc = 1ULL << 28;
inline constexpr std::uint64_t kRingEventIdx = 1ULL << 29;
inline constexpr std::uint64_t kVersion1 = 1ULL << 32;

/// What a device can ask of its transport. Any thread, from activate() until reset() has returned;
/// a device may hold a lock of its own.
class Transport {
 public:
  Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;
  virtual ~Transport() = default;
  /// The driver is told that buffers of queue `index` were used. Ask Queue::wants_interrupt()
  /// before.
  virtual void used(unsigned index) noexcept = 0;
  /// The configuration space has changed (2.5).
  virtual void config_changed() noexcept = 0;
  /// The driver did what no driver may: DEVICE_NEEDS_RESET (2.1.2). The transport calls notify() no
  /// more; the device leaves its queues alone until reset().
  virtual void failed() noexcept = 0;
};

/// A device's model. The transport never calls activate(), notify(), reset() of one device at once,
/// apart from notify() itself, which may run on several vCPU threads.
class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  /// In statistics and messages; the same for all devices of a type.
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
  [[nodiscard]] virtual DeviceType type() const noexcept = 0;
  /// Bits of the type's own that are offered.
  [[nodiscard]] virtual std::uint64_t features() const noexcept = 0;
  /// The largest size of each queue: powers of two up to 32768.
  [[nodiscard]] virtual std::span<const std::uint16_t> queue_sizes() const noexcept = 0;

  /// Bytes of the device's configuration space (2.5). Any thread; beyond its end bytes read 0.
  virtual void read_config(unsigned offset, std::span<std::byte> out) = 0;
  /// Most devices have nothing there that a driver may write.
  virtual void write_config(unsigned /*offset*/, std::span<const std::byte> /*in*/) {}

  /// Makes the threads that the device needs, before the sandbox forbids it. Once, before
  /// everything below. Throws std::system_error if the host has no thread left.
  virtual void start() {}
  /// DRIVER_OK. `features` are those negotiated; `queues` has one entry for each of queue_sizes(),
  /// null where the driver enabled none. They and `transport` stay until reset() returns.
  virtual void activate(Transport& transport, std::uint64_t features,
                        std::span<Queue* const> queues) = 0;
  /// The driver made buffers available in queue `index`, which is enabled. On a vCPU's thread.
  virtual void notify(unsigned index) = 0;
  /// Back to how it was made. When it returns nothing touches guest memory or the queues any more.
  /// Also before any activate().
  virtual void reset() = 0;
  /// For a saved VM, whose vCPUs stand still: when it returns nothing is in flight, and what had
  /// been popped is pushed. The device goes on with the next notify(), or with input after
  /// resume().
  virtual void quiesce() = 0;
  virtual void resume() {}

  /// What the device itself has to keep in a saved VM; queues and features are the transport's.
  /// save() after quiesce(); load() before activate(), checks what it is given.
  [[nodiscard]] virtual nlohmann::json save() { return nlohmann::json::object(); }
  [[nodiscard]] virtual StateResult load(const nlohmann::json& /*state*/) { return {}; }
};

}  // namespace strata::devices::virtio
