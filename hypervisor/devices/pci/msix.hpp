// MSI-X (PCI 3.0, 6.8.2): interrupts as memory writes that the driver chose.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "devices/apic_bus.hpp"
#include "devices/device.hpp"
#include "devices/state_result.hpp"

namespace strata::devices::pci {

/// Table and pending bits, as a BAR of their own. All functions: any thread; a mask that was
/// written holds for every signal() that comes later.
class Msix final : public Device {
 public:
  static constexpr std::uint32_t kBytes = 0x1000;       ///< of the BAR
  static constexpr std::uint32_t kPendingBase = 0x800;  ///< the pending bits' offset in it
  static constexpr unsigned kMostVectors = kPendingBase / 16;

  /// `vectors`: 1 to kMostVectors. `name` for the counters of the bus, which outlives this.
  Msix(std::string name, ApicBus& bus, unsigned vectors);

  [[nodiscard]] unsigned vectors() const noexcept { return vectors_; }
  /// Message control: enable, function mask. Enabling sends what is pending and not masked.
  void control(bool enabled, bool masked);
  [[nodiscard]] bool enabled();
  /// Sends the vector's message, or leaves it pending while masked. Nothing where MSI-X is not
  /// enabled or `vector` does not exist.
  void signal(unsigned vector);

  [[nodiscard]] std::string_view name() const noexcept override { return name_; }
  std::uint64_t read(std::uint64_t offset, unsigned size) override;
  void write(std::uint64_t offset, unsigned size, std::uint64_t value) override;

  /// As a device's. The control bits are configuration space's.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

 private:
  template <class Archive>
  void fields(Archive& a);
  [[nodiscard]] std::uint8_t byte_at(std::uint64_t offset) const noexcept;
  [[nodiscard]] bool masked(unsigned vector) const noexcept;
  void send(unsigned vector);
  void send_pending();

  const std::string name_;
  ApicBus& bus_;
  const unsigned vectors_;
  std::mutex mutex_;                   ///< guards the rest; held while messages go out
  std::vector<std::uint32_t> table_;   ///< four words each: address, its high half, data, control
  std::vector<std::uint8_t> pending_;  ///< 0 or 1 each
  bool enabled_ = false;
  bool masked_ = false;
};

}  // namespace strata::devices::pci
