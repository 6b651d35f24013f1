// What a process that runs guest code gives up first: a guest that takes the process over finds
// nothing in it to go on with. docs/sandbox.md.
#pragma once

#include <nlohmann/json.hpp>

#include "host/call_filter.hpp"
#include "host/host_error.hpp"
#include "host/privileges.hpp"
#include "mmu/expected.hpp"

namespace strata::host {

class Sandbox {
 public:
  /// False in builds with a sanitizer, whose own code opens files, starts processes and maps code
  /// when it likes.
  [[nodiscard]] static bool built() noexcept;

  /// Gives up privileges and the file system. The process has one thread and every file open.
  /// `connections`: as in Permissions. Errors: more than one thread; the host refused a part that
  /// it has.
  [[nodiscard]] static Expected<Sandbox, HostError> enter(bool connections = false);

  /// Leaves only the system calls of a running VM, and what `permissions` add. The
  /// process has every thread it will have. Once. Error: the host cannot filter.
  [[nodiscard]] Expected<void, HostError> filter_system_calls(const Permissions& permissions);

  /// What is in force, for --stats.
  [[nodiscard]] nlohmann::json report() const;

 private:
  Sandbox(Privileges privileges, int landlock) noexcept
      : privileges_{privileges}, landlock_{landlock} {}
  Privileges privileges_;
  int landlock_;  ///< ABI version; 0: the host has none
  bool filtered_ = false;
};

}  // namespace strata::host
