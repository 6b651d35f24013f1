#include "host/privileges.hpp"

#include <cap-ng.h>
#include <fmt/format.h>
#include <grp.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace strata::host {

namespace {

/// Debian's nobody and nogroup, and the kernel's overflow user (/proc/sys/kernel/overflowuid).
constexpr unsigned kNobody = 65534;

/// A number of the environment, if it is a user or group other than root's.
unsigned id_from(const char* variable) {
  const char* text = std::getenv(variable);
  if (text == nullptr) return kNobody;
  const std::string_view view{text};
  unsigned id = 0;
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), id);
  const bool whole = error == std::errc{} && end == view.data() + view.size();
  return whole && id != 0 && id != ~0U ? id : kNobody;
}

Unexpected<HostError> failed(std::string_view what) {
  return {HostError{fmt::format("{}: {}", what, std::strerror(errno))}};
}

/// EINVAL: a user namespace without that user. EPERM: a container without CAP_SETUID.
bool only_root_here() { return errno == EINVAL || errno == EPERM; }

Expected<void, HostError> leave_root() {
  uid_t real = 0;
  uid_t effective = 0;
  uid_t saved = 0;
  ::getresuid(&real, &effective, &saved);
  if (real != 0 && effective != 0 && saved != 0) return {};
  const uid_t uid = real != 0 ? real : id_from("SUDO_UID");
  const gid_t gid = real != 0 ? ::getgid() : id_from("SUDO_GID");
  // A user namespace may forbid this (setgroups in user_namespaces(7)); there it takes no right.
  (void)::setgroups(0, nullptr);
  if (::setresgid(gid, gid, gid) != 0 && !only_root_here()) return failed("setresgid");
  if (::setresuid(uid, uid, uid) != 0 && !only_root_here()) return failed("setresuid");
  return {};
}

}  // namespace

Expected<Privileges, HostError> drop_privileges() {
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return failed("no_new_privs");
  // The bounding set first: emptying it takes a capability that leaving root takes away.
  capng_clear(CAPNG_SELECT_ALL);
  (void)capng_apply(CAPNG_SELECT_BOUNDS);
  if (const auto done = leave_root(); !done) return Unexpected{done.error()};
  capng_clear(CAPNG_SELECT_ALL);
  if (capng_apply(CAPNG_SELECT_CAPS) != 0) return failed("capset");
  (void)capng_apply(CAPNG_SELECT_AMBIENT);  // empty already: the kernel keeps it within the others
  if (capng_get_caps_process() != 0 || capng_have_capabilities(CAPNG_SELECT_CAPS) != CAPNG_NONE) {
    return Unexpected{HostError{"capabilities remain that cannot be dropped"}};
  }
  return Privileges{
      .uid = ::geteuid(),
      .gid = ::getegid(),
      .bounding_set_empty = capng_have_capabilities(CAPNG_SELECT_BOUNDS) == CAPNG_NONE};
}

}  // namespace strata::host
