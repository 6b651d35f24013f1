#include "oracle.hpp"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <stdexcept>

namespace strata::differential {
namespace {

constexpr int kSharedInChild = 5;

std::array<machine::FileDescriptor, 2> make_pipe() {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
  return {machine::FileDescriptor{ends[0]}, machine::FileDescriptor{ends[1]}};
}

}  // namespace

Oracle::Oracle(std::vector<std::string> command, std::span<const std::uint8_t> pattern)
    : command_{std::move(command)}, shared_{memfd_create("cases", MFD_CLOEXEC)} {
  if (!shared_.valid() || ftruncate(shared_.get(), sizeof(Batch)) != 0) {
    throw std::runtime_error("no memory to share with the executor");
  }
  void* p = mmap(nullptr, sizeof(Batch), PROT_READ | PROT_WRITE, MAP_SHARED, shared_.get(), 0);
  if (p == MAP_FAILED) throw std::runtime_error("no memory to share with the executor");
  batch_ = static_cast<Batch*>(p);
  std::ranges::copy(pattern, batch_->pattern.begin());
  spawn();
}

Oracle::~Oracle() {
  reap();
  munmap(batch_, sizeof(Batch));
}

void Oracle::spawn() {
  auto down = make_pipe();
  auto up = make_pipe();
  std::vector<std::string> words = command_;
  words.push_back(std::to_string(kSharedInChild));
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, down[0].get(), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, up[1].get(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, shared_.get(), kSharedInChild);
  const int failed = posix_spawnp(&child_, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) throw std::runtime_error("cannot start " + command_.front());
  to_ = std::move(down[1]);
  from_ = std::move(up[0]);
}

void Oracle::reap() {
  if (child_ < 0) return;
  to_ = {};
  from_ = {};
  // Without its pipes it ends by itself, unless a case has made it loop.
  kill(child_, SIGKILL);
  waitpid(child_, nullptr, 0);
  child_ = -1;
}

void Oracle::start() {
  const char token = 1;
  // A dead child shows in finish().
  [[maybe_unused]] const auto written = write(to_.get(), &token, 1);
}

bool Oracle::finish() {
  char token = 0;
  // A dying emulator may have last words.
  if (read(from_.get(), &token, 1) == 1 && token == 1) return true;
  reap();
  spawn();
  return false;
}

}  // namespace strata::differential
