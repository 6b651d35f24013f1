// What a process in the sandbox can do no more. Each case is a process of its own: there is no way
// back out.
#include "host/sandbox.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>

#include "host/own_memory.hpp"

namespace strata::host {
namespace {

/// Ends the process, which is one of the test's making, if there is no sandbox.
Sandbox enter() {
  auto sandbox = Sandbox::enter();
  if (!sandbox) {
    std::cerr << sandbox.error().message << '\n';
    std::_Exit(3);
  }
  return *sandbox;
}

void filter(Sandbox& sandbox) {
  if (const auto done = sandbox.filter_system_calls({}); !done) {
    std::cerr << done.error().message << '\n';
    std::_Exit(3);
  }
}

Sandbox enter_and_filter() {
  Sandbox sandbox = enter();
  filter(sandbox);
  return sandbox;
}

void* map(int protection) {
  return ::mmap(nullptr, 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

struct Call {
  const char* name;
  void (*make)();
};

std::ostream& operator<<(std::ostream& out, const Call& call) { return out << call.name; }

class Forbidden : public testing::TestWithParam<Call> {
 protected:
  void SetUp() override {
    if (!Sandbox::built()) GTEST_SKIP() << "this build has a sanitizer";
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }
};

TEST_P(Forbidden, EndsTheProcessAndIsNamed) {
  const Call call = GetParam();
  const auto attempt = [&] {
    enter_and_filter();
    call.make();
    std::cerr << "it came back\n";
    std::_Exit(0);
  };
  EXPECT_EXIT(attempt(), testing::ExitedWithCode(1),
              "refused the system call " + std::string{call.name} + " \\([0-9]+\\)");
}

INSTANTIATE_TEST_SUITE_P(
    Sandbox, Forbidden,
    testing::Values(
        Call{"openat", [] { (void)::open("/dev/null", O_RDONLY); }},
        Call{"open", [] { ::syscall(SYS_open, "/dev/null", O_RDONLY); }},
        Call{"execve", [] { ::execl("/bin/true", "true", nullptr); }},
        Call{"socket", [] { (void)::socket(AF_INET, SOCK_STREAM, 0); }},
        Call{"ptrace", [] { ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr); }},
        Call{"process_vm_readv", [] { ::syscall(SYS_process_vm_readv, 1); }},
        Call{"kill", [] { ::kill(1, 0); }}, Call{"tgkill", [] { ::syscall(SYS_tgkill, 1, 1, 0); }},
        Call{"fork", [] { ::syscall(SYS_fork); }},
        Call{"clone3", [] { ::syscall(SYS_clone3, nullptr, 0); }},
        Call{"clone", [] { ::syscall(SYS_clone, SIGCHLD, nullptr); }},
        Call{"mmap", [] { (void)map(PROT_READ | PROT_EXEC); }},
        Call{"mprotect",
             [] { ::mprotect(map(PROT_READ | PROT_WRITE), 4096, PROT_READ | PROT_EXEC); }},
        // Types a letter into the terminal that the user goes on with.
        Call{"ioctl", [] { ::ioctl(STDIN_FILENO, TIOCSTI, "x"); }},
        Call{"newfstatat",
             [] {
               struct stat status {};
               ::stat("/etc/shadow", &status);
             }},
        Call{"unlink", [] { ::unlink("/nowhere"); }}, Call{"bpf", [] { ::syscall(SYS_bpf); }},
        Call{"io_uring_setup", [] { ::syscall(SYS_io_uring_setup, 1, nullptr); }},
        Call{"io_uring_register", [] { ::syscall(SYS_io_uring_register, -1, 0, nullptr, 0); }},
        Call{"prctl", [] { ::syscall(SYS_prctl, 0); }},
        Call{"seccomp", [] { ::syscall(SYS_seccomp, 0, 0, nullptr); }},
        Call{"userfaultfd", [] { ::syscall(SYS_userfaultfd, 0); }},
        Call{"memfd_create", [] { ::syscall(SYS_memfd_create, "x", 0); }},
        Call{"unshare", [] { ::unshare(CLONE_NEWUSER); }}),
    [](const auto& call) { return std::string{call.param.name}; });

class SandboxTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!Sandbox::built()) GTEST_SKIP() << "this build has a sanitizer";
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }
  /// `work` in a process of its own, which is to come to its end.
  template <class Work>
  void succeeds(Work work) {
    const auto attempt = [&] {
      work();
      std::_Exit(0);
    };
    EXPECT_EXIT(attempt(), testing::ExitedWithCode(0), "");
  }
  static void require(bool holds, const char* what) {
    if (holds) return;
    std::cerr << what << ": " << errno << '\n';
    std::_Exit(4);
  }
};

#define REQUIRE(condition) require((condition), #condition)

TEST_F(SandboxTest, MemoryOfOpenSegmentsCanBeMappedAnywhere) {
  succeeds([] {
    const int fd = ::memfd_create("segment", 0);
    REQUIRE(::ftruncate(fd, 1 << 20) == 0);
    enter_and_filter();
    constexpr int kProtection = PROT_READ | PROT_WRITE;
    auto* at = static_cast<char*>(
        ::mmap(nullptr, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    REQUIRE(at != MAP_FAILED);
    REQUIRE(::mmap(at + 4096, 4096, kProtection, MAP_SHARED | MAP_FIXED, fd, 8192) == at + 4096);
    at[4096] = 7;
    REQUIRE(::mprotect(at + 4096, 4096, PROT_READ) == 0);
    REQUIRE(::madvise(at + 4096, 4096, MADV_DONTNEED) == 0);
    REQUIRE(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8192, 4096) == 0);
    REQUIRE(at[4096] == 0);
    REQUIRE(::munmap(at, 1 << 20) == 0);
  });
}

TEST_F(SandboxTest, ConnectionsCanBeMadeWhereTheRunNeedsThem) {
  succeeds([] {
    auto sandbox = Sandbox::enter(true);
    REQUIRE(sandbox && sandbox->filter_system_calls({.connections = true}));
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    name.sin_port = htons(1);
    const auto* address = reinterpret_cast<const sockaddr*>(&name);
    const int stream = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(stream >= 0);
    REQUIRE(::connect(stream, address, sizeof name) == 0 || errno == ECONNREFUSED);
    const int datagram = ::socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    REQUIRE(datagram >= 0 || errno == EAFNOSUPPORT);
  });
}

TEST_F(SandboxTest, ConnectionsAreAllThatSocketsAreFor) {
  struct Case {
    const char* name;
    void (*make)();
  };
  for (const Case c :
       {Case{"socket", [] { (void)::socket(AF_UNIX, SOCK_STREAM, 0); }},
        Case{"socket", [] { (void)::socket(AF_PACKET, SOCK_RAW, 0); }},
        Case{"socket", [] { (void)::socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); }},
        Case{"socket", [] { (void)::socket(AF_NETLINK, SOCK_DGRAM, 0); }},
        Case{"socketpair", [] { (void)::syscall(SYS_socketpair, 1, 1, 0, nullptr); }},
        Case{"listen", [] { (void)::listen(0, 1); }},
        Case{"bind", [] { (void)::bind(0, nullptr, 0); }}}) {
    const auto attempt = [c] {
      auto sandbox = Sandbox::enter(true);
      if (!sandbox || !sandbox->filter_system_calls({.connections = true})) std::_Exit(3);
      c.make();
      std::_Exit(0);
    };
    EXPECT_EXIT(attempt(), testing::ExitedWithCode(1),
                "refused the system call " + std::string{c.name});
  }
}

TEST_F(SandboxTest, ThreadsThatExistGoOnAndEnd) {
  succeeds([] {
    std::mutex lock;
    std::condition_variable changed;
    bool go = false;
    Sandbox sandbox = enter();
    std::thread other{[&] {
      std::unique_lock guard{lock};
      changed.wait(guard, [&] { return go; });
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
    }};
    filter(sandbox);
    {
      const std::lock_guard guard{lock};
      go = true;
    }
    changed.notify_all();
    other.join();
  });
}

TEST_F(SandboxTest, TheFilterHoldsForThreadsThatWereThereBefore) {
  const auto attempt = [] {
    std::mutex lock;
    Sandbox sandbox = enter();
    std::unique_lock closed{lock};
    std::thread other{[&] {
      const std::lock_guard wait{lock};
      (void)::socket(AF_INET, SOCK_STREAM, 0);
      std::_Exit(0);
    }};
    filter(sandbox);
    closed.unlock();
    other.join();
  };
  EXPECT_EXIT(attempt(), testing::ExitedWithCode(1), "refused the system call socket");
}

TEST_F(SandboxTest, ASecondThreadIsTooEarly) {
  succeeds([] {
    std::mutex lock;
    std::unique_lock closed{lock};
    std::thread other{[&] { const std::lock_guard wait{lock}; }};
    REQUIRE(!Sandbox::enter());
    closed.unlock();
    other.join();
  });
}

TEST_F(SandboxTest, AbortIsStillAnAbort) {
  const auto attempt = [] {
    enter_and_filter();
    std::abort();
  };
  EXPECT_EXIT(attempt(), testing::KilledBySignal(SIGABRT), "");
}

TEST_F(SandboxTest, OpenFilesStayUsable) {
  succeeds([] {
    const OwnMemory memory;
    enter_and_filter();
    REQUIRE(memory.mappings("nothing").resident > 4096);
    REQUIRE(memory.page_table_bytes() > 4096);
  });
}

TEST_F(SandboxTest, NothingOfRootIsLeft) {
  succeeds([] {
    // /proc is out of reach by name later.
    std::ifstream status{"/proc/thread-self/status"};
    const Sandbox sandbox = enter();
    std::string text{std::istreambuf_iterator<char>{status}, {}};
    for (const char* line :
         {"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
          "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"}) {
      std::cerr << line << '\n';
      REQUIRE(text.find(line) != std::string::npos);
    }
    const auto report = sandbox.report();
    REQUIRE(report["uid"] == ::geteuid());
    const bool kept = text.find("CapBnd:\t0000000000000000") == std::string::npos;
    REQUIRE((report["bounding_set"] == "empty") == !kept);
    REQUIRE(::setresuid(0, 0, 0) != 0 || ::getuid() == 0);
  });
}

TEST_F(SandboxTest, RootBecomesWhoeverCalledSudo) {
  if (::geteuid() != 0) GTEST_SKIP() << "not root";
  struct Case {
    const char* uid;
    unsigned becomes;
  };
  for (const Case c : {Case{"1234", 1234}, Case{"0", 65534}, Case{"12x", 65534},
                       Case{"4294967295", 65534}, Case{"", 65534}}) {
    succeeds([c] {
      ::setenv("SUDO_UID", c.uid, 1);
      ::setenv("SUDO_GID", c.uid, 1);
      enter();
      REQUIRE(::getuid() == c.becomes || ::getuid() == 0);  // 0: no other user in this namespace
      REQUIRE(::getgid() == c.becomes || ::getgid() == 0);
    });
  }
}

TEST_F(SandboxTest, LandlockDeniesFilesWithoutTheFilter) {
  succeeds([] {
    const Sandbox sandbox = enter();
    if (sandbox.report()["landlock_abi"] == 0) return;  // a host without
    for (const char* path : {"/proc/self/status", "/etc/passwd", "/"}) {
      REQUIRE(::open(path, O_RDONLY) < 0 && errno == EACCES);
    }
    REQUIRE(::open("/tmp/strata-sandbox-test", O_WRONLY | O_CREAT, 0600) < 0 && errno == EACCES);
    REQUIRE(::mkdir("/tmp/strata-sandbox-test", 0700) < 0 && errno == EACCES);
  });
}

}  // namespace
}  // namespace strata::host
