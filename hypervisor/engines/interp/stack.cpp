// PUSH, POP, PUSHA, POPA, ENTER, LEAVE.
#include "engines/interp/stack.hpp"

#include <array>

#include "engines/interp/integer.hpp"

namespace strata::interp {
namespace {

template <bool Long, class T>
const Uop* push_register(Core& core, const Uop* u) {
  if (!push_value<Long, T>(core, core.reg<T>(u->src))) return refuse_stack(core, u);
  return next(core, u);
}

template <bool Long, class T>
const Uop* push_immediate(Core& core, const Uop* u) {
  if (!push_value<Long, T>(core, static_cast<T>(u->imm))) return refuse_stack(core, u);
  return next(core, u);
}

template <bool Long, class T>
const Uop* push_memory(Core& core, const Uop* u) {
  T v;
  if (!load_operand(core, u, v)) return refuse(core, u);
  if (!push_value<Long, T>(core, v)) return refuse_stack(core, u);
  return next(core, u);
}

/// POP SP: the value popped wins over the increment.
template <bool Long, class T>
const Uop* pop_register(Core& core, const Uop* u) {
  T v;
  if (!peek_value<Long>(core, v)) return refuse_stack(core, u);
  Stack<Long>::commit(core, Stack<Long>::moved(core, sizeof(T)));
  core.set_reg<T>(u->dst, v);
  return next(core, u);
}

/// An address based on SP is computed after the increment (SDM 2B POP).
template <bool Long, class T>
const Uop* pop_memory(Core& core, const Uop* u) {
  T v;
  if (!peek_value<Long>(core, v)) return refuse_stack(core, u);
  const std::uint64_t before = core.r[cpu::RSP];
  Stack<Long>::commit(core, Stack<Long>::moved(core, sizeof(T)));
  const std::uint64_t va = address_of(core, u);
  const std::uint64_t after = std::exchange(core.r[cpu::RSP], before);
  if (!core.store<T>(va, v)) return refuse(core, u);
  core.r[cpu::RSP] = after;
  return next(core, u);
}

/// LEAVE: SP = BP, then POP BP.
template <bool Long, class T>
const Uop* leave_frame(Core& core, const Uop* u) {
  const std::uint64_t sp = Stack<Long>::wrapped(core, core.r[cpu::RBP]);
  T v;
  if (!load_value(core, Stack<Long>::linear(core, sp), v)) return refuse_stack(core, u);
  Stack<Long>::commit(core, Stack<Long>::wrapped(core, sp + sizeof(T)));
  core.set_reg<T>(cpu::RBP * 8, v);
  return next(core, u);
}

/// ENTER (SDM 2A ENTER). imm: bytes of locals, aux: nesting level 0-31. Registers change only
/// after a write with the final stack pointer is known to succeed.
template <bool Long, class T>
const Uop* enter_frame(Core& core, const Uop* u) {
  using S = Stack<Long>;
  std::uint64_t sp = S::moved(core, 0 - std::uint64_t{sizeof(T)});
  if (!core.store<T>(S::linear(core, sp), core.reg<T>(cpu::RBP * 8))) return refuse_stack(core, u);
  const std::uint64_t frame = sp;
  std::uint64_t bp = core.r[cpu::RBP];
  for (unsigned level = 1; level < u->aux; ++level) {
    bp = S::wrapped(core, bp - sizeof(T));
    T display;
    if (!load_value(core, S::linear(core, bp), display)) return refuse_stack(core, u);
    sp = S::wrapped(core, sp - sizeof(T));
    if (!core.store<T>(S::linear(core, sp), display)) return refuse_stack(core, u);
  }
  if (u->aux > 0) {
    sp = S::wrapped(core, sp - sizeof(T));
    if (!core.store<T>(S::linear(core, sp), static_cast<T>(frame))) return refuse_stack(core, u);
  }
  sp = S::wrapped(core, sp - u->imm);
  if (!core.check_store(S::linear(core, sp), sizeof(T))) return refuse_stack(core, u);
  S::commit(core, sp);
  core.set_reg<T>(cpu::RBP * 8, static_cast<T>(frame));
  return next(core, u);
}

/// PUSHA: AX CX DX BX, SP as it was, BP SI DI.
template <class T>
const Uop* push_all(Core& core, const Uop* u) {
  using S = Stack<false>;
  std::uint64_t sp = S::moved(core, 0);
  for (std::uint8_t i = 0; i < 8; ++i) {
    sp = S::wrapped(core, sp - sizeof(T));
    const auto offset = static_cast<std::uint8_t>(i * 8);
    if (!core.store<T>(S::linear(core, sp), core.reg<T>(offset))) return refuse_stack(core, u);
  }
  S::commit(core, sp);
  return next(core, u);
}

/// POPA: the image of SP is skipped.
template <class T>
const Uop* pop_all(Core& core, const Uop* u) {
  using S = Stack<false>;
  std::array<T, 8> image{};
  std::uint64_t sp = S::moved(core, 0);
  for (unsigned i = 8; i-- > 0;) {
    if (i != cpu::RSP && !core.load(S::linear(core, sp), image[i])) return refuse_stack(core, u);
    sp = S::wrapped(core, sp + sizeof(T));
  }
  for (std::uint8_t i = 0; i < 8; ++i) {
    if (i != cpu::RSP) core.set_reg<T>(static_cast<std::uint8_t>(i * 8), image[i]);
  }
  S::commit(core, sp);
  return next(core, u);
}

// ---- lowering -----------------------------------------------------------------------------------

/// Picks by mode and operand size: f.template operator()<Long, T>().
template <class F>
Handler stack_handler(const Lowering& l, F f) {
  const bool word = l.insn.operand_width == 16;
  if (l.mode.bits == 64) {
    return word ? f.template operator()<true, std::uint16_t>()
                : f.template operator()<true, std::uint64_t>();
  }
  return word ? f.template operator()<false, std::uint16_t>()
              : f.template operator()<false, std::uint32_t>();
}

bool lower_push(Lowering& l) {
  const ZydisDecodedOperand& op = l.ops[0];
  Uop u = l.step(stack_handler(l, [&op]<bool Long, class T>() -> Handler {
    switch (op.type) {
      case ZYDIS_OPERAND_TYPE_REGISTER:
        return &push_register<Long, T>;
      case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        return &push_immediate<Long, T>;
      default:
        return &push_memory<Long, T>;
    }
  }));
  if (op.type == ZYDIS_OPERAND_TYPE_REGISTER) u.src = Lowering::reg_offset(op.reg.value);
  if (op.type == ZYDIS_OPERAND_TYPE_IMMEDIATE) u.imm = op.imm.value.u;
  l.emit(u);
  return true;
}

bool lower_pop(Lowering& l) {
  const bool reg = l.ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER;
  Uop u = l.step(stack_handler(l, [reg]<bool Long, class T>() -> Handler {
    return reg ? &pop_register<Long, T> : &pop_memory<Long, T>;
  }));
  if (reg) u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  l.emit(u);
  return true;
}

bool lower_enter(Lowering& l) {
  Uop u = l.step(
      stack_handler(l, []<bool Long, class T>() -> Handler { return &enter_frame<Long, T>; }));
  u.imm = l.ops[0].imm.value.u & 0xFFFF;
  u.aux = l.ops[1].imm.value.u & 0x1F;
  l.emit(u);
  return true;
}

}  // namespace

bool lower_stack(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
      return lower_push(l);
    case ZYDIS_MNEMONIC_POP:
      return lower_pop(l);
    case ZYDIS_MNEMONIC_ENTER:
      return lower_enter(l);
    case ZYDIS_MNEMONIC_LEAVE:
      l.emit(l.step(
          stack_handler(l, []<bool Long, class T>() -> Handler { return &leave_frame<Long, T>; })));
      return true;
    case ZYDIS_MNEMONIC_PUSHA:
      l.emit(l.step(&push_all<std::uint16_t>));
      return true;
    case ZYDIS_MNEMONIC_PUSHAD:
      l.emit(l.step(&push_all<std::uint32_t>));
      return true;
    case ZYDIS_MNEMONIC_POPA:
      l.emit(l.step(&pop_all<std::uint16_t>));
      return true;
    case ZYDIS_MNEMONIC_POPAD:
      l.emit(l.step(&pop_all<std::uint32_t>));
      return true;
    default:
      return false;
  }
}

}  // namespace strata::interp
