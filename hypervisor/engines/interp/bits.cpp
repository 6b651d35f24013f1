// Bit tests, bit scans, counts, BMI1, BMI2, CRC32, ADCX, ADOX. All by the host's instructions on
// top of the old flags, so that undefined ones and an unwritten destination are a processor's.
#include <cstdint>
#include <type_traits>

#include "engines/interp/access.hpp"
#include "engines/interp/host_alu.hpp"
#include "engines/interp/integer.hpp"

namespace strata::interp {
namespace {

// ---- BT, BTS, BTR, BTC --------------------------------------------------------------------------

enum class BitTest : std::uint8_t { test, set, reset, complement };

/// Bit `n` (taken modulo the width) of x. Byte-sized operands do not exist.
template <BitTest Op, class T>
[[gnu::always_inline]] inline ArithFlags bit_test(T& x, T n, ArithFlags in) noexcept {
  ArithFlags f = in;
  if constexpr (Op == BitTest::test) {
    asm("add $127, %%al\n\tsahf\n\tbt %[n], %[x]\n\tlahf\n\tseto %%al"
        : "+&a"(f)
        : [x] "r"(x), [n] "r"(n)
        : "cc");
  } else if constexpr (Op == BitTest::set) {
    asm("add $127, %%al\n\tsahf\n\tbts %[n], %[x]\n\tlahf\n\tseto %%al"
        : [x] "+&r"(x), "+&a"(f)
        : [n] "r"(n)
        : "cc");
  } else if constexpr (Op == BitTest::reset) {
    asm("add $127, %%al\n\tsahf\n\tbtr %[n], %[x]\n\tlahf\n\tseto %%al"
        : [x] "+&r"(x), "+&a"(f)
        : [n] "r"(n)
        : "cc");
  } else {
    asm("add $127, %%al\n\tsahf\n\tbtc %[n], %[x]\n\tlahf\n\tseto %%al"
        : [x] "+&r"(x), "+&a"(f)
        : [n] "r"(n)
        : "cc");
  }
  return f;
}

/// The same on memory, atomically: by compare-and-exchange.
template <BitTest Op, class T>
ArithFlags locked_bit_test(void* p, T n, ArithFlags in) noexcept {
  T old = get<T>(p);
  for (;;) {
    T changed = old;
    const ArithFlags f = bit_test<Op>(changed, n, in);
    if ((host::locked_exchange_if<T>(p, old, changed) & kFlagZF) != 0) return f;
  }
}

/// Bit number: a register, or an immediate.
enum class Number : std::uint8_t { reg, imm };

template <class T, Number From>
[[gnu::always_inline]] inline T number_of(Core& core, const Uop* u) {
  return From == Number::reg ? core.reg<T>(u->src) : static_cast<T>(u->imm);
}

/// A register bit number reaches beyond the operand in memory: it is signed, and its part above the
/// width moves the address (SDM 2A BT; SDM 1 figure 3-2 in 2A 3.1.1.9).
template <class T, Number From>
[[gnu::always_inline]] inline std::uint64_t bit_address(Core& core, const Uop* u, T n) {
  if constexpr (From == Number::imm) return address_of(core, u);
  constexpr unsigned kShift = sizeof(T) == 2 ? 4 : sizeof(T) == 4 ? 5 : 6;
  const std::int64_t element = static_cast<std::make_signed_t<T>>(n) >> kShift;
  std::uint64_t offset = core.offset_of(u) + static_cast<std::uint64_t>(element) * sizeof(T);
  const unsigned form = u->address_form & 0x7FU;
  if (form == 2) offset = static_cast<std::uint32_t>(offset);
  if (form == 3) offset = static_cast<std::uint16_t>(offset);
  return core.linear(u, offset);
}

template <BitTest Op, class T, Number From>
const Uop* bit_register(Core& core, const Uop* u) {
  T x = core.reg<T>(u->dst);
  const ArithFlags f = bit_test<Op>(x, number_of<T, From>(core, u), core.flags);
  if constexpr (Op != BitTest::test) core.set_reg<T>(u->dst, x);
  core.flags = f;
  return next(core, u);
}

template <BitTest Op, class T, Number From, bool Lock>
const Uop* bit_memory(Core& core, const Uop* u) {
  const T n = number_of<T, From>(core, u);
  const std::uint64_t va = bit_address<T, From>(core, u, n);
  const ArithFlags in = core.flags;
  if constexpr (Op == BitTest::test) {
    T x;
    if (!load_value(core, va, x)) return refuse(core, u);
    core.flags = bit_test<Op>(x, n, in);
    return next(core, u);
  } else {
    return modify_as<T, Lock>(
        core, u, va,
        [n, in](void* p) {
          if constexpr (Lock) return locked_bit_test<Op, T>(p, n, in);
          T x = get<T>(p);
          const ArithFlags f = bit_test<Op>(x, n, in);
          put(p, x);
          return f;
        },
        [&core](ArithFlags f) { core.flags = f; });
  }
}

template <BitTest Op, class T, Number From>
Handler bit_handler(bool reg, bool lock) {
  if (reg) return &bit_register<Op, T, From>;
  return lock ? &bit_memory<Op, T, From, true> : &bit_memory<Op, T, From, false>;
}

// ---- one source, one destination ----------------------------------------------------------------

enum class Scan : std::uint8_t { bsf, bsr, tzcnt, lzcnt, popcnt, blsi, blsmsk, blsr };

/// d = op s.
template <Scan Op, class T>
[[gnu::always_inline]] inline ArithFlags scan(T& d, T s, ArithFlags in) noexcept {
  ArithFlags f = in;
  if constexpr (Op == Scan::bsf) {
    asm("add $127, %%al\n\tsahf\n\tbsf %[s], %[d]\n\tlahf\n\tseto %%al"
        : [d] "+&r"(d), "+&a"(f)
        : [s] "r"(s)
        : "cc");
  } else if constexpr (Op == Scan::bsr) {
    asm("add $127, %%al\n\tsahf\n\tbsr %[s], %[d]\n\tlahf\n\tseto %%al"
        : [d] "+&r"(d), "+&a"(f)
        : [s] "r"(s)
        : "cc");
  } else if constexpr (Op == Scan::tzcnt) {
    asm("add $127, %%al\n\tsahf\n\ttzcnt %[s], %[d]\n\tlahf\n\tseto %%al"
        : [d] "+&r"(d), "+&a"(f)
        : [s] "r"(s)
        : "cc");
  } else if constexpr (Op == Scan::lzcnt) {
    asm("add $127, %%al\n\tsahf\n\tlzcnt %[s], %[d]\n\tlahf\n\tseto %%al"
        : [d] "+&r"(d), "+&a"(f)
        : [s] "r"(s)
        : "cc");
  } else if constexpr (Op == Scan::popcnt) {
    asm("add $127, %%al\n\tsahf\n\tpopcnt %[s], %[d]\n\tlahf\n\tseto %%al"
        : [d] "+&r"(d), "+&a"(f)
        : [s] "r"(s)
        : "cc");
  } else if constexpr (Op == Scan::blsi) {
    asm("add $127, %%al\n\tsahf\n\tblsi %[s], %[d]\n\tlahf\n\tseto %%al"
        : [d] "+&r"(d), "+&a"(f)
        : [s] "r"(s)
        : "cc");
  } else if constexpr (Op == Scan::blsmsk) {
    asm("add $127, %%al\n\tsahf\n\tblsmsk %[s], %[d]\n\tlahf\n\tseto %%al"
        : [d] "+&r"(d), "+&a"(f)
        : [s] "r"(s)
        : "cc");
  } else {
    static_assert(Op == Scan::blsr);
    asm("add $127, %%al\n\tsahf\n\tblsr %[s], %[d]\n\tlahf\n\tseto %%al"
        : [d] "+&r"(d), "+&a"(f)
        : [s] "r"(s)
        : "cc");
  }
  return f;
}

template <Scan Op, class T, bool Memory>
const Uop* scan_to_register(Core& core, const Uop* u) {
  T s;
  if (!operand<T, Memory>(core, u, s)) return refuse(core, u);
  T d = core.reg<T>(u->dst);
  core.flags = scan<Op>(d, s, core.flags);
  // BSF and BSR of zero leave the whole register (APM 3 BSF; SDM 2A BSF, note).
  constexpr bool kKeepsOnZero = Op == Scan::bsf || Op == Scan::bsr;
  if (!kKeepsOnZero || s != 0) core.set_reg<T>(u->dst, d);
  return next(core, u);
}

// ---- two sources, one destination ---------------------------------------------------------------

/// d = op(a, b); b is what AT&T syntax names first.
enum class Vex : std::uint8_t { andn, bextr, bzhi, pdep, pext };

template <Vex Op, class T>
[[gnu::always_inline]] inline ArithFlags vex(T& d, T a, T b, ArithFlags in) noexcept {
  ArithFlags f = in;
  if constexpr (Op == Vex::andn) {
    asm("add $127, %%al\n\tsahf\n\tandn %[b], %[a], %[d]\n\tlahf\n\tseto %%al"
        : [d] "=&r"(d), "+&a"(f)
        : [a] "r"(a), [b] "r"(b)
        : "cc");
  } else if constexpr (Op == Vex::bextr) {
    asm("add $127, %%al\n\tsahf\n\tbextr %[b], %[a], %[d]\n\tlahf\n\tseto %%al"
        : [d] "=&r"(d), "+&a"(f)
        : [a] "r"(a), [b] "r"(b)
        : "cc");
  } else if constexpr (Op == Vex::bzhi) {
    asm("add $127, %%al\n\tsahf\n\tbzhi %[b], %[a], %[d]\n\tlahf\n\tseto %%al"
        : [d] "=&r"(d), "+&a"(f)
        : [a] "r"(a), [b] "r"(b)
        : "cc");
  } else if constexpr (Op == Vex::pdep) {
    asm("add $127, %%al\n\tsahf\n\tpdep %[b], %[a], %[d]\n\tlahf\n\tseto %%al"
        : [d] "=&r"(d), "+&a"(f)
        : [a] "r"(a), [b] "r"(b)
        : "cc");
  } else {
    static_assert(Op == Vex::pext);
    asm("add $127, %%al\n\tsahf\n\tpext %[b], %[a], %[d]\n\tlahf\n\tseto %%al"
        : [d] "=&r"(d), "+&a"(f)
        : [a] "r"(a), [b] "r"(b)
        : "cc");
  }
  return f;
}

/// Of the two sources ANDN, PDEP and PEXT have the second in r/m, BEXTR and BZHI the first; aux is
/// the other one.
constexpr bool second_in_rm(Vex op) {
  return op == Vex::andn || op == Vex::pdep || op == Vex::pext;
}

template <Vex Op, class T, bool Memory>
const Uop* vex_to_register(Core& core, const Uop* u) {
  T rm;
  if (!operand<T, Memory>(core, u, rm)) return refuse(core, u);
  const T other = core.reg<T>(u->aux);
  T d;
  core.flags =
      second_in_rm(Op) ? vex<Op>(d, other, rm, core.flags) : vex<Op>(d, rm, other, core.flags);
  core.set_reg<T>(u->dst, d);
  return next(core, u);
}

// ---- ADCX, ADOX, CRC32 --------------------------------------------------------------------------

/// ADCX (CF in and out) and ADOX (OF in and out).
template <bool Overflow, class T, bool Memory>
const Uop* add_one_flag(Core& core, const Uop* u) {
  T b;
  if (!operand<T, Memory>(core, u, b)) return refuse(core, u);
  T a = core.reg<T>(u->dst);
  ArithFlags f = core.flags;
  if constexpr (Overflow) {
    asm("add $127, %%al\n\tsahf\n\tadox %[b], %[a]\n\tlahf\n\tseto %%al"
        : [a] "+&r"(a), "+&a"(f)
        : [b] "r"(b)
        : "cc");
  } else {
    asm("add $127, %%al\n\tsahf\n\tadcx %[b], %[a]\n\tlahf\n\tseto %%al"
        : [a] "+&r"(a), "+&a"(f)
        : [b] "r"(b)
        : "cc");
  }
  core.set_reg<T>(u->dst, a);
  core.flags = f;
  return next(core, u);
}

/// CRC32: the upper half of a 64-bit destination is cleared (SDM 2A CRC32).
template <class T, bool Memory>
const Uop* crc32(Core& core, const Uop* u) {
  T b;
  if (!operand<T, Memory>(core, u, b)) return refuse(core, u);
  auto crc = core.reg<std::uint32_t>(u->dst);
  if constexpr (sizeof(T) == 8) {
    std::uint64_t wide = crc;
    asm("crc32q %[b], %[c]" : [c] "+r"(wide) : [b] "r"(b));
    crc = static_cast<std::uint32_t>(wide);
  } else if constexpr (sizeof(T) == 4) {
    asm("crc32l %[b], %[c]" : [c] "+r"(crc) : [b] "r"(b));
  } else if constexpr (sizeof(T) == 2) {
    asm("crc32w %[b], %[c]" : [c] "+r"(crc) : [b] "r"(b));
  } else {
    asm("crc32b %[b], %[c]" : [c] "+r"(crc) : [b] "r"(b));
  }
  core.set_reg<std::uint32_t>(u->dst, crc);
  return next(core, u);
}

// ---- lowering -----------------------------------------------------------------------------------

bool is_register(const ZydisDecodedOperand& op) { return op.type == ZYDIS_OPERAND_TYPE_REGISTER; }

/// dst = op(first operand), src = the other if it is a register.
bool emit_two(Lowering& l, Handler fn) {
  Uop u = l.step(fn);
  if (is_register(l.ops[0])) u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  if (is_register(l.ops[1])) u.src = Lowering::reg_offset(l.ops[1].reg.value);
  if (l.ops[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) u.imm = l.ops[1].imm.value.u;
  l.emit(u);
  return true;
}

template <BitTest Op>
bool lower_bit_test(Lowering& l) {
  const bool reg = is_register(l.ops[0]);
  const bool by_reg = is_register(l.ops[1]);
  const bool lock = (l.insn.attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0;
  return emit_two(l, with_wide_size(l.ops[0].size, [=]<class T>() -> Handler {
                    return by_reg ? bit_handler<Op, T, Number::reg>(reg, lock)
                                  : bit_handler<Op, T, Number::imm>(reg, lock);
                  }));
}

template <Scan Op>
bool lower_scan(Lowering& l) {
  const bool reg = is_register(l.ops[1]);
  const auto pick = [reg]<class T>() -> Handler {
    return reg ? &scan_to_register<Op, T, false> : &scan_to_register<Op, T, true>;
  };
  // The BMI1 instructions have no 16-bit form.
  if constexpr (Op == Scan::blsi || Op == Scan::blsmsk || Op == Scan::blsr) {
    return emit_two(l, with_vex_size(l.ops[0].size, pick));
  } else {
    return emit_two(l, with_wide_size(l.ops[0].size, pick));
  }
}

template <Vex Op>
bool lower_vex(Lowering& l) {
  const ZydisDecodedOperand& rm = l.ops[second_in_rm(Op) ? 2 : 1];
  const ZydisDecodedOperand& other = l.ops[second_in_rm(Op) ? 1 : 2];
  Uop u = l.step(with_vex_size(l.ops[0].size, [&rm]<class T>() -> Handler {
    return is_register(rm) ? &vex_to_register<Op, T, false> : &vex_to_register<Op, T, true>;
  }));
  u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  if (is_register(rm)) u.src = Lowering::reg_offset(rm.reg.value);
  u.aux = Lowering::reg_offset(other.reg.value);
  l.emit(u);
  return true;
}

template <bool Overflow>
bool lower_add_one_flag(Lowering& l) {
  const bool reg = is_register(l.ops[1]);
  return emit_two(l, with_vex_size(l.ops[0].size, [reg]<class T>() -> Handler {
                    return reg ? &add_one_flag<Overflow, T, false>
                               : &add_one_flag<Overflow, T, true>;
                  }));
}

bool lower_crc32(Lowering& l) {
  const bool reg = is_register(l.ops[1]);
  return emit_two(l, with_size(l.ops[1].size, [reg]<class T>() -> Handler {
                    return reg ? &crc32<T, false> : &crc32<T, true>;
                  }));
}

}  // namespace

bool lower_bits(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_BT:
      return lower_bit_test<BitTest::test>(l);
    case ZYDIS_MNEMONIC_BTS:
      return lower_bit_test<BitTest::set>(l);
    case ZYDIS_MNEMONIC_BTR:
      return lower_bit_test<BitTest::reset>(l);
    case ZYDIS_MNEMONIC_BTC:
      return lower_bit_test<BitTest::complement>(l);
    case ZYDIS_MNEMONIC_BSF:
      return lower_scan<Scan::bsf>(l);
    case ZYDIS_MNEMONIC_BSR:
      return lower_scan<Scan::bsr>(l);
    case ZYDIS_MNEMONIC_TZCNT:
      return lower_scan<Scan::tzcnt>(l);
    case ZYDIS_MNEMONIC_LZCNT:
      return lower_scan<Scan::lzcnt>(l);
    case ZYDIS_MNEMONIC_POPCNT:
      return lower_scan<Scan::popcnt>(l);
    case ZYDIS_MNEMONIC_BLSI:
      return lower_scan<Scan::blsi>(l);
    case ZYDIS_MNEMONIC_BLSMSK:
      return lower_scan<Scan::blsmsk>(l);
    case ZYDIS_MNEMONIC_BLSR:
      return lower_scan<Scan::blsr>(l);
    case ZYDIS_MNEMONIC_ANDN:
      return lower_vex<Vex::andn>(l);
    case ZYDIS_MNEMONIC_BEXTR:
      return lower_vex<Vex::bextr>(l);
    case ZYDIS_MNEMONIC_BZHI:
      return lower_vex<Vex::bzhi>(l);
    case ZYDIS_MNEMONIC_PDEP:
      return lower_vex<Vex::pdep>(l);
    case ZYDIS_MNEMONIC_PEXT:
      return lower_vex<Vex::pext>(l);
    case ZYDIS_MNEMONIC_ADCX:
      return lower_add_one_flag<false>(l);
    case ZYDIS_MNEMONIC_ADOX:
      return lower_add_one_flag<true>(l);
    case ZYDIS_MNEMONIC_CRC32:
      return lower_crc32(l);
    default:
      return false;
  }
}

}  // namespace strata::interp
