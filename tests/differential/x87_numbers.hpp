// x87 registers and status as they lie in an FXSAVE image.
#pragma once

#include <cstring>

#include "qemu_deviations.hpp"

namespace strata::differential {

/// FSW (SDM 1 8.1.3).
inline constexpr std::uint16_t kInvalid = 1, kDenormal = 2, kUnderflow = 0x10, kPrecision = 0x20,
                               kC0 = 0x100, kC1 = 0x200, kC2 = 0x400, kC3 = 0x4000, kTop = 0x3800;
inline constexpr std::uint64_t kIntegerBit = 1ULL << 63;

[[nodiscard]] inline std::uint16_t fsw_of(const Registers& r) {
  return static_cast<std::uint16_t>(r.fx[2] | r.fx[3] << 8);
}
inline void set_fsw(Registers& r, std::uint32_t v) {
  r.fx[2] = static_cast<std::uint8_t>(v);
  r.fx[3] = static_cast<std::uint8_t>(v >> 8);
}

/// An 80-bit number's parts, as they lie in an FXSAVE image.
struct Extended {
  std::uint64_t significand = 0;
  std::uint16_t sign_exponent = 0;
  [[nodiscard]] unsigned exponent() const { return sign_exponent & 0x7FFFU; }
  [[nodiscard]] bool nan() const {
    return exponent() == 0x7FFF && significand << 1 != 0 && !unsupported();
  }
  [[nodiscard]] bool infinite() const { return exponent() == 0x7FFF && significand == kIntegerBit; }
  [[nodiscard]] bool zero() const { return exponent() == 0 && significand == 0; }
  [[nodiscard]] bool negative() const { return (sign_exponent & 0x8000) != 0; }
  /// Pseudo-denormals among them (SDM 1 8.2.2).
  [[nodiscard]] bool denormal() const { return exponent() == 0 && significand != 0; }
  [[nodiscard]] bool normal() const {
    return exponent() != 0 && exponent() != 0x7FFF && !unsupported();
  }
  /// Pseudo-NaN, pseudo-infinity, unnormal (SDM 1 table 8-3).
  [[nodiscard]] bool unsupported() const {
    return exponent() != 0 && (significand & kIntegerBit) == 0;
  }
};

[[nodiscard]] inline Extended st(const Registers& r, unsigned i) {
  Extended out;
  std::memcpy(&out.significand, r.fx.data() + st_at(i), 8);
  std::memcpy(&out.sign_exponent, r.fx.data() + st_at(i) + 8, 2);
  return out;
}
inline void set_st(Registers& r, unsigned i, Extended v) {
  std::memcpy(r.fx.data() + st_at(i), &v.significand, 8);
  std::memcpy(r.fx.data() + st_at(i) + 8, &v.sign_exponent, 2);
}
inline constexpr Extended kIndefinite{3ULL << 62, 0xFFFF};

}  // namespace strata::differential
