// MSI-X (PCI 3.0, 6.8.2): a function's interrupts as messages, from a table that its driver fills.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "devices/device.hpp"
#include "devices/state_result.hpp"

namespace strata::devices {

/// The table, the pending bits behind it, and the two control bits of the capability. As a Device
/// it is the memory that the capability names: kTableOffset and kPendingOffset of kBytes. Any
/// thread.
class Msix final : public Device {
 public:
  static constexpr std::uint64_t kBytes = 0x1000;
  static constexpr std::uint32_t kTableOffset = 0, kPendingOffset = 0x800;
  /// As many as there is room for.
  static constexpr unsigned kMaxVectors = kPendingOffset / 16;
  /// Message Control: bit 15 enables, bit 14 masks all, bits 10:0 are the table's size less one.
  static constexpr std::uint16_t kEnable = 1U << 15, kMaskAll = 1U << 14;

  /// Sends a message: address and data. Called with the lock held; must not call back.
  using Send = std::function<void(std::uint64_t address, std::uint32_t data)>;

  /// `vectors`: 1 to kMaxVectors.
  Msix(unsigned vectors, Send send);

  [[nodiscard]] unsigned vectors() const noexcept { return static_cast<unsigned>(entries_.size()); }
  [[nodiscard]] std::uint16_t control();
  void set_control(std::uint16_t value);
  [[nodiscard]] bool enabled();
  /// Interrupt `vector`: sent, or pending while masked. Nothing where MSI-X is off or there is no
  /// such vector.
  void raise(unsigned vector);
  /// As after power-on.
  void reset();

  [[nodiscard]] std::string_view name() const noexcept override { return "msix"; }
  std::uint64_t read(std::uint64_t offset, unsigned size) override;
  void write(std::uint64_t offset, unsigned size, std::uint64_t value) override;

  /// As a device's.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

 private:
  struct Entry {
    std::uint64_t address = 0;
    std::uint32_t data = 0;
    std::uint32_t control = 1;  ///< bit 0 masks; the state after reset
    bool pending = false;
  };
  template <class Archive>
  void fields(Archive& a);
  [[nodiscard]] std::uint32_t read_dword(std::uint64_t offset) const;
  void write_dword(std::uint64_t offset, std::uint32_t value);
  [[nodiscard]] bool masked(const Entry& entry) const noexcept;
  void send_pending();

  const Send send_;
  std::mutex mutex_;  ///< guards the rest; held while messages go out
  std::vector<Entry> entries_;
  std::uint16_t control_ = 0;
};

}  // namespace strata::devices
