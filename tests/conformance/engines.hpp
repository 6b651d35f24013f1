// The engines of this build that are made of the interpreter's Core, by the names --engine knows.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#ifdef STRATA_HAS_BT
#include "engines/bt/translator.hpp"
#endif
#include "engines/interp/core.hpp"

namespace strata::conformance {

struct EngineRow {
  std::string_view name;
  std::unique_ptr<interp::Core> (*make)(const interp::CoreEnvironment&);
};

/// The first is the one that others are compared with.
inline std::vector<EngineRow> engines() {
  return {
      {"interp",
       [](const interp::CoreEnvironment& e) { return std::make_unique<interp::Core>(e); }},
#ifdef STRATA_HAS_BT
      {"bt", [](const interp::CoreEnvironment& e) { return bt::make_core(e); }},
#endif
  };
}

/// Null: there is no such engine.
inline std::unique_ptr<interp::Core> make_engine(std::string_view name,
                                                 const interp::CoreEnvironment& environment) {
  for (const EngineRow& row : engines()) {
    if (row.name == name) return row.make(environment);
  }
  return nullptr;
}

}  // namespace strata::conformance
