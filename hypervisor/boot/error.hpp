// What loading a guest can fail with: one sentence for the person who started it.
#pragma once

#include <string>
#include <utility>

#include "mmu/expected.hpp"

namespace strata::boot {

/// One line: what is wrong, and what would be right.
struct Error {
  std::string message;
};

template <class T>
using Result = Expected<T, Error>;

/// Short-hand for `return fail("...")`.
[[nodiscard]] inline Unexpected<Error> fail(std::string message) {
  return Unexpected<Error>{Error{std::move(message)}};
}

}  // namespace strata::boot
