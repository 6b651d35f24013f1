// FSIN, FCOS, FSINCOS and FPTAN, which QEMU 7.2 computes in doubles: the C library's software
// instead, which has its own reduction and polynomials in 80 bits.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/vcpu_state.hpp"
#include "x87_numbers.hpp"

namespace strata::differential {
namespace {

Extended extended(long double v) {
  Extended out;
  std::memcpy(&out.significand, &v, 8);
  std::memcpy(&out.sign_exponent, reinterpret_cast<const char*>(&v) + 8, 2);
  return out;
}

bool pushes(const QemuCase& q) { return q.is({ZYDIS_MNEMONIC_FSINCOS, ZYDIS_MNEMONIC_FPTAN}); }

/// One number where the result goes, or the same twice where two results are pushed.
void set_result(const QemuCase& q, Expected& e, Extended v) {
  Registers& after = e.result.after;
  if (pushes(q) && top_of(after) == top_of(q.c.before)) {
    // QEMU took it for an operand out of range, and pushed nothing.
    const unsigned top = (top_of(q.c.before) - 1) & 7;
    for (unsigned i = 0; i < 8; ++i) set_st(after, (i + 1) & 7, st(q.c.before, i));
    after.fx[4] |= static_cast<std::uint8_t>(1U << top);
    set_fsw(after, (fsw_of(after) & ~unsigned{kTop}) | top << 11);
  }
  set_st(after, 0, v);
  if (pushes(q)) set_st(after, 1, v);
}

/// Infinities and unsupported encodings are invalid, NaNs become quiet (SDM 1 8.5.1).
void special(const QemuCase& q, Expected& e, const Extended& x) {
  constexpr std::uint64_t kQuiet = 1ULL << 62;
  const bool invalid = !x.nan() || (x.significand & kQuiet) == 0;
  set_result(q, e, x.nan() ? Extended{x.significand | kQuiet, x.sign_exponent} : kIndefinite);
  const unsigned fsw = fsw_of(e.result.after) & ~unsigned{kInvalid | kC2 | kPrecision};
  set_fsw(e.result.after, fsw | (invalid ? kInvalid : 0U));
}

bool trigonometry(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_FSIN, ZYDIS_MNEMONIC_FCOS, ZYDIS_MNEMONIC_FSINCOS,
             ZYDIS_MNEMONIC_FPTAN}) ||
      q.guest_vector != cpu::BP) {
    return false;
  }
  const Extended operand = st(q.c.before, 0);
  if (operand.unsupported() || operand.exponent() == 0x7FFF) {
    special(q, e, operand);
    return true;
  }
  long double x = 0;
  std::memcpy(&x, q.c.before.fx.data() + st_at(0), 10);
  // Out of range, which only C2 tells: as QEMU has it.
  if (operand.zero() || std::abs(x) >= 0x1p63L) return false;
  Registers& after = e.result.after;
  const bool tangent = q.is({ZYDIS_MNEMONIC_FPTAN});
  const bool cosine = q.is({ZYDIS_MNEMONIC_FCOS, ZYDIS_MNEMONIC_FSINCOS});
  const long double first = tangent ? 1.0L : cosine ? std::cos(x) : std::sin(x);
  set_st(after, 0, extended(first));
  if (pushes(q)) set_st(after, 1, extended(tangent ? std::tan(x) : std::sin(x)));
  // The reduction is by a pi of 66 bits (SDM 1 8.3.8), so that the error grows with the operand;
  // a tangent's with its own square, too.
  e.omitted.st_error = -62;
  constexpr long double kSmallest = std::numeric_limits<long double>::denorm_min();
  const long double steep = tangent ? 1 + std::tan(x) * std::tan(x) : 1;
  e.omitted.st_slack = std::abs(x) > 0.5L ? std::abs(x) * 0x1p-64L * steep : kSmallest;
  set_fsw(after, fsw_of(after) | kPrecision);
  const bool tiny = std::abs(x) < 0x1p-16380L;
  if (tiny) e.omitted.fsw |= kUnderflow;
  return true;
}

constexpr std::array kTrigonometry = {
    QemuDeviation{"FSIN, FCOS, FSINCOS, FPTAN",
                  "QEMU computes doubles and takes infinities for out of range; by the C library's "
                  "software, PE and invalid operands by the manual (SDM 1 8.3.8, 8.5.1)",
                  trigonometry},
};

}  // namespace

std::span<const QemuDeviation> trigonometry_deviations() { return kTrigonometry; }

}  // namespace strata::differential
