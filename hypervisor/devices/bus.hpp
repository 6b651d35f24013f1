// The port and MMIO buses: which device answers at an address, and how often it was asked.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <shared_mutex>
#include <string>
#include <vector>

#include "devices/device.hpp"
#include "mmu/expected.hpp"

namespace strata::devices {

enum class BusError : std::uint8_t {
  overlap,       ///< a byte of the range belongs to another device already
  empty,         ///< length 0
  out_of_space,  ///< the range ends past the last address of the bus
};

/// What a device name was asked, over all its ranges.
struct DeviceCounts {
  std::string name;
  std::uint64_t reads = 0;
  std::uint64_t writes = 0;
};

/// An address space of device registers. All functions: any thread. A device must stay alive while
/// a thread may still be inside read() or write(). Devices may call add() and remove() from inside
/// an access (PCI BARs move that way): no lock is held while a device runs.
class Bus {
 public:
  /// `address_bits`: 16 for ports, 64 for physical addresses.
  explicit Bus(unsigned address_bits) noexcept;

  /// Claims [base, base + length) for `device`; its offsets count from `base`.
  Expected<void, BusError> add(std::uint64_t base, std::uint64_t length, Device& device);
  /// Gives up the range that starts at `base`. False: no range starts there.
  bool remove(std::uint64_t base);

  /// `size` is 1, 2, 4 or 8; anything else reads as all ones. Bytes nobody claims read as all
  /// ones, as on a bus without a driver. An access that is not inside one range goes byte by byte.
  [[nodiscard]] std::uint64_t read(std::uint64_t address, unsigned size);
  /// Bytes nobody claims are dropped.
  void write(std::uint64_t address, unsigned size, std::uint64_t value);
  /// Somebody claims the byte at `address`.
  [[nodiscard]] bool claims(std::uint64_t address) const;

  /// Relaxed snapshot, by name.
  [[nodiscard]] std::vector<DeviceCounts> counts() const;
  /// Accesses with no device behind any byte.
  [[nodiscard]] std::uint64_t unclaimed() const noexcept;

 private:
  struct Counters {
    std::atomic<std::uint64_t> reads{0};
    std::atomic<std::uint64_t> writes{0};
  };
  struct Range {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    Device* device = nullptr;
    Counters* counters = nullptr;
  };
  enum class Fit : std::uint8_t { inside, straddles, none };
  struct Target {
    Fit fit = Fit::none;
    Range range{};
  };
  [[nodiscard]] Target find(std::uint64_t address, unsigned size) const;

  const std::uint64_t last_address_;
  mutable std::shared_mutex mutex_;  ///< guards ranges_ and the map's shape
  std::vector<Range> ranges_;        ///< sorted by `first`, disjoint
  std::map<std::string, std::unique_ptr<Counters>, std::less<>> counters_;
  std::atomic<std::uint64_t> unclaimed_{0};
};

}  // namespace strata::devices
