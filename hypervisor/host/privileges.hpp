// What a process may do on its host because of who it is, given up for good.
#pragma once

#include <sys/types.h>

#include "host/host_error.hpp"
#include "mmu/expected.hpp"

namespace strata::host {

/// Who the process is afterwards.
struct Privileges {
  uid_t uid = 0;
  gid_t gid = 0;
  /// The bounding set is empty too. It stays where a container withholds CAP_SETPCAP; then only
  /// no_new_privs keeps a program that is executed from gaining what is in it.
  bool bounding_set_empty = false;
};

/// Sets no_new_privs, and leaves the process without capabilities (capabilities(7)) and
/// supplementary groups. Root becomes the user who called sudo, or nobody; it stays root, without
/// capabilities, only in a user namespace that has no other user. All this is a matter of threads:
/// call it while there is one, those it starts inherit it. Error: a capability would stay.
[[nodiscard]] Expected<Privileges, HostError> drop_privileges();

}  // namespace strata::host
