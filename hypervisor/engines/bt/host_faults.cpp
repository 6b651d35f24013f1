#include "engines/bt/host_faults.hpp"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <utility>

#include "engines/bt/code_cache.hpp"

namespace strata::bt {
namespace {

thread_local const CodeCache* running = nullptr;

struct sigaction& handler_before(int number) noexcept {
  static std::array<struct sigaction, 2> before{};
  return before[number == SIGSEGV ? 0 : 1];
}

void pass_on(int number, siginfo_t* info, void* context) {
  const struct sigaction& before = handler_before(number);
  if ((before.sa_flags & SA_SIGINFO) != 0 && before.sa_sigaction != nullptr) {
    before.sa_sigaction(number, info, context);
    return;
  }
  // Taken again, it ends the process as it would have.
  ::sigaction(number, &before, nullptr);
}

void handle(int number, siginfo_t* info, void* context) {
  if (running != nullptr) {
    auto& rip = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP];
    if (const auto cold = running->find_fault(static_cast<std::uint64_t>(rip)); cold != 0) {
      rip = static_cast<greg_t>(cold);
      return;
    }
  }
  pass_on(number, info, context);
}

bool install_for(int number) noexcept {
  struct sigaction action {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  return ::sigaction(number, &action, &handler_before(number)) == 0;
}

/// A signal stack for as long as the thread lives, if it has none.
class SignalStack {
 public:
  SignalStack() noexcept {
    stack_t known{};
    if (sigaltstack(nullptr, &known) == 0 && (known.ss_flags & SS_DISABLE) == 0) return;
    memory_ = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) return;
    const stack_t stack{.ss_sp = memory_, .ss_flags = 0, .ss_size = kBytes};
    sigaltstack(&stack, nullptr);
  }
  SignalStack(const SignalStack&) = delete;
  SignalStack& operator=(const SignalStack&) = delete;
  ~SignalStack() {
    if (memory_ == MAP_FAILED) return;
    const stack_t none{.ss_sp = nullptr, .ss_flags = SS_DISABLE, .ss_size = 0};
    sigaltstack(&none, nullptr);
    munmap(memory_, kBytes);
  }

 private:
  static constexpr std::size_t kBytes = 64U << 10;
  void* memory_ = MAP_FAILED;
};

}  // namespace

bool CatchHostFaults::install() noexcept {
  // A #GP of the processor, for an address that is not canonical, is SIGSEGV too.
  static const bool installed = install_for(SIGSEGV) && install_for(SIGBUS);
  return installed;
}

CatchHostFaults::CatchHostFaults(const CodeCache& cache) noexcept
    : outer_{std::exchange(running, &cache)} {
  thread_local const SignalStack stack;
}

CatchHostFaults::~CatchHostFaults() { running = outer_; }

}  // namespace strata::bt
