#include "engines/bt/host_faults.hpp"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <utility>

#include "engines/bt/code_cache.hpp"

namespace strata::bt {
namespace {

thread_local const CatchHostFaults* running = nullptr;

struct sigaction& handler_before(int number) noexcept {
  static std::array<struct sigaction, 3> before{};
  return before[number == SIGSEGV ? 0 : number == SIGBUS ? 1 : 2];
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
    auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    auto rip = static_cast<std::uint64_t>(registers[REG_RIP]);
    auto rsp = static_cast<std::uint64_t>(registers[REG_RSP]);
    if (running->redirect(rip, rsp, static_cast<unsigned>(registers[REG_TRAPNO]))) {
      registers[REG_RIP] = static_cast<greg_t>(rip);
      registers[REG_RSP] = static_cast<greg_t>(rsp);
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
  // A #GP of the processor, for an address that is not canonical, is SIGSEGV too. SIGILL:
  // redirect().
  static const bool installed = install_for(SIGSEGV) && install_for(SIGBUS) && install_for(SIGILL);
  return installed;
}

bool CatchHostFaults::redirect(std::uint64_t& rip, std::uint64_t& rsp,
                               unsigned vector) const noexcept {
  constexpr unsigned kInvalidOpcode = 6, kGeneralProtection = 13;
  if (!cache_.holds(rip)) return false;
  // SDM 1 3.3.7.1: bits 63 to 47 are equal.
  const auto sign = static_cast<std::int64_t>(rsp) >> 47;
  const bool canonical = sign == 0 || sign == -1;
  std::uint64_t resume = cache_.find_fault(rip);
  // Nothing that could fault: the host, or a hypervisor below it, did not get back to this RSP.
  const bool lost = vector == kGeneralProtection || vector == kInvalidOpcode;
  if (resume == 0 && !canonical && lost) resume = rip;
  if (resume == 0) return false;
  if (canonical) {
    rip = resume;
    return true;
  }
  // Within the stub, what it was entered for still counts.
  if (rip != stubs_.fault_jump) {
    state_.fault_rsp = rsp;
    state_.fault_resume = resume;
  }
  rip = stubs_.fault;
  rsp = reinterpret_cast<std::uint64_t>(&state_);
  return true;
}

CatchHostFaults::CatchHostFaults(const CodeCache& cache, NativeState& state,
                                 const Stubs& stubs) noexcept
    : cache_{cache}, state_{state}, stubs_{stubs}, outer_{std::exchange(running, this)} {
  thread_local const SignalStack stack;
}

CatchHostFaults::~CatchHostFaults() { running = outer_; }

}  // namespace strata::bt
