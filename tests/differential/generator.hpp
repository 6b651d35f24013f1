// Cases for the differential fuzzer: every instruction that a program at CPL 3 can execute and a
// process can compare, with operands that reach the data window, its edges and what lies beyond.
#pragma once

#include <Zydis/Zydis.h>

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "case.hpp"
#include "instruction_catalogue.hpp"

namespace strata::differential {

/// A case's instruction as the decoder sees it.
struct DecodedCase {
  ZydisDecodedInstruction insn{};
  std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> ops{};
  isa::OpcodeClass cls = isa::OpcodeClass::unknown;
  [[nodiscard]] const ZydisDecodedOperand* memory() const;
};

/// An instruction that cannot be compared, and why.
struct Exclusion {
  ZydisMnemonic mnemonic;
  std::string_view why;
};
[[nodiscard]] std::span<const Exclusion> exclusions();

class Generator {
 public:
  explicit Generator(const cpu::CpuModel& model);

  /// A random case for code of `bits` (32 or 64). Follows from `rng` alone.
  [[nodiscard]] Case make(fuzz::Random& rng, unsigned bits) const;
  /// What a case's bytes are; nothing if the model does not have it.
  [[nodiscard]] std::optional<DecodedCase> decode(const Case& c) const;
  /// The data window's contents between cases.
  [[nodiscard]] static std::array<std::uint8_t, kPatternBytes> make_pattern(fuzz::Random& rng);
  /// Instructions that make() may choose for code of `bits`.
  [[nodiscard]] std::vector<ZydisMnemonic> instructions(unsigned bits) const;

 private:
  struct Pool {
    explicit Pool(unsigned bits, const cpu::CpuModel& model);
    fuzz::Catalogue catalogue;
    ZydisDecoder decoder;
    std::map<isa::OpcodeClass, std::vector<std::uint32_t>> entries;
  };
  [[nodiscard]] const Pool& pool(unsigned bits) const { return bits == 64 ? wide_ : narrow_; }
  [[nodiscard]] bool choose_code(fuzz::Random& rng, Case& c, DecodedCase& d) const;

  const cpu::CpuModel& model_;
  Pool wide_, narrow_;
};

/// The instruction and the registers before it, to read.
[[nodiscard]] std::string describe(const Case& c);

}  // namespace strata::differential
