// x87 and MMX: what the manual says where QEMU 7.2 says something else.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "cpu/vcpu_state.hpp"
#include "x87_numbers.hpp"

namespace strata::differential {
namespace {

namespace rf = cpu::rflags;

bool is_x87(const DecodedCase& d) {
  return d.insn.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && d.insn.opcode >= 0xD8 &&
         d.insn.opcode <= 0xDF && d.insn.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY;
}

bool is_mmx(const ZydisDecodedOperand& o) {
  return o.type == ZYDIS_OPERAND_TYPE_REGISTER &&
         ZydisRegisterGetClass(o.reg.value) == ZYDIS_REGCLASS_MMX;
}

const ZydisDecodedOperand* begin(const DecodedCase& d) { return d.ops.data(); }
const ZydisDecodedOperand* end(const DecodedCase& d) { return d.ops.data() + d.insn.operand_count; }

bool touches_mmx(const DecodedCase& d) {
  return std::any_of(begin(d), end(d), is_mmx) || d.insn.mnemonic == ZYDIS_MNEMONIC_EMMS;
}

bool pushes(const DecodedCase& d) {
  switch (d.insn.mnemonic) {
    case ZYDIS_MNEMONIC_FLD:
    case ZYDIS_MNEMONIC_FILD:
    case ZYDIS_MNEMONIC_FBLD:
    case ZYDIS_MNEMONIC_FLD1:
    case ZYDIS_MNEMONIC_FLDZ:
    case ZYDIS_MNEMONIC_FLDPI:
    case ZYDIS_MNEMONIC_FLDL2E:
    case ZYDIS_MNEMONIC_FLDL2T:
    case ZYDIS_MNEMONIC_FLDLG2:
    case ZYDIS_MNEMONIC_FLDLN2:
    case ZYDIS_MNEMONIC_FPTAN:
    case ZYDIS_MNEMONIC_FSINCOS:
    case ZYDIS_MNEMONIC_FXTRACT:
      return true;
    default:
      return false;
  }
}

// ---- MMX ----------------------------------------------------------------------------------------

/// The x87 state as before, registers turned to a new TOP.
void keep_x87(const Registers& before, Registers& r, unsigned top) {
  std::memcpy(r.fx.data(), before.fx.data(), 5);
  set_fsw(r, (fsw_of(before) & ~unsigned{kTop}) | top << 11);
  for (unsigned i = 0; i < 8; ++i) set_st(r, i, st(before, (i + top - top_of(before)) & 7));
}

bool no_mmx_state(const QemuCase& q, Expected& e) {
  const bool converts = q.is({ZYDIS_MNEMONIC_CVTPI2PS, ZYDIS_MNEMONIC_CVTPI2PD});
  const bool faulted = q.guest_vector != cpu::BP;
  if (!(touches_mmx(q.d) && faulted) && !(converts && q.d.memory() != nullptr)) return false;
  keep_x87(q.c.before, e.result.after, top_of(q.c.before));
  return true;
}

bool empty_mmx_state(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_EMMS}) || q.guest_vector != cpu::BP) return false;
  keep_x87(q.c.before, e.result.after, 0);
  e.result.after.fx[4] = 0;
  return true;
}

bool mmx_exponents(const QemuCase& q, Expected& e) {
  if (!touches_mmx(q.d) || q.guest_vector != cpu::BP || q.is({ZYDIS_MNEMONIC_EMMS})) return false;
  Registers& after = e.result.after;
  for (unsigned i = 0; i < 8; ++i) {
    const std::uint16_t before = st(q.c.before, (i - top_of(q.c.before)) & 7).sign_exponent;
    set_st(after, i, {st(after, i).significand, before});
  }
  for (const ZydisDecodedOperand& o : q.d.ops) {
    if (!is_mmx(o) || (o.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) == 0) continue;
    const auto id = static_cast<unsigned>(ZydisRegisterGetId(o.reg.value) & 7);
    set_st(after, id, {st(after, id).significand, 0xFFFF});
  }
  return true;
}

// ---- x87 ----------------------------------------------------------------------------------------

bool undefined_codes(const QemuCase& q, Expected& e) {
  if (!is_x87(q.d) || q.d.insn.fpu_flags == nullptr) return false;
  const auto undefined = q.d.insn.fpu_flags->undefined;
  if ((undefined & ZYDIS_FPUFLAG_C0) != 0) e.omitted.fsw |= kC0;
  if ((undefined & ZYDIS_FPUFLAG_C2) != 0) e.omitted.fsw |= kC2;
  if ((undefined & ZYDIS_FPUFLAG_C3) != 0) e.omitted.fsw |= kC3;
  return undefined != 0;
}

bool compares_to_flags(const QemuCase& q) {
  return q.is(
      {ZYDIS_MNEMONIC_FCOMI, ZYDIS_MNEMONIC_FCOMIP, ZYDIS_MNEMONIC_FUCOMI, ZYDIS_MNEMONIC_FUCOMIP});
}

bool rounded_up(const QemuCase& q, Expected& e) {
  if (!is_x87(q.d) || q.guest_vector != cpu::BP || q.d.insn.fpu_flags == nullptr) return false;
  // FXAM and FPREM have a use of their own for it.
  if (q.is({ZYDIS_MNEMONIC_FXAM, ZYDIS_MNEMONIC_FPREM, ZYDIS_MNEMONIC_FPREM1})) return false;
  const bool control = q.is(
      {ZYDIS_MNEMONIC_FLDCW, ZYDIS_MNEMONIC_FNSTCW, ZYDIS_MNEMONIC_FNSTSW, ZYDIS_MNEMONIC_FNCLEX});
  if (control || q.name().starts_with("fcmov") || compares_to_flags(q)) {
    e.omitted.fsw |= kC1;
    return true;
  }
  const auto& flags = *q.d.insn.fpu_flags;
  if (((flags.modified | flags.set_0 | flags.undefined) & ZYDIS_FPUFLAG_C1) == 0) return false;
  const std::uint16_t fsw = fsw_of(e.result.after);
  set_fsw(e.result.after, fsw & ~unsigned{kC1});
  if ((fsw & kPrecision) != 0) e.omitted.fsw |= kC1;
  return true;
}

/// Operands of an arithmetic or comparing instruction; nothing for one that only moves.
std::vector<Extended> float_operands(const QemuCase& q) {
  std::vector<Extended> out;
  for (const ZydisDecodedOperand& o : std::span{begin(q.d), end(q.d)}) {
    if ((o.actions & ZYDIS_OPERAND_ACTION_MASK_READ) == 0) continue;
    if (o.type == ZYDIS_OPERAND_TYPE_REGISTER &&
        ZydisRegisterGetClass(o.reg.value) == ZYDIS_REGCLASS_X87) {
      out.push_back(st(q.c.before, static_cast<unsigned>(ZydisRegisterGetId(o.reg.value) & 7)));
    }
    const auto v = o.type == ZYDIS_OPERAND_TYPE_MEMORY ? q.in.value(o) : std::nullopt;
    if (!v) continue;
    // What matters of a double or single is its kind; an integer is never special.
    const bool wide = o.size == 64;
    const std::uint64_t bits = wide ? v->lane<std::uint64_t>(0) : v->lane<std::uint32_t>(0);
    const std::uint64_t fraction = bits & (wide ? 0xF'FFFF'FFFF'FFFFULL : 0x7F'FFFFULL);
    const std::uint64_t exponent = wide ? bits >> 52 & 0x7FF : bits >> 23 & 0xFF;
    const bool integer = o.element_type != ZYDIS_ELEMENT_TYPE_FLOAT32 &&
                         o.element_type != ZYDIS_ELEMENT_TYPE_FLOAT64;
    if (integer) {
      out.push_back({bits == 0 ? 0 : kIntegerBit, static_cast<std::uint16_t>(bits == 0 ? 0 : 1)});
    } else if (exponent == (wide ? 0x7FFU : 0xFFU)) {
      out.push_back({kIntegerBit | fraction, 0x7FFF});
    } else if (exponent == 0) {
      out.push_back({fraction, 0});
    } else {
      out.push_back({kIntegerBit | fraction, 1});
    }
  }
  return out;
}

/// FLD of 80 bits, stores, exchanges and changes of sign look at no number (SDM 1 8.5.2).
bool computes(const QemuCase& q) {
  if (!is_x87(q.d)) return false;
  const std::string_view n = q.name();
  for (const auto* move : {"fst", "fxch", "fcmov", "fabs", "fchs", "fxam", "ffree", "fld", "fild",
                           "fbld", "fbstp", "fist", "fincstp", "fdecstp", "fn"}) {
    if (n.starts_with(move)) return false;
  }
  return true;
}

bool denormal_operand(const QemuCase& q, Expected& e) {
  const ZydisDecodedOperand* m = q.d.memory();
  const bool load = q.is({ZYDIS_MNEMONIC_FLD}) && m != nullptr && m->size < 80;
  if ((!computes(q) && !load) || q.guest_vector != cpu::BP) return false;
  bool denormal = false;
  bool other = false;
  const auto operands = float_operands(q);
  for (const Extended& v : operands) {
    denormal = denormal || v.denormal();
    other = other || v.nan() || v.unsupported();
  }
  const std::uint16_t fsw = fsw_of(e.result.after);
  // Not beside another invalid operand or a division by zero (SDM 1 4.9.2).
  constexpr std::uint16_t kBefore = kInvalid | 4;
  const bool flagged = denormal && !other && (fsw & kBefore) == 0;
  set_fsw(e.result.after, (fsw & ~unsigned{kDenormal}) | (flagged ? kDenormal : 0));
  return true;
}

bool compare_flags(const QemuCase& q, Expected& e) {
  if (!compares_to_flags(q)) return false;
  e.result.after.rflags &= ~std::uint64_t{rf::OF | rf::SF | rf::AF};
  return true;
}

bool reserved_control(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_FLDCW}) || q.guest_vector != cpu::BP) return false;
  e.result.after.fx[0] = static_cast<std::uint8_t>((e.result.after.fx[0] & 0x3F) | 0x40);
  e.result.after.fx[1] &= 0x1F;
  // Flags that the new word unmasks set ES and B; QEMU never does.
  e.omitted.fsw |= 0x8080;
  return true;
}

bool out_of_range(const QemuCase& q, Expected& e) {
  long double x = 0;
  std::memcpy(&x, q.c.before.fx.data() + st_at(0), 10);
  const Extended v = st(q.c.before, 0);
  if (v.unsupported() || v.nan()) return false;
  const bool power = q.is({ZYDIS_MNEMONIC_F2XM1}) && std::abs(x) > 1;
  const bool logarithm = q.is({ZYDIS_MNEMONIC_FYL2XP1}) && std::abs(x) > 0.29L;
  if (!power && !logarithm) return false;
  e.omitted.st |= 1;
  e.omitted.fsw |= 0x3F | kC1;
  return true;
}

bool flags_of_fault(const QemuCase& q, Expected& e) {
  if (!is_x87(q.d) || q.guest_vector == cpu::BP) return false;
  set_fsw(e.result.after, fsw_of(q.c.before));
  return true;
}

/// The low three bits of the quotient that FPREM1 rounds to even and FPREM cuts; by long division
/// of the significands.
unsigned quotient(const Extended& x, const Extended& y, bool nearest) {
  const int shift = static_cast<int>(x.exponent()) - static_cast<int>(y.exponent());
  if (shift < -1) return 0;
  unsigned __int128 rest = x.significand;
  if (shift == -1) return nearest && rest > y.significand ? 1 : 0;
  unsigned bits = 0;
  for (int i = shift; i >= 0; --i) {
    const bool fits = rest >= y.significand;
    if (fits) rest -= y.significand;
    bits = bits << 1 | (fits ? 1U : 0U);
    if (i != 0) rest <<= 1;
  }
  const unsigned __int128 twice = rest * 2;
  const bool up = twice > y.significand || (twice == y.significand && (bits & 1) != 0);
  return (bits + (nearest && up ? 1U : 0U)) & 7;
}

bool remainder_codes(const QemuCase& q, Expected& e) {
  const bool nearest = q.is({ZYDIS_MNEMONIC_FPREM1});
  if (!nearest && !q.is({ZYDIS_MNEMONIC_FPREM})) return false;
  const Extended x = st(q.c.before, 0), y = st(q.c.before, 1);
  const bool plain = x.normal() && y.normal();
  const std::uint16_t fsw = fsw_of(e.result.after);
  if (!plain || (fsw & kC2) != 0) {
    e.omitted.fsw |= kC0 | kC1 | kC3;
    return true;
  }
  const unsigned bits = quotient(x, y, nearest);
  set_fsw(e.result.after, (fsw & ~unsigned{kC0 | kC1 | kC3}) | ((bits & 4) != 0 ? kC0 : 0U) |
                              ((bits & 2) != 0 ? kC3 : 0U) | ((bits & 1) != 0 ? kC1 : 0U));
  return true;
}

bool is_logarithm_or_angle(const QemuCase& q) {
  return q.is({ZYDIS_MNEMONIC_FYL2X, ZYDIS_MNEMONIC_FYL2XP1, ZYDIS_MNEMONIC_FPATAN});
}

bool unsupported_operand(const QemuCase& q, Expected& e) {
  const bool any = st(q.c.before, 0).unsupported() || st(q.c.before, 1).unsupported();
  if (!is_logarithm_or_angle(q) || !any) return false;
  set_st(e.result.after, 0, kIndefinite);
  set_fsw(e.result.after, fsw_of(e.result.after) | kInvalid);
  return true;
}

bool either_nan(const QemuCase& q, Expected& e) {
  constexpr std::uint64_t kQuiet = 1ULL << 62;
  const Extended a = st(q.c.before, 0), b = st(q.c.before, 1);
  const bool concerned = is_logarithm_or_angle(q) || q.is({ZYDIS_MNEMONIC_FSCALE});
  // Of equal significands the one with a plus sign is chosen, which QEMU knows.
  if (!concerned || !a.nan() || !b.nan() || a.significand == b.significand) return false;
  const bool first = (a.significand & kQuiet) != 0, second = (b.significand & kQuiet) != 0;
  const Extended chosen =
      first != second ? (first ? a : b) : (a.significand > b.significand ? a : b);
  set_st(e.result.after, 0, {chosen.significand | kQuiet, chosen.sign_exponent});
  return true;
}

/// log2 of a positive number, to the precision of a double: enough to tell by what power of two
/// another result is off.
long double rough_log2(const Extended& x) {
  long double v = 0;
  std::memcpy(&v, &x, 10);
  int exponent = 0;
  const long double fraction = std::frexp(v, &exponent);
  return exponent + std::log2(static_cast<double>(fraction));
}

bool denormal_factor(const QemuCase& q, Expected& e) {
  const Extended x = st(q.c.before, 0), y = st(q.c.before, 1), result = st(e.result.after, 0);
  if (!q.is({ZYDIS_MNEMONIC_FYL2X}) || !y.denormal() || x.negative() || x.unsupported() ||
      x.zero() || x.exponent() == 0x7FFF || !(result.normal() || result.denormal())) {
    return false;
  }
  long double factor = 0, product = 0;
  std::memcpy(&factor, &y, 10);
  std::memcpy(&product, &result, 10);
  const long double ratio = factor * rough_log2(x) / product;
  if (!(ratio > 0.4L && ratio < 0.6L)) return false;
  if (result.denormal()) {
    set_st(e.result.after, 0, {result.significand >> 1, result.sign_exponent});
    e.omitted.st_slack = 2 * std::numeric_limits<long double>::denorm_min();
    return true;
  }
  set_st(e.result.after, 0,
         {result.significand, static_cast<std::uint16_t>(result.sign_exponent - 1)});
  return true;
}

/// A signalling NaN in memory as 80 bits; nothing if there is none.
std::optional<std::uint64_t> signalling_memory(const QemuCase& q) {
  const ZydisDecodedOperand* m = q.d.memory();
  const auto v = m == nullptr ? std::nullopt : q.in.value(*m);
  if (!v || !computes(q)) return std::nullopt;
  if (m->element_type == ZYDIS_ELEMENT_TYPE_FLOAT64) {
    const auto bits = v->lane<std::uint64_t>(0);
    const bool nan = (bits >> 52 & 0x7FF) == 0x7FF && bits << 12 != 0 && (bits >> 51 & 1) == 0;
    return nan ? std::optional{kIntegerBit | bits << 11} : std::nullopt;
  }
  if (m->element_type != ZYDIS_ELEMENT_TYPE_FLOAT32) return std::nullopt;
  const auto bits = v->lane<std::uint32_t>(0);
  const bool nan = (bits >> 23 & 0xFF) == 0xFF && bits << 9 != 0 && (bits >> 22 & 1) == 0;
  return nan ? std::optional{kIntegerBit | std::uint64_t{bits} << 40} : std::nullopt;
}

bool two_nans(const QemuCase& q, Expected& e) {
  constexpr std::uint64_t kQuiet = 1ULL << 62;
  const auto memory = signalling_memory(q);
  const Extended x = st(q.c.before, 0);
  if (!memory || !x.nan() || q.guest_vector != cpu::BP || q.name().starts_with("fcom")) {
    return false;
  }
  const bool quiet = (x.significand & kQuiet) != 0;
  if (!quiet && x.significand <= *memory) return false;
  set_st(e.result.after, 0, {x.significand | kQuiet, x.sign_exponent});
  return true;
}

bool last_place(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_F2XM1, ZYDIS_MNEMONIC_FYL2X, ZYDIS_MNEMONIC_FYL2XP1,
             ZYDIS_MNEMONIC_FPATAN})) {
    return false;
  }
  e.omitted.st_error = -62;
  e.omitted.fsw |= kPrecision | kC1;
  return true;
}

constexpr std::array kX87 = {
    QemuDeviation{"MMX instructions that fault, CVTPI2PS and CVTPI2PD from memory",
                  "QEMU enters the MMX state before it knows; a fault changes nothing (SDM 3A 6.5) "
                  "and no MMX register is touched (SDM 2A CVTPI2PD)",
                  no_mmx_state},
    QemuDeviation{"EMMS", "QEMU keeps TOP, it becomes 0 (SDM 3A table 12-2)", empty_mmx_state},
    QemuDeviation{"MMX instructions",
                  "QEMU leaves exponents; the written register's becomes all ones (SDM 3A table "
                  "12-2), the others stay",
                  mmx_exponents},
    QemuDeviation{"those that leave C0, C2, C3 undefined", "SDM 2A, each instruction's page",
                  undefined_codes},
    QemuDeviation{"x87",
                  "QEMU leaves C1; it is 0 where the result is exact (SDM 1 8.1.3.2), and, not "
                  "compared, the direction of rounding where it is not; makers differ for FCOMI "
                  "and FCMOV, and control instructions leave it undefined",
                  rounded_up},
    QemuDeviation{"x87 arithmetic and comparisons",
                  "QEMU has no denormal-operand exception; from the operands (SDM 1 8.5.2)",
                  denormal_operand},
    QemuDeviation{"FCOMI, FCOMIP, FUCOMI, FUCOMIP",
                  "QEMU leaves OF, SF and AF, they become 0 (SDM 2A FCOMI)", compare_flags},
    QemuDeviation{"FLDCW", "QEMU keeps reserved bits, has no ES (SDM 1 8.1.5)", reserved_control},
    QemuDeviation{"x87 stores that fault",
                  "QEMU sets flags before; a fault leaves them (SDM 3A 6.5)", flags_of_fault},
    QemuDeviation{"FPREM, FPREM1",
                  "QEMU takes the bits of the wrong quotient for FPREM1, and sets some where there "
                  "is none; by division (SDM 2A FPREM1)",
                  remainder_codes},
    QemuDeviation{"FYL2X, FYL2XP1, FPATAN",
                  "QEMU computes with unsupported encodings, they are invalid (SDM 1 8.2.2)",
                  unsupported_operand},
    QemuDeviation{"FYL2X, FYL2XP1, FPATAN, FSCALE",
                  "of two NaNs the result is the quiet one, else the larger (SDM 1 table 4-7)",
                  either_nan},
    QemuDeviation{
        "FYL2X",
        "QEMU takes some denormal factors for twice as large (SDM 1 4.8.3.2: its exponent is "
        "that of the smallest normal number)",
        denormal_factor},
    QemuDeviation{"x87 arithmetic with a signalling NaN in memory and a NaN in ST0",
                  "QEMU makes the first quiet before it chooses; the result is a quiet one, or the "
                  "larger of two signalling ones (SDM 1 table 4-7)",
                  two_nans},
    QemuDeviation{"F2XM1, FYL2XP1", "undefined beyond their range (SDM 2A)", out_of_range},
    QemuDeviation{
        "F2XM1, FYL2X, FYL2XP1, FPATAN",
        "transcendental results are within a unit in the last place (SDM 1 8.3.10), so that PE "
        "and C1 do not tell whether the true one is exact",
        last_place},
};

}  // namespace

void fit_for_qemu(Case& c, const DecodedCase& d) {
  auto& fx = c.before.fx;
  fx[0] |= 0x3F;
  fx[24] |= 0x80;
  fx[25] |= 0x1F;
  if (!is_x87(d)) return;
  // No flags from before: what is set afterwards has been raised.
  fx[2] = 0;
  // All full, or room for what is pushed.
  fx[4] = 0xFF;
  if (pushes(d)) fx[4] = static_cast<std::uint8_t>(~(1U << ((top_of(c.before) - 1) & 7)));
  // QEMU lets precision control (SDM 1 8.1.5.2: add, subtract, multiply, divide, square root) cut
  // what it loads and whatever else it computes.
  const ZydisDecodedOperand* m = d.memory();
  const std::string_view n = ZydisMnemonicGetString(d.insn.mnemonic);
  bool controlled = m == nullptr || m->size <= 16 ||
                    (m->size == 32 && m->element_type == ZYDIS_ELEMENT_TYPE_FLOAT32);
  bool arithmetic = false;
  for (const auto* a :
       {"fadd", "fsub", "fmul", "fdiv", "fsqrt", "fiadd", "fisub", "fimul", "fidiv"}) {
    arithmetic = arithmetic || n.starts_with(a);
  }
  if (!controlled || !arithmetic) fx[1] |= 0x03;
}

std::span<const QemuDeviation> x87_deviations() { return kX87; }

}  // namespace strata::differential
