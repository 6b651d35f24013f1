// Two-operand arithmetic and logic, INC, DEC, NEG and NOT; their LOCK forms.
#include "engines/interp/access.hpp"
#include "engines/interp/host_alu.hpp"
#include "engines/interp/integer.hpp"

namespace strata::interp {
namespace {

using host::Binary;
using host::Unary;

/// Second operand: a register or an immediate.
enum class Source : std::uint8_t { reg, imm };

template <class T, Source From>
[[gnu::always_inline]] inline T source(Core& core, const Uop* u) {
  if constexpr (From == Source::reg) return core.reg<T>(u->src);
  return static_cast<T>(u->imm);
}

constexpr bool writes_result(Binary op) { return op != Binary::cmp && op != Binary::test; }

/// op register, b
template <Binary Op, class T, bool Flags>
[[gnu::always_inline]] inline const Uop* apply_to_register(Core& core, const Uop* u, T b) {
  T a = core.reg<T>(u->dst);
  if constexpr (Flags) {
    const ArithFlags f = host::binary<Op>(a, b, core.flags);
    if constexpr (writes_result(Op)) core.set_reg<T>(u->dst, a);
    core.flags = f;
  } else if constexpr (writes_result(Op)) {
    core.set_reg<T>(u->dst, host::binary_value<Op>(a, b, core.flags));
  }
  return next(core, u);
}

/// op register, register or immediate
template <Binary Op, class T, Source From, bool Flags>
const Uop* to_register(Core& core, const Uop* u) {
  return apply_to_register<Op, T, Flags>(core, u, source<T, From>(core, u));
}

/// op register, memory
template <Binary Op, class T, bool Flags>
const Uop* from_memory(Core& core, const Uop* u) {
  T b;
  if (!load_operand(core, u, b)) return refuse(core, u);
  return apply_to_register<Op, T, Flags>(core, u, b);
}

/// CMP and TEST memory, register or immediate: nothing is written back.
template <Binary Op, class T, Source From>
const Uop* compare_memory(Core& core, const Uop* u) {
  T a;
  if (!load_operand(core, u, a)) return refuse(core, u);
  core.flags = host::binary<Op>(a, source<T, From>(core, u), core.flags);
  return next(core, u);
}

/// op memory, register or immediate
template <Binary Op, class T, Source From, bool Lock>
const Uop* to_memory(Core& core, const Uop* u) {
  const T b = source<T, From>(core, u);
  const ArithFlags in = core.flags;
  return modify_as<T, Lock>(
      core, u, address_of(core, u),
      [b, in](void* p) {
        if constexpr (Lock) return host::locked_binary<Op, T>(p, b, in);
        T a = get<T>(p);
        const ArithFlags f = host::binary<Op>(a, b, in);
        put(p, a);
        return f;
      },
      [&core](ArithFlags f) { core.flags = f; });
}

template <Unary Op, class T, bool Flags>
const Uop* unary_register(Core& core, const Uop* u) {
  T a = core.reg<T>(u->dst);
  if constexpr (Flags && Op != Unary::not_) {
    const ArithFlags f = host::unary<Op>(a, core.flags);
    core.set_reg<T>(u->dst, a);
    core.flags = f;
  } else {
    core.set_reg<T>(u->dst, host::unary_value<Op>(a));
  }
  return next(core, u);
}

template <Unary Op, class T, bool Lock>
const Uop* unary_memory(Core& core, const Uop* u) {
  const ArithFlags in = core.flags;
  return modify_as<T, Lock>(
      core, u, address_of(core, u),
      [in](void* p) {
        if constexpr (Lock) return host::locked_unary<Op, T>(p, in);
        T a = get<T>(p);
        const ArithFlags f = host::unary<Op>(a, in);
        put(p, a);
        return f;
      },
      [&core](ArithFlags f) { core.flags = f; });
}

// ---- lowering -----------------------------------------------------------------------------------

bool locked(const Lowering& l) { return (l.insn.attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0; }

template <Binary Op, class T, Source From>
Handler to_memory_handler(bool lock) {
  if constexpr (!writes_result(Op)) {
    return &compare_memory<Op, T, From>;
  } else {
    return lock ? &to_memory<Op, T, From, true> : &to_memory<Op, T, From, false>;
  }
}

template <Binary Op, class T>
Handler binary_handler(const Lowering& l) {
  const auto first = l.ops[0].type;
  const auto second = l.ops[1].type;
  const bool live = l.d.flags_live;
  if (first == ZYDIS_OPERAND_TYPE_MEMORY) {
    return second == ZYDIS_OPERAND_TYPE_REGISTER ? to_memory_handler<Op, T, Source::reg>(locked(l))
                                                 : to_memory_handler<Op, T, Source::imm>(locked(l));
  }
  if (second == ZYDIS_OPERAND_TYPE_MEMORY) {
    return live ? &from_memory<Op, T, true> : &from_memory<Op, T, false>;
  }
  if (second == ZYDIS_OPERAND_TYPE_REGISTER) {
    return live ? &to_register<Op, T, Source::reg, true> : &to_register<Op, T, Source::reg, false>;
  }
  return live ? &to_register<Op, T, Source::imm, true> : &to_register<Op, T, Source::imm, false>;
}

template <Binary Op>
bool lower_binary(Lowering& l) {
  Uop u = l.step(
      with_size(l.ops[0].size, [&l]<class T>() -> Handler { return binary_handler<Op, T>(l); }));
  if (l.ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER) {
    u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  }
  if (l.ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER) {
    u.src = Lowering::reg_offset(l.ops[1].reg.value);
  } else if (l.ops[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
    u.imm = l.ops[1].imm.value.u;
  }
  l.emit(u);
  return true;
}

template <Unary Op>
bool lower_unary(Lowering& l) {
  const bool reg = l.ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER;
  Uop u = l.step(with_size(l.ops[0].size, [&l, reg]<class T>() -> Handler {
    if (!reg) return locked(l) ? &unary_memory<Op, T, true> : &unary_memory<Op, T, false>;
    return l.d.flags_live ? &unary_register<Op, T, true> : &unary_register<Op, T, false>;
  }));
  if (reg) u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  l.emit(u);
  return true;
}

}  // namespace

bool lower_alu(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_ADD:
      return lower_binary<Binary::add>(l);
    case ZYDIS_MNEMONIC_OR:
      return lower_binary<Binary::or_>(l);
    case ZYDIS_MNEMONIC_ADC:
      return lower_binary<Binary::adc>(l);
    case ZYDIS_MNEMONIC_SBB:
      return lower_binary<Binary::sbb>(l);
    case ZYDIS_MNEMONIC_AND:
      return lower_binary<Binary::and_>(l);
    case ZYDIS_MNEMONIC_SUB:
      return lower_binary<Binary::sub>(l);
    case ZYDIS_MNEMONIC_XOR:
      return lower_binary<Binary::xor_>(l);
    case ZYDIS_MNEMONIC_CMP:
      return lower_binary<Binary::cmp>(l);
    case ZYDIS_MNEMONIC_TEST:
      return lower_binary<Binary::test>(l);
    case ZYDIS_MNEMONIC_INC:
      return lower_unary<Unary::inc>(l);
    case ZYDIS_MNEMONIC_DEC:
      return lower_unary<Unary::dec>(l);
    case ZYDIS_MNEMONIC_NEG:
      return lower_unary<Unary::neg>(l);
    case ZYDIS_MNEMONIC_NOT:
      return lower_unary<Unary::not_>(l);
    default:
      return false;
  }
}

}  // namespace strata::interp
