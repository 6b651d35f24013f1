// --no-sandbox: what run and replay have in common about host/sandbox.hpp.
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "host/sandbox.hpp"

namespace strata::cli {

/// Adds the flag, which clears `sandbox`.
void add_sandbox_option(CLI::App& command, bool& sandbox);

/// The sandbox of this process, or the reason why it has none.
class Confinement {
 public:
  explicit Confinement(bool wanted) noexcept : wanted_{wanted} {}
  /// See host::Sandbox for when to call these two; they do nothing where there is none. Errors say
  /// what the user can do.
  [[nodiscard]] Expected<void, host::HostError> enter(bool connections = false);
  [[nodiscard]] Expected<void, host::HostError> filter_system_calls(
      const host::Permissions& permissions);
  /// What the user loses without; empty: nothing.
  [[nodiscard]] std::string remark() const;
  /// For --stats.
  [[nodiscard]] nlohmann::json report() const;

 private:
  const bool wanted_;
  std::optional<host::Sandbox> sandbox_;
};

}  // namespace strata::cli
