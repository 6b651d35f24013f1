// What a kernel does for a program: faults, mappings, signals, processes, system calls, pipes,
// files. Checksums count what came back, so that a lost fault or byte shows.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "suite.hpp"

namespace bench {
namespace {

constexpr std::size_t page = 4096;
const char* scratch_directory = "/dev/shm";

// Any failure here means that the figures would be about something else.
[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

char* map(std::size_t size) {
  void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) fail("mmap");
  // Huge pages would turn 512 faults into one, depending on the kernel's settings.
  madvise(at, size, MADV_NOHUGEPAGE);
  return static_cast<char*>(at);
}

std::uint64_t touch(char* at, std::size_t size) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < size; i += page) {
    sum += static_cast<std::uint64_t>(at[i]) + 1;
    at[i] = 1;
  }
  return sum;
}

std::uint64_t faults(const Scale& scale) {
  const std::size_t size = scale.rounds(40'000) * page;
  constexpr std::size_t part = 32 << 20;
  std::uint64_t checksum = 0;
  for (std::size_t done = 0; done < size; done += part) {
    const std::size_t now = std::min(part, size - done);
    char* at = map(now);
    checksum += touch(at, now);
    munmap(at, now);
  }
  return checksum;
}

std::uint64_t mappings(const Scale& scale) {
  std::uint64_t checksum = 0;
  for (std::size_t round = scale.rounds(5'000); round > 0; --round) {
    char* at = map(8 * page);
    checksum += touch(at, 8 * page);
    munmap(at, 8 * page);
  }
  return checksum;
}

std::uint64_t protections(const Scale& scale) {
  constexpr std::size_t size = 16 * page;
  char* at = map(size);
  std::uint64_t checksum = touch(at, size);
  for (std::size_t round = scale.rounds(25'000); round > 0; --round) {
    if (mprotect(at, size, PROT_READ) != 0) fail("mprotect");
    checksum += static_cast<std::uint64_t>(at[round % 16 * page]);
    if (mprotect(at, size, PROT_READ | PROT_WRITE) != 0) fail("mprotect");
    at[round % 16 * page] = static_cast<char>(round & 15);
  }
  munmap(at, size);
  return checksum;
}

std::uint64_t signals_seen;

// The faulting load left in RDX where to go on.
void skip_load(int, siginfo_t*, void* context) {
  auto* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  registers[REG_RIP] = registers[REG_RDX];
  ++signals_seen;
}

std::uint64_t sigsegv(const Scale& scale) {
  char* at = map(page);
  if (mprotect(at, page, PROT_NONE) != 0) fail("mprotect");
  struct sigaction action {
  }, before{};
  action.sa_sigaction = skip_load;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &before);
  signals_seen = 0;
  for (std::size_t round = scale.rounds(40'000); round > 0; --round) {
    asm volatile("leaq 1f(%%rip), %%rdx; movb (%0), %%al; 1:" : : "r"(at) : "rax", "rdx", "memory");
  }
  sigaction(SIGSEGV, &before, nullptr);
  munmap(at, page);
  return signals_seen;
}

std::uint64_t wait_for(pid_t child) {
  if (child < 0) fail("fork");
  int status = 0;
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) fail("waitpid");
  return static_cast<std::uint64_t>(WEXITSTATUS(status));
}

std::uint64_t forks(const Scale& scale) {
  std::uint64_t checksum = 0;
  for (std::size_t round = scale.rounds(900); round > 0; --round) {
    const pid_t child = fork();
    if (child == 0) _exit(static_cast<int>(round & 63));
    checksum += wait_for(child);
  }
  return checksum;
}

std::uint64_t execs(const Scale& scale) {
  std::uint64_t checksum = 0;
  for (std::size_t round = scale.rounds(250); round > 0; --round) {
    const std::string code = "exit=" + std::to_string(round & 63);
    const pid_t child = fork();
    if (child == 0) {
      execl("/proc/self/exe", "strata_bench_guest", code.c_str(), nullptr);
      _exit(127);
    }
    checksum += wait_for(child);
  }
  return checksum;
}

std::uint64_t system_calls(const Scale& scale) {
  const long parent = syscall(SYS_getppid);
  std::uint64_t same = 0;
  for (std::size_t round = scale.rounds(800'000); round > 0; --round) {
    same += syscall(SYS_getppid) == parent;
  }
  return same;
}

void echo(int in, int out) {
  unsigned char byte;
  while (read(in, &byte, 1) == 1) {
    ++byte;
    if (write(out, &byte, 1) != 1) _exit(1);
  }
  _exit(0);
}

// A byte there and back between two processes on one processor: two context switches a round.
std::uint64_t pipes(const Scale& scale) {
  int there[2], back[2];
  if (pipe(there) != 0 || pipe(back) != 0) fail("pipe");
  const pid_t child = fork();
  if (child == 0) {
    close(there[1]);
    close(back[0]);
    echo(there[0], back[1]);
  }
  close(there[0]);
  close(back[1]);
  std::uint64_t checksum = 0;
  for (std::size_t round = scale.rounds(30'000); round > 0; --round) {
    auto byte = static_cast<unsigned char>(round);
    if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) fail("ping-pong");
    checksum += byte;
  }
  close(there[1]);
  close(back[0]);
  return checksum + wait_for(child);
}

std::uint64_t use_file(const std::string& path, std::vector<char>& block, std::size_t blocks) {
  const int file = open(path.c_str(), O_CREAT | O_RDWR | O_TRUNC, 0600);
  if (file < 0) fail(path.c_str());
  for (std::size_t i = 0; i < blocks; ++i) {
    block[0] = static_cast<char>(i);
    if (write(file, block.data(), block.size()) != static_cast<ssize_t>(block.size()))
      fail("write");
  }
  lseek(file, 0, SEEK_SET);
  std::uint64_t sum = 0;
  while (read(file, block.data(), block.size()) > 0) sum += static_cast<unsigned char>(block[0]);
  close(file);
  unlink(path.c_str());
  return sum;
}

std::uint64_t files(const Scale& scale) {
  std::vector<char> block(page, 'x');
  const std::string path =
      std::string(scratch_directory) + "/strata-bench-" + std::to_string(getpid());
  std::uint64_t checksum = 0;
  for (std::size_t round = scale.rounds(3'000); round > 0; --round) {
    checksum += use_file(path, block, round % 50 == 0 ? 256 : 4);
  }
  return checksum;
}

constexpr Test tests[] = {
    {"faults", "operating system", faults},        {"mmap", "operating system", mappings},
    {"mprotect", "operating system", protections}, {"sigsegv", "operating system", sigsegv},
    {"fork", "operating system", forks},           {"exec", "operating system", execs},
    {"syscall", "operating system", system_calls}, {"pipe", "operating system", pipes},
    {"files", "operating system", files}};

}  // namespace

void set_scratch_directory(const char* path) { scratch_directory = path; }

std::span<const Test> os_tests() { return tests; }

}  // namespace bench
