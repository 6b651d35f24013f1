// What the device tests share: lines, sinks and machine controls that remember.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "devices/device.hpp"
#include "devices/machine_control.hpp"

namespace strata::devices::testing {

/// An interrupt line that counts its rising edges.
class Line final : public IrqLine {
 public:
  void set(bool level) override {
    if (level && !level_.exchange(level)) ++rises_;
    level_ = level;
  }
  [[nodiscard]] bool level() const { return level_; }
  [[nodiscard]] int rises() const { return rises_; }

 private:
  std::atomic<bool> level_{false};
  std::atomic<int> rises_{0};
};

class Control final : public MachineControl {
 public:
  void power_off() override { ++power_offs; }
  void reset() override { ++resets; }
  void debug_exit(std::uint32_t value) override { exit_value = static_cast<int>(value); }
  std::atomic<int> power_offs{0};
  std::atomic<int> resets{0};
  std::atomic<int> exit_value{-1};
};

}  // namespace strata::devices::testing
