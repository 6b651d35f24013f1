// Between which values guest registers lie while a region executes: what an index surely is, so
// that its access can not be far from its base.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "engines/bt/region.hpp"

namespace strata::bt {

/// Both ends belong to it.
struct Range {
  std::int64_t low = 0, high = 0;
};

/// General registers of 64-bit code, followed through a region one instruction at a time.
class RegisterRanges {
 public:
  /// As 64 bits with a sign. None: it may be anything.
  [[nodiscard]] const std::optional<Range>& of(unsigned reg) const noexcept { return known_[reg]; }
  /// Behind instruction `i`.
  void execute(const Insn& i);

 private:
  [[nodiscard]] std::optional<Range> result(const Insn& i) const;
  [[nodiscard]] std::optional<Range> sum(const ZydisDecodedOperand& address) const;
  [[nodiscard]] std::optional<Range> source(const ZydisDecodedOperand& o) const;

  std::array<std::optional<Range>, 16> known_{};
};

}  // namespace strata::bt
