// What an instruction's operands hold before it runs: for expected values that come from the
// manual instead of from another processor.
#pragma once

#include <optional>

#include "generator.hpp"

namespace strata::differential {

/// An operand's bytes, zero beyond its size.
struct OperandBytes {
  std::array<std::uint8_t, 32> bytes{};
  template <class T>
  [[nodiscard]] T lane(unsigned i) const {
    T v;
    __builtin_memcpy(&v, bytes.data() + i * sizeof(T), sizeof(T));
    return v;
  }
};

class CaseOperands {
 public:
  /// `pattern`: the data window between cases. All must outlive this.
  CaseOperands(const Case& c, const DecodedCase& d, std::span<const std::uint8_t> pattern)
      : c_{c}, d_{d}, pattern_{pattern} {}

  /// Address of a memory operand without a vector index.
  [[nodiscard]] std::uint64_t address(const ZydisDecodedOperand& o) const;
  /// Nothing for immediates, vector-indexed memory and memory outside the window.
  [[nodiscard]] std::optional<OperandBytes> value(const ZydisDecodedOperand& o) const;
  /// The visible operands that are read, in their order, immediates left out. Empty where one of
  /// them has no value.
  [[nodiscard]] std::vector<OperandBytes> sources() const;
  /// The values and the floating-point controls, to read.
  [[nodiscard]] std::string describe() const;

 private:
  [[nodiscard]] OperandBytes register_value(ZydisRegister r) const;

  const Case& c_;
  const DecodedCase& d_;
  std::span<const std::uint8_t> pattern_;
};

/// x87 and MMX state in a case or a result.
[[nodiscard]] inline unsigned top_of(const Registers& r) { return r.fx[3] >> 3 & 7U; }
/// Where ST(i) lies in the FXSAVE image.
[[nodiscard]] inline std::size_t st_at(unsigned i) { return 32 + std::size_t{16} * i; }

}  // namespace strata::differential
