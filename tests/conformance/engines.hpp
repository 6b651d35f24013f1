// The engines of this build that are made of the interpreter's Core, by the names --engine knows,
// and bt as it is only tested.
#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#ifdef STRATA_HAS_BT
#include "engines/bt/translator.hpp"
#endif
#include "engines/interp/core.hpp"

namespace strata::conformance {

struct EngineRow {
  std::string_view name;
  std::unique_ptr<interp::Core> (*make)(interp::CoreEnvironment);
};

/// The first is the one that others are compared with.
inline std::vector<EngineRow> engines() {
  return {
      {"interp", [](interp::CoreEnvironment e) { return std::make_unique<interp::Core>(e); }},
#ifdef STRATA_HAS_BT
      {"bt", [](interp::CoreEnvironment e) { return bt::make_core(e); }},
      // Every access that can goes through a window, of the kernel too.
      {"bt_windows",
       [](interp::CoreEnvironment e) {
         e.windows = interp::WindowUse::always;
         return bt::make_core(e);
       }},
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

/// What executes a guest, by names as in --engine and --mmu.
struct Subject {
  std::string_view engine;
  std::string_view backend;
};

/// Every engine on every backend.
inline std::vector<Subject> subjects(const std::vector<std::string_view>& backends) {
  std::vector<Subject> all;
  for (const EngineRow& row : engines()) {
    for (const std::string_view backend : backends) all.push_back({row.name, backend});
  }
  return all;
}

/// For the names of parametrized tests, and what they print.
inline std::string name_of(const Subject& subject) {
  return std::string{subject.engine} + "_" + std::string{subject.backend};
}
inline void PrintTo(const Subject& subject, std::ostream* os) { *os << name_of(subject); }

}  // namespace strata::conformance
