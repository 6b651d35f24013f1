// Shifts and rotates: group 2, SHLD, SHRD and the flagless forms of BMI2.
#include <type_traits>

#include "engines/interp/access.hpp"
#include "engines/interp/host_alu.hpp"
#include "engines/interp/integer.hpp"

namespace strata::interp {
namespace {

using host::Shift;

/// The count: an immediate (1 included) or CL.
enum class Count : std::uint8_t { imm, cl };

template <Count From>
[[gnu::always_inline]] inline std::uint8_t count_of(Core& core, const Uop* u) {
  return From == Count::cl ? core.reg<std::uint8_t>(cpu::RCX * 8)
                           : static_cast<std::uint8_t>(u->imm);
}

/// SHL, SHR, SAR without flags: the count is masked as the processor masks it (SDM 2B SAL).
template <Shift Op, class T>
[[gnu::always_inline]] inline T shifted(T x, std::uint8_t count) {
  constexpr unsigned kMask = sizeof(T) == 8 ? 63 : 31;
  const unsigned n = count & kMask;
  using Wide = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
  if constexpr (Op == Shift::shl || Op == Shift::sal) return static_cast<T>(Wide{x} << n);
  if constexpr (Op == Shift::shr) return static_cast<T>(Wide{x} >> n);
  using S = std::make_signed_t<T>;
  using SignedWide = std::make_signed_t<Wide>;
  return static_cast<T>(SignedWide{static_cast<S>(x)} >> n);
}

constexpr bool plain_shift(Shift op) {
  return op == Shift::shl || op == Shift::sal || op == Shift::shr || op == Shift::sar;
}

template <Shift Op, class T, Count From, bool Flags>
const Uop* shift_register(Core& core, const Uop* u) {
  T x = core.reg<T>(u->dst);
  const std::uint8_t count = count_of<From>(core, u);
  if constexpr (!Flags && plain_shift(Op)) {
    core.set_reg<T>(u->dst, shifted<Op>(x, count));
  } else {
    const ArithFlags f = host::shift<Op>(x, count, core.flags);
    core.set_reg<T>(u->dst, x);
    core.flags = f;
  }
  return next(core, u);
}

template <Shift Op, class T, Count From>
const Uop* shift_memory(Core& core, const Uop* u) {
  const std::uint8_t count = count_of<From>(core, u);
  const ArithFlags in = core.flags;
  return modify<T>(
      core, u, address_of(core, u),
      [count, in](void* p) {
        T x = get<T>(p);
        const ArithFlags f = host::shift<Op>(x, count, in);
        put(p, x);
        return f;
      },
      [&core](ArithFlags f) { core.flags = f; });
}

template <bool Left, class T, Count From>
const Uop* double_shift_register(Core& core, const Uop* u) {
  T x = core.reg<T>(u->dst);
  const ArithFlags f =
      host::double_shift<Left>(x, core.reg<T>(u->src), count_of<From>(core, u), core.flags);
  core.set_reg<T>(u->dst, x);
  core.flags = f;
  return next(core, u);
}

template <bool Left, class T, Count From>
const Uop* double_shift_memory(Core& core, const Uop* u) {
  const T y = core.reg<T>(u->src);
  const std::uint8_t count = count_of<From>(core, u);
  const ArithFlags in = core.flags;
  return modify<T>(
      core, u, address_of(core, u),
      [y, count, in](void* p) {
        T x = get<T>(p);
        const ArithFlags f = host::double_shift<Left>(x, y, count, in);
        put(p, x);
        return f;
      },
      [&core](ArithFlags f) { core.flags = f; });
}

/// SHLX, SHRX, SARX: count in register aux. RORX: count in imm. No flags.
template <Shift Op, class T, bool Memory>
const Uop* shift_flagless(Core& core, const Uop* u) {
  T x;
  if (!operand<T, Memory>(core, u, x)) return refuse(core, u);
  if constexpr (Op == Shift::ror) {
    constexpr unsigned kBits = sizeof(T) * 8;
    const unsigned n = u->imm & (kBits - 1);
    core.set_reg<T>(u->dst, static_cast<T>(x >> n | x << ((kBits - n) & (kBits - 1))));
  } else {
    core.set_reg<T>(u->dst, shifted<Op>(x, core.reg<std::uint8_t>(u->aux)));
  }
  return next(core, u);
}

// ---- lowering -----------------------------------------------------------------------------------

bool is_register(const ZydisDecodedOperand& op) { return op.type == ZYDIS_OPERAND_TYPE_REGISTER; }

template <Shift Op, class T, Count From>
Handler shift_handler(bool reg, bool flags) {
  if (!reg) return &shift_memory<Op, T, From>;
  return flags ? &shift_register<Op, T, From, true> : &shift_register<Op, T, From, false>;
}

template <Shift Op>
bool lower_shift(Lowering& l) {
  const bool reg = is_register(l.ops[0]);
  const bool by_cl = is_register(l.ops[1]);
  const bool flags = l.d.flags_live;
  Uop u = l.step(with_size(l.ops[0].size, [=]<class T>() -> Handler {
    return by_cl ? shift_handler<Op, T, Count::cl>(reg, flags)
                 : shift_handler<Op, T, Count::imm>(reg, flags);
  }));
  if (reg) u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  u.imm = by_cl ? 0 : l.ops[1].imm.value.u;
  l.emit(u);
  return true;
}

template <bool Left>
bool lower_double_shift(Lowering& l) {
  const bool reg = is_register(l.ops[0]);
  const bool by_cl = is_register(l.ops[2]);
  Uop u = l.step(with_wide_size(l.ops[0].size, [=]<class T>() -> Handler {
    if (by_cl) {
      return reg ? &double_shift_register<Left, T, Count::cl>
                 : &double_shift_memory<Left, T, Count::cl>;
    }
    return reg ? &double_shift_register<Left, T, Count::imm>
               : &double_shift_memory<Left, T, Count::imm>;
  }));
  if (reg) u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  u.src = Lowering::reg_offset(l.ops[1].reg.value);
  u.imm = by_cl ? 0 : l.ops[2].imm.value.u;
  l.emit(u);
  return true;
}

template <Shift Op>
bool lower_flagless(Lowering& l) {
  const bool reg = is_register(l.ops[1]);
  Uop u = l.step(with_vex_size(l.ops[0].size, [reg]<class T>() -> Handler {
    return reg ? &shift_flagless<Op, T, false> : &shift_flagless<Op, T, true>;
  }));
  u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  if (reg) u.src = Lowering::reg_offset(l.ops[1].reg.value);
  if (is_register(l.ops[2])) {
    u.aux = Lowering::reg_offset(l.ops[2].reg.value);
  } else {
    u.imm = l.ops[2].imm.value.u;
  }
  l.emit(u);
  return true;
}

}  // namespace

bool lower_shifts(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_ROL:
      return lower_shift<Shift::rol>(l);
    case ZYDIS_MNEMONIC_ROR:
      return lower_shift<Shift::ror>(l);
    case ZYDIS_MNEMONIC_RCL:
      return lower_shift<Shift::rcl>(l);
    case ZYDIS_MNEMONIC_RCR:
      return lower_shift<Shift::rcr>(l);
    case ZYDIS_MNEMONIC_SHL:
      return lower_shift<Shift::shl>(l);
    case ZYDIS_MNEMONIC_SHR:
      return lower_shift<Shift::shr>(l);
    case ZYDIS_MNEMONIC_SAR:
      return lower_shift<Shift::sar>(l);
    case ZYDIS_MNEMONIC_SHLD:
      return lower_double_shift<true>(l);
    case ZYDIS_MNEMONIC_SHRD:
      return lower_double_shift<false>(l);
    case ZYDIS_MNEMONIC_SHLX:
      return lower_flagless<Shift::shl>(l);
    case ZYDIS_MNEMONIC_SHRX:
      return lower_flagless<Shift::shr>(l);
    case ZYDIS_MNEMONIC_SARX:
      return lower_flagless<Shift::sar>(l);
    case ZYDIS_MNEMONIC_RORX:
      return lower_flagless<Shift::ror>(l);
    default:
      return false;
  }
}

}  // namespace strata::interp
