#include "boot/memory_map.hpp"

#include <algorithm>
#include <string>

#include "boot/machine_layout.hpp"

namespace strata::boot {

using namespace layout;

Result<MemoryMap> MemoryMap::make(std::uint64_t ram_bytes) {
  if (ram_bytes < kMinRam || ram_bytes > kMaxRam) {
    return fail("memory size of " + std::to_string(ram_bytes) +
                " bytes: " + std::to_string(kMinRam / kMiB) + " MiB to " +
                std::to_string(kMaxRam / kGiB) + " GiB are possible");
  }
  if ((ram_bytes & kPageMask) != 0) {
    return fail("memory size of " + std::to_string(ram_bytes) +
                " bytes is not a multiple of 4 KiB");
  }
  MemoryMap map;
  map.ram_bytes_ = ram_bytes;
  const std::uint64_t low = std::min(ram_bytes, kMmioHoleBase);
  const std::uint64_t high = ram_bytes - low;
  map.low_end_ = PA{low};
  map.end_ = PA{high != 0 ? kMmioHoleEnd + high : low};
  map.e820_ = {
      {PA{0}, kEbdaBase, RegionKind::ram},
      {PA{kEbdaBase}, kLowRamEnd - kEbdaBase, RegionKind::reserved},
      // The ACPI tables are in here. "reserved", not "acpi": Linux finds the RSDP in this area by
      // scanning too and expects no usable memory in it.
      {PA{kBiosBase}, kBiosEnd - kBiosBase, RegionKind::reserved},
      {PA{kKernelBase}, low - kKernelBase, RegionKind::ram},
  };
  map.backed_ = {
      {PA{0}, kLowRamEnd, RegionKind::ram},
      {PA{kBiosBase}, low - kBiosBase, RegionKind::ram},
  };
  if (high != 0) {
    map.e820_.push_back({PA{kMmioHoleEnd}, high, RegionKind::ram});
    map.backed_.push_back({PA{kMmioHoleEnd}, high, RegionKind::ram});
  }
  return map;
}

bool MemoryMap::is_ram(PA start, std::uint64_t bytes) const noexcept {
  return std::any_of(e820_.begin(), e820_.end(), [&](const Region& r) {
    return r.kind == RegionKind::ram && start >= r.start && start - r.start <= r.bytes &&
           bytes <= r.bytes - (start - r.start);
  });
}

}  // namespace strata::boot
