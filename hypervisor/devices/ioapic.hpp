// An I/O APIC (82093AA data sheet; EOI register of version 20h) and the wiring of ISA interrupts.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "devices/apic_bus.hpp"
#include "devices/bus.hpp"
#include "devices/device.hpp"
#include "devices/pic8259.hpp"
#include "devices/state_result.hpp"

namespace strata::devices {

/// 24 pins, MMIO page at FEC00000h, version 20h. All functions: any thread.
class IoApic final : public Device, public EoiListener {
 public:
  static constexpr unsigned kPins = 24;
  static constexpr std::uint64_t kBase = 0xFEC00000;
  static constexpr std::uint64_t kLength = 0x1000;

  /// Registers itself with `bus` for EOIs. `id` is what the MADT says.
  IoApic(ApicBus& bus, std::uint8_t id);
  ~IoApic() override;
  Expected<void, BusError> attach(Bus& mmio, std::uint64_t base = kBase);

  /// Level of input `pin` (GSI of the first I/O APIC); others are ignored.
  void set_pin(unsigned pin, bool level);
  void end_of_interrupt(std::uint8_t vector) override;
  /// The device's state for a saved VM, and back. No vCPU runs meanwhile. load() checks what it is
  /// given; after an error the device must not be used.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

  [[nodiscard]] std::string_view name() const noexcept override { return "ioapic"; }
  std::uint64_t read(std::uint64_t offset, unsigned size) override;
  void write(std::uint64_t offset, unsigned size, std::uint64_t value) override;

 private:
  template <class Archive>
  void fields(Archive& a);
  [[nodiscard]] std::uint32_t read_register(std::uint8_t index) const;
  void write_register(std::uint8_t index, std::uint32_t value);
  void write_entry(unsigned pin, bool high, std::uint32_t value);
  void deliver(unsigned pin);

  ApicBus& bus_;
  std::mutex mutex_;  ///< guards the rest; held while messages go out
  std::array<std::uint64_t, kPins> entries_{};
  std::uint32_t levels_ = 0;  ///< inputs
  std::uint8_t index_ = 0;
  std::uint8_t id_;
};

/// Gives each interrupt of the machine its line. An ISA line drives the PIC input and the I/O
/// APIC pin of the same number, IRQ 0 the pin 2 (the MADT has to state that override). Any thread.
class IrqRouter {
 public:
  IrqRouter(Pic8259& pic, IoApic& ioapic);
  /// `irq` 0..15, not 2 (the cascade: a line that goes nowhere).
  [[nodiscard]] IrqLine& isa(unsigned irq) noexcept;
  /// I/O APIC pin only; `gsi` 16..23 for devices that are not ISA's.
  [[nodiscard]] IrqLine& gsi(unsigned gsi) noexcept;

 private:
  class Line;
  class Unconnected;
  std::vector<std::unique_ptr<IrqLine>> isa_;
  std::vector<std::unique_ptr<IrqLine>> gsi_;
  std::unique_ptr<IrqLine> nowhere_;
};

}  // namespace strata::devices
