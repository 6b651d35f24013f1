// The guest-physical memory map of a VM, from its memory size.
#pragma once

#include <cstdint>
#include <vector>

#include "boot/error.hpp"
#include "mmu/address.hpp"

namespace strata::boot {

/// e820 types (ACPI 6.4, table 15.374); PVH uses the same numbers.
enum class RegionKind : std::uint32_t { ram = 1, reserved = 2, acpi = 3, nvs = 4 };

struct Region {
  PA start{};
  std::uint64_t bytes = 0;
  RegionKind kind = RegionKind::ram;
  [[nodiscard]] constexpr PA end() const noexcept { return start + bytes; }
  friend bool operator==(const Region&, const Region&) = default;
};

/// Immutable after make(); safe to read from any thread.
class MemoryMap {
 public:
  /// Lays out `ram_bytes` of memory: up to 3 GiB below the MMIO hole, the rest from 4 GiB up. As on
  /// a PC, the legacy hole at 640 KiB is taken out of the amount. Errors: not a multiple of 4 KiB,
  /// less than layout::kMinRam, more than layout::kMaxRam.
  [[nodiscard]] static Result<MemoryMap> make(std::uint64_t ram_bytes);

  /// What the guest is told: sorted, disjoint.
  [[nodiscard]] const std::vector<Region>& e820() const noexcept { return e820_; }
  /// What must be memory, page-aligned, sorted: all of e820's RAM, the EBDA and the BIOS area that
  /// holds the ACPI tables. Everything else is absent or a device.
  [[nodiscard]] const std::vector<Region>& backed() const noexcept { return backed_; }
  /// End of the RAM that lies below 4 GiB.
  [[nodiscard]] PA low_end() const noexcept { return low_end_; }
  /// End of all RAM.
  [[nodiscard]] PA end() const noexcept { return end_; }
  /// Bytes of memory the VM was given.
  [[nodiscard]] std::uint64_t ram_bytes() const noexcept { return ram_bytes_; }
  /// Whether [start, start + bytes) is RAM that e820 calls usable, in one piece.
  [[nodiscard]] bool is_ram(PA start, std::uint64_t bytes) const noexcept;

 private:
  MemoryMap() = default;
  std::vector<Region> e820_;
  std::vector<Region> backed_;
  PA low_end_{};
  PA end_{};
  std::uint64_t ram_bytes_ = 0;
};

}  // namespace strata::boot
