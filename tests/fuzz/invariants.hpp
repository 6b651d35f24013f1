// What holds for a vCPU's state after every instruction, whatever the guest did.
#pragma once

#include <string>

#include "cpu/cpu_model.hpp"
#include "cpu/vcpu_state.hpp"
#include "engines/engine.hpp"

namespace strata::fuzz {

/// Empty, or one line saying which rule of the architecture `state` breaks.
[[nodiscard]] std::string broken_rule(const cpu::VcpuState& state, const cpu::CpuModel& model);

/// Empty, or what is wrong with an exit.
[[nodiscard]] std::string broken_exit(const engine::Exit& exit, const cpu::CpuModel& model);

/// Empty, or the first difference of two states.
[[nodiscard]] std::string difference(const cpu::VcpuState& a, const cpu::VcpuState& b);

}  // namespace strata::fuzz
