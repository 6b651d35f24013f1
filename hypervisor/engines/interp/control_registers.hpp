// Writes of control registers as MOV, LMSW and (for EFER) WRMSR share them.
#pragma once

#include <cstdint>

#include "engines/interp/core.hpp"
#include "engines/interp/lower.hpp"
#include "engines/interp/segments.hpp"

namespace strata::interp {

/// Checks and commits with everything that follows: derived state, TLB flushes, PDPTEs.
Outcome write_cr0(Core& core, std::uint64_t value);
Outcome write_cr3(Core& core, std::uint64_t value);
Outcome write_cr4(Core& core, std::uint64_t value);

bool lower_debug_registers(Lowering& l);  ///< MOV DR
bool lower_tlb(Lowering& l);              ///< INVLPG, INVPCID

}  // namespace strata::interp
