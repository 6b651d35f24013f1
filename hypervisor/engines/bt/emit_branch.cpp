// Branches: chains within a page, look-ups by VA to anywhere else.
#include "engines/bt/emitter.hpp"

namespace strata::bt {

void Emitter::go(std::int64_t target) {
  if (target < 0 || target >= static_cast<std::int64_t>(kPageSize)) {
    return go_far(target);
  }
  const auto offset = static_cast<std::uint32_t>(target);
  // The jump leads to the next instruction until it is linked.
  const std::size_t field = a_.jmp_later();
  a_.bind(field);
  const std::uint64_t at = a_.here() - 4;
  a_.mov_imm32(kT0, offset);
  a_.mov_imm32(kT1, static_cast<std::uint32_t>(at));
  a_.jmp(c_.stubs->link);
}

/// To another page: straight there once Translator::link_far() has filled the blanks, as long as
/// the page executes at the same VA in the same context.
void Emitter::go_far(std::int64_t target) {
  const std::uint64_t at = a_.here();
  const auto place = [this, at](std::uint64_t wanted) {
    good_ = good_ && a_.here() - at == wanted;
  };
  a_.mov_imm64(kT0, FarLink::kNever);
  place(FarJump::kPageVa + 8);
  a_.alu(7, kT0, absolute(&c_.state->page_va));
  const std::size_t elsewhere = a_.jcc_later(kNotEqual);
  a_.mov_imm64(kT2, FarLink::kNever);
  place(FarJump::kContext + 8);
  a_.alu(7, kT2, absolute(&c_.state->context));
  const std::size_t otherwise = a_.jcc_later(kNotEqual);
  a_.lea_wide(kT0, static_cast<std::int32_t>(target & ~static_cast<std::int64_t>(kPageMask)),
              long_mode());
  a_.store(absolute(&c_.state->page_va), kT0);
  a_.bind(a_.jmp_later());
  place(FarJump::kJump + 4);
  a_.bind(elsewhere);
  a_.bind(otherwise);
  a_.load(kT0, absolute(&c_.state->page_va));
  a_.lea_wide(kT0, static_cast<std::int32_t>(target), long_mode());
  a_.mov_imm32(kT1, static_cast<std::uint32_t>(at));
  a_.jmp(c_.stubs->link_far);
  place(FarJump::kMiss + 4);
}

void Emitter::look_up(const std::function<void(std::size_t)>& miss) {
  emit_look_up(a_, *c_.state, miss);
}

void Emitter::enter_found(Reg va) { emit_enter_found(a_, *c_.state, va); }

void Emitter::jump(const Insn& i) {
  if (i.live_after != 0) spill_flags();
  in_host_ = false;
  go(end_of(i) + i.ops[0].imm.value.s);
  ended_ = true;
}

void Emitter::jcc(const Insn& i) {
  need_flags();
  // The way out of the region: of a loop's rounds but the last it is the straight one.
  const std::int64_t target = i.loops ? end_of(i) : end_of(i) + i.ops[0].imm.value.s;
  const bool backward = target <= page_offset(i);
  const unsigned condition = (i.insn.opcode & 15U) ^ (i.loops ? 1U : 0U);
  const std::uint16_t left = static_cast<std::uint16_t>(remaining(i) - 1);
  // Each way saves flags if it has to.
  const bool save = (i.loops ? i.live_straight : i.live_taken) != 0 && !in_memory_;
  const auto out = [this, target, left, save] {
    if (save) store_flags();
    if (left != 0) a_.alu_imm(0, kBudget, left);
    go(target);
  };
  if (!backward || left != 0) {
    cold(a_.jcc_later(condition), out);
    return;
  }
  // A loop's last round: the way back is the straight one.
  const std::size_t end = a_.jcc_later(condition ^ 1);
  out();
  a_.bind(end);
}

void Emitter::call(const Insn& i) {
  // Through a window the access leaves EFLAGS alone, and its fault finds them there.
  if (i.live_after != 0 || !windowed(i)) spill_flags();
  const Mem slot = push_slot(i);
  load_page_va(kT2, end_of(i));
  a_.op_mem({0, 0x89}, long_mode(), kT2, slot);
  accessed();
  in_host_ = false;
  move_stack(-static_cast<std::int32_t>(word()));
  settle_stack();
  go(end_of(i) + i.ops[0].imm.value.s);
  ended_ = true;
}

void Emitter::target(const Insn& i) {
  const ZydisDecodedOperand& op = i.ops[0];
  if (op.type == ZYDIS_OPERAND_TYPE_MEMORY) {
    const Mem m = operand(i, op, false);
    a_.op_mem({0, 0x8B}, long_mode(), kT0, m);
    accessed();
    return;
  }
  const Reg r = value(op.reg.value, kT0);
  if (long_mode()) {
    if (r != kT0) a_.mov(kT0, r);
  } else {
    a_.mov32(kT0, r);
  }
}

/// An indirect branch that finds no code has changed nothing yet: it tries again once there is
/// some, or the interpreter executes it, which knows what a target may be.
void Emitter::look_up_target(const Insn& i) {
  const std::uint32_t site = add_site(i);
  const std::uint64_t again = a_.here();
  look_up([this, site, again, behind = stack_behind_](std::size_t fixup) {
    cold(fixup, [this, site, again, behind] {
      stack_behind_ = behind;
      settle_stack();
      call_stub(c_.stubs->jump, site);
      if (behind == 0) return;
      c_.cache->site(site).resume = static_cast<std::uint32_t>(a_.here());
      stack_behind_ = -behind;
      settle_stack();
      a_.jmp(again);
    });
  });
}

void Emitter::jump_indirect(const Insn& i) {
  spill_flags();
  target(i);
  look_up_target(i);
  enter_found(kT0);
  ended_ = true;
}

void Emitter::call_indirect(const Insn& i) {
  spill_flags();
  target(i);
  a_.store(absolute(&c_.state->target), kT0);
  look_up_target(i);
  Mem code = absolute(&c_.state->jumps[0].code);
  code.base = kT1;
  a_.load(kT2, code);
  a_.store(absolute(&c_.state->code), kT2);
  const Mem slot = push_slot(i);
  load_page_va(kT2, end_of(i));
  a_.op_mem({0, 0x89}, long_mode(), kT2, slot);
  accessed();
  move_stack(-static_cast<std::int32_t>(word()));
  settle_stack();
  a_.load(kT0, absolute(&c_.state->target));
  a_.alu_imm(4, kT0, ~static_cast<std::int32_t>(kPageMask));
  a_.store(absolute(&c_.state->page_va), kT0);
  a_.jmp(absolute(&c_.state->code));
  ended_ = true;
}

void Emitter::ret(const Insn& i) {
  spill_flags();
  const Mem top = stack_top(i, kRsp);
  a_.op_mem({0, 0x8B}, long_mode(), kT0, top);
  accessed();
  look_up_target(i);
  std::int32_t drop = static_cast<std::int32_t>(word());
  if (i.insn.operand_count_visible != 0 && i.ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
    drop += static_cast<std::int32_t>(i.ops[0].imm.value.u & 0xFFFF);
  }
  move_stack(drop);
  settle_stack();
  enter_found(kT0);
  ended_ = true;
}

}  // namespace strata::bt
