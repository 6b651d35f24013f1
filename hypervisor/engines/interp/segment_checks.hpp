// Limits, rights and alignment of memory operands (SDM 3A 5.3-5.5, 6.15 interrupt 17). Flat
// segments need none of it, so the checks are steps of their own before an instruction's, put there
// only where the decode mode or the segment asks for them.
#pragma once

#include <cstdint>

#include "engines/interp/core.hpp"
#include "engines/interp/lower.hpp"

namespace strata::interp {

/// Emits the checks of the instruction's memory operands and stack accesses. Those of strings are
/// made element by element by their handlers: see check_implicit().
void emit_checks(Lowering& l);

/// Whether accesses through `segment` (SegmentName or kFlatSegment) have to be checked in `mode`.
/// FS and GS often hold something that is not flat while everything else is, and accesses through
/// CS are rare: these three are checked always.
[[nodiscard]] bool needs_checks(const DecodeMode& mode, std::uint8_t segment) noexcept;

/// Checks `size` bytes at `offset` of `segment`. False: the exception is recorded, return abort().
[[nodiscard]] bool check_implicit(Core& core, std::uint8_t segment, std::uint64_t offset,
                                  unsigned size, bool write) noexcept;

}  // namespace strata::interp
