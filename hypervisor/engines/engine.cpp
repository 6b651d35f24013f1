#include "engines/engine.hpp"

#include <array>

namespace strata::engine {

std::string_view name_of(ExitKind kind) noexcept {
  constexpr std::array<std::string_view, kExitKinds> kNames{
      "interrupted",  "halt",          "port_read",     "port_write", "mmio_read",
      "mmio_write",   "msr_read",      "msr_write",     "hypercall",  "paused",
      "triple_fault", "out_of_memory", "internal_error"};
  return kNames[static_cast<std::size_t>(kind)];
}

}  // namespace strata::engine
