// Code that patches code: itself, its neighbours, through another address, across a page's end.
#pragma once

#include <cstdint>
#include <vector>

#include "guest_layout.hpp"

namespace strata::fuzz {

class Random;

/// Appends one such sequence of code of `bits`. It runs anywhere, uses the stack, and clobbers
/// RAX, RCX, RBX, RSI and RDI.
void append_self_modifying(Random& rng, const GuestPlan& plan, unsigned bits,
                           std::vector<std::uint8_t>& out);

}  // namespace strata::fuzz
