// What comes of loading a device's state.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "mmu/expected.hpp"

namespace strata::devices {

/// One line: which field of what is wrong.
struct StateError {
  std::string message;
};

using StateResult = Expected<void, StateError>;

}  // namespace strata::devices
