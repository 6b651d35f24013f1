// Segment registers: MOV, PUSH, POP, LDS and its family, and the FS and GS bases (SDM 2A, 2B).
#include "cpu/cpu_model.hpp"
#include "engines/interp/core.hpp"
#include "engines/interp/segments.hpp"
#include "engines/interp/system.hpp"

namespace strata::interp {

using cpu::Segment;
using cpu::SegmentName;

namespace {

/// Commits a loaded segment register and ends the step.
const Uop* put_and_go_on(Core& core, const Uop* u, SegmentName name, const Segment& s,
                         bool shadow) {
  put_segment(core, name, s);
  if (name == cpu::SS) {
    core.segments_changed();
    core.arch.interrupt_shadow = core.debug_shadow = shadow;
    return core.finish(u);
  }
  core.segment_base[name] = core.long_mode() && name < cpu::FS ? 0 : s.base;
  // Whether DS and ES are flat is part of the decode mode.
  if (core.long_mode() || name >= cpu::FS) return u + 1;
  const bool before = core.decode_mode.checked;
  core.segments_changed();
  return core.decode_mode.checked == before ? u + 1 : core.finish(u);
}

/// aux: segment register; aux2: the source is a register, else memory.
const Uop* mov_to_segment(Core& core, const Uop* u) {
  std::uint16_t selector = 0;
  if (u->aux2 != 0) {
    selector = core.reg<std::uint16_t>(u->src);
  } else if (!core.load(core.ea(u), selector)) {
    return core.abort(u);
  }
  const auto name = static_cast<SegmentName>(u->aux);
  Segment s;
  if (const Outcome o = load_segment(core, name, selector, s); !o.ok()) return give_up(core, u, o);
  return put_and_go_on(core, u, name, s, true);
}

/// The selector zero-extended to the destination.
template <class T>
const Uop* mov_from_segment(Core& core, const Uop* u) {
  core.set_reg(u->dst, static_cast<T>(core.arch.segment[u->aux].selector));
  return u + 1;
}

const Uop* store_segment(Core& core, const Uop* u) {
  if (!core.store(core.ea(u), core.arch.segment[u->aux].selector)) return core.abort(u);
  return u + 1;
}

/// aux: segment register; aux2: operand size.
const Uop* push_segment(Core& core, const Uop* u) {
  Stack stack{core};
  const Outcome o = stack.push(core.arch.segment[u->aux].selector, u->aux2);
  if (!o.ok()) return give_up(core, u, o);
  core.r[cpu::RSP] = stack.pointer();
  return u + 1;
}

const Uop* pop_segment(Core& core, const Uop* u) {
  Stack stack{core};
  std::uint64_t value = 0;
  if (const Outcome o = stack.pop(value, u->aux2); !o.ok()) return give_up(core, u, o);
  const auto name = static_cast<SegmentName>(u->aux);
  Segment s;
  const Outcome o = load_segment(core, name, static_cast<std::uint16_t>(value), s);
  if (!o.ok()) return give_up(core, u, o);
  core.r[cpu::RSP] = stack.pointer();
  return put_and_go_on(core, u, name, s, true);
}

/// LDS, LES, LSS, LFS, LGS: dst is the general register.
template <class T>
const Uop* load_far_pointer(Core& core, const Uop* u) {
  const std::uint64_t offset = core.offset_of(u);
  T value{};
  std::uint16_t selector = 0;
  if (!core.load(core.linear(u, offset), value)) return core.abort(u);
  if (!core.load(core.linear(u, offset + sizeof(T)), selector)) return core.abort(u);
  const auto name = static_cast<SegmentName>(u->aux);
  Segment s;
  if (const Outcome o = load_segment(core, name, selector, s); !o.ok()) return give_up(core, u, o);
  core.set_reg(u->dst, value);
  return put_and_go_on(core, u, name, s, false);
}

// ---- FS and GS bases
// ------------------------------------------------------------------------------

bool bases_enabled(const Core& core) { return (core.arch.cr4 & cpu::cr4::FSGSBASE) != 0; }

template <class T>
const Uop* read_base(Core& core, const Uop* u) {
  if (!bases_enabled(core)) return core.fault(u, cpu::UD);
  core.set_reg(u->dst, static_cast<T>(core.arch.segment[u->aux].base));
  return u + 1;
}

template <class T>
const Uop* write_base(Core& core, const Uop* u) {
  if (!bases_enabled(core)) return core.fault(u, cpu::UD);
  const std::uint64_t base = core.reg<T>(u->src);
  if (!canonical(base)) return core.fault(u, cpu::GP, 0);
  core.arch.segment[u->aux].base = base;
  core.segment_base[u->aux] = base;
  return u + 1;
}

// ---- lowering
// -------------------------------------------------------------------------------------

bool is_segment(const ZydisDecodedOperand& op) {
  return is_register(op) && ZydisRegisterGetClass(op.reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

bool lower_mov(Lowering& l) {
  if (is_segment(l.ops[0])) {
    const std::uint8_t name = Lowering::reg_number(l.ops[0].reg.value);
    if (name == cpu::CS) return false;  // #UD
    Uop u = l.step(&mov_to_segment);
    u.aux = name;
    u.aux2 = is_register(l.ops[1]) ? 1 : 0;
    if (u.aux2 != 0) u.src = Lowering::reg_offset(l.ops[1].reg.value);
    l.emit(u);
    if (name == cpu::SS) l.end_block();
    return true;
  }
  if (!is_segment(l.ops[1])) return false;
  const bool to_memory = is_memory(l.ops[0]);
  const unsigned size = operand_bytes(l);
  Uop u = l.step(to_memory   ? &store_segment
                 : size == 8 ? &mov_from_segment<std::uint64_t>
                 : size == 4 ? &mov_from_segment<std::uint32_t>
                             : &mov_from_segment<std::uint16_t>);
  u.aux = Lowering::reg_number(l.ops[1].reg.value);
  if (!to_memory) u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  l.emit(u);
  return true;
}

bool lower_push_pop(Lowering& l, Handler fn) {
  if (!is_segment(l.ops[0])) return false;
  Uop u = l.step(fn);
  u.aux = Lowering::reg_number(l.ops[0].reg.value);
  u.aux2 = operand_bytes(l);
  l.emit(u);
  if (fn == &pop_segment && u.aux == cpu::SS) l.end_block();
  return true;
}

bool lower_load_pointer(Lowering& l, SegmentName name) {
  const unsigned size = operand_bytes(l);
  Uop u = l.step(size == 8   ? &load_far_pointer<std::uint64_t>
                 : size == 4 ? &load_far_pointer<std::uint32_t>
                             : &load_far_pointer<std::uint16_t>);
  u.aux = name;
  u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  l.emit(u);
  if (name == cpu::SS) l.end_block();
  return true;
}

bool lower_base(Lowering& l, SegmentName name, bool write) {
  if (l.mode.bits != 64) return false;
  const bool wide = l.insn.operand_width == 64;
  Uop u = l.step(write ? (wide ? &write_base<std::uint64_t> : &write_base<std::uint32_t>)
                       : (wide ? &read_base<std::uint64_t> : &read_base<std::uint32_t>));
  u.aux = name;
  u.dst = u.src = Lowering::reg_offset(l.ops[0].reg.value);
  l.emit(u);
  return true;
}

}  // namespace

bool lower_segments(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
      return lower_mov(l);
    case ZYDIS_MNEMONIC_PUSH:
      return lower_push_pop(l, &push_segment);
    case ZYDIS_MNEMONIC_POP:
      return lower_push_pop(l, &pop_segment);
    case ZYDIS_MNEMONIC_LDS:
      return lower_load_pointer(l, cpu::DS);
    case ZYDIS_MNEMONIC_LES:
      return lower_load_pointer(l, cpu::ES);
    case ZYDIS_MNEMONIC_LSS:
      return lower_load_pointer(l, cpu::SS);
    case ZYDIS_MNEMONIC_LFS:
      return lower_load_pointer(l, cpu::FS);
    case ZYDIS_MNEMONIC_LGS:
      return lower_load_pointer(l, cpu::GS);
    case ZYDIS_MNEMONIC_RDFSBASE:
      return lower_base(l, cpu::FS, false);
    case ZYDIS_MNEMONIC_RDGSBASE:
      return lower_base(l, cpu::GS, false);
    case ZYDIS_MNEMONIC_WRFSBASE:
      return lower_base(l, cpu::FS, true);
    case ZYDIS_MNEMONIC_WRGSBASE:
      return lower_base(l, cpu::GS, true);
    default:
      return false;
  }
}

}  // namespace strata::interp
