// QEMU's firmware configuration interface (QEMU, docs/specs/fw_cfg.rst), I/O ports only.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "devices/bus.hpp"
#include "devices/device.hpp"

namespace strata::devices {

/// 510h (16-bit write): selects an item and rewinds it. 511h (byte read): its next byte; behind its
/// end, and for items that do not exist, zero. No DMA, no files. Any thread; as on QEMU the
/// selection is one for all vCPUs, which lock among themselves.
class FwCfg final : public Device {
 public:
  static constexpr std::uint16_t kPort = 0x510, kPorts = 2;
  struct Config {
    std::uint16_t cpus = 1;
    std::uint64_t ram_bytes = 0;
  };
  explicit FwCfg(const Config& config);
  Expected<void, BusError> attach(Bus& ports);

  [[nodiscard]] std::string_view name() const noexcept override { return "fw_cfg"; }
  std::uint64_t read(std::uint64_t offset, unsigned size) override;
  void write(std::uint64_t offset, unsigned size, std::uint64_t value) override;

 private:
  template <class T>
  void put(std::uint16_t key, T value);

  std::map<std::uint16_t, std::vector<std::uint8_t>> items_;  ///< constant after construction
  std::mutex mutex_;                                          ///< guards the rest
  std::uint16_t selected_ = 0;
  std::size_t next_ = 0;
};

}  // namespace strata::devices
