// The system calls a VMM makes once its guest runs, and the end of the process for all others.
#pragma once

#include <span>

#include "host/host_error.hpp"
#include "mmu/expected.hpp"

namespace strata::host {

/// What a run needs beyond what all need.
struct Permissions {
  std::span<const unsigned long> ioctls{};  ///< requests, beside those of a terminal's settings
  /// IPv4 and IPv6 sockets of TCP, UDP and ICMP echo, made and connected at run time: a user-mode
  /// network. Not bound: listening sockets are there already.
  bool connections = false;
};

/// Installs the filter (seccomp(2)) on every thread. A call that it does not know ends the process
/// with exit code 1 and one line that names the call. Everything must be open, and every thread
/// started. Error: this host cannot filter.
[[nodiscard]] Expected<void, HostError> filter_system_calls(const Permissions& permissions);

}  // namespace strata::host
