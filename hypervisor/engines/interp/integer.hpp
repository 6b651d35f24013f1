// The parts of lower_integer(), one per topic. Each emits the steps of the instructions it knows
// and returns true, or leaves everything alone and returns false.
#pragma once

#include "engines/interp/lower.hpp"

namespace strata::interp {

bool lower_moves(Lowering& l);     ///< moves.cpp: MOV, MOVZX, LEA, CMOVcc, SETcc, BSWAP, CBW ...
bool lower_alu(Lowering& l);       ///< alu.cpp: ADD ... CMP, TEST, INC, DEC, NEG, NOT
bool lower_multiply(Lowering& l);  ///< multiply.cpp: MUL, IMUL, DIV, IDIV, MULX
bool lower_shifts(Lowering& l);    ///< shifts.cpp: SHL ... RCR, SHLD, SHRD, SHLX ..., RORX
bool lower_bits(Lowering& l);      ///< bits.cpp: BT*, BSF, POPCNT, BMI1, BMI2, CRC32, ADCX
bool lower_atomics(Lowering& l);   ///< atomics.cpp: XCHG, XADD, CMPXCHG*, LOCK
bool lower_stack(Lowering& l);     ///< stack.cpp: PUSH, POP, ENTER, LEAVE
bool lower_branches(Lowering& l);  ///< branches.cpp: JMP, CALL, RET, Jcc, LOOP
bool lower_strings(Lowering& l);   ///< strings.cpp: MOVS, STOS, LODS, CMPS, SCAS, REP
bool lower_misc(Lowering& l);      ///< misc.cpp: flag instructions, NOPs, fences, RDRAND, UD
bool lower_decimal(Lowering& l);   ///< decimal.cpp: AAA, DAA ..., BOUND

/// The condition code (0-15) of a SETcc, CMOVcc or Jcc as Zydis names it; 16 for others.
[[nodiscard]] unsigned condition_of(ZydisMnemonic mnemonic) noexcept;

/// Picks an instantiation by condition code: f.template operator()<Code>().
template <unsigned Code = 0, class F>
[[nodiscard]] auto with_condition(unsigned code, F f) {
  if constexpr (Code < 15) {
    if (code != Code) return with_condition<Code + 1>(code, f);
  }
  return f.template operator()<Code>();
}

}  // namespace strata::interp
