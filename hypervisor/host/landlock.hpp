// Landlock (landlock(7)): what a process may reach by name, restricted by itself.
#pragma once

#include "host/host_error.hpp"
#include "mmu/expected.hpp"

namespace strata::host {

/// From here on no file can be opened, made, renamed or removed by name, no TCP port bound or
/// connected to (with `connections` only bound), no process outside signalled. Open files stay
/// usable. The ABI version of the host's Landlock says how much of that it has; 0: it has none, and
/// nothing has changed. One thread, after no_new_privs was set. Error: it has Landlock and refused.
[[nodiscard]] Expected<int, HostError> close_file_system(bool connections);

}  // namespace strata::host
