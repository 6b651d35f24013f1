// Register and memory contents worth operating on.
#pragma once

#include "case.hpp"
#include "random.hpp"

namespace strata::differential {

/// 64 bits of vector or data: integers (kind 0), two floats (1), a double (2) or a sparse mask.
[[nodiscard]] std::uint64_t random_lane(fuzz::Random& rng, std::uint64_t kind);

/// Ten bytes at `at`: an 80-bit number with, sometimes, an integer bit that does not fit its
/// exponent.
void put_float80(fuzz::Random& rng, std::uint8_t* at);

/// Vector registers, x87 and MXCSR; exceptions unmasked now and then.
void set_units(fuzz::Random& rng, Registers& r);

}  // namespace strata::differential
