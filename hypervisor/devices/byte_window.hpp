// A device whose registers are bytes: wider accesses are the same as that many byte accesses at
// rising addresses, which is what an 8-bit ISA device sees of them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "devices/device.hpp"

namespace strata::devices {

/// One range of byte registers of a device that has several ranges. Thread-safe when the two
/// functions are.
class ByteWindow final : public Device {
 public:
  using Read = std::function<std::uint8_t(std::uint64_t offset)>;
  using Write = std::function<void(std::uint64_t offset, std::uint8_t value)>;

  ByteWindow(std::string name, Read read, Write write)
      : name_{std::move(name)}, read_{std::move(read)}, write_{std::move(write)} {}

  [[nodiscard]] std::string_view name() const noexcept override { return name_; }
  std::uint64_t read(std::uint64_t offset, unsigned size) override {
    std::uint64_t value = 0;
    for (unsigned i = 0; i < size && i < 8; ++i) {
      value |= std::uint64_t{read_(offset + i)} << (8 * i);
    }
    return value;
  }
  void write(std::uint64_t offset, unsigned size, std::uint64_t value) override {
    for (unsigned i = 0; i < size && i < 8; ++i) {
      write_(offset + i, static_cast<std::uint8_t>(value >> (8 * i)));
    }
  }

 private:
  const std::string name_;
  const Read read_;
  const Write write_;
};

}  // namespace strata::devices
