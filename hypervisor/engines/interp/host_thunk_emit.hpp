// Assembles the code around one normalised instruction.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "engines/interp/host_thunk_form.hpp"

namespace strata::interp {

struct ThunkCode {
  std::array<std::byte, 192> bytes{};
  std::uint16_t size = 0;
  std::uint16_t immediate_at = 0;  ///< where the form's immediate lies; 0: it has none
  [[nodiscard]] std::span<const std::byte> span() const noexcept {
    return std::span{bytes}.first(size);
  }
};

/// Follows VectorThunk or X87Thunk, whichever the form's kind asks for.
[[nodiscard]] ThunkCode emit_thunk(const ThunkForm& form);

}  // namespace strata::interp
