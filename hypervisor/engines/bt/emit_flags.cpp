// Where the guest's flags are: in EFLAGS, in Core::flags, or what an instruction left in registers
// tells them.
#include <algorithm>
#include <limits>

#include "engines/bt/emitter.hpp"

namespace strata::bt {
namespace {

bool is_high_byte(const ZydisDecodedOperand& o) {
  return o.reg.value >= ZYDIS_REGISTER_AH && o.reg.value <= ZYDIS_REGISTER_BH;
}

bool is_low_register(const ZydisDecodedOperand& o) {
  return o.type == ZYDIS_OPERAND_TYPE_REGISTER && !is_high_byte(o);
}

unsigned bit_of(const ZydisDecodedOperand& o) {
  return 1U << (is_high_byte(o) ? static_cast<unsigned>(o.reg.value - ZYDIS_REGISTER_AH)
                                : Emitter::number(o.reg.value));
}

unsigned homed_among(unsigned registers) {
  constexpr unsigned kHomes = 0xF00;
  static_assert(is_homed(8) && is_homed(11) && !is_homed(7) && !is_homed(12));
  return registers & kHomes;
}

/// Registers that tell the flags of an instruction once it has been executed; 0: none do. One of
/// them at most has to be loaded.
unsigned registers_that_tell_flags(const Insn& i) {
  if (i.kind != Kind::verbatim || i.opcode.cls != isa::OpcodeClass::integer ||
      memory_operand(i) != nullptr || !is_low_register(i.ops[0])) {
    return 0;
  }
  const ZydisDecodedOperand& from = i.ops[1];
  const bool immediate = from.type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
  if (!immediate && !is_low_register(from)) return 0;
  const unsigned result = bit_of(i.ops[0]);
  const unsigned both = immediate ? result : result | bit_of(from);
  switch (i.insn.mnemonic) {
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_TEST:
      return std::has_single_bit(homed_among(both)) || homed_among(both) == 0 ? both : 0;
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
      return result;
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
      if ((i.insn.attributes & ZYDIS_ATTRIB_HAS_MODRM) == 0) return 0;
      if (immediate) {
        return from.imm.value.s == std::numeric_limits<std::int32_t>::min() ? 0 : result;
      }
      return both == result || homed_among(bit_of(from)) != 0 ? 0 : both;
    default:
      return 0;
  }
}

bool writes_one_of(const Insn& i, unsigned registers) {
  return std::any_of(i.ops.begin(), i.ops.begin() + i.insn.operand_count, [&](const auto& o) {
    return o.type == ZYDIS_OPERAND_TYPE_REGISTER &&
           (o.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0 &&
           ZydisRegisterGetClass(o.reg.value) >= ZYDIS_REGCLASS_GPR8 &&
           ZydisRegisterGetClass(o.reg.value) <= ZYDIS_REGCLASS_GPR64 &&
           (registers & bit_of(o)) != 0;
  });
}

}  // namespace

bool Emitter::keeps_some_flags(const Insn& i) {
  const FlagEffect e = flag_effect(i);
  return i.live_after != 0 && e.writes != 0 &&
         (e.may_keep || (i.live_after & ~e.writes) != 0 ||
          (!e.replaces && (i.live_after & e.undefined) != 0));
}

bool Emitter::ends_flag_source(const Insn& i) const {
  if (flag_source_.insn == nullptr) return false;
  constexpr unsigned kStack = 1U << kRsp;
  unsigned registers = flag_source_.registers;
  if (code_.windowed && bears_stack_behind(i)) {
    registers &= ~kStack;  // the host's RSP stays
  } else if ((registers & kStack) != 0 && stack_behind_ != 0) {
    return true;
  }
  return writes_one_of(i, registers);
}

/// Before an instruction after which the source tells nothing any more.
void Emitter::give_up_flag_source(const Insn& i) {
  const FlagEffect e = flag_effect(i);
  // Its own faults still find the source as it was.
  if ((e.may_keep ? i.live_after : i.live_after & ~e.writes) == 0) return;
  if (flags_are_derived()) spill_flags();
  flag_source_ = {};
}

void Emitter::free_eflags(const Insn& i) {
  const bool bears =
      i.kind == Kind::push || i.kind == Kind::pop ||
      (i.kind == Kind::verbatim && flag_effect(i).reads == 0 && !keeps_some_flags(i));
  if (flag_source_.insn == nullptr || in_memory_ || code_.windowed || !bears) return spill_flags();
  in_host_ = false;
}

/// EFLAGS again as an instruction left them, by what it left in registers. Uses kT2.
void Emitter::derive_flags(const Insn& i) {
  homed_in_t2_ = kNotHomed;
  RegisterMap map{};
  for (unsigned n = 0; n < 16; ++n) map[n] = static_cast<Reg>(n);
  const auto load = [&](const ZydisDecodedOperand& o) {
    const unsigned n = number(o.reg.value);
    map[n] = kT2;
    if (is_homed(n)) {
      a_.load(kT2, absolute(&c_.core->r[n]));
    } else {
      a_.mov(kT2, static_cast<Reg>(n));
    }
  };
  const ZydisDecodedOperand& from = i.ops[1];
  const bool immediate = from.type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
  switch (i.insn.mnemonic) {
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_TEST:
      for (const ZydisDecodedOperand* o : {&i.ops[0], &from}) {
        if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && is_homed(number(o->reg.value))) load(*o);
      }
      return encode(i, map, nullptr);
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB: {
      // Back to what it was, and once more.
      const bool add = i.insn.mnemonic == ZYDIS_MNEMONIC_ADD;
      load(i.ops[0]);
      if (immediate) {
        const auto distance = static_cast<std::int32_t>(from.imm.value.s);
        a_.lea(kT2, {.base = kT2, .disp = add ? -distance : distance});
      } else {
        a_.alu(add ? 5 : 0, kT2, static_cast<Reg>(number(from.reg.value)));
      }
      return encode(i, map, nullptr);
    }
    default: {  // AND, OR, XOR: as TEST of the result
      load(i.ops[0]);
      const unsigned size = i.ops[0].size;
      if (size == 16) a_.byte(0x66);
      a_.op_reg({0, static_cast<std::uint8_t>(size == 8 ? 0x84 : 0x85)}, size == 64, kT2, kT2);
    }
  }
}

void Emitter::save_flags() {
  if (in_memory_) return;
  if (!in_host_) {
    if (flag_source_.insn == nullptr) return;
    derive_flags(*flag_source_.insn);
  }
  store_flags();
  in_memory_ = true;
}

void Emitter::store_flags() {
  // LAHF and SETO, as interp/flags.hpp lays them out.
  homed_in_t2_ = kNotHomed;
  a_.mov(kT2, kRax);
  a_.byte(0x9F);
  a_.op_reg({1, 0x90}, false, 0, kRax);
  a_.byte(0x66);
  a_.op_mem({0, 0x89}, false, kRax, absolute(&c_.core->flags));
  a_.mov(kRax, kT2);
}

void Emitter::spill_flags() {
  save_flags();
  in_host_ = false;
}

void Emitter::need_flags() {
  if (in_host_) return;
  if (flags_are_derived()) {
    derive_flags(*flag_source_.insn);
  } else {
    load_flags();
  }
  in_host_ = true;
}

void Emitter::load_flags() {
  // 1 + 127 overflows, 0 + 127 does not; SAHF has the rest.
  homed_in_t2_ = kNotHomed;
  a_.mov(kT2, kRax);
  a_.op_mem({1, 0xB7}, false, kRax, absolute(&c_.core->flags));
  a_.byte(0x04);
  a_.byte(127);
  a_.byte(0x9E);
  a_.mov(kRax, kT2);
}

void Emitter::flags_written(const Insn& i) {
  const FlagEffect e = flag_effect(i);
  if (e.writes == 0) return;
  if ((e.writes & i.live_after) != 0) {
    in_host_ = true;
    in_memory_ = false;
    flag_source_ = {};
    if (!long_mode()) return;
    if (const unsigned tell = registers_that_tell_flags(i); tell != 0) flag_source_ = {&i, tell};
    return;
  }
  // Nobody reads what it wrote. What it left alone is where it was, EFLAGS excepted if they were
  // not the guest's to begin with; with all of them dead, memory is as good as any place.
  if (i.live_after == 0 || e.replaces) {
    in_host_ = false;
    in_memory_ = true;
    flag_source_ = {};
  }
}

}  // namespace strata::bt
