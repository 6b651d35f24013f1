// What the host refused, as one line for the user.
#pragma once

#include <string>

namespace strata::host {

struct HostError {
  std::string message;
};

}  // namespace strata::host
