// PCI configuration mechanism 1 (PCI 3.0, 3.2.2.3.2) and the reset control register at CF9h.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>

#include "devices/bus.hpp"
#include "devices/device.hpp"
#include "devices/machine_control.hpp"
#include "devices/state_result.hpp"

namespace strata::devices {

/// The configuration space of one PCI function. Called under no lock of PciHost; any thread.
class PciFunction {
 public:
  PciFunction() = default;
  PciFunction(const PciFunction&) = delete;
  PciFunction& operator=(const PciFunction&) = delete;
  virtual ~PciFunction() = default;
  /// `offset` 0..255, `size` 1, 2 or 4; inside one aligned double word.
  virtual std::uint32_t read_config(unsigned offset, unsigned size) = 0;
  virtual void write_config(unsigned offset, unsigned size, std::uint32_t value) = 0;
};

/// Ports CF8h-CFFh. Bus 0 only; functions nobody added read as all ones. CF8h is 32 bits wide; a
/// byte write to CF9h is the reset control register (value 06h: hard reset; the FADT's
/// RESET_REG). All functions: any thread; add() before the guest runs.
class PciHost final : public Device {
 public:
  static constexpr std::uint16_t kPort = 0xCF8;
  static constexpr std::uint16_t kResetPort = 0xCF9;
  static constexpr std::uint8_t kResetValue = 0x06;

  explicit PciHost(MachineControl& control) noexcept : control_{control} {}
  Expected<void, BusError> attach(Bus& ports);
  /// Puts `function` at 00:device.0, `device` 0..31. False: taken or out of range.
  [[nodiscard]] bool add(unsigned device, PciFunction& function);

  [[nodiscard]] std::string_view name() const noexcept override { return "pci-host"; }
  std::uint64_t read(std::uint64_t offset, unsigned size) override;
  void write(std::uint64_t offset, unsigned size, std::uint64_t value) override;

  /// The device's state for a saved VM, and back. No vCPU runs meanwhile. load() checks what it is
  /// given; after an error the device must not be used.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

 private:
  template <class Archive>
  void fields(Archive& a);
  struct Selection {
    PciFunction* function = nullptr;
    unsigned offset = 0;
  };
  [[nodiscard]] Selection selected();
  void write_reset(std::uint8_t value);

  MachineControl& control_;
  std::mutex mutex_;  ///< guards the rest
  std::uint32_t address_ = 0;
  std::uint8_t reset_ = 0;
  std::array<PciFunction*, 32> functions_{};
};

/// The host bridge at 00:00.0 that Linux wants to see before it believes mechanism 1. Read-only.
class PciHostBridge final : public PciFunction {
 public:
  std::uint32_t read_config(unsigned offset, unsigned size) override;
  void write_config(unsigned offset, unsigned size, std::uint32_t value) override;
};

}  // namespace strata::devices
