// Moves between vector registers, general registers and memory: the bulk of what string functions
// and structure copies execute, so they are plain C++ without a thunk.
#include "engines/interp/vector.hpp"

namespace strata::interp {
namespace {

template <bool Vex>
inline constexpr Unit kUnit = Vex ? Unit::avx : Unit::sse;

/// A write of an XMM register: VEX forms clear bits 255:128, legacy ones keep them (SDM 1 14.1).
template <bool Vex>
void write_low(VectorRegister& r, std::uint64_t low, std::uint64_t high) noexcept {
  r[0] = low;
  r[1] = high;
  if constexpr (Vex) r[2] = r[3] = 0;
}

template <bool Vex, bool Aligned>
const Uop* load_16(Core& core, const Uop* u) {
  if (const auto why = refusal<kUnit<Vex>>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  const std::uint64_t va = core.ea(u);
  if (Aligned && (va & 15) != 0) [[unlikely]]
    return core.fault(u, cpu::GP, 0);
  Bytes16 v;
  if (!core.load(va, v)) return refuse(core, u);
  write_low<Vex>(vector_register(core, u->dst), v.word[0], v.word[1]);
  return u + 1;
}

template <bool Vex, bool Aligned>
const Uop* store_16(Core& core, const Uop* u) {
  if (const auto why = refusal<kUnit<Vex>>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  const std::uint64_t va = core.ea(u);
  if (Aligned && (va & 15) != 0) [[unlikely]]
    return core.fault(u, cpu::GP, 0);
  const VectorRegister& r = vector_register(core, u->src);
  if (!core.store(va, Bytes16{{r[0], r[1]}})) return refuse(core, u);
  return u + 1;
}

template <bool Vex>
const Uop* copy_16(Core& core, const Uop* u) {
  if (const auto why = refusal<kUnit<Vex>>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  const VectorRegister& r = vector_register(core, u->src);
  write_low<Vex>(vector_register(core, u->dst), r[0], r[1]);
  return u + 1;
}

template <bool Aligned>
const Uop* load_32(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::avx>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  const std::uint64_t va = core.ea(u);
  if (Aligned && (va & 31) != 0) [[unlikely]]
    return core.fault(u, cpu::GP, 0);
  Bytes32 v;
  if (!core.load(va, v)) return refuse(core, u);
  vector_register(core, u->dst) = v.word;
  return u + 1;
}

template <bool Aligned>
const Uop* store_32(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::avx>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  const std::uint64_t va = core.ea(u);
  if (Aligned && (va & 31) != 0) [[unlikely]]
    return core.fault(u, cpu::GP, 0);
  if (!core.store(va, Bytes32{vector_register(core, u->src)})) return refuse(core, u);
  return u + 1;
}

const Uop* copy_32(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::avx>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  vector_register(core, u->dst) = vector_register(core, u->src);
  return u + 1;
}

/// MOVD, MOVQ, MOVSS, MOVSD from memory: zero-extended to 128 bits.
template <bool Vex, class T>
const Uop* load_scalar(Core& core, const Uop* u) {
  if (const auto why = refusal<kUnit<Vex>>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  T v;
  if (!core.load(core.ea(u), v)) return refuse(core, u);
  write_low<Vex>(vector_register(core, u->dst), v, 0);
  return u + 1;
}

/// Stores of one element: bits from `aux` 64-bit words up (MOVHPS stores the upper word).
template <bool Vex, class T>
const Uop* store_scalar(Core& core, const Uop* u) {
  if (const auto why = refusal<kUnit<Vex>>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  const auto v = static_cast<T>(vector_register(core, u->src)[u->aux]);
  if (!core.store(core.ea(u), v)) return refuse(core, u);
  return u + 1;
}

/// MOVLPS, MOVHPS and their PD twins from memory: the other half stays.
const Uop* load_half(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::sse>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  std::uint64_t v = 0;
  if (!core.load(core.ea(u), v)) return refuse(core, u);
  vector_register(core, u->dst)[u->aux] = v;
  return u + 1;
}

/// MOVQ xmm, xmm.
template <bool Vex>
const Uop* copy_quad(Core& core, const Uop* u) {
  if (const auto why = refusal<kUnit<Vex>>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  write_low<Vex>(vector_register(core, u->dst), vector_register(core, u->src)[0], 0);
  return u + 1;
}

/// MOVSS and MOVSD between registers change the lowest element only.
template <class T>
const Uop* merge_scalar(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::sse>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  std::memcpy(&vector_register(core, u->dst), &vector_register(core, u->src), sizeof(T));
  return u + 1;
}

template <bool Vex, class T>
const Uop* from_general(Core& core, const Uop* u) {
  if (const auto why = refusal<kUnit<Vex>>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  write_low<Vex>(vector_register(core, u->dst), core.reg<T>(u->src), 0);
  return u + 1;
}

template <bool Vex, class T>
const Uop* to_general(Core& core, const Uop* u) {
  if (const auto why = refusal<kUnit<Vex>>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  core.set_reg(u->dst, static_cast<T>(vector_register(core, u->src)[0]));
  return u + 1;
}

/// Emits `fn` with registers from the explicit operands; memory is filled in by step().
void emit_move(Lowering& l, Handler fn, std::uint8_t aux = 0) {
  Uop u = l.step(fn);
  const auto number = [&](const ZydisDecodedOperand& op) -> std::uint8_t {
    if (op.type != ZYDIS_OPERAND_TYPE_REGISTER) return 0;
    return is_vector_register(op) ? Lowering::reg_number(op.reg.value)
                                  : Lowering::reg_offset(op.reg.value);
  };
  u.dst = number(l.ops[0]);
  u.src = number(l.ops[1]);
  u.aux = aux;
  l.emit(u);
}

template <bool Aligned>
Handler full_move(const Lowering& l) {
  const bool load = l.ops[1].type == ZYDIS_OPERAND_TYPE_MEMORY;
  const bool store = l.ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
  if (!is_vex(l))
    return load ? load_16<false, Aligned> : store ? store_16<false, Aligned> : copy_16<false>;
  if (l.insn.avx.vector_length == 256) {
    return load ? load_32<Aligned> : store ? store_32<Aligned> : copy_32;
  }
  return load ? load_16<true, Aligned> : store ? store_16<true, Aligned> : copy_16<true>;
}

/// MOVD and MOVQ between a vector register and memory, a general register or a vector register.
template <bool Vex>
Handler element_move(const Lowering& l) {
  const ZydisDecodedOperand& dst = l.ops[0];
  const ZydisDecodedOperand& src = l.ops[1];
  if (is_vector_register(dst) && is_vector_register(src)) return copy_quad<Vex>;
  if (is_vector_register(dst)) {
    const bool memory = src.type == ZYDIS_OPERAND_TYPE_MEMORY;
    if (src.size == 64) {
      return memory ? load_scalar<Vex, std::uint64_t> : from_general<Vex, std::uint64_t>;
    }
    return memory ? load_scalar<Vex, std::uint32_t> : from_general<Vex, std::uint32_t>;
  }
  if (!is_vector_register(src)) return nullptr;  // the MMX forms
  const bool memory = dst.type == ZYDIS_OPERAND_TYPE_MEMORY;
  if (dst.size == 64) {
    return memory ? store_scalar<Vex, std::uint64_t> : to_general<Vex, std::uint64_t>;
  }
  return memory ? store_scalar<Vex, std::uint32_t> : to_general<Vex, std::uint32_t>;
}

/// MOVSS and MOVSD; the three-operand VEX forms are left to the thunks.
template <class T>
Handler scalar_move(const Lowering& l) {
  if (l.ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY) {
    return is_vex(l) ? store_scalar<true, T> : store_scalar<false, T>;
  }
  if (l.ops[1].type == ZYDIS_OPERAND_TYPE_MEMORY) {
    return is_vex(l) ? load_scalar<true, T> : load_scalar<false, T>;
  }
  return is_vex(l) ? nullptr : merge_scalar<T>;
}

Handler half_move(const Lowering& l) {
  if (l.ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY) {
    return is_vex(l) ? store_scalar<true, std::uint64_t> : store_scalar<false, std::uint64_t>;
  }
  if (is_vex(l) || l.ops[1].type != ZYDIS_OPERAND_TYPE_MEMORY) return nullptr;
  return load_half;
}

bool has_mmx_operand(const Lowering& l) {
  for (unsigned i = 0; i < 2; ++i) {
    if (l.ops[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
        ZydisRegisterGetClass(l.ops[i].reg.value) == ZYDIS_REGCLASS_MMX) {
      return true;
    }
  }
  return false;
}

}  // namespace

bool lower_vector_move(Lowering& l) {
  Handler fn = nullptr;
  std::uint8_t word = 0;
  if (has_mmx_operand(l)) return false;
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_VMOVUPS:
    case ZYDIS_MNEMONIC_VMOVUPD:
    case ZYDIS_MNEMONIC_VMOVDQU:
    case ZYDIS_MNEMONIC_VLDDQU:
      fn = full_move<false>(l);
      break;
    case ZYDIS_MNEMONIC_MOVAPS:
    case ZYDIS_MNEMONIC_MOVAPD:
    case ZYDIS_MNEMONIC_MOVDQA:
    case ZYDIS_MNEMONIC_MOVNTPS:
    case ZYDIS_MNEMONIC_MOVNTPD:
    case ZYDIS_MNEMONIC_MOVNTDQ:
    case ZYDIS_MNEMONIC_MOVNTDQA:
    case ZYDIS_MNEMONIC_VMOVAPS:
    case ZYDIS_MNEMONIC_VMOVAPD:
    case ZYDIS_MNEMONIC_VMOVDQA:
    case ZYDIS_MNEMONIC_VMOVNTPS:
    case ZYDIS_MNEMONIC_VMOVNTPD:
    case ZYDIS_MNEMONIC_VMOVNTDQ:
    case ZYDIS_MNEMONIC_VMOVNTDQA:
      fn = full_move<true>(l);
      break;
    case ZYDIS_MNEMONIC_MOVD:
    case ZYDIS_MNEMONIC_MOVQ:
      fn = element_move<false>(l);
      break;
    case ZYDIS_MNEMONIC_VMOVD:
    case ZYDIS_MNEMONIC_VMOVQ:
      fn = element_move<true>(l);
      break;
    case ZYDIS_MNEMONIC_MOVSS:
    case ZYDIS_MNEMONIC_VMOVSS:
      fn = scalar_move<std::uint32_t>(l);
      break;
    case ZYDIS_MNEMONIC_MOVSD:
    case ZYDIS_MNEMONIC_VMOVSD:
      fn = scalar_move<std::uint64_t>(l);
      break;
    case ZYDIS_MNEMONIC_MOVLPS:
    case ZYDIS_MNEMONIC_MOVLPD:
    case ZYDIS_MNEMONIC_VMOVLPS:
    case ZYDIS_MNEMONIC_VMOVLPD:
      fn = half_move(l);
      break;
    case ZYDIS_MNEMONIC_MOVHPS:
    case ZYDIS_MNEMONIC_MOVHPD:
    case ZYDIS_MNEMONIC_VMOVHPS:
    case ZYDIS_MNEMONIC_VMOVHPD:
      fn = half_move(l);
      word = 1;
      break;
    default:
      break;
  }
  if (fn == nullptr) return false;
  emit_move(l, fn, word);
  return true;
}

}  // namespace strata::interp
