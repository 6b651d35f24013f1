#include "host/call_filter.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "host/refused_call.hpp"

namespace strata::host {

namespace {

using Filter = std::unique_ptr<void, decltype(&seccomp_release)>;

/// Whatever the arguments. What can be opened by these: memory, and nothing else.
constexpr std::array kCalls{
    // Open files: consoles, statistics, recordings, timers, event counters, /proc/self.
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(readv),
    SCMP_SYS(writev),
    SCMP_SYS(pread64),
    SCMP_SYS(pwrite64),
    SCMP_SYS(lseek),
    SCMP_SYS(fstat),
    SCMP_SYS(ftruncate),
    SCMP_SYS(close),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(timerfd_settime),
    // Disks. What io_uring can do was limited when the ring was made (docs/sandbox.md).
    SCMP_SYS(preadv),
    SCMP_SYS(pwritev),
    SCMP_SYS(fdatasync),
    SCMP_SYS(io_uring_enter),
    // Memory: the guest's, tables, the allocator's. mmap and mprotect are below.
    SCMP_SYS(munmap),
    SCMP_SYS(madvise),
    SCMP_SYS(mremap),
    SCMP_SYS(brk),
    SCMP_SYS(fallocate),
    // Threads that exist: locks, sleep, their ends. A thread that was just made registers itself
    // (rseq, set_robust_list) when the filter may be there already.
    SCMP_SYS(futex),
    SCMP_SYS(sched_yield),
    SCMP_SYS(nanosleep),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(rseq),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(membarrier),
    // Where the host's clock source cannot be read without the kernel (vdso(7)).
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_getres),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(getcpu),
    // Signals to ourselves: SIGUSR1 for --save, kicks of engine kvm, abort().
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(rt_sigtimedwait),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(getrandom),
};

/// The console's settings (tcgetattr, tcsetattr, isatty). Not TIOCSTI, which types into the user's
/// shell.
constexpr std::array<unsigned long, 4> kTerminal{TCGETS, TCSETS, TCSETSW, TCSETSF};

/// On sockets. None reaches further than socket() and connect() below let it.
constexpr std::array kSocketCalls{
    SCMP_SYS(connect),    SCMP_SYS(accept),      SCMP_SYS(accept4),     SCMP_SYS(sendto),
    SCMP_SYS(recvfrom),   SCMP_SYS(sendmsg),     SCMP_SYS(recvmsg),     SCMP_SYS(shutdown),
    SCMP_SYS(getsockopt), SCMP_SYS(getsockname), SCMP_SYS(getpeername),
};
constexpr std::array<unsigned long, 2> kSocketRequests{FIONREAD, FIONBIO};

constexpr scmp_datum_t kNoBits = 0;

int allow(const Filter& filter, int call, std::initializer_list<scmp_arg_cmp> conditions = {}) {
  return seccomp_rule_add_array(filter.get(), SCMP_ACT_ALLOW, call,
                                static_cast<unsigned>(conditions.size()), conditions.begin());
}

/// Calls that are harmless with some arguments only.
int allow_by_argument(const Filter& filter) {
  const auto self = static_cast<scmp_datum_t>(::getpid());
  // New code: what is generated at run time was mapped when the vCPUs were made.
  const scmp_arg_cmp no_code = SCMP_A2_64(SCMP_CMP_MASKED_EQ, PROT_EXEC, kNoBits);
  const std::array results{
      allow(filter, SCMP_SYS(mmap), {no_code}),
      allow(filter, SCMP_SYS(mprotect), {no_code}),
      allow(filter, SCMP_SYS(tgkill), {SCMP_A0_64(SCMP_CMP_EQ, self, kNoBits)}),
      // fstat() of the C library. The flag cannot make it see no name: docs/sandbox.md.
      allow(filter, SCMP_SYS(newfstatat), {SCMP_A3_64(SCMP_CMP_EQ, AT_EMPTY_PATH, kNoBits)}),
      allow(filter, SCMP_SYS(fcntl), {SCMP_A1_64(SCMP_CMP_EQ, F_GETFL, kNoBits)}),
  };
  for (const int result : results) {
    if (result != 0) return result;
  }
  return 0;
}

int allow_ioctls(const Filter& filter, std::span<const unsigned long> requests) {
  // The kernel looks at 32 bits; a C library may extend their sign.
  constexpr scmp_datum_t kRequest = 0xFFFF'FFFF;
  for (const unsigned long request : requests) {
    const int result = allow(filter, SCMP_SYS(ioctl),
                             {SCMP_A1_64(SCMP_CMP_MASKED_EQ, kRequest, request & kRequest)});
    if (result != 0) return result;
  }
  return 0;
}

int allow_sockets(const Filter& filter) {
  constexpr scmp_datum_t kType = 0xF;  // the rest: SOCK_CLOEXEC, SOCK_NONBLOCK
  for (const scmp_datum_t family : std::array<scmp_datum_t, 2>{AF_INET, AF_INET6}) {
    for (const auto& [type, protocol] : {std::pair<scmp_datum_t, scmp_datum_t>{SOCK_STREAM, 0},
                                         {SOCK_DGRAM, 0},
                                         {SOCK_DGRAM, IPPROTO_ICMP}}) {
      const int result = allow(
          filter, SCMP_SYS(socket),
          {SCMP_A0_64(SCMP_CMP_EQ, family, kNoBits), SCMP_A1_64(SCMP_CMP_MASKED_EQ, kType, type),
           SCMP_A2_64(SCMP_CMP_EQ, protocol, kNoBits)});
      if (result != 0) return result;
    }
  }
  return 0;
}

int allow_connections(const Filter& filter) {
  int result = allow_sockets(filter);
  for (const int call : kSocketCalls) {
    if (result == 0) result = allow(filter, call);
  }
  for (const scmp_datum_t level :
       std::array<scmp_datum_t, 3>{SOL_SOCKET, IPPROTO_TCP, IPPROTO_IP}) {
    if (result == 0) {
      result = allow(filter, SCMP_SYS(setsockopt), {SCMP_A1_64(SCMP_CMP_EQ, level, kNoBits)});
    }
  }
  for (const scmp_datum_t command : std::array<scmp_datum_t, 3>{F_SETFL, F_SETFD, F_GETFD}) {
    if (result == 0) {
      result = allow(filter, SCMP_SYS(fcntl), {SCMP_A1_64(SCMP_CMP_EQ, command, kNoBits)});
    }
  }
  return result == 0 ? allow_ioctls(filter, kSocketRequests) : result;
}

int configure(const Filter& filter) {
  // i386's and x32's numbers mean other calls; nothing here makes those.
  int result = seccomp_attr_set(filter.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
  if (result == 0) result = seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_TSYNC, 1);
  // A search tree instead of a list: a vCPU's exits pay for each comparison.
  if (result == 0) result = seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2);
  return result;
}

}  // namespace

Expected<void, HostError> filter_system_calls(const Permissions& permissions) {
  const Filter filter{seccomp_init(SCMP_ACT_TRAP), &seccomp_release};
  if (filter == nullptr) return Unexpected{HostError{"seccomp: the host has no memory"}};
  int result = configure(filter);
  for (const int call : kCalls) {
    if (result == 0) result = allow(filter, call);
  }
  if (result == 0) result = allow_by_argument(filter);
  if (result == 0) result = allow_ioctls(filter, kTerminal);
  if (result == 0) result = allow_ioctls(filter, permissions.ioctls);
  if (result == 0 && permissions.connections) result = allow_connections(filter);
  if (const auto done = report_refused_calls(); !done) return Unexpected{done.error()};
  if (result == 0) result = seccomp_load(filter.get());
  if (result == 0) return {};
  return Unexpected{HostError{fmt::format("seccomp: {}", std::strerror(-result))}};
}

}  // namespace strata::host
