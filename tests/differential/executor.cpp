// Runs cases on whatever processor runs this program: the host's own, or QEMU's software one. A
// small static program of its own so that an emulator can run it, and so that a case that goes
// wrong takes nothing else with it.
//   executor FD     FD: a shared Batch; a byte on standard input starts it, one comes back
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

#include "case.hpp"
#include "interp/signal_frame.hpp"

// Known to the assembly by number: see the assertions below.
namespace strata::differential {
struct Context {
  Registers regs;                           // gpr 0, rflags 128, rip 136, fx 144 (16-aligned), ymm
  std::uint64_t host_rsp = 0;               // 1184
  std::uint32_t far_offset = 0;             // 1192
  std::uint16_t far_selector = 0, pad = 0;  // 1196
  std::uint32_t host_mxcsr = 0;             // 1200
};
static_assert(kContext == 0x210000 && offsetof(Registers, fx) == 144 &&
              offsetof(Registers, ymm) == 672 && offsetof(Context, host_rsp) == 1184 &&
              offsetof(Context, far_offset) == 1192 && offsetof(Context, host_mxcsr) == 1200);
}  // namespace strata::differential

asm(R"(
.text
.globl strata_enter, strata_enter32, strata_leave
.macro load_units
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, 0x2104A0
  stmxcsr 0x2104B0
  fxrstor64 0x210090
  .set n, 0
  .irp reg, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  vmovdqu 0x2102A0+n, %ymm\reg
  .set n, n + 32
  .endr
.endm
strata_enter:
  load_units
  pushq 0x210080
  popfq
  mov 0x210000, %rax
  mov 0x210008, %rcx
  mov 0x210010, %rdx
  mov 0x210018, %rbx
  mov 0x210020, %rsp
  mov 0x210028, %rbp
  mov 0x210030, %rsi
  mov 0x210038, %rdi
  mov 0x210040, %r8
  mov 0x210048, %r9
  mov 0x210050, %r10
  mov 0x210058, %r11
  mov 0x210060, %r12
  mov 0x210068, %r13
  mov 0x210070, %r14
  mov 0x210078, %r15
  jmp *0x210088
strata_enter32:
  load_units
  mov $0x2b, %eax
  mov %eax, %ds
  mov %eax, %es
  pushq 0x210080
  popfq
  mov 0x210000, %eax
  mov 0x210008, %ecx
  mov 0x210010, %edx
  mov 0x210018, %ebx
  mov 0x210020, %esp
  mov 0x210028, %ebp
  mov 0x210030, %esi
  mov 0x210038, %edi
  ljmp *0x2104A8
strata_leave:
  cld
  .set n, 0
  .irp reg, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  vmovdqu %ymm\reg, 0x2102A0+n
  .set n, n + 32
  .endr
  fxsave64 0x210090
  fninit
  ldmxcsr 0x2104B0
  vzeroupper
  mov 0x2104A0, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
)");

extern "C" {
void strata_enter();
void strata_enter32();
void strata_leave();
}

namespace {

using namespace strata::differential;
namespace frame = strata::interp::test;

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};

Context& context() { return *reinterpret_cast<Context*>(kContext); }
Result* result_of_current = nullptr;  // the signal handler has no other way to reach it

/// The exception behind a signal, as far as the signal tells.
std::uint32_t vector_of(int number, const siginfo_t& info) {
  switch (number) {
    case SIGTRAP:
      return 3;
    case SIGILL:
      return 6;
    case SIGFPE:
      return info.si_code == FPE_INTDIV ? 0 : 19;
    case SIGBUS:
      return 17;
    default:
      return info.si_code == SEGV_MAPERR || info.si_code == SEGV_ACCERR ? 14 : 13;
  }
}

/// Takes the general registers down and goes on at strata_leave, which takes the others.
void on_signal(int number, siginfo_t* info, void* raw) {
  auto& regs = static_cast<ucontext_t*>(raw)->uc_mcontext.gregs;
  if (result_of_current == nullptr) _exit(3);
  Context& c = context();
  frame::read_general(regs, c.regs.gpr);
  c.regs.rflags = static_cast<std::uint64_t>(regs[REG_EFL]);
  c.regs.rip = static_cast<std::uint64_t>(regs[REG_RIP]);
  Result& r = *result_of_current;
  result_of_current = nullptr;
  r.vector = static_cast<std::uint32_t>(regs[REG_TRAPNO]);
  r.error = static_cast<std::uint32_t>(regs[REG_ERR]);
  r.cr2 = static_cast<std::uint64_t>(regs[REG_CR2]);
  if (static_cast<std::int32_t>(r.vector) == -1) {
    // An emulator that does not say.
    r.vector = vector_of(number, *info);
    r.cr2 = reinterpret_cast<std::uint64_t>(info->si_addr);
  }
  // Not the case's: some hosts do not return to one that is not canonical.
  regs[REG_RSP] = static_cast<greg_t>(c.host_rsp);
  frame::resume_at(regs, &strata_leave);
}

std::uint8_t* map(std::uint64_t at, std::size_t bytes, int protection) {
  void* p = mmap(reinterpret_cast<void*>(at), bytes, protection,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (p != reinterpret_cast<void*>(at)) _exit(2);
  return static_cast<std::uint8_t*>(p);
}

void run_case(const Case& c, Result& r, std::uint8_t* data, const std::uint8_t* pattern) {
  auto* code = reinterpret_cast<std::uint8_t*>(c.before.rip);
  for (std::uint32_t i = 0; i < c.length; ++i) code[i] = c.code[i];
  for (std::size_t i = 0; i < c.patch.size(); ++i) data[c.patch_at - kData + i] = c.patch[i];
  Context& x = context();
  x.regs = c.before;
  x.far_offset = static_cast<std::uint32_t>(c.before.rip);
  x.far_selector = frame::kUser32;
  result_of_current = &r;
  if (c.bits == 64) {
    strata_enter();
  } else {
    strata_enter32();
  }
  r.after = x.regs;
  take_changes(data, pattern, c, r);
  restore_code(reinterpret_cast<std::uint8_t*>(kCode), c);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  void* shared = mmap(nullptr, sizeof(Batch), PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0);
  if (shared == MAP_FAILED) return 2;
  auto& batch = *static_cast<Batch*>(shared);
  std::uint8_t* code = map(kCode, kCodeBytes, PROT_READ | PROT_WRITE | PROT_EXEC);
  std::uint8_t* data = map(kData, kPatternBytes + 0x1000, PROT_READ | PROT_WRITE);
  map(kContext, 0x1000, PROT_READ | PROT_WRITE);
  for (std::size_t i = 0; i < kCodeBytes; ++i) code[i] = kBreakpoint;
  for (std::size_t i = 0; i < kPatternBytes; ++i) data[i] = batch.pattern[i];
  mprotect(data + kWritableBytes, 0x1000, PROT_READ);
  mprotect(data + kPatternBytes, 0x1000, PROT_NONE);

  static std::uint8_t stack[64 << 10];
  stack_t s{};
  s.ss_sp = stack;
  s.ss_size = sizeof stack;
  sigaltstack(&s, nullptr);
  struct sigaction action {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (const int number : kSignals) sigaction(number, &action, nullptr);

  char token = 0;
  while (read(STDIN_FILENO, &token, 1) == 1) {
    for (std::uint32_t i = 0; i < batch.count; ++i) {
      batch.current = i;
      run_case(batch.cases[i], batch.results[i], data, batch.pattern.data());
    }
    if (write(STDOUT_FILENO, &token, 1) != 1) return 1;
  }
  return 0;
}
