#include "boot/bios.hpp"

#include <array>
#include <cstddef>
#include <span>

#include "boot/bytes.hpp"
#include "boot/machine_layout.hpp"

// bios_rom.S
extern "C" {
extern const std::byte strata_bios_begin[], strata_bios_end[];
extern const std::byte strata_bios_tick[], strata_bios_irq_master[], strata_bios_irq_slave[],
    strata_bios_unsupported[], strata_bios_iret[];
}

namespace strata::boot {

namespace {

constexpr unsigned kVectors = 256, kInputs = 8;
constexpr std::uint32_t kTick = kBiosMasterVector;
/// Calls that report failure in the carry flag: disk, system services, clock and PCI.
constexpr std::uint32_t kFailingCalls[] = {0x13, 0x15, 0x1A};

/// The data area's fields (offsets from 40:0).
constexpr std::size_t kCom1Field = 0x00, kEbdaField = 0x0E, kMemoryField = 0x13;

/// The place of one of bios_rom.S's labels as the guest sees it: segment and offset.
std::uint32_t far_pointer(const std::byte* label) {
  const auto offset =
      reinterpret_cast<std::uintptr_t>(label) - reinterpret_cast<std::uintptr_t>(strata_bios_begin);
  constexpr std::uint64_t kSegmentBase = layout::kBiosRomBase & ~0xFFFFULL;
  return static_cast<std::uint32_t>(kSegmentBase >> 4 << 16) |
         static_cast<std::uint32_t>(layout::kBiosRomBase - kSegmentBase + offset);
}

std::array<std::byte, kVectors * 4> vector_table() {
  std::array<std::byte, kVectors * 4> table{};
  const auto set = [&](std::uint32_t vector, const std::byte* handler) {
    put(std::span<std::byte>{table}, vector * 4, far_pointer(handler));
  };
  for (std::uint32_t v = 0; v < kVectors; ++v) set(v, strata_bios_iret);
  for (std::uint32_t i = 0; i < kInputs; ++i) {
    set(kBiosMasterVector + i, strata_bios_irq_master);
    set(kBiosSlaveVector + i, strata_bios_irq_slave);
  }
  set(kTick, strata_bios_tick);
  for (const std::uint32_t call : kFailingCalls) set(call, strata_bios_unsupported);
  return table;
}

}  // namespace

Result<void> write_bios(MemorySink& sink) {
  if (auto ok = sink.write(PA{layout::kVectorTableBase}, vector_table()); !ok) return ok;
  std::array<std::byte, layout::kBiosDataBytes> data{};
  const std::span<std::byte> fields{data};
  put(fields, kCom1Field, layout::kCom1Port);
  put(fields, kEbdaField, static_cast<std::uint16_t>(layout::kEbdaBase >> 4));
  put(fields, kMemoryField, static_cast<std::uint16_t>(layout::kEbdaBase / 1024));
  if (auto ok = sink.write(PA{layout::kBiosDataBase}, data); !ok) return ok;
  // The EBDA begins with its size in KiB.
  const std::array ebda{static_cast<std::byte>((layout::kLowRamEnd - layout::kEbdaBase) / 1024)};
  if (auto ok = sink.write(PA{layout::kEbdaBase}, ebda); !ok) return ok;
  return sink.write(PA{layout::kBiosRomBase}, std::span{strata_bios_begin, strata_bios_end});
}

}  // namespace strata::boot
