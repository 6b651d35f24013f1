#include "engines/interp/events.hpp"

#include <utility>

#include "engines/interp/segments.hpp"
#include "engines/interp/task_switch.hpp"

namespace strata::interp {

namespace rf = cpu::rflags;
using cpu::Segment;

namespace {

/// A gate of the IDT, checked.
struct Gate {
  std::uint16_t selector = 0;
  std::uint64_t offset = 0;
  unsigned size = 4;  ///< of the frame's slots: 2, 4, 8
  unsigned ist = 0;
  bool masks_interrupts = false;
  bool task = false;
};

/// Where delivery goes.
struct Target {
  Descriptor code{};
  unsigned level = 0;  ///< CPL of the handler
};

bool is_gate(unsigned type, bool long_mode) noexcept {
  using namespace system_type;
  if (type == kInterruptGate32 || type == kTrapGate32) return true;
  return !long_mode && (type == kInterruptGate16 || type == kTrapGate16 || type == kTaskGate);
}

Outcome read_gate(Core& core, const Event& e, Gate& gate) {
  const bool wide = ia32e(core);
  const unsigned bytes = wide ? 16 : 8;
  const std::uint32_t error = e.vector * 8U | error_code::kIdt | e.external;
  const std::uint64_t at = std::uint64_t{e.vector} * bytes;
  if (at + bytes - 1 > core.arch.idtr.limit) return raised(cpu::GP, error);
  Descriptor d;
  d.va = system_va(core, core.arch.idtr.base + at);
  if (!core.system_load(d.va, d.low)) return aborted();
  if (wide && !core.system_load(d.va + 8, d.upper)) return aborted();
  if (d.ordinary() || !is_gate(d.type(), wide)) return raised(cpu::GP, error);
  if (e.check_gate_dpl && d.dpl() < core.cpl) return raised(cpu::GP, error);
  if (!d.present()) return raised(cpu::NP, error);
  gate.selector = d.gate_selector();
  gate.task = d.type() == system_type::kTaskGate;
  gate.offset = d.gate_offset();
  gate.size = wide ? 8 : (d.type() & 8) != 0 ? 4 : 2;
  if (gate.size == 2) gate.offset &= 0xFFFF;
  gate.ist = wide ? static_cast<unsigned>(d.low >> 32 & 7) : 0;
  gate.masks_interrupts = (d.type() & 1) == 0;
  return done();
}

Outcome read_target(Core& core, const Event& e, const Gate& gate, Target& target) {
  if (is_null(gate.selector)) return raised(cpu::GP, e.external);
  Descriptor& d = target.code;
  if (auto o = read_descriptor(core, gate.selector, cpu::GP, e.external, d); !o.ok()) return o;
  const std::uint32_t error = selector_error(gate.selector, e.external);
  if (!d.code() || d.dpl() > core.cpl) return raised(cpu::GP, error);
  if (ia32e(core) && (!d.long_code() || d.big())) return raised(cpu::GP, error);
  if (!d.present()) return raised(cpu::NP, error);
  target.level = d.conforming() ? core.cpl : d.dpl();
  // Virtual-8086 mode is left for level 0 only (SDM 3A 20.3.1).
  if (vm86(core) && target.level != 0) return raised(cpu::GP, error);
  return done();
}

std::uint64_t pushed_flags(const Core& core, const Event& e) noexcept {
  return core.rflags() | (e.push_resume_flag ? rf::RF : 0);
}

/// The part of the frame that every delivery has.
Outcome push_common(Core& core, const Event& e, Stack& stack, unsigned size) {
  if (auto o = stack.push(pushed_flags(core, e), size); !o.ok()) return o;
  if (auto o = stack.push(core.arch.segment[cpu::CS].selector, size); !o.ok()) return o;
  if (auto o = stack.push(e.return_ip, size); !o.ok()) return o;
  return e.has_error ? stack.push(e.error, size) : done();
}

Outcome push_stack_pointer(Core& core, Stack& stack, unsigned size) {
  if (auto o = stack.push(core.arch.segment[cpu::SS].selector, size); !o.ok()) return o;
  return stack.push(core.r[cpu::RSP], size);
}

/// RFLAGS and RIP of the handler; CS, SS and RSP are in place.
void commit_entry(Core& core, const Gate& gate, const Target& target) {
  Segment cs = to_segment(target.code, gate.selector);
  cs.selector = static_cast<std::uint16_t>((gate.selector & ~3U) | target.level);
  put_segment(core, cpu::CS, cs);
  core.arch.interrupt_shadow = false;
  std::uint64_t flags = core.rflags() & ~(rf::TF | rf::NT | rf::RF | rf::VM);
  if (gate.masks_interrupts) flags &= ~rf::IF;
  core.set_rflags(flags);
  core.set_ip(gate.offset);
}

// ---- IA-32e mode ------------------------------------------------------------------------------

Outcome deliver_long(Core& core, const Event& e) {
  Gate gate;
  Target target;
  if (auto o = read_gate(core, e, gate); !o.ok()) return o;
  if (auto o = read_target(core, e, gate, target); !o.ok()) return o;
  const bool inner = target.level < core.cpl;
  std::uint64_t rsp = core.r[cpu::RSP];
  if (gate.ist != 0 || inner) {
    const unsigned index = gate.ist != 0 ? 3 + gate.ist : target.level;
    if (auto o = inner_stack_long(core, index, e.external, rsp); !o.ok()) return o;
  }
  // The processor aligns the frame in every case (SDM 3A 6.14.2).
  Stack stack{core, core.arch.segment[cpu::SS], rsp & ~15ULL, ~0ULL, inner, e.external};
  if (auto o = push_stack_pointer(core, stack, 8); !o.ok()) return o;
  if (auto o = push_common(core, e, stack, 8); !o.ok()) return o;
  if (!canonical(gate.offset)) return raised(cpu::GP, e.external);
  if (auto o = mark_accessed(core, target.code); !o.ok()) return o;
  if (inner) {
    const auto selector = static_cast<std::uint16_t>(target.level);
    put_segment(core, cpu::SS, null_segment(selector, target.level));
  }
  core.r[cpu::RSP] = stack.pointer();
  commit_entry(core, gate, target);
  return done();
}

// ---- legacy protected mode ----------------------------------------------------------------------

/// Virtual-8086 mode's data segments go on the level-0 stack and become null (SDM 3A 20.3.1).
Outcome push_vm86_segments(Core& core, Stack& stack, unsigned size) {
  for (const auto name : {cpu::GS, cpu::FS, cpu::DS, cpu::ES}) {
    if (auto o = stack.push(core.arch.segment[name].selector, size); !o.ok()) return o;
  }
  return done();
}

Outcome deliver_inner_legacy(Core& core, const Event& e, const Gate& gate, Target& target) {
  std::uint16_t selector = 0;
  std::uint64_t esp = 0;
  Descriptor ss;
  if (auto o = inner_stack_legacy(core, target.level, e.external, selector, esp); !o.ok()) {
    return o;
  }
  if (auto o = load_stack_segment(core, selector, target.level, cpu::TS, e.external, ss); !o.ok()) {
    return o;
  }
  const Segment new_ss = to_segment(ss, selector);
  Stack stack{core, new_ss, esp, stack_mask(new_ss, false), true, e.external};
  const bool from_vm86 = vm86(core);
  if (from_vm86) {
    if (auto o = push_vm86_segments(core, stack, gate.size); !o.ok()) return o;
  }
  if (auto o = push_stack_pointer(core, stack, gate.size); !o.ok()) return o;
  if (auto o = push_common(core, e, stack, gate.size); !o.ok()) return o;
  if (gate.offset > target.code.limit()) return raised(cpu::GP, e.external);
  if (auto o = mark_accessed(core, target.code); !o.ok()) return o;
  if (from_vm86) {
    for (const auto name : {cpu::GS, cpu::FS, cpu::DS, cpu::ES}) {
      put_segment(core, name, null_segment(0, 0));
    }
  }
  put_segment(core, cpu::SS, new_ss);
  core.r[cpu::RSP] = stack.pointer();
  commit_entry(core, gate, target);
  return done();
}

Outcome deliver_legacy(Core& core, const Event& e) {
  Gate gate;
  Target target;
  if (auto o = read_gate(core, e, gate); !o.ok()) return o;
  if (gate.task) {
    return switch_task(core, gate.selector,
                       {.source = TaskSource::event,
                        .return_ip = e.return_ip,
                        .flags = pushed_flags(core, e),
                        .external = e.external,
                        .has_error = e.has_error,
                        .error = e.error});
  }
  if (auto o = read_target(core, e, gate, target); !o.ok()) return o;
  if (target.level < core.cpl) return deliver_inner_legacy(core, e, gate, target);
  const Segment& ss = core.arch.segment[cpu::SS];
  Stack stack{core, ss, core.r[cpu::RSP], stack_mask(ss, false), false, e.external};
  if (auto o = push_common(core, e, stack, gate.size); !o.ok()) return o;
  if (gate.offset > target.code.limit()) return raised(cpu::GP, e.external);
  if (auto o = mark_accessed(core, target.code); !o.ok()) return o;
  core.r[cpu::RSP] = stack.pointer();
  commit_entry(core, gate, target);
  return done();
}

// ---- real mode
// ------------------------------------------------------------------------------------

/// Through the interrupt vector table; no error codes (SDM 3A 20.1.4).
Outcome deliver_real(Core& core, const Event& e) {
  const std::uint64_t at = std::uint64_t{e.vector} * 4;
  if (at + 3 > core.arch.idtr.limit) {
    return raised(cpu::GP, e.vector * 8U | error_code::kIdt | e.external);
  }
  std::uint32_t entry = 0;
  if (!core.system_load(static_cast<std::uint32_t>(core.arch.idtr.base + at), entry)) {
    return aborted();
  }
  Stack stack{core};
  Event plain = e;
  plain.has_error = false;
  plain.push_resume_flag = false;
  if (auto o = push_common(core, plain, stack, 2); !o.ok()) return o;
  core.r[cpu::RSP] = stack.pointer();
  const auto selector = static_cast<std::uint16_t>(entry >> 16);
  put_segment(core, cpu::CS, real_segment(core.arch.segment[cpu::CS], selector, false));
  core.arch.interrupt_shadow = false;
  core.set_rflags(core.rflags() & ~(rf::IF | rf::TF | rf::AC | rf::RF));
  core.set_ip(entry & 0xFFFF);
  return done();
}

// ---- exceptions
// -------------------------------------------------------------------------------------

/// Exceptions that are faults: the instruction did not complete (SDM 3A table 6-1).
bool is_fault(std::uint8_t vector) noexcept {
  switch (vector) {
    case cpu::DB:
    case cpu::NMI:
    case cpu::BP:
    case cpu::OF:
    case cpu::DF:
    case cpu::MC:
      return false;
    default:
      return true;
  }
}

/// Faults push RF, so that the instruction that runs again is not stopped at by the breakpoint on
/// it; the #DB of that breakpoint leaves this to its handler (SDM 3B 18.3.1.1).
bool pushes_resume_flag(const PendingException& x) noexcept {
  constexpr std::uint64_t kGeneralDetect = 1ULL << 13;
  return is_fault(x.vector) || (x.vector == cpu::DB && (x.dr6 & kGeneralDetect) != 0);
}

/// What an exception leaves in CR2, DR6, DR7 before its handler runs.
void set_fault_registers(Core& core, const PendingException& x) noexcept {
  if (x.external) return;
  if (x.vector == cpu::PF) core.arch.cr2 = x.cr2;
  if (x.vector == cpu::DB) {
    // B0-B3 say what this exception is about, the others gather (SDM 3B 18.2.3).
    constexpr std::uint64_t kBreakpoints = 0xF;
    core.arch.dr[6] = (core.arch.dr[6] & ~kBreakpoints) | x.dr6;
    core.arch.dr[7] &= ~(1ULL << 13);  // GD: the handler may use the registers (SDM 3B 18.2.4)
    constexpr std::uint64_t kLbr = 1, kBtf = 2;  // off as well (SDM 3B 18.4.1, 18.4.2)
    core.arch.msr.debugctl &= ~(kLbr | kBtf);
  }
}

PendingException to_exception(const Outcome& o) noexcept {
  PendingException x;
  x.valid = true;
  x.vector = o.vector;
  x.has_error = o.has_error;
  x.error = o.error;
  return x;
}

enum class Severity : std::uint8_t { benign, contributory, page_fault, double_fault };

Severity severity_of(std::uint8_t vector) noexcept {
  switch (vector) {
    case cpu::DE:
    case cpu::TS:
    case cpu::NP:
    case cpu::SS_FAULT:
    case cpu::GP:
      return Severity::contributory;
    case cpu::PF:
      return Severity::page_fault;
    case cpu::DF:
      return Severity::double_fault;
    default:
      return Severity::benign;
  }
}

}  // namespace

Outcome inner_stack_legacy(Core& core, unsigned level, std::uint32_t external,
                           std::uint16_t& selector, std::uint64_t& pointer) {
  const Segment& tr = core.arch.tr;
  const bool wide = (tr.type() & 8) != 0;
  const unsigned at = wide ? 4 + 8 * level : 2 + 4 * level;
  const std::uint32_t last = at + (wide ? 5 : 3);
  if (last > tr.limit) return raised(cpu::TS, selector_error(tr.selector, external));
  const std::uint64_t va = system_va(core, tr.base + at);
  if (wide) {
    std::uint32_t esp = 0;
    if (!core.system_load(va, esp) || !core.system_load(va + 4, selector)) return aborted();
    pointer = esp;
  } else {
    std::uint16_t sp = 0;
    if (!core.system_load(va, sp) || !core.system_load(va + 2, selector)) return aborted();
    pointer = sp;
  }
  return done();
}

Outcome inner_stack_long(Core& core, unsigned index, std::uint32_t external,
                         std::uint64_t& pointer) {
  // RSP0-2 at 4, 12, 20; IST1-7 from 36, which is slot 4 of eight bytes each.
  const unsigned at = 4 + 8 * index;
  const Segment& tr = core.arch.tr;
  if (at + 7 > tr.limit) return raised(cpu::TS, selector_error(tr.selector, external));
  if (!core.system_load(tr.base + at, pointer)) return aborted();
  return canonical(pointer) ? done() : raised(cpu::SS_FAULT, external);
}

Outcome deliver_event(Core& core, const Event& event) {
  if (!protected_mode(core)) return deliver_real(core, event);
  return ia32e(core) ? deliver_long(core, event) : deliver_legacy(core, event);
}

Escalation escalate(const PendingException& first, std::uint8_t second) noexcept {
  const Severity a = first.external ? Severity::benign : severity_of(first.vector);
  const Severity b = severity_of(second);
  if (b == Severity::benign || a == Severity::benign) return Escalation::deliver_second;
  if (a == Severity::double_fault) return Escalation::shutdown;
  if (a == Severity::contributory && b == Severity::page_fault) return Escalation::deliver_second;
  return Escalation::double_fault;
}

bool Core::deliver_exception() {
  mmio.cursor = 0;
  for (;;) {
    const PendingException now = std::exchange(exception, {});
    set_fault_registers(*this, now);
    Event e;
    e.vector = now.vector;
    e.has_error = now.has_error;
    e.error = now.error;
    e.external = error_code::kExternal;
    e.push_resume_flag = !now.external && pushes_resume_flag(now);
    e.return_ip = ip();
    const Outcome o = deliver_event(*this, e);
    if (o.ok()) {
      iteration_done();
      // The T bit of a task that a gate led to.
      const std::uint64_t traps = std::exchange(debug_hits, 0);
      if (traps != 0) exception = {.valid = true, .vector = cpu::DB, .dr6 = traps};
      return true;
    }
    if (o.kind == Outcome::Kind::exception) exception = to_exception(o);
    if (!exception.valid) {
      // A page has to come first, or a device to answer: deliver anew afterwards. A #PF's CR2 is
      // already in place, as it is on a processor that meets an EPT violation here.
      exception = now;
      return true;
    }
    // What devices answered belongs to the attempt that has just come to nothing.
    iteration_done();
    set_fault_registers(*this, exception);
    switch (escalate(now, exception.vector)) {
      case Escalation::deliver_second:
        break;
      case Escalation::double_fault:
        exception = {};
        exception.valid = true;
        exception.vector = cpu::DF;
        exception.has_error = true;
        break;
      case Escalation::shutdown:
        exception = {};
        return false;
    }
  }
}

bool Core::deliver_interrupt(std::uint8_t vector) {
  exception = {};
  exception.valid = true;
  exception.vector = vector;
  exception.external = true;
  return deliver_exception();
}

}  // namespace strata::interp
