// Why a disk could not be opened, as one line for the user.
#pragma once

#include <string>

namespace strata::storage {

struct DiskError {
  std::string message;
};

}  // namespace strata::storage
