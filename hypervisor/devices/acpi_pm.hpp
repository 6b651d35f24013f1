// ACPI fixed hardware (ACPI 6.4, 4.8.3): PM1a event and control, the PM timer, a GPE block.
#pragma once

#include <cstdint>
#include <mutex>

#include "devices/bus.hpp"
#include "devices/clock.hpp"
#include "devices/device.hpp"
#include "devices/machine_control.hpp"
#include "devices/state_result.hpp"

namespace strata::devices {

/// Where the FADT finds the registers, relative to AcpiPm::Config::base.
namespace acpi_pm_layout {
inline constexpr std::uint16_t kPm1Event = 0;    ///< PM1a_EVT_BLK, 4 bytes: status, enable
inline constexpr std::uint16_t kPm1Control = 4;  ///< PM1a_CNT_BLK, 2 bytes
inline constexpr std::uint16_t kPmTimer = 8;     ///< PM_TMR_BLK, 4 bytes
inline constexpr std::uint16_t kGpe0 = 0x20;     ///< GPE0_BLK, 4 bytes: 2 status, 2 enable
inline constexpr std::uint16_t kLength = 0x24;
}  // namespace acpi_pm_layout

inline constexpr std::uint64_t kPmTimerHz = 3'579'545;

/// Always in ACPI mode: SCI_EN reads 1 and the FADT's SMI_CMD is 0. All functions: any thread.
class AcpiPm final : public Device {
 public:
  struct Config {
    std::uint16_t base = 0x600;
    std::uint8_t s5_sleep_type = 5;  ///< SLP_TYPa of the DSDT's \_S5
    bool timer_32_bit = true;        ///< the FADT's TMR_VAL_EXT
  };
  /// `sci` is level-triggered, active high as an IrqLine: ISA IRQ 9 in the FADT.
  AcpiPm(const Config& config, Clock& clock, Timers& timers, IrqLine& sci, MachineControl& control);
  Expected<void, BusError> attach(Bus& ports);
  /// Presses the power button: the guest is asked to shut down.
  void press_power_button();
  /// Sets a bit of GPE0's status, 0..15: a device of the DSDT has news.
  void raise_gpe(unsigned bit);

  [[nodiscard]] std::string_view name() const noexcept override { return "acpi-pm"; }
  /// The PM timer is read at one moment for all bytes of an access.
  std::uint64_t read(std::uint64_t offset, unsigned size) override;
  void write(std::uint64_t offset, unsigned size, std::uint64_t value) override;

  /// The device's state for a saved VM, and back. No vCPU runs meanwhile. load() checks what it is
  /// given; after an error the device must not be used.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

 private:
  template <class Archive>
  void fields(Archive& a);
  [[nodiscard]] std::uint8_t read_byte(std::uint64_t offset, std::uint32_t timer) const noexcept;
  /// True: the write entered S5.
  bool write_byte(std::uint64_t offset, std::uint8_t value) noexcept;
  bool write_control(unsigned byte, std::uint8_t value) noexcept;
  [[nodiscard]] std::uint64_t ticks() noexcept;
  [[nodiscard]] unsigned top_bit() const noexcept { return config_.timer_32_bit ? 31 : 23; }
  void catch_up();
  void arm();
  void expire();
  void update_sci();

  const Config config_;
  Clock& clock_;
  IrqLine& sci_;
  MachineControl& control_;
  std::mutex mutex_;  ///< guards the rest; held while sci_ is set, not while control_ is called
  std::uint16_t status_ = 0, enable_ = 0, control_value_ = 1;  ///< control: SCI_EN
  std::uint16_t gpe_status_ = 0, gpe_enable_ = 0;
  std::uint64_t carries_ = 0;  ///< toggles of the timer's top bit that TMR_STS has seen
  bool sci_level_ = false;
  Timer timer_;
};

}  // namespace strata::devices
