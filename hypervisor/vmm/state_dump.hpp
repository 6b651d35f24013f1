// A vCPU's state as text, for whoever has to find out why a guest died.
#pragma once

#include <string>

#include "cpu/vcpu_state.hpp"

namespace strata::vmm {

/// Several lines: general registers, RIP, RFLAGS, control registers, segments, tables.
[[nodiscard]] std::string describe(const cpu::VcpuState& state);

}  // namespace strata::vmm
