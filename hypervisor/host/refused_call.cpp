#include "host/refused_call.hpp"

#include <fmt/format.h>
#include <seccomp.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>

namespace strata::host {

namespace {

/// More than x86-64 has (6.18: 470).
constexpr int kCalls = 512;
using Name = std::array<char, 32>;

/// By number. Filled before there is a filter, since looking names up allocates memory; a signal
/// handler has nothing but statics to read them from.
std::array<Name, kCalls>& names() {
  static std::array<Name, kCalls> table{};
  return table;
}

void fill_names() {
  for (int call = 0; call < kCalls; ++call) {
    const std::unique_ptr<char, decltype(&std::free)> name{
        seccomp_syscall_resolve_num_arch(SCMP_ARCH_X86_64, call), &std::free};
    Name& to = names()[static_cast<std::size_t>(call)];
    if (name != nullptr) std::strncpy(to.data(), name.get(), to.size() - 1);
  }
}

/// A line put together without memory or locks: the refused call may hold both.
class Line {
 public:
  void add(std::string_view text) noexcept {
    const std::size_t n = std::min(text.size(), bytes_.size() - used_);
    std::memcpy(bytes_.data() + used_, text.data(), n);
    used_ += n;
  }
  void add(unsigned number) noexcept {
    std::array<char, 10> digits;
    std::size_t at = digits.size();
    do {
      digits[--at] = static_cast<char>('0' + number % 10);
      number /= 10;
    } while (number != 0);
    add({digits.data() + at, digits.size() - at});
  }
  /// Best effort: nobody could be told that it failed.
  void write() const noexcept {
    if (::write(STDERR_FILENO, bytes_.data(), used_) < 0) return;
  }

 private:
  std::array<char, 256> bytes_;
  std::size_t used_ = 0;
};

/// On the thread that made the call, in its place. Only what signal-safety(7) lists.
void refused(int /*signal*/, siginfo_t* info, void* /*context*/) {
  const auto call = static_cast<unsigned>(info->si_syscall);
  const bool known = call < kCalls && names()[call][0] != '\0';
  Line line;
  line.add("strata: the sandbox refused the system call ");
  line.add(known ? std::string_view{names()[call].data()} : "without a name");
  line.add(" (");
  line.add(call);
  line.add("); a VM does not make it, so this process ends\n");
  line.write();
  ::_exit(1);
}

}  // namespace

Expected<void, HostError> report_refused_calls() {
  fill_names();
  struct sigaction action {};
  action.sa_sigaction = refused;
  // A stack of the handler's own, where a thread has one: the call may come off the end of another.
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigfillset(&action.sa_mask);
  if (::sigaction(SIGSYS, &action, nullptr) == 0) return {};
  return Unexpected{HostError{fmt::format("SIGSYS: {}", std::strerror(errno))}};
}

}  // namespace strata::host
