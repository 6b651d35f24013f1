// How a VM ended, and what that means to whoever started it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace strata::vmm {

/// How a VM ended.
enum class Ending : std::uint8_t {
  power_off,
  reset,
  debug_exit,
  triple_fault,
  timeout,
  quit,
  out_of_memory,
  internal_error,
  saved,    ///< to be loaded elsewhere
  diverged  ///< a second VM that got the same input came to something else
};
[[nodiscard]] std::string_view name_of(Ending ending) noexcept;

struct Outcome {
  Ending ending = Ending::internal_error;
  std::uint32_t debug_value = 0;  ///< Ending::debug_exit
  std::string detail;             ///< a line for the user; may be empty
};

/// The process's exit code for an outcome; docs/running.md lists them.
[[nodiscard]] int exit_code(const Outcome& outcome) noexcept;

}  // namespace strata::vmm
