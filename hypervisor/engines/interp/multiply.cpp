// MUL, IMUL, DIV, IDIV, MULX. Flags that they leave undefined are what the host's instruction makes
// of the old ones, so the old ones go in (see host_alu.hpp).
#include <type_traits>

#include "engines/interp/access.hpp"
#include "engines/interp/integer.hpp"

namespace strata::interp {
namespace {

__extension__ using uint128 = unsigned __int128;

constexpr std::uint8_t kAx = cpu::RAX * 8;
constexpr std::uint8_t kDx = cpu::RDX * 8;

/// Register of the upper half of the double-width operand: AH for bytes, else DX.
template <class T>
constexpr std::uint8_t kHigh = sizeof(T) == 1 ? kAx + 1 : kDx;

enum class Wide : std::uint8_t { mul, imul, div, idiv };

/// Runs the one-operand instruction with `a` in RAX and `d` in RDX; lo and hi are what it leaves.
template <Wide Op, class T>
[[gnu::always_inline]] inline ArithFlags run_wide(std::uint64_t a, std::uint64_t d, T b, T& lo,
                                                  T& hi, ArithFlags in) noexcept {
  std::uint64_t f = in;
  if constexpr (Op == Wide::mul) {
    asm("add $127, %%al\n\tsahf\n\tmov %[a], %%rax\n\tmul %[b]\n\tmov %%rax, %[a]\n\tlahf\n\t"
        "seto %%al"
        : [a] "+&r"(a), "+&a"(f), "+&d"(d)
        : [b] "r"(b)
        : "cc");
  } else if constexpr (Op == Wide::imul) {
    asm("add $127, %%al\n\tsahf\n\tmov %[a], %%rax\n\timul %[b]\n\tmov %%rax, %[a]\n\tlahf\n\t"
        "seto %%al"
        : [a] "+&r"(a), "+&a"(f), "+&d"(d)
        : [b] "r"(b)
        : "cc");
  } else if constexpr (Op == Wide::div) {
    asm("add $127, %%al\n\tsahf\n\tmov %[a], %%rax\n\tdiv %[b]\n\tmov %%rax, %[a]\n\tlahf\n\t"
        "seto %%al"
        : [a] "+&r"(a), "+&a"(f), "+&d"(d)
        : [b] "r"(b)
        : "cc");
  } else {
    asm("add $127, %%al\n\tsahf\n\tmov %[a], %%rax\n\tidiv %[b]\n\tmov %%rax, %[a]\n\tlahf\n\t"
        "seto %%al"
        : [a] "+&r"(a), "+&a"(f), "+&d"(d)
        : [b] "r"(b)
        : "cc");
  }
  lo = static_cast<T>(a);
  hi = static_cast<T>(sizeof(T) == 1 ? a >> 8 : d);
  return static_cast<ArithFlags>(f);
}

/// The one-operand forms: hi:lo = lo * b.
template <bool Signed, class T>
[[gnu::always_inline]] inline ArithFlags multiply(T& lo, T& hi, T b, ArithFlags in) noexcept {
  return run_wide < Signed ? Wide::imul
                           : Wide::mul > (std::uint64_t{lo}, std::uint64_t{0}, b, lo, hi, in);
}

/// lo, hi = quotient and remainder of hi:lo / b, which is known not to raise #DE.
template <bool Signed, class T>
[[gnu::always_inline]] inline ArithFlags divide(T& lo, T& hi, T b, ArithFlags in) noexcept {
  // Bytes divide AX, the others RDX:RAX.
  const std::uint64_t a = sizeof(T) == 1 ? lo | std::uint64_t{hi} << 8 : std::uint64_t{lo};
  return run_wide < Signed ? Wide::idiv : Wide::div > (a, std::uint64_t{hi}, b, lo, hi, in);
}

/// Whether the quotient of a signed division fits (SDM 2A IDIV).
template <class T>
bool signed_quotient_fits(T lo, T hi, T b) noexcept {
  using S = std::make_signed_t<T>;
  constexpr unsigned kBits = sizeof(T) * 8;
  constexpr T kMin = static_cast<T>(T{1} << (kBits - 1));
  if (b == 0) return false;
  const T sign = static_cast<S>(lo) < 0 ? static_cast<T>(~T{0}) : T{0};
  if (hi == sign) return lo != kMin || b != static_cast<T>(~T{0});  // the usual: CQO first
  const bool negative = static_cast<S>(hi) < 0;
  uint128 n = static_cast<uint128>(hi) << kBits | lo;
  if (negative) n = (uint128{0} - n) & (~uint128{0} >> (128 - 2 * kBits));
  const bool negative_quotient = negative != (static_cast<S>(b) < 0);
  const T magnitude = static_cast<S>(b) < 0 ? static_cast<T>(0 - b) : b;
  const uint128 limit = negative_quotient ? uint128{kMin} : uint128{kMin} - 1;
  return n / magnitude <= limit;
}

template <bool Signed, class T>
bool divisible(T lo, T hi, T b) noexcept {
  if constexpr (Signed) return signed_quotient_fits(lo, hi, b);
  return hi < b;  // no divisor of zero passes either
}

template <bool Signed, class T, bool Memory>
const Uop* multiply_wide(Core& core, const Uop* u) {
  T b;
  if (!operand<T, Memory>(core, u, b)) return refuse(core, u);
  T lo = core.reg<T>(kAx);
  T hi = 0;
  const ArithFlags f = multiply<Signed>(lo, hi, b, core.flags);
  core.set_reg<T>(kAx, lo);
  core.set_reg<T>(kHigh<T>, hi);
  core.flags = f;
  return next(core, u);
}

template <bool Signed, class T, bool Memory>
const Uop* divide_wide(Core& core, const Uop* u) {
  T b;
  if (!operand<T, Memory>(core, u, b)) return refuse(core, u);
  T lo = core.reg<T>(kAx);
  T hi = core.reg<T>(kHigh<T>);
  if (!divisible<Signed>(lo, hi, b)) return core.fault(u, cpu::DE);
  const ArithFlags f = divide<Signed>(lo, hi, b, core.flags);
  core.set_reg<T>(kAx, lo);
  core.set_reg<T>(kHigh<T>, hi);
  core.flags = f;
  return next(core, u);
}

/// Two- and three-operand IMUL: dst = first * second.
enum class Form : std::uint8_t { two, three };

template <class T, bool Memory, Form F>
const Uop* multiply_truncated(Core& core, const Uop* u) {
  T b;
  if (!operand<T, Memory>(core, u, b)) return refuse(core, u);
  T a = F == Form::two ? core.reg<T>(u->dst) : static_cast<T>(u->imm);
  ArithFlags f = core.flags;
  asm("add $127, %%al\n\tsahf\n\timul %[b], %[a]\n\tlahf\n\tseto %%al"
      : [a] "+&r"(a), "+&a"(f)
      : [b] "r"(b)
      : "cc");
  core.set_reg<T>(u->dst, a);
  core.flags = f;
  return next(core, u);
}

/// MULX: dst (upper half), aux (lower half); the upper half wins if they are one register.
template <class T, bool Memory>
const Uop* mulx(Core& core, const Uop* u) {
  T b;
  if (!operand<T, Memory>(core, u, b)) return refuse(core, u);
  const uint128 product = static_cast<uint128>(core.reg<T>(kDx)) * b;
  core.set_reg<T>(u->aux, static_cast<T>(product));
  core.set_reg<T>(u->dst, static_cast<T>(product >> sizeof(T) * 8));
  return next(core, u);
}

// ---- lowering -----------------------------------------------------------------------------------

/// Fills src for a register; says whether the operand is in memory.
bool in_memory(const ZydisDecodedOperand& op) { return op.type == ZYDIS_OPERAND_TYPE_MEMORY; }

void fill_source(Uop& u, const ZydisDecodedOperand& op) {
  if (op.type == ZYDIS_OPERAND_TYPE_REGISTER) u.src = Lowering::reg_offset(op.reg.value);
}

template <bool Signed>
bool lower_mul(Lowering& l) {
  Uop u = l.step(with_size(l.ops[0].size, [m = in_memory(l.ops[0])]<class T>() -> Handler {
    return m ? &multiply_wide<Signed, T, true> : &multiply_wide<Signed, T, false>;
  }));
  fill_source(u, l.ops[0]);
  l.emit(u);
  return true;
}

template <bool Signed>
bool lower_div(Lowering& l) {
  Uop u = l.step(with_size(l.ops[0].size, [m = in_memory(l.ops[0])]<class T>() -> Handler {
    return m ? &divide_wide<Signed, T, true> : &divide_wide<Signed, T, false>;
  }));
  fill_source(u, l.ops[0]);
  l.emit(u);
  return true;
}

bool lower_imul(Lowering& l) {
  const unsigned visible = l.insn.operand_count_visible;
  if (visible == 1) return lower_mul<true>(l);
  Uop u = l.step(with_wide_size(
      l.ops[0].size, [m = in_memory(l.ops[1]), three = visible == 3]<class T>() -> Handler {
        if (three) {
          return m ? &multiply_truncated<T, true, Form::three>
                   : &multiply_truncated<T, false, Form::three>;
        }
        return m ? &multiply_truncated<T, true, Form::two>
                 : &multiply_truncated<T, false, Form::two>;
      }));
  u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  fill_source(u, l.ops[1]);
  if (visible == 3) u.imm = l.ops[2].imm.value.u;
  l.emit(u);
  return true;
}

bool lower_mulx(Lowering& l) {
  Uop u = l.step(with_vex_size(l.ops[0].size, [m = in_memory(l.ops[2])]<class T>() -> Handler {
    return m ? &mulx<T, true> : &mulx<T, false>;
  }));
  u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  u.aux = Lowering::reg_offset(l.ops[1].reg.value);
  fill_source(u, l.ops[2]);
  l.emit(u);
  return true;
}

}  // namespace

bool lower_multiply(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_MUL:
      return lower_mul<false>(l);
    case ZYDIS_MNEMONIC_IMUL:
      return lower_imul(l);
    case ZYDIS_MNEMONIC_DIV:
      return lower_div<false>(l);
    case ZYDIS_MNEMONIC_IDIV:
      return lower_div<true>(l);
    case ZYDIS_MNEMONIC_MULX:
      return lower_mulx(l);
    default:
      return false;
  }
}

}  // namespace strata::interp
