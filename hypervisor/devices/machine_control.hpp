// What the guest's power and reset registers ask of the VMM.
#pragma once

#include <cstdint>

namespace strata::devices {

/// Called from vCPU threads in the middle of a register write, with no device lock held. The VMM
/// notes the wish, kicks its vCPUs and returns; it does not tear down devices from here.
class MachineControl {
 public:
  MachineControl() = default;
  MachineControl(const MachineControl&) = delete;
  MachineControl& operator=(const MachineControl&) = delete;
  virtual ~MachineControl() = default;
  /// The guest entered ACPI S5.
  virtual void power_off() = 0;
  /// Port CF9h, port 92h, the keyboard controller's pulse or a FADT reset register.
  virtual void reset() = 0;
  /// isa-debug-exit: `value` as the guest wrote it (QEMU exits with (value << 1) | 1).
  virtual void debug_exit(std::uint32_t value) = 0;
};

}  // namespace strata::devices
