// The x87 environment in memory: FNSTENV, FLDENV, FNSAVE, FRSTOR.
#pragma once

#include <cstdint>

#include "engines/interp/lower.hpp"

namespace strata::interp {

/// A control word without its reserved bits: bit 6 reads as 1, bits 7 and 13-15 as 0
/// (SDM 1 8.1.5).
[[nodiscard]] constexpr std::uint16_t canonical_fcw(std::uint16_t fcw) noexcept {
  return static_cast<std::uint16_t>((fcw & 0x1F3FU) | 0x40U);
}

bool lower_x87_environment(Lowering& l);

}  // namespace strata::interp
