// Why a network can not be had, as one line for the user.
#pragma once

#include <string>

namespace strata::network {

struct LinkError {
  std::string message;
};

}  // namespace strata::network
