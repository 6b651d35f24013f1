// The model files that are compiled in.
#pragma once

#include <span>
#include <string_view>

namespace strata::cpu {

struct BuiltinModel {
  std::string_view name;
  std::string_view json;
};

/// All of models/*.json. Any thread.
[[nodiscard]] std::span<const BuiltinModel> builtin_models() noexcept;

}  // namespace strata::cpu
