// Instructions as text, for reports.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "cpu/cpu_model.hpp"
#include "cpu/vcpu_state.hpp"

namespace strata::isa {

/// Width of the code that a vCPU in `state` executes: 16, 32 or 64.
[[nodiscard]] unsigned code_bits(const cpu::VcpuState& state) noexcept;

/// At most `count` instructions from `bytes` on, one a line: address, bytes, text. Ends where bytes
/// end or are no instruction; the latter are shown too.
[[nodiscard]] std::string disassemble(std::span<const std::byte> bytes, unsigned bits,
                                      std::uint64_t address, unsigned count,
                                      const cpu::CpuModel& model);

}  // namespace strata::isa
