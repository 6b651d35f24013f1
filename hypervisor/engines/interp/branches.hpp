// Steps that no instruction asked for: the ones that end a block.
#pragma once

#include <cstdint>
#include <vector>

#include "engines/interp/uop.hpp"

namespace strata::interp {

/// Goes on with the instruction at `offset`, just behind a block that ended for lack of room.
/// `in_page`: it lies in the same page as the block's first byte.
void emit_fall_through(std::vector<Uop>& out, std::uint16_t offset, bool in_page);

/// Raises `vector` (#UD, or #GP with error code 0) at the instruction at `offset`.
void emit_fault(std::vector<Uop>& out, std::uint16_t offset, std::uint8_t vector);

}  // namespace strata::interp
