// The tables of hostile guests, one function a subject.
#pragma once

#include <vector>

#include "run.hpp"

namespace strata::hostile {

[[nodiscard]] std::vector<Case> fault_cases();

[[nodiscard]] inline std::vector<Case> all_cases() {
  std::vector<Case> all;
  for (const auto& some : {fault_cases()}) {
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

}  // namespace strata::hostile
