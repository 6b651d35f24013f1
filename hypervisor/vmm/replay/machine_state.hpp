// The machine as a saved VM and the start of a recording hold it: vCPU state as JSON, and memory.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "boot/memory_map.hpp"
#include "cpu/vcpu_state.hpp"
#include "machine/guest_memory.hpp"
#include "vmm/replay/chunk_file.hpp"

namespace strata::replay {

[[nodiscard]] nlohmann::json save_vcpu(const cpu::VcpuState& state);
/// Refuses what no vCPU can hold, such as MXCSR bits that the host's processor would fault on.
[[nodiscard]] Result<cpu::VcpuState> load_vcpu(const nlohmann::json& state);

/// XXH3 (64 bits) over all RAM in order of address. Untouched pages count as the zeros they read
/// as. No vCPU runs meanwhile. Nothing: a page cannot be read.
[[nodiscard]] std::optional<std::uint64_t> memory_checksum(machine::GuestMemory& memory,
                                                           std::span<const boot::Region> ram);

/// Copies the pages that are not all zeros to memory that is.
[[nodiscard]] Result<void> copy_memory(machine::GuestMemory& from, machine::GuestMemory& to,
                                       std::span<const boot::Region> ram);
/// Address of the first byte in which two memories differ. Pages that can not be read count as
/// different.
[[nodiscard]] std::optional<PA> first_difference(machine::GuestMemory& a, machine::GuestMemory& b,
                                                 std::span<const boot::Region> ram);

/// Writes the pages that are not all zeros.
[[nodiscard]] Result<void> save_memory(machine::GuestMemory& memory,
                                       std::span<const boot::Region> ram, ChunkWriter& file);
/// Stores the pages of one memory chunk. Errors: not whole pages, not RAM, no host memory.
[[nodiscard]] Result<void> load_memory(machine::GuestMemory& memory,
                                       std::span<const std::byte> chunk, const std::string& path);

}  // namespace strata::replay
