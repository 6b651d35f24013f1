// SIGSYS: the filter refused a system call.
#pragma once

#include "host/host_error.hpp"
#include "mmu/expected.hpp"

namespace strata::host {

/// From here on SIGSYS writes one line that names the system call, and ends the process with exit
/// code 1: the call is a bug of Strata's or somebody else's code in it, and either must not go on.
[[nodiscard]] Expected<void, HostError> report_refused_calls();

}  // namespace strata::host
