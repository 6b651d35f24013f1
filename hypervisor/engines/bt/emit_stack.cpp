// PUSH, POP, LEAVE. RSP changes last, so that a fault finds it as it was.
#include <algorithm>
#include <span>
#include <utility>

#include "engines/bt/emitter.hpp"

namespace strata::bt {

Mem Emitter::push_slot(const Insn& i) {
  if (windowed(i)) {
    begin_access(i, word(), true, false, [this] { a_.lea(kT0, {.base = kRsp, .disp = -8}); });
    const std::int32_t disp = stack_behind_ - 8;
    if (i.access.is_grouped()) return grouped_operand(i, kRsp, disp);
    load_addend(kRsp);
    return {.base = kRsp, .index = kT1, .disp = disp};
  }
  if (check_grouped(i, kRsp)) return {.base = kRsp, .index = kT1, .disp = -8};
  free_eflags(i);
  check_push(i);
  return {.base = kT0, .index = kT1};
}

void Emitter::move_stack(std::int32_t distance) {
  stack_behind_ += distance;
  if (!code_.windowed) settle_stack();
}

void Emitter::settle_stack() {
  if (stack_behind_ == 0) return;
  a_.lea(kRsp, {.base = kRsp, .disp = std::exchange(stack_behind_, 0)}, long_mode());
}

bool Emitter::bears_stack_behind(const Insn& i) const {
  const auto is_stack = [](const ZydisDecodedOperand& o) {
    return o.type == ZYDIS_OPERAND_TYPE_REGISTER && Emitter::number(o.reg.value) == kRsp &&
           ZydisRegisterGetClass(o.reg.value) <= ZYDIS_REGCLASS_GPR64;
  };
  const auto visible = std::span{i.ops}.first(i.insn.operand_count_visible);
  // What is looked up for a group is where RSP is.
  const bool access = windowed(i) && (!i.access.first || stack_behind_ == 0);
  switch (i.kind) {
    case Kind::nothing:
      return true;
    case Kind::push:
    case Kind::pop:
      return access && visible[0].type != ZYDIS_OPERAND_TYPE_MEMORY && !is_stack(visible[0]);
    case Kind::call:
    case Kind::ret:
      return access;
    case Kind::verbatim:
      if (stack_move(i)) return true;
      return i.opcode.cls == isa::OpcodeClass::integer && memory_operand(i) == nullptr &&
             std::none_of(i.ops.begin(), i.ops.begin() + i.insn.operand_count, is_stack);
    default:
      return false;
  }
}

std::optional<std::int32_t> Emitter::stack_move(const Insn& i) const {
  const bool up = i.insn.mnemonic == ZYDIS_MNEMONIC_ADD;
  if (!code_.windowed || i.kind != Kind::verbatim || i.live_after != 0 ||
      (!up && i.insn.mnemonic != ZYDIS_MNEMONIC_SUB) ||
      i.ops[0].type != ZYDIS_OPERAND_TYPE_REGISTER || i.ops[0].reg.value != ZYDIS_REGISTER_RSP ||
      i.ops[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE) {
    return {};
  }
  constexpr std::int64_t kFarthest = 1 << 20;  // what an access may be off by then
  const std::int64_t distance = up ? i.ops[1].imm.value.s : -i.ops[1].imm.value.s;
  if (distance < -kFarthest || distance > kFarthest) return {};
  return static_cast<std::int32_t>(distance);
}

Mem Emitter::stack_top(const Insn& i, Reg base) {
  if (windowed(i)) {
    begin_access(i, word(), false, false, [this, base] { a_.mov(kT0, base); });
    const std::int32_t disp = base == kRsp ? stack_behind_ : 0;
    if (i.access.is_grouped()) return grouped_operand(i, base, disp);
    load_addend(base);
    return {.base = base, .index = kT1, .disp = disp};
  }
  if (check_grouped(i, base)) return {.base = base, .index = kT1};
  free_eflags(i);
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
  move_stack(-static_cast<std::int32_t>(word()));
}

void Emitter::pop(const Insn& i) {
  const Mem top = stack_top(i, kRsp);
  const unsigned n = number(i.ops[0].reg.value);
  const bool homed = long_mode() && is_homed(n);
  const Reg to = homed ? kT2 : static_cast<Reg>(n);
  a_.op_mem({0, 0x8B}, long_mode(), to, top);
  accessed();
  if (to == kRsp) return;  // what was popped is the new RSP
  move_stack(static_cast<std::int32_t>(word()));
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
