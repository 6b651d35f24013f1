// Where each feature's CPUID bit is, what it needs, and whose processor provides it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "cpu/cpu_model.hpp"

namespace strata::cpu {

enum class CpuidRegister : std::uint8_t { eax, ebx, ecx, edx };

[[nodiscard]] constexpr std::uint32_t select(const CpuidResult& r, CpuidRegister reg) noexcept {
  switch (reg) {
    case CpuidRegister::eax:
      return r.eax;
    case CpuidRegister::ebx:
      return r.ebx;
    case CpuidRegister::ecx:
      return r.ecx;
    case CpuidRegister::edx:
      break;
  }
  return r.edx;
}

/// Who makes a feature work.
enum class Provider : std::uint8_t {
  engine,    ///< emulated: privileged, MMU, or without effect on results; offered on every host
  host,      ///< unprivileged instructions that engines execute with the host's own
  host_avx,  ///< the same, and the host's operating system must save YMM registers
};

struct FeatureInfo {
  Feature feature;
  std::string_view name;
  std::uint32_t leaf;
  std::uint32_t subleaf;
  CpuidRegister reg;
  unsigned bit;
  Provider provider = Provider::engine;
  /// Feature without which this one must not be offered.
  std::optional<Feature> needs = std::nullopt;
};

/// One entry a feature, in the enum's order. Any thread.
[[nodiscard]] std::span<const FeatureInfo> feature_table() noexcept;
[[nodiscard]] std::optional<Feature> feature_named(std::string_view name) noexcept;

}  // namespace strata::cpu
