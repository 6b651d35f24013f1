// Far CALL and JMP, direct and through call gates (SDM 3A 5.8; SDM 2A, CALL, JMP).
#include "engines/interp/far_transfers.hpp"

#include <utility>

#include "engines/interp/events.hpp"
#include "engines/interp/segments.hpp"
#include "engines/interp/system.hpp"
#include "engines/interp/task_switch.hpp"
#include "engines/interp/vm86.hpp"

namespace strata::interp {

using cpu::Segment;

namespace {

struct FarPointer {
  std::uint16_t selector = 0;
  std::uint64_t offset = 0;
};

void enter_code(Core& core, const Descriptor& code, std::uint16_t selector, unsigned level,
                std::uint64_t ip) {
  Segment cs = to_segment(code, selector);
  cs.selector = static_cast<std::uint16_t>((selector & ~3U) | level);
  put_segment(core, cpu::CS, cs);
  core.segments_changed();
  core.set_ip(ip);
}

/// 64-bit code must not have D set (SDM 3A 5.2.1).
bool bad_long_code(const Core& core, const Descriptor& d) noexcept {
  return ia32e(core) && d.long_code() && d.big();
}

Outcome push_return(Core& core, Stack& stack, const Uop* u, unsigned size) {
  if (auto o = stack.push(core.arch.segment[cpu::CS].selector, size); !o.ok()) return o;
  return stack.push(core.next_ip(u), size);
}

Outcome real_transfer(Core& core, const Uop* u, const FarPointer& to, bool call) {
  const Segment cs = real_segment(core.arch.segment[cpu::CS], to.selector, vm86(core));
  if (to.offset > cs.limit) return raised(cpu::GP, 0);
  Stack stack{core};
  if (call) {
    if (auto o = push_return(core, stack, u, u->aux); !o.ok()) return o;
    core.r[cpu::RSP] = stack.pointer();
  }
  put_segment(core, cpu::CS, cs);
  core.segments_changed();
  core.set_ip(to.offset);
  return done();
}

Outcome direct_transfer(Core& core, const Uop* u, const FarPointer& to, Descriptor& d, bool call) {
  const Outcome bad = raised(cpu::GP, selector_error(to.selector));
  if (d.conforming()) {
    if (d.dpl() > core.cpl) return bad;
  } else if (rpl_of(to.selector) > core.cpl || d.dpl() != core.cpl) {
    return bad;
  }
  if (bad_long_code(core, d)) return bad;
  if (!d.present()) return raised(cpu::NP, selector_error(to.selector));
  Stack stack{core};
  if (call) {
    if (auto o = push_return(core, stack, u, u->aux); !o.ok()) return o;
  }
  if (auto o = check_code_offset(core, d, to.offset); !o.ok()) return o;
  if (auto o = mark_accessed(core, d); !o.ok()) return o;
  core.r[cpu::RSP] = stack.pointer();
  enter_code(core, d, to.selector, core.cpl, to.offset);
  return done();
}

// ---- call gates ---------------------------------------------------------------------------------

struct CallGate {
  std::uint16_t selector = 0;
  std::uint64_t offset = 0;
  unsigned size = 4;
  unsigned parameters = 0;
  Descriptor code{};
};

Outcome read_gate_target(Core& core, CallGate& gate, bool call) {
  if (is_null(gate.selector)) return raised(cpu::GP, 0);
  Descriptor& d = gate.code;
  if (auto o = read_descriptor(core, gate.selector, cpu::GP, 0, d); !o.ok()) return o;
  const Outcome bad = raised(cpu::GP, selector_error(gate.selector));
  if (!d.code() || d.dpl() > core.cpl) return bad;
  // JMP cannot raise privilege (SDM 3A 5.8.4).
  if (!call && !d.conforming() && d.dpl() != core.cpl) return bad;
  if (ia32e(core) && (!d.long_code() || d.big())) return bad;
  if (!d.present()) return raised(cpu::NP, selector_error(gate.selector));
  return done();
}

Outcome push_old_stack(Core& core, Stack& stack, unsigned size) {
  if (auto o = stack.push(core.arch.segment[cpu::SS].selector, size); !o.ok()) return o;
  return stack.push(core.r[cpu::RSP], size);
}

Outcome inner_call_long(Core& core, const Uop* u, CallGate& gate) {
  const unsigned level = gate.code.dpl();
  std::uint64_t rsp = 0;
  if (auto o = inner_stack_long(core, level, 0, rsp); !o.ok()) return o;
  Stack stack{core, core.arch.segment[cpu::SS], rsp, ~0ULL, true};
  if (auto o = push_old_stack(core, stack, 8); !o.ok()) return o;
  if (auto o = push_return(core, stack, u, 8); !o.ok()) return o;
  if (auto o = check_code_offset(core, gate.code, gate.offset); !o.ok()) return o;
  if (auto o = mark_accessed(core, gate.code); !o.ok()) return o;
  put_segment(core, cpu::SS, null_segment(static_cast<std::uint16_t>(level), level));
  core.r[cpu::RSP] = stack.pointer();
  enter_code(core, gate.code, gate.selector, level, gate.offset);
  return done();
}

/// Copies the gate's parameters from the caller's stack, last one first.
Outcome copy_parameters(Core& core, Stack& to, const CallGate& gate) {
  for (unsigned i = gate.parameters; i-- > 0;) {
    Stack from{core};
    from.skip(std::uint64_t{i} * gate.size);
    std::uint64_t value = 0;
    if (auto o = from.pop(value, gate.size); !o.ok()) return o;
    if (auto o = to.push(value, gate.size); !o.ok()) return o;
  }
  return done();
}

Outcome inner_call_legacy(Core& core, const Uop* u, CallGate& gate) {
  const unsigned level = gate.code.dpl();
  std::uint16_t selector = 0;
  std::uint64_t esp = 0;
  Descriptor ss;
  if (auto o = inner_stack_legacy(core, level, 0, selector, esp); !o.ok()) return o;
  if (auto o = load_stack_segment(core, selector, level, cpu::TS, 0, ss); !o.ok()) return o;
  const Segment new_ss = to_segment(ss, selector);
  Stack stack{core, new_ss, esp, stack_mask(new_ss, false), true};
  if (auto o = push_old_stack(core, stack, gate.size); !o.ok()) return o;
  if (auto o = copy_parameters(core, stack, gate); !o.ok()) return o;
  if (auto o = push_return(core, stack, u, gate.size); !o.ok()) return o;
  if (auto o = check_code_offset(core, gate.code, gate.offset); !o.ok()) return o;
  if (auto o = mark_accessed(core, gate.code); !o.ok()) return o;
  put_segment(core, cpu::SS, new_ss);
  core.r[cpu::RSP] = stack.pointer();
  enter_code(core, gate.code, gate.selector, level, gate.offset);
  return done();
}

Outcome gate_transfer(Core& core, const Uop* u, CallGate& gate, bool call) {
  if (auto o = read_gate_target(core, gate, call); !o.ok()) return o;
  if (call && !gate.code.conforming() && gate.code.dpl() < core.cpl) {
    return ia32e(core) ? inner_call_long(core, u, gate) : inner_call_legacy(core, u, gate);
  }
  Stack stack{core};
  if (call) {
    if (auto o = push_return(core, stack, u, gate.size); !o.ok()) return o;
  }
  if (auto o = check_code_offset(core, gate.code, gate.offset); !o.ok()) return o;
  if (auto o = mark_accessed(core, gate.code); !o.ok()) return o;
  core.r[cpu::RSP] = stack.pointer();
  enter_code(core, gate.code, gate.selector, core.cpl, gate.offset);
  return done();
}

/// A TSS or a task gate: DPL against CPL and RPL, then the switch (SDM 3A 7.3).
Outcome task_transfer(Core& core, const Uop* u, const FarPointer& to, const Descriptor& d,
                      bool call) {
  const std::uint32_t error = selector_error(to.selector);
  if (d.dpl() < core.cpl || rpl_of(to.selector) > d.dpl()) return raised(cpu::GP, error);
  const TaskRequest request{.source = call ? TaskSource::call : TaskSource::jump,
                            .return_ip = core.next_ip(u),
                            .flags = core.rflags()};
  if (d.type() != system_type::kTaskGate) return switch_task(core, to.selector, request);
  if (!d.present()) return raised(cpu::NP, error);
  return switch_task(core, d.gate_selector(), request);
}

bool names_task(unsigned type) noexcept {
  using namespace system_type;
  return type == kTaskGate || type == kTss16 || type == kTss32;
}

/// A system descriptor as the destination.
Outcome system_transfer(Core& core, const Uop* u, const FarPointer& to, Descriptor& d, bool call) {
  const Outcome bad = raised(cpu::GP, selector_error(to.selector));
  if (!ia32e(core) && names_task(d.type())) return task_transfer(core, u, to, d, call);
  const bool wide = d.type() == system_type::kCallGate32;
  const bool is_gate = wide || (!ia32e(core) && d.type() == system_type::kCallGate16);
  if (!is_gate) return bad;
  if (d.dpl() < core.cpl || rpl_of(to.selector) > d.dpl()) return bad;
  if (!d.present()) return raised(cpu::NP, selector_error(to.selector));
  if (ia32e(core)) {
    if (auto o = read_upper_half(core, cpu::GP, 0, d); !o.ok()) return o;
  }
  CallGate gate;
  gate.selector = d.gate_selector();
  gate.offset = wide ? d.gate_offset() : d.gate_offset() & 0xFFFF;
  gate.size = ia32e(core) ? 8 : wide ? 4 : 2;
  gate.parameters = static_cast<unsigned>(d.low >> 32 & 0x1F);
  return gate_transfer(core, u, gate, call);
}

Outcome transfer(Core& core, const Uop* u, const FarPointer& to, bool call) {
  if (!descriptors_in_use(core)) return real_transfer(core, u, to, call);
  if (is_null(to.selector)) return raised(cpu::GP, 0);
  Descriptor d;
  if (auto o = read_descriptor(core, to.selector, cpu::GP, 0, d); !o.ok()) return o;
  if (d.code()) return direct_transfer(core, u, to, d, call);
  if (d.ordinary()) return raised(cpu::GP, selector_error(to.selector));
  return system_transfer(core, u, to, d, call);
}

bool load_far_pointer(Core& core, const Uop* u, FarPointer& to) {
  const std::uint64_t offset = core.offset_of(u);
  const std::uint64_t va = core.linear(u, offset);
  const auto get = [&](auto v) {
    if (!core.load(va, v)) return false;
    to.offset = v;
    return core.load(core.linear(u, offset + sizeof v), to.selector);
  };
  return u->aux == 8   ? get(std::uint64_t{0})
         : u->aux == 4 ? get(std::uint32_t{0})
                       : get(std::uint16_t{0});
}

template <bool Call>
const Uop* far_indirect(Core& core, const Uop* u) {
  FarPointer to;
  if (!load_far_pointer(core, u, to)) return core.abort(u);
  if (const Outcome o = transfer(core, u, to, Call); !o.ok()) return give_up(core, u, o);
  return core.finish_at(u, core.rip);
}

template <bool Call>
const Uop* far_direct(Core& core, const Uop* u) {
  const FarPointer to{static_cast<std::uint16_t>(u->imm >> 32), u->imm & 0xFFFFFFFF};
  if (const Outcome o = transfer(core, u, to, Call); !o.ok()) return give_up(core, u, o);
  return core.finish_at(u, core.rip);
}

// ---- software interrupts ----------------------------------------------------------------------

/// INT n, INT3, INTO, INT1: delivered here and now, so that a fault on the way is the instruction's
/// own. aux is the vector, aux2 what kind.
enum InterruptKind : std::uint8_t { kIntN, kInt3, kInto, kInt1 };

/// Ends an instruction whose interrupt has been delivered. TF is clear now, and so there is no step
/// trap (SDM 3B 18.3.1.4).
const Uop* delivered(Core& core, const Uop* u) {
  // INT1 reports what MOV SS has put off; behind INT n and INT3 it is a #DB of its own.
  if (u->aux2 == kInt1) core.arch.dr[6] |= std::exchange(core.debug_hits, 0);
  core.step_trap_by_new_flags();
  return core.finish_at(u, core.rip);
}

const Uop* software_interrupt(Core& core, const Uop* u) {
  if (u->aux2 == kInto && (core.flags & kFlagOF) == 0) return core.finish(u);
  if (u->aux2 == kIntN && vm86(core)) {
    // IOPL-sensitive in virtual-8086 mode, unlike the one-byte forms (SDM 3A 20.2.7), unless VME
    // sends it to the guest itself.
    if ((core.arch.cr4 & cpu::cr4::VME) != 0) {
      bool redirected = false;
      const Outcome o = redirect_interrupt(core, u->aux, core.next_ip(u), redirected);
      if (!o.ok()) return give_up(core, u, o);
      if (redirected) return delivered(core, u);
    }
    if (iopl(core) < 3) return core.fault(u, cpu::GP, 0);
  }
  Event e;
  e.vector = u->aux;
  // INT1 passes for hardware: no DPL check, EXT set (SDM 3A 6.4.4).
  e.check_gate_dpl = u->aux2 != kInt1;
  e.external = u->aux2 == kInt1 ? error_code::kExternal : 0;
  e.return_ip = core.next_ip(u);
  if (const Outcome o = deliver_event(core, e); !o.ok()) return give_up(core, u, o);
  return delivered(core, u);
}

bool lower_far(Lowering& l, bool call) {
  const ZydisDecodedOperand& op = l.ops[0];
  Uop u = l.step(call ? &far_indirect<true> : &far_indirect<false>);
  u.aux = operand_bytes(l);
  if (op.type == ZYDIS_OPERAND_TYPE_POINTER) {
    u.fn = call ? &far_direct<true> : &far_direct<false>;
    u.imm = std::uint64_t{op.ptr.segment} << 32 | op.ptr.offset;
  }
  return emit_last(l, u);
}

bool lower_interrupt(Lowering& l, std::uint8_t vector, InterruptKind kind) {
  Uop u = l.step(&software_interrupt);
  u.aux = vector;
  u.aux2 = kind;
  return emit_last(l, u);
}

bool lower_return(Lowering& l, Handler fn) {
  Uop u = l.step(fn);
  u.aux = operand_bytes(l);
  u.imm = 0;
  if (l.insn.mnemonic == ZYDIS_MNEMONIC_RET && l.insn.operand_count_visible != 0) {
    u.imm = l.ops[0].imm.value.u & 0xFFFF;
  }
  return emit_last(l, u);
}

}  // namespace

Outcome check_code_offset(const Core& core, const Descriptor& code, std::uint64_t ip) noexcept {
  const bool ok = to_long_mode(core, code) ? canonical(ip) : ip <= code.limit();
  return ok ? done() : raised(cpu::GP, 0);
}

bool lower_far_transfers(Lowering& l) {
  const bool is_far = l.insn.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_CALL:
      return is_far && lower_far(l, true);
    case ZYDIS_MNEMONIC_JMP:
      return is_far && lower_far(l, false);
    case ZYDIS_MNEMONIC_RET:
      return is_far && lower_return(l, &far_return);
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
      return lower_return(l, &interrupt_return);
    case ZYDIS_MNEMONIC_INT:
      return lower_interrupt(l, static_cast<std::uint8_t>(l.ops[0].imm.value.u), kIntN);
    case ZYDIS_MNEMONIC_INT3:
      return lower_interrupt(l, cpu::BP, kInt3);
    case ZYDIS_MNEMONIC_INTO:
      return lower_interrupt(l, cpu::OF, kInto);
    case ZYDIS_MNEMONIC_INT1:
      return lower_interrupt(l, cpu::DB, kInt1);
    default:
      return false;
  }
}

}  // namespace strata::interp
