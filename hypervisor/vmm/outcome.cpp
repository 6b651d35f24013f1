#include "vmm/outcome.hpp"

namespace strata::vmm {

std::string_view name_of(Ending ending) noexcept {
  switch (ending) {
    case Ending::power_off:
      return "power-off";
    case Ending::reset:
      return "reset";
    case Ending::debug_exit:
      return "debug-exit";
    case Ending::triple_fault:
      return "triple-fault";
    case Ending::timeout:
      return "timeout";
    case Ending::quit:
      return "quit";
    case Ending::out_of_memory:
      return "out-of-memory";
    case Ending::internal_error:
      return "internal-error";
    case Ending::saved:
      return "save";
    case Ending::diverged:
      return "divergence";
  }
  return "unknown";
}

int exit_code(const Outcome& outcome) noexcept {
  switch (outcome.ending) {
    case Ending::power_off:
    case Ending::saved:
      return 0;
    case Ending::internal_error:
      return 1;
    // 2 is for what the user got wrong: options and files.
    case Ending::reset:
      return 3;
    case Ending::triple_fault:
      return 4;
    case Ending::timeout:
      return 5;
    case Ending::quit:
      return 6;
    case Ending::out_of_memory:
      return 7;
    case Ending::diverged:
      return 8;
    case Ending::debug_exit:
      return static_cast<int>(64 + (outcome.debug_value & 63));
  }
  return 1;
}

}  // namespace strata::vmm
