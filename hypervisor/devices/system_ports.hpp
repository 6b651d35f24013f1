// The PC's odd ports: keyboard controller, port 92h, POST codes, isa-debug-exit.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "devices/bus.hpp"
#include "devices/byte_window.hpp"
#include "devices/device.hpp"
#include "devices/machine_control.hpp"
#include "devices/state_result.hpp"

namespace strata::devices {

/// - 60h/64h: no keyboard controller but for its reset pulse. The status reads FDh: output buffer
///   never empty, so Linux's i8042 driver gives up after 16 reads ("No controller found") instead
///   of waiting seconds for devices; input buffer free, so reboot code does not wait either.
/// - 92h: A20 stays on (bit 1 reads 1); bit 0 resets.
/// - 80h: POST codes, kept for reports.
/// - isa-debug-exit: a write of any size ends the VM with that value.
/// All functions: any thread.
class SystemPorts {
 public:
  struct Config {
    bool keyboard_controller = true;
    std::optional<std::uint16_t> debug_exit_port;  ///< 0xF4 for kvm-unit-tests
  };
  SystemPorts(const Config& config, MachineControl& control);
  Expected<void, BusError> attach(Bus& ports);
  /// The last byte written to port 80h.
  [[nodiscard]] std::uint8_t post_code() const noexcept { return post_.load(); }
  /// The device's state for a saved VM, and back. No vCPU runs meanwhile. load() checks what it is
  /// given; after an error the device must not be used.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

 private:
  class DebugExit final : public Device {
   public:
    explicit DebugExit(MachineControl& control) noexcept : control_{control} {}
    [[nodiscard]] std::string_view name() const noexcept override { return "debug-exit"; }
    std::uint64_t read(std::uint64_t offset, unsigned size) override;
    void write(std::uint64_t offset, unsigned size, std::uint64_t value) override;

   private:
    MachineControl& control_;
  };

  const Config config_;
  MachineControl& control_;
  std::atomic<std::uint8_t> post_{0};
  ByteWindow kbd_data_, kbd_command_, port_92_, post_port_;
  DebugExit debug_exit_;
};

}  // namespace strata::devices
