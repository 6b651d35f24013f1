// What a device is to the VMM, and the buses that find it.
#pragma once

#include <cstdint>
#include <string_view>

#include "mmu/address.hpp"

namespace strata::devices {

/// A device behind ports or physical addresses. read() and write() may come from any vCPU thread
/// at once; a device locks itself. `offset` is relative to the range it was registered for; `size`
/// is 1, 2, 4 or 8 and never crosses the range's end. Values use the low bytes, little endian.
class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
  virtual std::uint64_t read(std::uint64_t offset, unsigned size) = 0;
  virtual void write(std::uint64_t offset, unsigned size, std::uint64_t value) = 0;
};

/// One interrupt input of a controller. Any thread.
class IrqLine {
 public:
  IrqLine() = default;
  IrqLine(const IrqLine&) = delete;
  IrqLine& operator=(const IrqLine&) = delete;
  virtual ~IrqLine() = default;
  virtual void set(bool level) = 0;
  void pulse() {
    set(true);
    set(false);
  }
};

/// Guest time in nanoseconds since power-on, and timers on it. Any thread.
using Nanoseconds = std::uint64_t;

}  // namespace strata::devices
