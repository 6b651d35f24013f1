// Far RET and IRET (SDM 2A, IRET; SDM 2B, RET).
#include "engines/interp/events.hpp"
#include "engines/interp/far_transfers.hpp"
#include "engines/interp/segments.hpp"
#include "engines/interp/task_switch.hpp"
#include "engines/interp/vm86.hpp"

namespace strata::interp {

namespace rf = cpu::rflags;
using cpu::Segment;

std::uint64_t popped_flags(const Core& core, std::uint64_t image, unsigned size) noexcept {
  std::uint64_t mask = rf::ARITHMETIC | rf::TF | rf::DF | rf::NT;
  if (size > 2) mask |= rf::AC | rf::ID;
  if (core.cpl <= iopl(core)) mask |= rf::IF;
  if (core.cpl == 0) mask |= rf::IOPL;
  return (core.rflags() & ~mask) | (image & mask);
}

Outcome check_return_code(Core& core, FarReturn& ret) {
  if (is_null(ret.cs)) return raised(cpu::GP, 0);
  Descriptor& d = ret.code;
  if (auto o = read_descriptor(core, ret.cs, cpu::GP, 0, d); !o.ok()) return o;
  const Outcome bad = raised(cpu::GP, selector_error(ret.cs));
  if (!d.code() || ret.level() < core.cpl) return bad;
  if (d.conforming() ? d.dpl() > ret.level() : d.dpl() != ret.level()) return bad;
  if (ia32e(core) && d.long_code() && d.big()) return bad;
  return d.present() ? done() : raised(cpu::NP, selector_error(ret.cs));
}

Outcome check_return_stack(Core& core, FarReturn& ret) {
  if (is_null(ret.ss) && to_long_mode(core, ret.code) && ret.level() != 3) {
    if (rpl_of(ret.ss) != ret.level()) return raised(cpu::GP, selector_error(ret.ss));
    ret.stack = null_segment(ret.ss, ret.level());
    return done();
  }
  Descriptor d;
  if (auto o = load_stack_segment(core, ret.ss, ret.level(), cpu::GP, 0, d); !o.ok()) return o;
  ret.stack = to_segment(d, ret.ss);
  return done();
}

void put_return_stack(Core& core, const FarReturn& ret, unsigned bytes_released) noexcept {
  put_segment(core, cpu::SS, ret.stack);
  const std::uint64_t mask = stack_mask(ret.stack, to_long_mode(core, ret.code));
  const std::uint64_t pointer = ret.sp + bytes_released;
  // A 16-bit stack leaves the rest of ESP alone: what espfix in Linux is about.
  std::uint64_t& rsp = core.r[cpu::RSP];
  rsp = mask == 0xFFFF ? (rsp & ~mask) | (pointer & mask) : pointer & mask;
}

namespace {

void put_code(Core& core, const FarReturn& ret) {
  put_segment(core, cpu::CS, to_segment(ret.code, ret.cs));
}

Outcome pop_pointer(Stack& stack, FarReturn& ret, unsigned size) {
  std::uint64_t cs = 0;
  if (auto o = stack.pop(ret.ip, size); !o.ok()) return o;
  if (auto o = stack.pop(cs, size); !o.ok()) return o;
  ret.cs = static_cast<std::uint16_t>(cs);
  return done();
}

Outcome pop_stack_pointer(Stack& stack, FarReturn& ret, unsigned size) {
  std::uint64_t ss = 0;
  if (auto o = stack.pop(ret.sp, size); !o.ok()) return o;
  if (auto o = stack.pop(ss, size); !o.ok()) return o;
  ret.ss = static_cast<std::uint16_t>(ss);
  return done();
}

// ---- far RET ------------------------------------------------------------------------------------

Outcome return_real(Core& core, const Uop* u) {
  Stack stack{core};
  FarReturn ret;
  if (auto o = pop_pointer(stack, ret, u->aux); !o.ok()) return o;
  const Segment cs = real_segment(core.arch.segment[cpu::CS], ret.cs, vm86(core));
  if (ret.ip > cs.limit) return raised(cpu::GP, 0);
  stack.skip(u->imm);
  core.r[cpu::RSP] = stack.pointer();
  put_segment(core, cpu::CS, cs);
  core.segments_changed();
  core.set_ip(ret.ip);
  return done();
}

Outcome return_protected(Core& core, const Uop* u) {
  Stack stack{core};
  FarReturn ret;
  const unsigned size = u->aux;
  const auto release = static_cast<unsigned>(u->imm);
  if (auto o = pop_pointer(stack, ret, size); !o.ok()) return o;
  if (auto o = check_return_code(core, ret); !o.ok()) return o;
  const bool outer = ret.level() > core.cpl;
  stack.skip(release);
  if (outer) {
    if (auto o = pop_stack_pointer(stack, ret, size); !o.ok()) return o;
    if (auto o = check_return_stack(core, ret); !o.ok()) return o;
  }
  if (auto o = check_code_offset(core, ret.code, ret.ip); !o.ok()) return o;
  if (auto o = mark_accessed(core, ret.code); !o.ok()) return o;
  put_code(core, ret);
  if (outer) {
    put_return_stack(core, ret, release);
    drop_inner_segments(core, ret.level());
  } else {
    core.r[cpu::RSP] = stack.pointer();
  }
  core.segments_changed();
  core.set_ip(ret.ip);
  return done();
}

// ---- IRET
// -----------------------------------------------------------------------------------------

/// RF is taken over only where it masks something: it would have to go after one instruction, which
/// costs, and nothing but an instruction breakpoint could tell.
std::uint64_t returned_flags(const Core& core, std::uint64_t image, unsigned size) noexcept {
  std::uint64_t flags = popped_flags(core, image, size) & ~rf::RF;
  if (size > 2 && core.breakpoints.code) flags |= image & rf::RF;
  if (size > 2 && core.cpl == 0 && protected_mode(core)) {
    flags = (flags & ~(rf::VIF | rf::VIP)) | (image & (rf::VIF | rf::VIP));
  }
  return flags;
}

Outcome iret_real(Core& core, unsigned size) {
  const bool is_virtual = vm86(core) && iopl(core) < 3;
  if (is_virtual && !(uses_virtual_if(core) && size == 2)) return raised(cpu::GP, 0);
  Stack stack{core};
  FarReturn ret;
  std::uint64_t image = 0;
  if (auto o = pop_pointer(stack, ret, size); !o.ok()) return o;
  if (auto o = stack.pop(image, size); !o.ok()) return o;
  const Segment cs = real_segment(core.arch.segment[cpu::CS], ret.cs, vm86(core));
  if (ret.ip > cs.limit) return raised(cpu::GP, 0);
  // Virtual-8086 mode keeps its IOPL: popped_flags() sees CPL 3.
  std::uint64_t flags = returned_flags(core, image, size);
  if (is_virtual) {
    if (auto o = pop_virtual_flags(core, image, flags); !o.ok()) return o;
  }
  core.r[cpu::RSP] = stack.pointer();
  put_segment(core, cpu::CS, cs);
  core.set_rflags(flags);
  core.set_ip(ret.ip);
  return done();
}

/// Back to virtual-8086 mode from level 0 (SDM 3A 20.2.6).
Outcome iret_to_vm86(Core& core, Stack& stack, const FarReturn& ret, std::uint64_t image) {
  FarReturn outer = ret;
  if (auto o = pop_stack_pointer(stack, outer, 4); !o.ok()) return o;
  std::array<std::uint64_t, 4> selectors{};
  for (auto& s : selectors) {
    if (auto o = stack.pop(s, 4); !o.ok()) return o;
  }
  if (ret.ip > 0xFFFF) return raised(cpu::GP, 0);
  const auto put = [&](cpu::SegmentName name, std::uint64_t selector) {
    put_segment(core, name, real_segment({}, static_cast<std::uint16_t>(selector), true));
  };
  put(cpu::CS, ret.cs);
  put(cpu::SS, outer.ss);
  put(cpu::ES, selectors[0]);
  put(cpu::DS, selectors[1]);
  put(cpu::FS, selectors[2]);
  put(cpu::GS, selectors[3]);
  core.r[cpu::RSP] = outer.sp;
  core.set_rflags((returned_flags(core, image, 4)) | rf::VM);
  core.set_ip(ret.ip);
  return done();
}

Outcome iret_protected(Core& core, const Uop* u, unsigned size) {
  if ((core.rflags_other & rf::NT) != 0) {
    return ia32e(core) ? raised(cpu::GP, 0) : return_to_task(core, core.next_ip(u));
  }
  Stack stack{core};
  FarReturn ret;
  std::uint64_t image = 0;
  if (auto o = pop_pointer(stack, ret, size); !o.ok()) return o;
  if (auto o = stack.pop(image, size); !o.ok()) return o;
  if (!ia32e(core) && size == 4 && core.cpl == 0 && (image & rf::VM) != 0) {
    return iret_to_vm86(core, stack, ret, image);
  }
  // 64-bit mode always pops SS and RSP (SDM 3A 6.14.4).
  const bool always = core.long_mode();
  if (always) {
    if (auto o = pop_stack_pointer(stack, ret, size); !o.ok()) return o;
  }
  if (auto o = check_return_code(core, ret); !o.ok()) return o;
  const bool outer = ret.level() > core.cpl;
  if (outer && !always) {
    if (auto o = pop_stack_pointer(stack, ret, size); !o.ok()) return o;
  }
  if (outer || always) {
    if (auto o = check_return_stack(core, ret); !o.ok()) return o;
  }
  if (auto o = check_code_offset(core, ret.code, ret.ip); !o.ok()) return o;
  if (auto o = mark_accessed(core, ret.code); !o.ok()) return o;
  const std::uint64_t flags = returned_flags(core, image, size);
  put_code(core, ret);
  if (outer || always) {
    put_return_stack(core, ret, 0);
  } else {
    core.r[cpu::RSP] = stack.pointer();
  }
  if (outer) drop_inner_segments(core, ret.level());
  core.set_rflags(flags);
  core.set_ip(ret.ip);
  return done();
}

}  // namespace

const Uop* far_return(Core& core, const Uop* u) {
  const Outcome o = descriptors_in_use(core) ? return_protected(core, u) : return_real(core, u);
  return o.ok() ? core.finish_at(u, core.rip) : give_up(core, u, o);
}

const Uop* interrupt_return(Core& core, const Uop* u) {
  const unsigned size = u->aux;
  const Outcome o =
      descriptors_in_use(core) ? iret_protected(core, u, size) : iret_real(core, size);
  if (!o.ok()) return give_up(core, u, o);
  core.arch.nmi_blocked = false;  // SDM 3A 6.7.1
  return core.finish_at(u, core.rip);
}

}  // namespace strata::interp
