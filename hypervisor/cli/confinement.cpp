#include "cli/confinement.hpp"

#include <fmt/format.h>

namespace strata::cli {

namespace {

Unexpected<host::HostError> refused(const host::HostError& error) {
  return {host::HostError{fmt::format(
      "the sandbox is not possible here: {}; --no-sandbox runs without it", error.message)}};
}

}  // namespace

void add_sandbox_option(CLI::App& command, bool& sandbox) {
  command.add_flag_callback(
      "--no-sandbox", [&sandbox] { sandbox = false; },
      "For debugging: a guest that breaks out of this process has all rights of its user");
}

Expected<void, host::HostError> Confinement::enter(bool connections) {
  if (!wanted_ || !host::Sandbox::built()) return {};
  auto sandbox = host::Sandbox::enter(connections);
  if (!sandbox) return refused(sandbox.error());
  sandbox_ = *sandbox;
  return {};
}

Expected<void, host::HostError> Confinement::filter_system_calls(
    const host::Permissions& permissions) {
  if (!sandbox_) return {};
  if (const auto done = sandbox_->filter_system_calls(permissions); !done) {
    return refused(done.error());
  }
  return {};
}

std::string Confinement::remark() const {
  if (wanted_) return {};
  return "--no-sandbox: a guest that breaks out of this process has all rights of its user";
}

nlohmann::json Confinement::report() const {
  if (sandbox_) return sandbox_->report();
  return {{"off", wanted_ ? "this build has a sanitizer" : "--no-sandbox"}};
}

}  // namespace strata::cli
