// What a virtio device is to its transport, and the transport to it (virtio 1.2, 2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <vector>

#include "devices/state_result.hpp"
#include "devices/virtio/queue.hpp"

namespace strata::devices::virtio {

/// What does not change about a device.
struct Traits {
  std::uint16_t type = 0;        ///< virtio 1.2, 5: 1 network, 2 block, 3 console, 4 entropy
  std::uint32_t class_code = 0;  ///< of the PCI function, 24 bits
  std::uint64_t features = 0;    ///< the device's own
  std::vector<std::uint16_t> queue_sizes{};  ///< the most descriptors of each queue
};

/// What a device asks of its transport. Any thread; the device's lock may be held.
class Transport {
 public:
  Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;
  virtual ~Transport() = default;
  /// The device's lock guards it from Device::activate() to reset().
  [[nodiscard]] virtual Queue& queue(unsigned index) = 0;
  [[nodiscard]] virtual machine::GuestMemory& memory() = 0;
  /// The driver hears of buffers that were given back.
  virtual void interrupt(unsigned queue) = 0;
  /// The driver hears that the configuration has changed.
  virtual void config_changed() = 0;
  /// The driver broke the rules: DEVICE_NEEDS_RESET (2.1.2).
  virtual void needs_reset() = 0;
};

/// A device locks itself; what the transport calls may come from any vCPU thread.
class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
  [[nodiscard]] virtual const Traits& traits() const noexcept = 0;
  /// Bytes of the device-specific configuration from `offset` on; zeroes beyond its end.
  virtual void read_config(std::uint64_t offset, std::span<std::byte> out) = 0;
  virtual void write_config(std::uint64_t /*offset*/, std::span<const std::byte> /*in*/) {}

  /// The driver is ready (DRIVER_OK), with these features of both sides.
  virtual void activate(Transport& transport, std::uint64_t features) = 0;
  /// Buffers may be available in `queue`. Only while active.
  virtual void notify(unsigned queue) = 0;
  /// Back to before activate(). When it returns nothing of the device reaches guest memory.
  virtual void reset() = 0;

  /// Makes the device's threads, before the process gives up making any. Once.
  virtual void start() {}
  /// Returns when nothing is under way and every buffer that is done with is given back. No vCPU
  /// runs meanwhile.
  virtual void quiesce() {}

  /// The device's own state, of a device that is quiet. load() is followed by activate() where the
  /// saved one was active.
  [[nodiscard]] virtual nlohmann::json save() { return nlohmann::json::object(); }
  [[nodiscard]] virtual StateResult load(const nlohmann::json& /*state*/) { return {}; }
};

}  // namespace strata::devices::virtio
