#include "host/sandbox.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <iterator>
#include <system_error>

#include "host/call_filter.hpp"
#include "host/landlock.hpp"

namespace strata::host {

namespace {

/// Most of what the sandbox changes belongs to a thread and is inherited: a second one would keep
/// what this one gives up.
Expected<void, HostError> check_single_thread() {
  std::error_code error;
  const std::filesystem::directory_iterator threads{"/proc/self/task", error};
  if (error) return Unexpected{HostError{"/proc/self/task: " + error.message()}};
  const auto count = std::distance(begin(threads), end(threads));
  if (count == 1) return {};
  return Unexpected{HostError{fmt::format("{} threads are there already", count)}};
}

}  // namespace

bool Sandbox::built() noexcept {
#ifdef STRATA_SANITIZED
  return false;
#else
  return true;
#endif
}

Expected<Sandbox, HostError> Sandbox::enter(bool connections) {
  if (const auto alone = check_single_thread(); !alone) return Unexpected{alone.error()};
  const auto privileges = drop_privileges();
  if (!privileges) return Unexpected{privileges.error()};
  const auto landlock = close_file_system(connections);
  if (!landlock) return Unexpected{landlock.error()};
  return Sandbox{*privileges, *landlock};
}

Expected<void, HostError> Sandbox::filter_system_calls(const Permissions& permissions) {
  if (auto done = host::filter_system_calls(permissions); !done) return done;
  filtered_ = true;
  return {};
}

nlohmann::json Sandbox::report() const {
  return {{"system_calls", filtered_ ? "filtered" : "any"},
          {"uid", privileges_.uid},
          {"gid", privileges_.gid},
          {"capabilities", "none"},
          {"bounding_set", privileges_.bounding_set_empty ? "empty" : "kept by the host"},
          {"landlock_abi", landlock_}};
}

}  // namespace strata::host
