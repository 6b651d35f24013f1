// QEMU's pc-testdev: what test kernels drive interrupt lines and provoke accesses with.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>

#include "devices/bus.hpp"
#include "devices/byte_window.hpp"
#include "devices/device.hpp"
#include "devices/ioapic.hpp"
#include "mmu/address.hpp"

namespace strata::devices {

/// - E0h-E3h: four bytes of storage, any access width.
/// - E4h: a 32-bit write names a guest-physical address; the VMM forgets what it derived about that
///   page, so that the next access to it takes the slow way.
/// - E8h-EBh: the same storage, byte by byte.
/// - 2000h+n: the level of interrupt line n, 0 to 23.
/// - FF000000h: 64 KiB of device memory.
/// All functions: any thread.
class TestDevice {
 public:
  static constexpr std::uint16_t kStoragePort = 0xE0, kFlushPort = 0xE4, kBytePort = 0xE8,
                                 kLinesPort = 0x2000;
  static constexpr unsigned kLines = 24;
  static constexpr std::uint64_t kMemoryBase = 0xFF000000, kMemoryBytes = 0x10000;
  using FlushPage = std::function<void(PA)>;

  /// `flush_page` may be empty.
  TestDevice(IrqRouter& irqs, FlushPage flush_page);
  Expected<void, BusError> attach(Bus& ports, Bus& mmio);

 private:
  class FlushPort final : public Device {
   public:
    explicit FlushPort(FlushPage flush) : flush_{std::move(flush)} {}
    [[nodiscard]] std::string_view name() const noexcept override { return "test-flush"; }
    std::uint64_t read(std::uint64_t, unsigned) override { return 0; }
    void write(std::uint64_t offset, unsigned size, std::uint64_t value) override;

   private:
    const FlushPage flush_;
  };

  void set_line(std::uint64_t line, bool level);

  IrqRouter& irqs_;
  std::array<std::atomic<std::uint8_t>, 4> storage_{};
  std::array<std::atomic<std::uint8_t>, kMemoryBytes> memory_{};
  ByteWindow storage_port_, byte_port_, lines_port_, memory_window_;
  FlushPort flush_port_;
};

}  // namespace strata::devices
