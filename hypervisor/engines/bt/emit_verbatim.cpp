// Instructions that run as they are, with registers renamed and addresses replaced.
#include <algorithm>

#include "engines/bt/emitter.hpp"

namespace strata::bt {
namespace {

bool is_general(ZydisRegister reg) {
  switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR8:
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64:
      return true;
    default:
      return false;
  }
}

/// A general register that the instruction's encoding names, so that renaming it is a change of
/// encoding. Implicit ones are never homed.
const ZydisDecodedOperand* general(const Insn& i, ZydisOperandEncoding encoding) {
  for (unsigned n = 0; n < i.insn.operand_count_visible; ++n) {
    const ZydisDecodedOperand& o = i.ops[n];
    if (o.type == ZYDIS_OPERAND_TYPE_REGISTER && o.encoding == encoding &&
        is_general(o.reg.value)) {
      return &o;
    }
  }
  return nullptr;
}

/// What keeps its other bits, or may be left as it is.
bool is_kept_partly(const Insn& i, const ZydisDecodedOperand& o) {
  return (o.actions & ZYDIS_OPERAND_ACTION_WRITE) == 0 || o.size < 32 || flag_effect(i).may_keep ||
         i.insn.mnemonic == ZYDIS_MNEMONIC_BSF || i.insn.mnemonic == ZYDIS_MNEMONIC_BSR;
}

HomedRegisters homed_registers(const Insn& i) {
  HomedRegisters homed;
  for (const auto encoding : {ZYDIS_OPERAND_ENCODING_MODRM_REG, ZYDIS_OPERAND_ENCODING_MODRM_RM,
                              ZYDIS_OPERAND_ENCODING_NDSNDD, ZYDIS_OPERAND_ENCODING_OPCODE}) {
    const ZydisDecodedOperand* o = general(i, encoding);
    if (o == nullptr || !is_homed(Emitter::number(o->reg.value))) continue;
    const bool writes = (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
    const bool reads =
        !writes || (o->actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0 || is_kept_partly(i, *o);
    homed.add(
        {.number = Emitter::number(o->reg.value), .operands = 1, .read = reads, .written = writes});
  }
  return homed;
}

/// It does the same with its last operand in memory, of the same size.
bool may_be_in_memory(const Insn& i) {
  if (i.opcode.cls != isa::OpcodeClass::integer) return false;
  switch (i.insn.mnemonic) {
    case ZYDIS_MNEMONIC_BT:  // the bit's number would reach farther
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
    case ZYDIS_MNEMONIC_XCHG:  // would lock
      return false;
    default:
      return true;
  }
}

/// SPL, BPL, SIL, DIL: only with a REX prefix.
bool needs_rex(const Insn& i) {
  return std::any_of(i.ops.begin(), i.ops.begin() + i.insn.operand_count_visible,
                     [](const ZydisDecodedOperand& o) {
                       return o.type == ZYDIS_OPERAND_TYPE_REGISTER &&
                              o.reg.value >= ZYDIS_REGISTER_SPL &&
                              o.reg.value <= ZYDIS_REGISTER_DIL;
                     });
}

/// AH to BH: only without one.
bool is_high_byte(ZydisRegister reg) {
  return reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH;
}

Op opcode(const ZydisDecodedInstruction& insn) {
  std::uint8_t map = 0;
  if (insn.opcode_map == ZYDIS_OPCODE_MAP_0F) map = 1;
  if (insn.opcode_map == ZYDIS_OPCODE_MAP_0F38) map = 2;
  if (insn.opcode_map == ZYDIS_OPCODE_MAP_0F3A) map = 3;
  // 82 is another name of 80 that 64-bit mode does not know.
  if (map == 0 && insn.opcode == 0x82) return {0, 0x80};
  return {map, insn.opcode};
}

}  // namespace

void Emitter::verbatim(const Insn& i) {
  if (const auto distance = stack_move(i)) {
    move_stack(*distance);
    return flags_written(i);
  }
  need(i, units_of(i));
  const ZydisDecodedOperand* m = memory_operand(i);
  std::optional<Mem> mem;
  if (m != nullptr) mem = operand(i, *m, (m->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0);

  const FlagEffect e = flag_effect(i);
  if (e.reads != 0 || keeps_some_flags(i)) {
    need_flags();
  } else if (e.writes != 0 && (e.writes & i.live_after) == 0 && i.live_after != 0 && in_host_) {
    // It would overwrite what is only there.
    spill_flags();
  }

  HomedRegisters homed;
  if (long_mode()) homed = homed_registers(i);
  if (!mem) mem = operand_at_home(i, homed);
  const RegisterMap map = load_homed(homed, mem);
  encode(i, map, mem ? &*mem : nullptr);
  accessed();
  for (const HomedRegister& h : homed.list()) {
    if (h.written) a_.store(absolute(&c_.core->r[h.number]), map[h.number]);
  }
  flags_written(i);
}

/// Instead of a register that is only read its home, where encodings have either.
std::optional<Mem> Emitter::operand_at_home(const Insn& i, HomedRegisters& homed) {
  const ZydisDecodedOperand* rm = general(i, ZYDIS_OPERAND_ENCODING_MODRM_RM);
  if (rm == nullptr || !may_be_in_memory(i)) return {};
  const unsigned n = number(rm->reg.value);
  const auto only_there = [n](const HomedRegister& h) {
    return h.number == n && !h.written && h.operands == 1;
  };
  if (n == homed_in_t2_ || !homed.remove_if(only_there)) return {};
  return absolute(&c_.core->r[n]);
}

/// Host registers for them: kT2 for the one that it holds already, or that is worth keeping there.
Emitter::RegisterMap Emitter::load_homed(HomedRegisters& homed, std::optional<Mem>& mem) {
  RegisterMap map{};
  for (unsigned n = 0; n < 16; ++n) map[n] = static_cast<Reg>(n);
  if (homed.count == 0) return map;
  const auto list = homed.list();
  auto kept = std::find_if(list.begin(), list.end(),
                           [this](const auto& h) { return h.number == homed_in_t2_; });
  if (kept == list.end()) {
    kept = std::find_if(list.begin(), list.end(), [](const auto& h) { return h.written; });
  }
  if (kept != list.end()) std::iter_swap(list.begin(), kept);
  // With a memory operand one temporary is free; adding up the address frees another.
  if (homed.count > 1 && mem && (mem->index != kNoReg || mem->base == kT1)) {
    a_.lea(kT0, *mem);
    mem = Mem{.base = kT0};
  }
  constexpr std::array kTemporaries = {kT2, kT1, kT0};
  for (std::size_t k = 0; k < list.size(); ++k) {
    const HomedRegister& h = list[k];
    map[h.number] = kTemporaries[k];
    if (k == 0 && h.number == homed_in_t2_) continue;
    if (h.read) a_.load(kTemporaries[k], absolute(&c_.core->r[h.number]));
  }
  homed_in_t2_ = list.front().number;
  if (homed.count > 1) group_in_t1_ = GroupedAccess::kNone;
  return map;
}

void Emitter::encode(const Insn& i, const RegisterMap& map, const Mem* mem) {
  if (i.insn.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
    encode_vex(i, map, mem);
  } else {
    encode_legacy(i, map, mem);
  }
  // Immediates end the instruction as they did.
  const auto& raw = i.insn.raw;
  unsigned at = i.insn.length;
  for (const auto& imm : raw.imm) {
    if (imm.size != 0) at = std::min<unsigned>(at, imm.offset);
  }
  for (; at < i.insn.length; ++at) a_.byte(i.bytes[at]);
}

/// The prefixes that mean something, each once: a guest may repeat them, and what grows by a REX or
/// a SIB byte here must not become longer than an instruction can be.
void Emitter::prefixes(const Insn& i) {
  const auto& raw = i.insn.raw;
  std::array<std::uint8_t, ZYDIS_MAX_INSTRUCTION_LENGTH> seen{};
  unsigned count = 0;
  for (unsigned n = 0; n < raw.prefix_count; ++n) {
    const auto& p = raw.prefixes[n];
    const bool lock = p.value == 0xF0 && (i.insn.attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0;
    const bool width = p.value == 0x66 && p.type != ZYDIS_PREFIX_TYPE_IGNORED;
    const bool mandatory = p.type == ZYDIS_PREFIX_TYPE_MANDATORY;
    const bool known =
        std::find(seen.begin(), seen.begin() + count, p.value) != seen.begin() + count;
    if (known || (!lock && !width && !mandatory)) continue;
    seen.at(count++) = p.value;
    a_.byte(p.value);
  }
}

void Emitter::encode_legacy(const Insn& i, const RegisterMap& map, const Mem* mem) {
  const auto& insn = i.insn;
  const auto& raw = insn.raw;
  prefixes(i);
  const bool has_rex = long_mode() && (insn.attributes & ZYDIS_ATTRIB_HAS_REX) != 0;
  const bool w = has_rex && raw.rex.W != 0;
  const unsigned r = has_rex ? raw.rex.R : 0;
  const unsigned b = has_rex ? raw.rex.B : 0;
  const bool rex = needs_rex(i);
  Op op = opcode(insn);
  if ((insn.attributes & ZYDIS_ATTRIB_HAS_MODRM) == 0) {
    const ZydisDecodedOperand* o = general(i, ZYDIS_OPERAND_ENCODING_OPCODE);
    if (o == nullptr) {
      if (w) a_.byte(0x48);
      if (op.map != 0) a_.byte(0x0F);
      a_.byte(op.code);
      return;
    }
    const unsigned n = is_high_byte(o->reg.value)
                           ? op.code & 7U
                           : static_cast<unsigned>(map[number(o->reg.value)]);
    if (!long_mode() && op.map == 0 && op.code >= 0x40 && op.code <= 0x4F) {
      // INC and DEC of one byte are REX prefixes in 64-bit mode.
      a_.op_reg({0, 0xFF}, false, op.code < 0x48 ? 0 : 1, n);
      return;
    }
    const unsigned bits = (w ? 8U : 0U) | n >> 3;
    if (bits != 0 || rex) a_.byte(0x40 | bits);
    if (op.map != 0) a_.byte(0x0F);
    a_.byte((op.code & 0xF8U) | (n & 7));
    return;
  }
  unsigned reg = raw.modrm.reg | r << 3;
  if (const auto* o = general(i, ZYDIS_OPERAND_ENCODING_MODRM_REG);
      o != nullptr && !is_high_byte(o->reg.value)) {
    reg = map[reg];
  }
  if (mem != nullptr) return a_.op_mem(op, w, reg, *mem, rex);
  unsigned rm = raw.modrm.rm | b << 3;
  if (const auto* o = general(i, ZYDIS_OPERAND_ENCODING_MODRM_RM);
      o != nullptr && !is_high_byte(o->reg.value)) {
    rm = map[rm];
  }
  a_.op_reg(op, w, reg, rm, rex);
}

void Emitter::encode_vex(const Insn& i, const RegisterMap& map, const Mem* mem) {
  const auto& raw = i.insn.raw;
  Vex v{.map = raw.vex.m_mmmm,
        .w = raw.vex.W,
        .vvvv = static_cast<std::uint8_t>(~raw.vex.vvvv & 15),
        .l = raw.vex.L,
        .pp = raw.vex.pp,
        .code = i.insn.opcode};
  // Zydis gives the fields as encoded: R, X, B inverted.
  unsigned reg = raw.modrm.reg;
  unsigned rm = raw.modrm.rm;
  for (unsigned n = 0; n < i.insn.operand_count_visible; ++n) {
    const ZydisDecodedOperand& o = i.ops[n];
    if (o.type != ZYDIS_OPERAND_TYPE_REGISTER) continue;
    const unsigned id = number(o.reg.value);
    // Outside 64-bit mode W does not widen general registers.
    if (!long_mode() && is_general(o.reg.value)) v.w = 0;
    const unsigned to = is_general(o.reg.value) ? static_cast<unsigned>(map[id]) : id;
    if (o.encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG) reg = to;
    if (o.encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) rm = to;
    if (o.encoding == ZYDIS_OPERAND_ENCODING_NDSNDD) v.vvvv = static_cast<std::uint8_t>(to);
  }
  if ((i.insn.attributes & ZYDIS_ATTRIB_HAS_MODRM) == 0) {
    a_.vex_plain(v);
  } else if (mem != nullptr) {
    a_.vex_mem(v, reg, *mem);
  } else {
    a_.vex_reg(v, reg, rm);
  }
}

// ---- vector and x87 state -----------------------------------------------------------------------

Emitter::Units Emitter::units_of(const Insn& i) {
  if (i.kind == Kind::steps) return {};
  if (i.opcode.cls == isa::OpcodeClass::x87) return {.x87 = true};
  if (i.opcode.cls != isa::OpcodeClass::vector) return {};
  bool mmx = i.insn.mnemonic == ZYDIS_MNEMONIC_EMMS;
  // Conversions use MXCSR whatever their operands.
  bool xmm = i.insn.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ||
             i.insn.meta.category == ZYDIS_CATEGORY_CONVERT ||
             i.insn.mnemonic == ZYDIS_MNEMONIC_STMXCSR ||
             i.insn.mnemonic == ZYDIS_MNEMONIC_LDMXCSR;  // VSTMXCSR is a VEX instruction
  for (unsigned n = 0; n < i.insn.operand_count; ++n) {
    if (i.ops[n].type != ZYDIS_OPERAND_TYPE_REGISTER) continue;
    const auto cls = ZydisRegisterGetClass(i.ops[n].reg.value);
    mmx = mmx || cls == ZYDIS_REGCLASS_MMX;
    xmm = xmm || cls == ZYDIS_REGCLASS_XMM || cls == ZYDIS_REGCLASS_YMM;
  }
  const bool avx = i.insn.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
  return {.x87 = mmx, .simd = !xmm ? kSimdInMemory : avx ? kSimdAvx : kSimdSse};
}

/// At a block's beginning, where there are no flags to save, for all that surely comes.
void Emitter::units_ahead() {
  Units ahead;
  for (const Insn& i : region_.insns()) {
    if (i.kind == Kind::steps || i.kind == Kind::jcc) break;
    const Units u = units_of(i);
    ahead = {.x87 = ahead.x87 || u.x87, .simd = std::max(ahead.simd, u.simd)};
  }
  need(region_.insns().front(), ahead);
}

void Emitter::need(const Insn& i, Units units) {
  if (units.x87) need_x87(i);
  if (units.simd != kSimdInMemory) need_simd(i, units.simd);
}

void Emitter::need_simd(const Insn& i, SimdLevel level) {
  if (simd_ >= level) return;
  spill_flags();
  const std::uint32_t site = add_site(i);
  a_.alu_imm8(7, absolute(&c_.state->simd_live), level);
  cold(a_.jcc_later(kBelow), [this, site, level] {
    a_.mov_imm32(kT0, level);
    call_stub(c_.stubs->simd, site);
  });
  simd_ = level;
  forget_temporaries();
}

void Emitter::need_x87(const Insn& i) {
  if (x87_) return;
  spill_flags();
  const std::uint32_t site = add_site(i);
  a_.alu_imm8(7, absolute(&c_.state->x87_live), 0);
  cold(a_.jcc_later(kEqual), [this, site] { call_stub(c_.stubs->x87, site); });
  x87_ = true;
  forget_temporaries();
}

// ---- special cases ------------------------------------------------------------------------------

void Emitter::lea(const Insn& i) {
  const auto& m = i.ops[1].mem;
  const unsigned dst = number(i.ops[0].reg.value);
  const bool homed = long_mode() && is_homed(dst);
  const Reg to = homed ? kT2 : static_cast<Reg>(dst);
  const unsigned width = i.ops[0].size;
  const bool wide = width == 64 && i.insn.address_width == 64;
  const auto disp = m.disp.has_displacement ? m.disp.value : 0;
  if (width == 16) {
    // Into a temporary, then the low half of the register.
    Mem ea{.disp = static_cast<std::int32_t>(disp)};
    if (m.base != ZYDIS_REGISTER_NONE && m.base != ZYDIS_REGISTER_RIP) ea.base = value(m.base, kT0);
    if (m.index != ZYDIS_REGISTER_NONE && m.scale != 0) {
      ea.index = value(m.index, kT1);
      if (ea.index == kT1) group_in_t1_ = GroupedAccess::kNone;
      while ((1U << ea.scale) < m.scale) ++ea.scale;
    }
    if (m.base == ZYDIS_REGISTER_RIP) {
      load_page_va(kT0, end_of(i) + disp);
    } else {
      a_.lea(kT0, ea);
    }
    if (homed) a_.load(to, absolute(&c_.core->r[dst]));
    a_.byte(0x66);
    a_.op_reg({0, 0x8B}, false, to, kT0);
  } else if (m.base == ZYDIS_REGISTER_RIP || m.base == ZYDIS_REGISTER_EIP) {
    load_page_va(to, end_of(i) + disp);
    if (!wide) a_.mov32(to, to);
  } else {
    Mem ea{.disp = static_cast<std::int32_t>(disp)};
    if (m.base != ZYDIS_REGISTER_NONE) ea.base = value(m.base, kT0);
    if (m.index != ZYDIS_REGISTER_NONE && m.scale != 0) {
      ea.index = value(m.index, kT1);
      if (ea.index == kT1) group_in_t1_ = GroupedAccess::kNone;
      while ((1U << ea.scale) < m.scale) ++ea.scale;
    }
    a_.lea(to, ea, wide);
  }
  if (homed) store_home(dst);
}

/// MOV between the accumulator and an address in the instruction.
void Emitter::absolute_mov(const Insn& i) {
  const bool store = i.ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
  const ZydisDecodedOperand& m = store ? i.ops[0] : i.ops[1];
  const Mem mem = operand(i, m, store);
  const unsigned code = store ? 0x88 : 0x8A;
  if (m.size == 16) a_.byte(0x66);
  a_.op_mem({0, static_cast<std::uint8_t>(code | (m.size == 8 ? 0U : 1U))}, m.size == 64, kRax,
            mem);
  accessed();
}

/// Values that unmask exceptions or set reserved bits are the interpreter's.
void Emitter::load_mxcsr(const Insn& i) {
  constexpr std::int32_t kMasks = 0x1F80;
  need(i, units_of(i));
  spill_flags();
  const Mem mem = operand(i, i.ops[0], false);
  a_.load32(kT0, mem);
  accessed();
  const std::uint32_t site = add_site(i);
  a_.mov32(kT1, kT0);
  a_.alu_imm(4, kT1, static_cast<std::int32_t>(0xFFFF0000U | kMasks), false);
  a_.alu_imm(7, kT1, kMasks, false);
  cold(a_.jcc_later(kNotEqual), [this, site] { call_stub(c_.stubs->interpret, site); });
  const Mem home = absolute(&c_.core->arch.vector.mxcsr);
  a_.store32(home, kT0);
  a_.op_mem({1, 0xAE}, false, 2, home);
}

/// #DE must not happen on the host: quotients that could overflow are left to the interpreter.
void Emitter::divide(const Insn& i) {
  const bool wide = i.insn.operand_width == 64;
  const bool is_signed = i.insn.mnemonic == ZYDIS_MNEMONIC_IDIV;
  spill_flags();
  Reg divisor = kT0;
  if (i.ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY) {
    const Mem mem = operand(i, i.ops[0], false);
    a_.op_mem({0, 0x8B}, wide, kT0, mem);
    accessed();
  } else {
    divisor = value(i.ops[0].reg.value, kT0);
  }
  const std::uint32_t site = add_site(i);
  const auto refuse = [this, site](std::size_t fixup) {
    cold(fixup, [this, site] { call_stub(c_.stubs->interpret, site); });
  };
  if (is_signed) {
    // Safe: the dividend is its low half extended, and the divisor neither 0 nor -1.
    a_.op_reg({0, 0x8B}, wide, kT1, kRax);
    a_.op_reg({0, 0xC1}, wide, 7, kT1);
    a_.byte(wide ? 63 : 31);
    a_.op_reg({0, 0x3B}, wide, kT1, kRdx);
    refuse(a_.jcc_later(kNotEqual));
    a_.lea(kT1, {.base = divisor, .disp = 1}, wide);
    a_.alu_imm(7, kT1, 1, wide);
    refuse(a_.jcc_later(kBelowEqual));
  } else {
    // Fits exactly if the high half is less than the divisor.
    a_.op_reg({0, 0x3B}, wide, kRdx, divisor);
    refuse(a_.jcc_later(kAboveEqual));
  }
  // Its undefined flags are what the processor makes of the old ones.
  if (i.live_after != 0) need_flags();
  a_.op_reg({0, 0xF7}, wide, is_signed ? 7 : 6, divisor);
  flags_written(i);
}

}  // namespace strata::bt
