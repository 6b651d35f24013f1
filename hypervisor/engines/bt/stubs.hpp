// The code between translated code and the VMM: saves and loads guest registers, changes stacks.
#pragma once

#include <functional>

#include "engines/bt/assembler.hpp"
#include "engines/bt/native_state.hpp"
#include "engines/interp/core.hpp"

namespace strata::bt {

/// Host registers that hold no guest register: temporaries of translated code. Their guest
/// registers, the least used ones of 64-bit code, stay in Core::r.
inline constexpr Reg kT0 = kR9, kT1 = kR10, kT2 = kR11;
/// A slice of Core::budget, which is without it, while guest code runs: in memory, each block would
/// wait for the one before. Where a slice ends interrupts are noticed.
inline constexpr Reg kBudget = kR8;
inline constexpr std::uint32_t kBudgetSlice = 1U << 14;

/// What the stubs call, in low memory.
struct StubTargets {
  StubFunction look_up, stale, link, link_far, attention, budget, memory, group, window, steps,
      jump, interpret, simd, x87;
};

/// Finds code for the VA in kT0 in the table of jumps; kT1 becomes its entry's offset. Jumps to
/// `miss` with its condition, or goes on; kT2 and EFLAGS are used.
void emit_look_up(Assembler& a, const NativeState& state,
                  const std::function<void(std::size_t)>& miss);
/// Enters the code of the entry at kT1, for the VA in `va`, which is used.
void emit_enter_found(Assembler& a, const NativeState& state, Reg va);

/// Emits all stubs at the assembler's position. `runtime` is what the functions get.
[[nodiscard]] Stubs emit_stubs(Assembler& a, interp::Core& core, NativeState& state,
                               const StubTargets& targets, void* runtime, bool avx);

}  // namespace strata::bt
