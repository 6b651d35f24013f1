// The tables of hostile guests, one function a subject.
#pragma once

#include <vector>

#include "run.hpp"

namespace strata::hostile {

[[nodiscard]] std::vector<Case> fault_cases();
[[nodiscard]] std::vector<Case> descriptor_cases();
[[nodiscard]] std::vector<Case> stack_cases();
[[nodiscard]] std::vector<Case> paging_cases();
[[nodiscard]] std::vector<Case> alias_cases();
[[nodiscard]] std::vector<Case> mode_cases();
[[nodiscard]] std::vector<Case> stream_cases();

[[nodiscard]] inline std::vector<Case> all_cases() {
  std::vector<Case> all;
  for (const auto& some : {fault_cases(), descriptor_cases(), stack_cases(), paging_cases(),
                           alias_cases(), mode_cases(), stream_cases()}) {
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

}  // namespace strata::hostile
