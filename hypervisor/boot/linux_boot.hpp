// Linux's own boot protocols: the zero page, and the processor's state at the 64-bit and 32-bit
// entries (Linux, Documentation/arch/x86/boot.rst and zero-page.rst).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "boot/error.hpp"
#include "boot/memory_map.hpp"
#include "boot/memory_sink.hpp"
#include "cpu/vcpu_state.hpp"

namespace strata::boot {

/// Offsets in struct boot_params; the setup header has the same ones in a bzImage file.
namespace zero_page {
inline constexpr std::size_t kAcpiRsdp = 0x070, kSentinel = 0x1EF, kE820Count = 0x1E8,
                             kSetupHeader = 0x1F1, kSetupSectors = 0x1F1, kSysSize = 0x1F4,
                             kVideoMode = 0x1FA, kBootFlag = 0x1FE, kHeaderMagic = 0x202,
                             kVersion = 0x206, kKernelVersion = 0x20E, kLoaderType = 0x210,
                             kLoadFlags = 0x211, kCode32Start = 0x214, kInitrdAddress = 0x218,
                             kInitrdBytes = 0x21C, kCmdlinePointer = 0x228, kInitrdMax = 0x22C,
                             kXloadFlags = 0x236, kCmdlineSize = 0x238, kPayloadOffset = 0x248,
                             kPayloadLength = 0x24C, kPreferredAddress = 0x258, kInitSize = 0x260,
                             kE820Table = 0x2D0, kBytes = 0x1000;
inline constexpr std::size_t kE820Max = 128, kE820EntryBytes = 20;
}  // namespace zero_page

/// What every boot protocol tells the kernel. Addresses are guest-physical.
struct BootInfo {
  const MemoryMap& memory;
  PA rsdp{};
  PA cmdline{};  ///< NUL-terminated
  PA initrd{};
  std::uint64_t initrd_bytes = 0;  ///< 0: none
};

/// Writes the zero page to layout::kBootParamsBase. `setup_header` is the bzImage's from 1F1h on.
[[nodiscard]] Result<void> write_boot_params(const BootInfo& info,
                                             std::span<const std::byte> setup_header,
                                             MemorySink& sink);

/// Long mode at `entry` with the first 4 GiB identity-mapped; writes page tables and GDT.
[[nodiscard]] Result<cpu::VcpuState> linux64_state(std::uint64_t entry, MemorySink& sink);

/// Protected mode at `entry` with paging off; writes the GDT.
[[nodiscard]] Result<cpu::VcpuState> linux32_state(std::uint32_t entry, MemorySink& sink);

}  // namespace strata::boot
