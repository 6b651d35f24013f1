#include "vmm/engine_choice.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "vmm/host_engine.hpp"
#ifdef STRATA_HAS_BT
#include "engines/bt/translator.hpp"
#endif

namespace strata::vmm {

namespace {

/// The fastest first (docs/performance.md). The last one runs everywhere.
constexpr std::array<std::string_view, 3> kByPreference{kHostEngine, "bt", "interp"};

/// Why `engine` is not for this run, whatever the host; empty: nothing speaks against it.
std::string unfit(std::string_view engine, std::span<const Combination> built,
                  const EngineWish& wish) {
  const auto is_engine = [&](const Combination& c) { return c.engine == engine; };
  if (std::none_of(built.begin(), built.end(), is_engine)) return "not in this build";
  const std::string_view mmu = wish.mmu.substr(0, wish.mmu.find(','));
  const auto fits = [&](const Combination& c) {
    return is_engine(c) && (mmu == "auto" || c.mmu == mmu);
  };
  if (std::none_of(built.begin(), built.end(), fits)) return fmt::format("has no --mmu {}", mmu);
  if (engine == kHostEngine && !wish.exact_for.empty()) {
    return fmt::format("{} needs exact instruction counts", wish.exact_for);
  }
  return {};
}

}  // namespace

Expected<EngineChoice, std::string> choose_engine(std::span<const Combination> built,
                                                  const EngineWish& wish,
                                                  const HostLack& host_lacks) {
  std::string against;
  for (const std::string_view engine : kByPreference) {
    std::string why = unfit(engine, built, wish);
    if (why.empty()) why = host_lacks(engine);
    if (why.empty()) {
      return EngineChoice{std::string{engine},
                          against.empty() ? "the fastest, and this host can" : against};
    }
    against += fmt::format("{}{}: {}", against.empty() ? "" : "; ", engine, why);
  }
  return Unexpected{fmt::format("--engine: auto finds none ({})", against)};
}

std::string host_lacks(std::string_view engine) {
  if (engine == kHostEngine) return HostEngine::lack();
#ifdef STRATA_HAS_BT
  if (engine == "bt" && !bt::host_can()) return "the host refuses executable memory below 2 GiB";
#endif
  return {};
}

Expected<VmConfig, ConfigError> settle_engine(VmConfig config, std::string_view exact_for) {
  if (config.engine != kAutoEngine) {
    config.engine_reason = "named by --engine";
    return config;
  }
  if (exact_for.empty()) exact_for = exact_option(config);
  // What a saved VM goes on with is what it was: counts of instructions, maybe a clock made of
  // them.
  if (exact_for.empty() && !config.load.empty()) exact_for = "--load";
  auto choice = choose_engine(combinations(), {config.mmu, exact_for}, host_lacks);
  if (!choice) return Unexpected{ConfigError{choice.error()}};
  config.engine = std::move(choice->engine);
  config.engine_reason = fmt::format("chosen by auto; {}", choice->reason);
  return config;
}

}  // namespace strata::vmm
