// PUSH, POP, LEAVE. RSP changes last, so that a fault finds it as it was.
#include "engines/bt/emitter.hpp"

namespace strata::bt {

Mem Emitter::push_slot(const Insn& i) {
  if (windowed(i)) {
    begin_access(i, word(), true, false, [this] { a_.lea(kT0, {.base = kRsp, .disp = -8}); });
    if (i.access.is_grouped()) return grouped_operand(i, kRsp, -8);
    load_addend(kRsp);
    return {.base = kRsp, .index = kT1, .disp = -8};
  }
  if (check_grouped(i, kRsp)) return {.base = kRsp, .index = kT1, .disp = -8};
  spill_flags();
  check_push(i);
  return {.base = kT0, .index = kT1};
}

/// RSP as it is once something has been pushed.
void Emitter::move_stack_down() {
  a_.lea(kRsp, {.base = kRsp, .disp = -static_cast<std::int32_t>(word())}, long_mode());
}

Mem Emitter::stack_top(const Insn& i, Reg base) {
  if (windowed(i)) {
    begin_access(i, word(), false, false, [this, base] { a_.mov(kT0, base); });
    if (i.access.is_grouped()) return grouped_operand(i, base, 0);
    load_addend(base);
    return {.base = base, .index = kT1};
  }
  if (check_grouped(i, base)) return {.base = base, .index = kT1};
  spill_flags();
  Reg va = base;
  if (!long_mode()) {
    a_.mov32(kT0, base);
    va = kT0;
  }
  check(i, va, word(), false);
  return {.base = va, .index = kT1};
}

void Emitter::check_push(const Insn& i) {
  a_.lea(kT0, {.base = kRsp, .disp = -static_cast<std::int32_t>(word())}, long_mode());
  check(i, kT0, word(), true);
}

void Emitter::push(const Insn& i) {
  const ZydisDecodedOperand& op = i.ops[0];
  if (op.type == ZYDIS_OPERAND_TYPE_MEMORY) {
    const Mem source = operand(i, op, false);
    homed_in_t2_ = kNotHomed;
    a_.op_mem({0, 0x8B}, long_mode(), kT2, source);
    accessed();
    a_.store(absolute(&c_.state->target), kT2);
  }
  const Mem slot = push_slot(i);
  if (op.type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
    a_.op_mem({0, 0xC7}, long_mode(), 0, slot);
    a_.imm32(static_cast<std::uint32_t>(op.imm.value.u));
  } else if (op.type == ZYDIS_OPERAND_TYPE_MEMORY) {
    a_.load(kT2, absolute(&c_.state->target));
    a_.op_mem({0, 0x89}, long_mode(), kT2, slot);
  } else {
    const Reg from = value(op.reg.value, kT2);
    if (from == kT2) homed_in_t2_ = number(op.reg.value);
    a_.op_mem({0, 0x89}, long_mode(), from, slot);
  }
  accessed();
  move_stack_down();
}

void Emitter::pop(const Insn& i) {
  const Mem top = stack_top(i, kRsp);
  const unsigned n = number(i.ops[0].reg.value);
  const bool homed = long_mode() && is_homed(n);
  const Reg to = homed ? kT2 : static_cast<Reg>(n);
  a_.op_mem({0, 0x8B}, long_mode(), to, top);
  accessed();
  if (to == kRsp) return;  // what was popped is the new RSP
  a_.lea(kRsp, {.base = kRsp, .disp = static_cast<std::int32_t>(word())}, long_mode());
  if (homed) store_home(n);
}

void Emitter::leave(const Insn& i) {
  const Mem top = stack_top(i, kRbp);
  homed_in_t2_ = kNotHomed;
  a_.op_mem({0, 0x8B}, long_mode(), kT2, top);
  accessed();
  a_.lea(kRsp, {.base = kRbp, .disp = static_cast<std::int32_t>(word())}, long_mode());
  a_.mov(kRbp, kT2);
}

}  // namespace strata::bt
