// The Multiboot 1 entry (Multiboot specification 0.6.96), which kvm-unit-tests use.
#pragma once

#include <cstdint>

#include "boot/error.hpp"
#include "boot/linux_boot.hpp"
#include "boot/memory_sink.hpp"
#include "cpu/vcpu_state.hpp"

namespace strata::boot {

/// Field offsets of the Multiboot information structure.
namespace multiboot_info {
inline constexpr std::uint32_t kBootMagic = 0x2BADB002;
inline constexpr std::size_t kFlags = 0, kMemoryLower = 4, kMemoryUpper = 8, kCmdline = 16,
                             kModuleCount = 20, kModules = 24, kMapBytes = 44, kMap = 48,
                             kBytes = 120;
inline constexpr std::uint32_t kHasMemory = 1U << 0, kHasCmdline = 1U << 2, kHasModules = 1U << 3,
                               kHasMap = 1U << 6;
inline constexpr std::size_t kModuleBytes = 16, kMapEntryBytes = 24;
}  // namespace multiboot_info

/// Writes the information structure to layout::kStartInfoBase and what a BIOS has in memory, and
/// returns the state at `entry`.
[[nodiscard]] Result<cpu::VcpuState> prepare_multiboot(const BootInfo& info, std::uint32_t entry,
                                                       MemorySink& sink);

}  // namespace strata::boot
