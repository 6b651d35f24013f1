// The system calls a VMM makes once its guest runs, and the end of the process for all others.
#pragma once

#include <span>

#include "host/host_error.hpp"
#include "mmu/expected.hpp"

namespace strata::host {

/// Installs the filter (seccomp(2)) on every thread. A call that it does not know ends the process
/// with exit code 1 and one line that names the call. `ioctls`: requests that are allowed beside
/// those of a terminal's settings. Everything must be open, and every thread started. Error: this
/// host cannot filter.
[[nodiscard]] Expected<void, HostError> filter_system_calls(std::span<const unsigned long> ioctls);

}  // namespace strata::host
