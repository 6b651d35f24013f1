// SSE and AVX: what the manual says where QEMU 7.2 says something else.
#include <bit>
#include <cmath>
#include <cstring>

#include "cpu/vcpu_state.hpp"
#include "qemu_deviations.hpp"

namespace strata::differential {
namespace {

constexpr std::uint32_t kDenormal = 2, kDaz = 0x40;
constexpr std::uint8_t kNone = 0xFF;

/// A floating-point operation on lanes, as far as its operands go.
struct FloatOperation {
  enum class Kind : std::uint8_t { other, binary, pairs, unary, fused, compare } kind{};
  unsigned width = 32;  ///< of a lane
  unsigned lanes = 1;
  bool divides = false;
};

bool starts(std::string_view s, std::string_view with) { return s.starts_with(with); }

FloatOperation::Kind kind_of(std::string_view name) {
  using enum FloatOperation::Kind;
  for (const auto* n : {"add", "sub", "mul", "div"}) {
    if (starts(name, n) && name.size() <= 8)
      return name.size() == 5 || starts(name, "addsub") ? binary : other;
  }
  for (const auto* n : {"hadd", "hsub"}) {
    if (starts(name, n)) return pairs;
  }
  for (const auto* n : {"min", "max", "cmp", "comis", "ucomis"}) {
    if (starts(name, n)) return compare;
  }
  for (const auto* n : {"sqrt", "cvtps2pd", "cvtpd2ps", "cvtss2sd", "cvtsd2ss", "cvtps2ph"}) {
    if (starts(name, n)) return unary;
  }
  for (const auto* n : {"fmadd", "fmsub", "fnmadd", "fnmsub"}) {
    if (starts(name, n)) return fused;
  }
  return other;
}

FloatOperation operation_of(const QemuCase& q) {
  std::string_view name = q.name();
  if (q.d.cls != isa::OpcodeClass::vector) return {};
  if (name.front() == 'v') name.remove_prefix(1);
  FloatOperation out;
  out.kind = kind_of(name);
  if (out.kind == FloatOperation::Kind::other) return out;
  const bool convert = starts(name, "cvt");
  const std::string_view type = convert ? name.substr(3, 2) : name.substr(name.size() - 2);
  out.width = type.back() == 'd' ? 64 : 32;
  const bool scalar = type.front() == 's';
  const unsigned bits = q.vex() && q.d.insn.raw.vex.L != 0 ? 256 : 128;
  out.lanes = scalar ? 1 : bits / out.width;
  if (name == "cvtps2pd") out.lanes = bits / 64;
  out.divides = starts(name, "div");
  return out;
}

/// Lanes as numbers of either width.
struct Number {
  std::uint64_t bits;
  unsigned width;
  [[nodiscard]] std::uint64_t fraction() const {
    return bits & (width == 64 ? 0xF'FFFF'FFFF'FFFFULL : 0x7F'FFFFULL);
  }
  [[nodiscard]] std::uint64_t exponent() const {
    return width == 64 ? bits >> 52 & 0x7FF : bits >> 23 & 0xFF;
  }
  [[nodiscard]] bool negative() const { return (bits >> (width - 1) & 1) != 0; }
  [[nodiscard]] bool highest() const { return exponent() == (width == 64 ? 0x7FFU : 0xFFU); }
  [[nodiscard]] bool nan() const { return highest() && fraction() != 0; }
  [[nodiscard]] bool infinite() const { return highest() && fraction() == 0; }
  [[nodiscard]] bool zero() const { return exponent() == 0 && fraction() == 0; }
  [[nodiscard]] bool denormal() const { return exponent() == 0 && fraction() != 0; }
  [[nodiscard]] std::uint64_t quiet() const {
    return bits | (width == 64 ? 1ULL << 51 : 1ULL << 22);
  }
};

Number lane(const OperandBytes& o, unsigned i, unsigned width) {
  return {width == 64 ? o.lane<std::uint64_t>(i) : o.lane<std::uint32_t>(i), width};
}

/// The operands in the order of the manual's NaN rules: one for unary operations, two or three.
std::vector<OperandBytes> float_sources(const QemuCase& q, const FloatOperation& f) {
  std::vector<OperandBytes> all = q.in.sources();
  const std::size_t wanted = f.kind == FloatOperation::Kind::unary   ? 1
                             : f.kind == FloatOperation::Kind::fused ? 3
                                                                     : 2;
  if (all.size() < wanted) return {};
  all.erase(all.begin(), all.end() - static_cast<std::ptrdiff_t>(wanted));
  return all;
}

/// The numbers that meet in lane `i` of the result.
std::vector<Number> inputs_of_lane(const FloatOperation& f, const std::vector<OperandBytes>& from,
                                   unsigned i) {
  std::vector<Number> out;
  out.reserve(from.size());
  if (f.kind == FloatOperation::Kind::pairs) {
    // Each 128-bit lane: pairs of the first source below, of the second above.
    const unsigned half = 64 / f.width, per = 2 * half, base = i / per * per, k = i % per;
    const OperandBytes& o = from[k < half ? 0 : 1];
    const unsigned first = base + k % half * 2;
    return {lane(o, first, f.width), lane(o, first + 1, f.width)};
  }
  for (const OperandBytes& o : from) out.push_back(lane(o, i, f.width));
  return out;
}

/// Whether a lane raises the denormal-operand exception: with a denormal, and nothing that takes
/// precedence (SDM 1 4.9.2): a NaN, another invalid operation, a division by zero.
bool denormal_operand(const FloatOperation& f, const std::vector<Number>& in, Number result) {
  bool denormal = false;
  for (const Number& n : in) {
    if (n.nan()) return false;
    denormal = denormal || n.denormal();
  }
  const bool invalid = f.kind != FloatOperation::Kind::compare && result.nan();
  return denormal && !invalid && !(f.divides && in[1].zero());
}

std::uint8_t vector_destination(const QemuCase& q) {
  const ZydisDecodedOperand& o = q.d.ops[0];
  if (o.type != ZYDIS_OPERAND_TYPE_REGISTER) return kNone;
  const ZydisRegisterClass c = ZydisRegisterGetClass(o.reg.value);
  if (c != ZYDIS_REGCLASS_XMM && c != ZYDIS_REGCLASS_YMM) return kNone;
  if ((o.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) == 0) return kNone;
  return static_cast<std::uint8_t>(ZydisRegisterGetId(o.reg.value));
}

bool denormal_flag(const QemuCase& q, Expected& e) {
  const FloatOperation f = operation_of(q);
  if (f.kind == FloatOperation::Kind::other || q.guest_vector != cpu::BP) return false;
  const auto from = float_sources(q, f);
  if (from.empty()) return false;
  std::uint32_t raised = 0;
  OperandBytes results;
  // Conversions have lanes of other widths, and nothing invalid without a NaN.
  const std::uint8_t reg =
      q.name().find("cvt") == std::string_view::npos ? vector_destination(q) : kNone;
  if (reg != kNone) std::memcpy(results.bytes.data(), e.result.after.ymm[reg].data(), 32);
  if ((q.mxcsr() & kDaz) == 0) {
    for (unsigned i = 0; i < f.lanes; ++i) {
      const Number result = lane(results, i, f.width);
      if (denormal_operand(f, inputs_of_lane(f, from, i), result)) raised = kDenormal;
    }
  }
  std::uint32_t after = 0;
  std::memcpy(&after, e.result.after.fx.data() + 24, 4);
  after = (after & ~kDenormal) | (q.mxcsr() & kDenormal) | raised;
  std::memcpy(e.result.after.fx.data() + 24, &after, 4);
  return true;
}

void set_lane(Expected& e, unsigned reg, unsigned i, Number n) {
  auto* at = reinterpret_cast<std::uint8_t*>(e.result.after.ymm[reg].data()) + i * n.width / 8;
  std::memcpy(at, &n.bits, n.width / 8);
}

bool two_nans(const QemuCase& q, Expected& e) {
  const FloatOperation f = operation_of(q);
  const bool two = f.kind == FloatOperation::Kind::binary || f.kind == FloatOperation::Kind::pairs;
  if (!two || q.guest_vector != cpu::BP) return false;
  const auto from = float_sources(q, f);
  if (from.empty()) return false;
  bool any = false;
  for (unsigned i = 0; i < f.lanes; ++i) {
    const auto in = inputs_of_lane(f, from, i);
    if (!in[0].nan() || !in[1].nan()) continue;
    set_lane(e, vector_destination(q), i, {in[0].quiet(), f.width});
    any = true;
  }
  return any;
}

bool upper_half(const QemuCase& q, Expected& e) {
  const std::uint8_t reg = vector_destination(q);
  if (!q.vex() || reg == kNone || q.guest_vector != cpu::BP || e.result.vector != cpu::BP ||
      ZydisRegisterGetClass(q.d.ops[0].reg.value) != ZYDIS_REGCLASS_XMM) {
    return false;
  }
  e.result.after.ymm[reg][2] = e.result.after.ymm[reg][3] = 0;
  return true;
}

bool denormals_are_zeros(const QemuCase& q, Expected& e) {
  const FloatOperation f = operation_of(q);
  const bool extremum = q.name().find("min") != std::string_view::npos ||
                        q.name().find("max") != std::string_view::npos;
  if (f.kind != FloatOperation::Kind::compare || !extremum || (q.mxcsr() & kDaz) == 0 ||
      q.guest_vector != cpu::BP) {
    return false;
  }
  const std::uint8_t reg = vector_destination(q);
  OperandBytes now;
  std::memcpy(now.bytes.data(), e.result.after.ymm[reg].data(), 32);
  for (unsigned i = 0; i < f.lanes; ++i) {
    Number n = lane(now, i, f.width);
    if (n.denormal()) set_lane(e, reg, i, {n.negative() ? 1ULL << (f.width - 1) : 0, f.width});
  }
  return true;
}

/// What RCP and RSQRT make of a denormal, and of a result that would be one: infinity and zero.
void flush_approximation(const QemuCase& q, Expected& e) {
  const auto from = q.in.sources();
  if (from.empty() || q.guest_vector != cpu::BP) return;
  const bool scalar = q.name().ends_with("ss");
  const unsigned lanes = scalar ? 1 : q.vex() && q.d.insn.raw.vex.L != 0 ? 8 : 4;
  const std::uint8_t reg = vector_destination(q);
  OperandBytes now;
  std::memcpy(now.bytes.data(), e.result.after.ymm[reg].data(), 32);
  for (unsigned i = 0; i < lanes; ++i) {
    const Number x = lane(from.back(), i, 32), y = lane(now, i, 32);
    const std::uint64_t sign = x.negative() ? 1ULL << 31 : 0;
    if (x.denormal()) set_lane(e, reg, i, {sign | 0x7F800000, 32});
    if (y.denormal()) set_lane(e, reg, i, {sign, 32});
  }
}

bool flushed_too_soon(const QemuCase& q, Expected& e) {
  constexpr std::uint32_t kFtz = 0x8000;
  const FloatOperation f = operation_of(q);
  if (f.kind == FloatOperation::Kind::other || (q.mxcsr() & kFtz) == 0) return false;
  e.omitted.flushed = q.name().starts_with("cvtpd2ps") || q.name().starts_with("vcvtpd2ps") ||
                              q.name().find("sd2ss") != std::string_view::npos
                          ? 32
                          : f.width;
  return true;
}

bool approximation(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_RCPPS, ZYDIS_MNEMONIC_RCPSS, ZYDIS_MNEMONIC_RSQRTPS,
             ZYDIS_MNEMONIC_RSQRTSS, ZYDIS_MNEMONIC_VRCPPS, ZYDIS_MNEMONIC_VRCPSS,
             ZYDIS_MNEMONIC_VRSQRTPS, ZYDIS_MNEMONIC_VRSQRTSS})) {
    return false;
  }
  flush_approximation(q, e);
  e.omitted.ymm_error = -11;  // 1.5 * 2^-12 is the manual's bound
  return true;
}

bool dot_product(const QemuCase& q, Expected& e) {
  if (q.name().find("dpp") == std::string_view::npos || q.guest_vector != cpu::BP) return false;
  e.omitted.mxcsr |= kDenormal;
  const unsigned width = q.name().back() == 'd' ? 64 : 32;
  const auto from = q.in.sources();
  if (from.size() < 2) return false;
  unsigned nans = 0;
  for (unsigned i = 0; i < 256 / width; ++i) {
    const Number a = lane(from[from.size() - 2], i, width), b = lane(from.back(), i, width);
    const auto vanishes = [](const Number& n) { return n.exponent() == 0; };  // with DAZ
    const bool invalid = (vanishes(a) && b.infinite()) || (a.infinite() && vanishes(b));
    nans += (a.nan() ? 1U : 0U) + (b.nan() ? 1U : 0U) + (invalid ? 1U : 0U);
  }
  if (nans > 1) e.omitted.ymm |= 1U << vector_destination(q);
  return true;
}

bool half_denormals(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_VCVTPH2PS}) || q.guest_vector != cpu::BP) return false;
  const auto from = q.in.value(q.d.ops[1]);
  if (!from) return false;
  for (unsigned i = 0; i < (q.d.insn.raw.vex.L != 0 ? 8U : 4U); ++i) {
    const auto half = from->lane<std::uint16_t>(i);
    if ((half & 0x7C00) != 0) continue;
    const float value = std::ldexp(static_cast<float>(half & 0x3FF), -24);
    const std::uint64_t sign = (half & 0x8000) != 0 ? 1ULL << 31 : 0;
    set_lane(e, vector_destination(q), i, {sign | std::bit_cast<std::uint32_t>(value), 32});
  }
  return true;
}

/// A float as a half, rounded as `control` (MXCSR.RC) says; exact where it is not NaN or huge.
/// Nothing for those, which QEMU gets right.
std::optional<std::uint16_t> tiny_half(std::uint32_t bits, unsigned control) {
  const float x = std::abs(std::bit_cast<float>(bits));
  const bool negative = bits >> 31 != 0;
  // Below the smallest normal half, in units of the smallest denormal.
  if (!(x < std::ldexp(1.0F, -14))) return std::nullopt;
  const double units = std::ldexp(static_cast<double>(x), 24);
  double whole = std::floor(units);
  const double rest = units - whole;
  const bool away = control == 3   ? false
                    : control == 0 ? rest > 0.5 || (rest == 0.5 && std::fmod(whole, 2) != 0)
                                   : rest != 0 && (control == 1) == negative;
  if (away) whole += 1;
  return static_cast<std::uint16_t>(static_cast<unsigned>(whole) | (negative ? 0x8000U : 0U));
}

bool tiny_halves(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_VCVTPS2PH}) || q.guest_vector != cpu::BP) return false;
  constexpr std::uint32_t kFtz = 0x8000;
  if ((q.mxcsr() & kFtz) == 0) return false;
  if (q.d.memory() != nullptr) {
    e.omitted.memory = true;
    return true;
  }
  const auto from = q.in.value(q.d.ops[1]);
  const auto imm = static_cast<unsigned>(q.d.ops[2].imm.value.u);
  const unsigned control = (imm & 4) != 0 ? q.mxcsr() >> 13 & 3 : imm & 3;
  auto* to = reinterpret_cast<std::uint16_t*>(
      e.result.after.ymm[ZydisRegisterGetId(q.d.ops[0].reg.value)].data());
  for (unsigned i = 0; i < (q.d.insn.raw.vex.L != 0 ? 8U : 4U); ++i) {
    auto bits = from->lane<std::uint32_t>(i);
    const bool denormal = (bits & 0x7F800000) == 0;
    if (denormal && (q.mxcsr() & kDaz) != 0) bits &= 0x80000000;
    if (const auto half = tiny_half(bits, control)) to[i] = *half;
  }
  return true;
}

bool string_lengths(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_PCMPESTRI, ZYDIS_MNEMONIC_PCMPESTRM, ZYDIS_MNEMONIC_VPCMPESTRI,
             ZYDIS_MNEMONIC_VPCMPESTRM})) {
    return false;
  }
  const bool wide = q.vex() ? q.d.insn.raw.vex.W != 0 : q.d.insn.raw.rex.W != 0;
  const auto same = [](std::uint64_t v) {
    return static_cast<std::int64_t>(v) == static_cast<std::int32_t>(v);
  };
  if (!wide || (same(q.c.before.gpr[cpu::RAX]) && same(q.c.before.gpr[cpu::RDX]))) return false;
  e.omitted.everything = true;
  return true;
}

constexpr std::array kVector = {
    QemuDeviation{"VEX-encoded with an XMM destination",
                  "QEMU leaves bits 255:128 in scalar forms; they become 0 (SDM 2A 2.3.10.1)",
                  upper_half},
    QemuDeviation{"add, sub, mul, div, haddp, hsubp, addsubp",
                  "of two NaNs QEMU takes what x87 would, the larger one; it is the first (SDM 1 "
                  "table 4-7)",
                  two_nans},
    QemuDeviation{"minps to maxsd",
                  "QEMU returns a denormal with DAZ set; it becomes 0 before anything is computed "
                  "(SDM 1 10.2.3.4)",
                  denormals_are_zeros},
    QemuDeviation{"all with floating-point operands",
                  "QEMU sets DE with DAZ and not without; from the operands (SDM 1 11.5.2.2)",
                  denormal_flag},
    QemuDeviation{"arithmetic with FTZ",
                  "QEMU flushes what rounding would make the smallest normal number; tininess is "
                  "found after rounding (SDM 1 4.9.1.5): either will do, and UE with it",
                  flushed_too_soon},
    QemuDeviation{"rcpps, rsqrtps and relatives",
                  "approximations with a relative error of up to 1.5 * 2^-12 (SDM 2B RCPPS)",
                  approximation},
    QemuDeviation{"dpps, dppd",
                  "DE, and which of several NaNs, depend on the order of additions, which the "
                  "manual leaves to the processor (SDM 2A DPPS); all else is compared",
                  dot_product},
    QemuDeviation{"vcvtph2ps", "QEMU minds DAZ; it does not apply to halves (SDM 2C VCVTPH2PS)",
                  half_denormals},
    QemuDeviation{"vcvtps2ph",
                  "QEMU minds FTZ; it does not apply (SDM 2C VCVTPS2PH): computed for registers, "
                  "memory is compared with FTZ 0",
                  tiny_halves},
    QemuDeviation{"pcmpestri, pcmpestrm with REX.W or VEX.W",
                  "QEMU takes the lengths from EAX and EDX, it is RAX and RDX (SDM 2B PCMPESTRI); "
                  "compared where that is the same",
                  string_lengths},
};

}  // namespace

std::span<const QemuDeviation> vector_deviations() { return kVector; }

}  // namespace strata::differential
