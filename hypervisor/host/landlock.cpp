#include "host/landlock.hpp"

#include <fmt/format.h>
#include <linux/landlock.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "machine/machine_memory.hpp"

namespace strata::host {

namespace {

/// struct landlock_ruleset_attr of Linux 6.12; Debian's headers are of 6.1, whose has one member.
/// A kernel takes a longer one than its own when the rest is zero.
struct Ruleset {
  std::uint64_t files = 0;
  std::uint64_t network = 0;
  std::uint64_t scopes = 0;
};

/// All rights that each version of the ABI knows (landlock(7), "Landlock ABI versions"): what a
/// ruleset handles and no rule allows is denied.
constexpr std::array<Ruleset, 6> kAll{{
    {.files = (1ULL << 13) - 1},                             // 1: EXECUTE to MAKE_SYM
    {.files = (1ULL << 14) - 1},                             // 2: and REFER
    {.files = (1ULL << 15) - 1},                             // 3: and TRUNCATE
    {.files = (1ULL << 15) - 1, .network = 3},               // 4: and BIND_TCP, CONNECT_TCP
    {.files = (1ULL << 16) - 1, .network = 3},               // 5: and IOCTL_DEV
    {.files = (1ULL << 16) - 1, .network = 3, .scopes = 3},  // 6: abstract sockets, signals
}};

constexpr std::uint64_t kBindTcp = 1;

Unexpected<HostError> failed() {
  return {HostError{fmt::format("Landlock: {}", std::strerror(errno))}};
}

}  // namespace

Expected<int, HostError> close_file_system(bool connections) {
  const auto abi = static_cast<int>(
      ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION));
  if (abi <= 0) return 0;
  Ruleset all = kAll[std::min<std::size_t>(static_cast<std::size_t>(abi), kAll.size()) - 1];
  if (connections) all.network &= kBindTcp;
  const machine::FileDescriptor ruleset{
      static_cast<int>(::syscall(SYS_landlock_create_ruleset, &all, sizeof all, 0))};
  if (!ruleset.valid()) return failed();
  if (::syscall(SYS_landlock_restrict_self, ruleset.get(), 0) != 0) return failed();
  return abi;
}

}  // namespace strata::host
