// The MSRs that are the vCPU's own. Whatever is not here is the VMM's.
#pragma once

#include <cstdint>

#include "engines/interp/core.hpp"

namespace strata::interp {

/// What became of an access to an MSR.
enum class MsrAccess : std::uint8_t {
  done,
  refused,  ///< #GP(0)
  foreign,  ///< not the engine's: ask the VMM
};
[[nodiscard]] MsrAccess read_msr(Core& core, std::uint32_t msr, std::uint64_t& value);
[[nodiscard]] MsrAccess write_msr(Core& core, std::uint32_t msr, std::uint64_t value);

/// The guest's time-stamp counter: the VM's plus IA32_TSC_ADJUST (SDM 3B 18.17.3).
[[nodiscard]] std::uint64_t guest_tsc(Core& core) noexcept;

namespace misc_enable {
/// IA32_MISC_ENABLE: CPUID stops saying NX.
inline constexpr std::uint64_t kXdDisable = 1ULL << 34;
}  // namespace misc_enable

/// The machine-check registers (SDM 3B 16.3): banks that never report anything.
[[nodiscard]] MsrAccess read_machine_check_msr(const Core& core, std::uint32_t msr,
                                               std::uint64_t& value) noexcept;
[[nodiscard]] MsrAccess write_machine_check_msr(Core& core, std::uint32_t msr,
                                                std::uint64_t value) noexcept;

/// MTRR and PAT MSRs, whose values are validated and otherwise only kept: memory types do not
/// change what a program computes.
[[nodiscard]] MsrAccess read_memory_type_msr(const Core& core, std::uint32_t msr,
                                             std::uint64_t& value) noexcept;
[[nodiscard]] MsrAccess write_memory_type_msr(Core& core, std::uint32_t msr,
                                              std::uint64_t value) noexcept;

}  // namespace strata::interp
