// The PC's pair of 8259A interrupt controllers with the edge/level registers of later chipsets.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>

#include "devices/bus.hpp"
#include "devices/byte_window.hpp"
#include "devices/device.hpp"
#include "devices/state_result.hpp"

namespace strata::devices {

/// Answers the INTA cycle of an ExtINT interrupt. Any thread.
class ExtIntSource {
 public:
  ExtIntSource() = default;
  ExtIntSource(const ExtIntSource&) = delete;
  ExtIntSource& operator=(const ExtIntSource&) = delete;
  virtual ~ExtIntSource() = default;
  /// The vector of the highest request, which moves into service; the spurious vector (input 7)
  /// if it has gone away.
  virtual std::uint8_t acknowledge_ext_int() = 0;
};

/// One 8259A, without a lock of its own.
class Pic8259Chip {
 public:
  explicit Pic8259Chip(bool master) noexcept : master_{master} {}
  void set_line(unsigned input, bool level) noexcept;
  [[nodiscard]] bool output() const noexcept;
  /// INTA: the input taken, or 8 if there is none (spurious).
  unsigned acknowledge() noexcept;
  [[nodiscard]] std::uint8_t vector(unsigned input) const noexcept {
    return static_cast<std::uint8_t>(vector_base_ | input);
  }
  std::uint8_t read(unsigned port) noexcept;
  void write(unsigned port, std::uint8_t value) noexcept;
  [[nodiscard]] std::uint8_t level_mask() const noexcept { return level_triggered_; }
  /// See devices/device_state.hpp.
  template <class Archive>
  void fields(Archive& a);
  void set_level_mask(std::uint8_t mask) noexcept;

 private:
  [[nodiscard]] unsigned highest(std::uint8_t set) const noexcept;
  [[nodiscard]] unsigned request() const noexcept;
  [[nodiscard]] std::uint8_t poll() noexcept;
  void write_icw1(std::uint8_t value) noexcept;
  void write_ocw2(std::uint8_t value) noexcept;
  void write_ocw3(std::uint8_t value) noexcept;
  void write_data(std::uint8_t value) noexcept;

  const bool master_;
  std::uint8_t lines_ = 0;  ///< input levels
  std::uint8_t irr_ = 0, imr_ = 0, isr_ = 0;
  std::uint8_t level_triggered_ = 0;
  std::uint8_t vector_base_ = 0;
  std::uint8_t lowest_ = 7;    ///< input of lowest priority; rotates
  std::uint8_t next_icw_ = 0;  ///< 2..4 while being initialised, else 0
  bool expects_icw4_ = false, single_ = false;
  bool auto_eoi_ = false, rotate_on_auto_eoi_ = false, special_mask_ = false;
  bool special_fully_nested_ = false;
  bool read_isr_ = false, poll_ = false;
};

/// Ports 20h-21h, A0h-A1h, 4D0h-4D1h. The slave sits on input 2. All functions: any thread.
class Pic8259 final : public ExtIntSource {
 public:
  /// `intr` is the INTR pin: LINT0 of the bootstrap processor's local APIC.
  explicit Pic8259(IrqLine& intr);
  Expected<void, BusError> attach(Bus& ports);
  /// Input `irq`, 0..15; 2 is the cascade and ignored, as are others.
  void set_irq(unsigned irq, bool level);
  std::uint8_t acknowledge_ext_int() override;
  /// The device's state for a saved VM, and back. No vCPU runs meanwhile. load() checks what it is
  /// given; after an error the device must not be used.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

 private:
  template <class Archive>
  void fields(Archive& a);
  void update();
  std::uint8_t read(unsigned chip, unsigned port);
  void write(unsigned chip, unsigned port, std::uint8_t value);
  std::uint8_t read_elcr(unsigned chip);
  void write_elcr(unsigned chip, std::uint8_t value);

  IrqLine& intr_;
  std::mutex mutex_;  ///< guards the chips; held while intr_ is set
  Pic8259Chip master_{true}, slave_{false};
  bool intr_level_ = false;
  ByteWindow master_ports_, slave_ports_, elcr_ports_;
};

}  // namespace strata::devices
