// What must agree between the interpreter and an oracle, and what need not, with the reason.
#pragma once

#include <string>
#include <string_view>

#include "case.hpp"
#include "generator.hpp"

namespace strata::differential {

enum class OracleKind : std::uint8_t {
  host,  ///< this machine's processor: the interpreter runs some of its instructions
  qemu,  ///< QEMU's user-mode emulation: a second implementation in software
};

/// Whether the oracle has this instruction in a form worth comparing; compare.cpp says why not.
[[nodiscard]] bool can_judge(const DecodedCase& d, OracleKind kind);

/// Empty, or the differences, a line each.
[[nodiscard]] std::string differences(const Case& c, const DecodedCase& d, const Result& guest,
                                      const Result& oracle, OracleKind kind);

/// Whether this case need not agree; the reason, or empty.
[[nodiscard]] std::string_view deviation(const DecodedCase& d, const Result& guest,
                                         const Result& oracle, OracleKind kind);

}  // namespace strata::differential
