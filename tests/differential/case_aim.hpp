// Addresses for a case's operands: what its memory operands, its stack and its branch reach.
#pragma once

#include "generator.hpp"

namespace strata::differential {

/// Sets the registers and displacements that `d`'s operands take addresses from, and the data
/// there. False: no address can be aimed at anything; the case is of no use.
[[nodiscard]] bool aim_case(fuzz::Random& rng, Case& c, const DecodedCase& d);

}  // namespace strata::differential
