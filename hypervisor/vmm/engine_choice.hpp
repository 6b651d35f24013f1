// What `--engine auto` is: the one place that says which engine a run gets when its user names
// none.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "mmu/expected.hpp"
#include "vmm/capabilities.hpp"
#include "vmm/vm_config.hpp"

namespace strata::vmm {

/// What a run asks of its engine.
struct EngineWish {
  std::string_view mmu = "auto";  ///< as --mmu takes it
  /// The option that needs an engine which counts instructions exactly; empty: there is none.
  std::string_view exact_for;
};

/// An engine, and in a few words why it is that one.
struct EngineChoice {
  std::string engine;
  std::string reason;
};

/// Why the host cannot run guests with an engine; empty: it can.
using HostLack = std::function<std::string(std::string_view engine)>;

/// The fastest engine of `built` that does what is wished on the host: kvm, else bt, else interp.
/// `host_lacks` is asked about nothing that is ruled out already. Error: one line, where only
/// engines that cannot run here have the backend.
[[nodiscard]] Expected<EngineChoice, std::string> choose_engine(std::span<const Combination> built,
                                                                const EngineWish& wish,
                                                                const HostLack& host_lacks);

/// A HostLack that tries this host, and for kvm takes some milliseconds. A KVM that can run only
/// some guests lacks something: which guest this will be, nobody can say.
[[nodiscard]] std::string host_lacks(std::string_view engine);

/// `config` with its engine "auto" replaced by the one chosen, and with `engine_reason`; engines
/// that are named stay. `exact_for` as in EngineWish, for what the configuration does not know of.
[[nodiscard]] Expected<VmConfig, ConfigError> settle_engine(VmConfig config,
                                                            std::string_view exact_for = {});

}  // namespace strata::vmm
