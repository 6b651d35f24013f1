// Arithmetic flags as the host's LAHF and SETO give them: one 16-bit word, SF ZF AF PF CF in the
// high byte in their RFLAGS places and OF in bit 0. Handlers run the host's own instruction and
// store AX, so undefined flags are what a real processor leaves.
#pragma once

#include <cstdint>

#include "cpu/vcpu_state.hpp"

namespace strata::interp {

using ArithFlags = std::uint16_t;

inline constexpr ArithFlags kFlagOF = 1, kFlagCF = 0x100, kFlagPF = 0x400, kFlagAF = 0x1000,
                            kFlagZF = 0x4000, kFlagSF = 0x8000;

[[nodiscard]] constexpr std::uint64_t to_rflags(ArithFlags f) noexcept {
  return (f >> 8 & 0xD5U) | static_cast<std::uint64_t>(f & 1U) << 11;
}
[[nodiscard]] constexpr ArithFlags from_rflags(std::uint64_t r) noexcept {
  return static_cast<ArithFlags>((r & 0xD5U) << 8 | (r >> 11 & 1U));
}

/// Condition codes as Jcc, SETcc and CMOVcc encode them (SDM 1 appendix B).
template <unsigned Code>
[[nodiscard]] constexpr bool condition(ArithFlags f) noexcept {
  bool holds = false;
  if constexpr (Code / 2 == 0) holds = (f & kFlagOF) != 0;
  if constexpr (Code / 2 == 1) holds = (f & kFlagCF) != 0;
  if constexpr (Code / 2 == 2) holds = (f & kFlagZF) != 0;
  if constexpr (Code / 2 == 3) holds = (f & (kFlagCF | kFlagZF)) != 0;
  if constexpr (Code / 2 == 4) holds = (f & kFlagSF) != 0;
  if constexpr (Code / 2 == 5) holds = (f & kFlagPF) != 0;
  if constexpr (Code / 2 == 6) holds = ((f >> 15 ^ f) & 1) != 0;
  if constexpr (Code / 2 == 7) holds = ((f >> 15 ^ f) & 1) != 0 || (f & kFlagZF) != 0;
  return holds != ((Code & 1) != 0);
}

}  // namespace strata::interp
