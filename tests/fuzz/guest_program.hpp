// Random code for random guests.
#pragma once

#include <cstdint>
#include <vector>

#include "guest_layout.hpp"

namespace strata::fuzz {

class Catalogues;
class Random;

/// About `bytes` bytes of code of `bits`: instructions of every class, short sequences that change
/// the machine's state in ways single random instructions rarely do, and plain random bytes.
[[nodiscard]] std::vector<std::uint8_t> make_program(Random& rng, const GuestPlan& plan,
                                                     const Catalogues& catalogues, unsigned bits,
                                                     std::size_t bytes);

}  // namespace strata::fuzz
