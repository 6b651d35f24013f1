// What must agree between the interpreter and an oracle, and what need not, with the reason.
#pragma once

#include <string>
#include <string_view>

#include "case.hpp"
#include "qemu_deviations.hpp"

namespace strata::differential {

/// Arithmetic flags that an instruction leaves undefined (SDM 2A-2D, the instruction's page).
[[nodiscard]] std::uint64_t undefined_flags(const DecodedCase& d);

/// Empty, or the differences, a line each.
[[nodiscard]] std::string differences(const Case& c, const Result& guest, const Expected& expected);

/// What of the host's result is not compared. The interpreter runs the host's own instruction where
/// it can, so that the host must agree on undefined flags as well.
[[nodiscard]] Omission host_omission(const DecodedCase& d, const Result& guest,
                                     const Result& oracle);

/// Whether the host need not agree in this case; the reason, or empty.
[[nodiscard]] std::string_view deviation(const DecodedCase& d, const Result& guest,
                                         const Result& oracle);

}  // namespace strata::differential
