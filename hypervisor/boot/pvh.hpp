// The PVH entry: hvm_start_info and the state it is entered in (Xen, docs/misc/pvh.pandoc and
// public/arch-x86/hvm/start_info.h).
#pragma once

#include <cstdint>

#include "boot/error.hpp"
#include "boot/linux_boot.hpp"
#include "boot/memory_sink.hpp"
#include "cpu/vcpu_state.hpp"

namespace strata::boot {

/// Field offsets of hvm_start_info, version 1.
namespace start_info {
inline constexpr std::uint32_t kMagicValue = 0x336EC578;
inline constexpr std::size_t kMagic = 0, kVersion = 4, kFlags = 8, kModuleCount = 12, kModules = 16,
                             kCmdline = 24, kRsdp = 32, kMemoryMap = 40, kMemoryMapCount = 48,
                             kBytes = 56;
inline constexpr std::size_t kModuleBytes = 32, kMemoryMapEntryBytes = 24;
}  // namespace start_info

/// Writes start info, module list and memory map to layout::kStartInfoBase and returns the state at
/// `entry`.
[[nodiscard]] Result<cpu::VcpuState> prepare_pvh(const BootInfo& info, std::uint32_t entry,
                                                 MemorySink& sink);

}  // namespace strata::boot
