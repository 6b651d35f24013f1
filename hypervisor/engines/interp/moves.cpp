// Data movement: MOV and its extending forms, LEA, CMOVcc, SETcc, byte swaps, CBW and family.
#include <bit>
#include <type_traits>

#include "engines/interp/access.hpp"
#include "engines/interp/integer.hpp"

namespace strata::interp {
namespace {

template <class T>
const Uop* mov_register(Core& core, const Uop* u) {
  core.set_reg<T>(u->dst, core.reg<T>(u->src));
  return next(core, u);
}

template <class T>
const Uop* mov_immediate(Core& core, const Uop* u) {
  core.set_reg<T>(u->dst, static_cast<T>(u->imm));
  return next(core, u);
}

template <class T>
const Uop* mov_load(Core& core, const Uop* u) {
  T v;
  if (!load_operand(core, u, v)) return refuse(core, u);
  core.set_reg<T>(u->dst, v);
  return next(core, u);
}

template <class T>
const Uop* mov_store(Core& core, const Uop* u) {
  if (!core.store<T>(address_of(core, u), core.reg<T>(u->src))) return refuse(core, u);
  return next(core, u);
}

template <class T>
const Uop* mov_store_immediate(Core& core, const Uop* u) {
  if (!core.store<T>(address_of(core, u), static_cast<T>(u->imm))) return refuse(core, u);
  return next(core, u);
}

/// Address of a moffs operand: 64 bits do not fit Uop::disp, so it is in imm.
std::uint64_t moffs_address(Core& core, const Uop* u) { return core.linear(u, u->imm); }

template <class T>
const Uop* mov_load_moffs(Core& core, const Uop* u) {
  T v;
  if (!load_value(core, moffs_address(core, u), v)) return refuse(core, u);
  core.set_reg<T>(u->dst, v);
  return next(core, u);
}

template <class T>
const Uop* mov_store_moffs(Core& core, const Uop* u) {
  if (!core.store<T>(moffs_address(core, u), core.reg<T>(u->src))) return refuse(core, u);
  return next(core, u);
}

/// To the width of Dst: with sign where Signed.
template <class Dst, class Src, bool Signed>
constexpr Dst extend(Src v) {
  if constexpr (Signed) {
    using S = std::make_signed_t<Src>;
    return static_cast<Dst>(static_cast<std::int64_t>(static_cast<S>(v)));
  } else {
    return static_cast<Dst>(v);
  }
}

template <class Dst, class Src, bool Signed>
const Uop* extend_register(Core& core, const Uop* u) {
  core.set_reg<Dst>(u->dst, extend<Dst, Src, Signed>(core.reg<Src>(u->src)));
  return next(core, u);
}

template <class Dst, class Src, bool Signed>
const Uop* extend_load(Core& core, const Uop* u) {
  Src v;
  if (!load_operand(core, u, v)) return refuse(core, u);
  core.set_reg<Dst>(u->dst, extend<Dst, Src, Signed>(v));
  return next(core, u);
}

/// CWD, CDQ, CQO: RDX = sign of RAX.
template <class T>
const Uop* sign_to_dx(Core& core, const Uop* u) {
  const auto a = static_cast<std::make_signed_t<T>>(core.reg<T>(cpu::RAX * 8));
  core.set_reg<T>(cpu::RDX * 8, a < 0 ? static_cast<T>(~T{0}) : T{0});
  return next(core, u);
}

template <class T>
const Uop* lea(Core& core, const Uop* u) {
  if (u->address_form == 0) [[likely]] {
    core.set_reg<T>(u->dst, static_cast<T>(address_of(core, u)));
  } else {
    core.set_reg<T>(u->dst, static_cast<T>(core.offset_of(u)));
  }
  return next(core, u);
}

/// A 32-bit CMOVcc clears the upper half even if the condition is false (SDM 2A CMOVcc).
template <class T, unsigned Code>
const Uop* cmov_register(Core& core, const Uop* u) {
  const T kept = core.reg<T>(u->dst);
  const T moved = core.reg<T>(u->src);
  core.set_reg<T>(u->dst, condition<Code>(core.flags) ? moved : kept);
  return next(core, u);
}

/// The memory operand is read, and faults, whatever the condition.
template <class T, unsigned Code>
const Uop* cmov_load(Core& core, const Uop* u) {
  T v;
  if (!load_operand(core, u, v)) return refuse(core, u);
  core.set_reg<T>(u->dst, condition<Code>(core.flags) ? v : core.reg<T>(u->dst));
  return next(core, u);
}

template <unsigned Code>
const Uop* set_register(Core& core, const Uop* u) {
  core.set_reg<std::uint8_t>(u->dst, condition<Code>(core.flags) ? 1 : 0);
  return next(core, u);
}

template <unsigned Code>
const Uop* set_store(Core& core, const Uop* u) {
  const std::uint8_t v = condition<Code>(core.flags) ? 1 : 0;
  if (!core.store<std::uint8_t>(address_of(core, u), v)) return refuse(core, u);
  return next(core, u);
}

template <class T>
T swap_bytes(T v) {
  if constexpr (sizeof(T) == 2) return __builtin_bswap16(v);
  if constexpr (sizeof(T) == 4) return __builtin_bswap32(v);
  return static_cast<T>(__builtin_bswap64(v));
}

/// BSWAP of a 16-bit register is undefined; processors clear it (SDM 2A BSWAP).
template <class T>
const Uop* bswap(Core& core, const Uop* u) {
  if constexpr (sizeof(T) == 2) {
    core.set_reg<T>(u->dst, 0);
  } else {
    core.set_reg<T>(u->dst, swap_bytes(core.reg<T>(u->dst)));
  }
  return next(core, u);
}

template <class T>
const Uop* movbe_load(Core& core, const Uop* u) {
  T v;
  if (!load_operand(core, u, v)) return refuse(core, u);
  core.set_reg<T>(u->dst, swap_bytes(v));
  return next(core, u);
}

template <class T>
const Uop* movbe_store(Core& core, const Uop* u) {
  if (!core.store<T>(address_of(core, u), swap_bytes(core.reg<T>(u->src)))) return refuse(core, u);
  return next(core, u);
}

// ---- lowering -----------------------------------------------------------------------------------

bool is_moffs(const ZydisDecodedInstruction& insn) {
  return insn.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && insn.opcode >= 0xA0 && insn.opcode <= 0xA3;
}

bool lower_moffs(Lowering& l) {
  const bool load = l.ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER;
  const ZydisDecodedOperand& reg = l.ops[load ? 0 : 1];
  const ZydisDecodedOperand& mem = l.ops[load ? 1 : 0];
  Uop u = l.step(with_size(reg.size, [load]<class T>() -> Handler {
    return load ? &mov_load_moffs<T> : &mov_store_moffs<T>;
  }));
  u.dst = u.src = Lowering::reg_offset(reg.reg.value);
  const auto address = static_cast<std::uint64_t>(mem.mem.disp.value);
  u.imm = l.insn.address_width == 64   ? address
          : l.insn.address_width == 32 ? static_cast<std::uint32_t>(address)
                                       : static_cast<std::uint16_t>(address);
  l.emit(u);
  return true;
}

bool lower_mov(Lowering& l) {
  if (is_moffs(l.insn)) return lower_moffs(l);
  const ZydisDecodedOperand& to = l.ops[0];
  const ZydisDecodedOperand& from = l.ops[1];
  const bool to_reg = to.type == ZYDIS_OPERAND_TYPE_REGISTER;
  Uop u = l.step(with_size(to.size, [to_reg, &from]<class T>() -> Handler {
    switch (from.type) {
      case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        return to_reg ? &mov_immediate<T> : &mov_store_immediate<T>;
      case ZYDIS_OPERAND_TYPE_REGISTER:
        return to_reg ? &mov_register<T> : &mov_store<T>;
      default:
        return &mov_load<T>;
    }
  }));
  if (to_reg) u.dst = Lowering::reg_offset(to.reg.value);
  if (from.type == ZYDIS_OPERAND_TYPE_REGISTER) u.src = Lowering::reg_offset(from.reg.value);
  if (from.type == ZYDIS_OPERAND_TYPE_IMMEDIATE) u.imm = from.imm.value.u;
  l.emit(u);
  return true;
}

template <bool Signed>
bool lower_extend(Lowering& l) {
  const ZydisDecodedOperand& from = l.ops[1];
  const bool reg = from.type == ZYDIS_OPERAND_TYPE_REGISTER;
  Uop u = l.step(with_wide_size(l.ops[0].size, [&from, reg]<class Dst>() -> Handler {
    return with_size(from.size, [reg]<class Src>() -> Handler {
      return reg ? &extend_register<Dst, Src, Signed> : &extend_load<Dst, Src, Signed>;
    });
  }));
  u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  if (reg) u.src = Lowering::reg_offset(from.reg.value);
  l.emit(u);
  return true;
}

/// A step without operands of its own.
bool lower_simple(Lowering& l, Handler fn) {
  l.emit(l.step(fn));
  return true;
}

bool lower_widen_ax(Lowering& l, Handler fn) {
  Uop u = l.step(fn);
  u.dst = u.src = cpu::RAX * 8;
  l.emit(u);
  return true;
}

bool lower_lea(Lowering& l) {
  Uop u = l.step(with_wide_size(l.ops[0].size, []<class T>() -> Handler { return &lea<T>; }));
  u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  l.emit(u);
  return true;
}

bool lower_cmov(Lowering& l) {
  const unsigned code = condition_of(l.insn.mnemonic);
  const bool reg = l.ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
  Uop u = l.step(with_wide_size(l.ops[0].size, [code, reg]<class T>() -> Handler {
    return with_condition(code, [reg]<unsigned Code>() -> Handler {
      return reg ? &cmov_register<T, Code> : &cmov_load<T, Code>;
    });
  }));
  u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  if (reg) u.src = Lowering::reg_offset(l.ops[1].reg.value);
  l.emit(u);
  return true;
}

bool lower_setcc(Lowering& l) {
  const bool reg = l.ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER;
  Uop u = l.step(with_condition(condition_of(l.insn.mnemonic), [reg]<unsigned Code>() -> Handler {
    return reg ? &set_register<Code> : &set_store<Code>;
  }));
  if (reg) u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  l.emit(u);
  return true;
}

bool lower_bswap(Lowering& l) {
  Uop u = l.step(with_wide_size(l.ops[0].size, []<class T>() -> Handler { return &bswap<T>; }));
  u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  l.emit(u);
  return true;
}

bool lower_movbe(Lowering& l) {
  const bool load = l.ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER;
  Uop u = l.step(with_wide_size(l.ops[0].size, [load]<class T>() -> Handler {
    return load ? &movbe_load<T> : &movbe_store<T>;
  }));
  u.dst = u.src = Lowering::reg_offset(l.ops[load ? 0 : 1].reg.value);
  l.emit(u);
  return true;
}

}  // namespace

bool lower_moves(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
    case ZYDIS_MNEMONIC_MOVNTI:
      return lower_mov(l);
    case ZYDIS_MNEMONIC_MOVZX:
      return lower_extend<false>(l);
    case ZYDIS_MNEMONIC_MOVSX:
    case ZYDIS_MNEMONIC_MOVSXD:
      return lower_extend<true>(l);
    case ZYDIS_MNEMONIC_LEA:
      return lower_lea(l);
    case ZYDIS_MNEMONIC_BSWAP:
      return lower_bswap(l);
    case ZYDIS_MNEMONIC_MOVBE:
      return lower_movbe(l);
    case ZYDIS_MNEMONIC_CBW:
      return lower_widen_ax(l, &extend_register<std::uint16_t, std::uint8_t, true>);
    case ZYDIS_MNEMONIC_CWDE:
      return lower_widen_ax(l, &extend_register<std::uint32_t, std::uint16_t, true>);
    case ZYDIS_MNEMONIC_CDQE:
      return lower_widen_ax(l, &extend_register<std::uint64_t, std::uint32_t, true>);
    case ZYDIS_MNEMONIC_CWD:
      return lower_simple(l, &sign_to_dx<std::uint16_t>);
    case ZYDIS_MNEMONIC_CDQ:
      return lower_simple(l, &sign_to_dx<std::uint32_t>);
    case ZYDIS_MNEMONIC_CQO:
      return lower_simple(l, &sign_to_dx<std::uint64_t>);
    default:
      break;
  }
  if (condition_of(l.insn.mnemonic) > 15) return false;
  if (l.insn.meta.category == ZYDIS_CATEGORY_CMOV) return lower_cmov(l);
  if (l.insn.meta.category == ZYDIS_CATEGORY_SETCC) return lower_setcc(l);
  return false;
}

}  // namespace strata::interp
