#include "native_oracle.hpp"

#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "signal_frame.hpp"

// Layout of the context page, known to the assembly below by number: registers in the processor's
// order at 0, RFLAGS at 128, RIP at 136, the host's RSP at 144, the address to leave by at 152, and
// a far pointer to 32-bit code at 160.
asm(R"(
.text
.globl strata_test_native_enter
.type strata_test_native_enter, @function
strata_test_native_enter:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, 0x210090
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
.globl strata_test_native_enter32
strata_test_native_enter32:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, 0x210090
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
  ljmp *0x2100a0
.globl strata_test_native_leave
strata_test_native_leave:
  mov %rax, 0x210000
  mov %rcx, 0x210008
  mov %rdx, 0x210010
  mov %rbx, 0x210018
  mov %rsp, 0x210020
  mov %rbp, 0x210028
  mov %rsi, 0x210030
  mov %rdi, 0x210038
  mov %r8, 0x210040
  mov %r9, 0x210048
  mov %r10, 0x210050
  mov %r11, 0x210058
  mov %r12, 0x210060
  mov %r13, 0x210068
  mov %r14, 0x210070
  mov %r15, 0x210078
  mov 0x210090, %rsp
  pushfq
  popq 0x210080
.globl strata_test_native_return
strata_test_native_return:
  cld
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
.size strata_test_native_enter, . - strata_test_native_enter
)");

extern "C" {
void strata_test_native_enter();
void strata_test_native_enter32();
void strata_test_native_leave();
void strata_test_native_return();
}

namespace strata::interp::test {
namespace {

struct Context {
  std::array<std::uint64_t, 16> gpr;
  std::uint64_t rflags, rip, host_rsp, leave;
  std::uint32_t far_offset;
  std::uint16_t far_selector, padding;
  std::int64_t vector;
  std::uint64_t error, cr2;
};

/// JMP [kContext + 152]: leaves 64-bit code.
constexpr std::array<std::uint8_t, 7> kLeave = {0xFF, 0x24, 0x25, 0x98, 0x00, 0x21, 0x00};
/// Where a copy of it stands for 32-bit code, and the far jump there.
constexpr std::uint64_t kLeaveStub = NativeOracle::kCode + 0x1F00;
constexpr std::array<std::uint8_t, 7> kLeave32 = {0xEA, 0x00, 0x1F, 0x20, 0x00, kUser64, 0x00};

Context& context() { return *reinterpret_cast<Context*>(NativeOracle::kContext); }

constexpr std::array<int, 4> kSignals = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr std::size_t kSignalStack = 64U << 10;

/// Who had the signals before, an engine under test among them.
std::array<struct sigaction, kSignals.size()> handlers_before{};

void pass_on(int number, siginfo_t* info, void* raw) {
  const auto* at = std::find(kSignals.begin(), kSignals.end(), number);
  const struct sigaction& before =
      handlers_before.at(static_cast<std::size_t>(at - kSignals.begin()));
  if ((before.sa_flags & SA_SIGINFO) != 0) {
    before.sa_sigaction(number, info, raw);
  } else {
    sigaction(number, &before, nullptr);  // taken again, it ends the process as usual
  }
}

void on_fault(int number, siginfo_t* info, void* raw) {
  auto& regs = static_cast<ucontext_t*>(raw)->uc_mcontext.gregs;
  const auto reg = [&regs](int i) { return static_cast<std::uint64_t>(regs[i]); };
  const std::uint64_t rip = reg(REG_RIP);
  if (rip < NativeOracle::kCode || rip >= NativeOracle::kCode + 0x2000) {
    return pass_on(number, info, raw);
  }
  Context& c = context();
  read_general(regs, c.gpr);
  c.rflags = reg(REG_EFL);
  c.rip = rip;
  c.vector = regs[REG_TRAPNO];
  c.error = reg(REG_ERR);
  c.cr2 = reg(REG_CR2);
  regs[REG_RSP] = static_cast<greg_t>(c.host_rsp);
  resume_at(regs, &strata_test_native_return);
}

std::byte* map(std::uint64_t at, std::size_t bytes, int protection) {
  void* p = mmap(reinterpret_cast<void*>(at), bytes, protection,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (p != reinterpret_cast<void*>(at)) throw std::runtime_error("oracle's addresses are taken");
  return static_cast<std::byte*>(p);
}

/// Signals have a stack of their own, since RSP is the test's to choose.
class SignalStack {
 public:
  SignalStack() : memory_(kSignalStack) {
    stack_t s{};
    s.ss_sp = memory_.data();
    s.ss_size = memory_.size();
    sigaltstack(&s, &before_);
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
      sigaction(kSignals[i], &action, &handlers_before[i]);
    }
  }
  ~SignalStack() {
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
      sigaction(kSignals[i], &handlers_before[i], nullptr);
    }
    sigaltstack(&before_, nullptr);
  }
  SignalStack(const SignalStack&) = delete;
  SignalStack& operator=(const SignalStack&) = delete;

 private:
  std::vector<std::byte> memory_;
  stack_t before_{};
};

}  // namespace

NativeOracle::NativeOracle()
    : code_(map(kCode, 0x2000, PROT_READ | PROT_WRITE | PROT_EXEC)),
      data_(map(kData, (kWritable + 2) * 4096, PROT_READ | PROT_WRITE)) {
  map(kContext, 4096, PROT_READ | PROT_WRITE);
  context().leave = reinterpret_cast<std::uint64_t>(&strata_test_native_leave);
  std::memcpy(code_ + (kLeaveStub - kCode), kLeave.data(), kLeave.size());
  std::memset(data_, 0, (kWritable + 1) * 4096);  // every page present
  mprotect(data_ + kWritable * 4096, 4096, PROT_READ);
  mprotect(data_ + (kWritable + 1) * 4096, 4096, PROT_NONE);
}

NativeOracle::~NativeOracle() {
  munmap(code_, 0x2000);
  munmap(data_, (kWritable + 2) * 4096);
  munmap(reinterpret_cast<void*>(kContext), 4096);
}

void NativeOracle::fill_read_only(const std::byte* bytes) {
  mprotect(data_ + kWritable * 4096, 4096, PROT_READ | PROT_WRITE);
  std::memcpy(data_ + kWritable * 4096, bytes, 4096);
  mprotect(data_ + kWritable * 4096, 4096, PROT_READ);
}

void NativeOracle::run(std::span<const std::uint8_t> code, std::uint64_t at, NativeState& state,
                       unsigned bits) {
  static const SignalStack handlers;
  const auto& leave = bits == 64 ? kLeave : kLeave32;
  std::byte* to = code_ + (at - kCode);
  std::memcpy(to, code.data(), code.size());
  std::memcpy(to + code.size(), leave.data(), leave.size());
  Context& c = context();
  c.gpr = state.gpr;
  c.rflags = state.rflags;
  c.rip = at;
  c.vector = -1;
  c.error = c.cr2 = 0;
  c.far_offset = static_cast<std::uint32_t>(at);
  c.far_selector = kUser32;
  if (bits == 64) {
    strata_test_native_enter();
  } else {
    strata_test_native_enter32();
  }
  state.gpr = c.gpr;
  state.rflags = c.rflags;
  state.vector = static_cast<int>(c.vector);
  state.rip = c.vector < 0 ? at + code.size() : c.rip;
  state.error = c.error;
  state.cr2 = c.cr2;
}

}  // namespace strata::interp::test

// ---- the oracle itself --------------------------------------------------------------------------

#include <gtest/gtest.h>

namespace strata::interp::test {
namespace {

TEST(NativeOracle, RunsCodeWithTheRegistersGiven) {
  NativeOracle oracle;
  NativeState s;
  for (std::size_t i = 0; i < 16; ++i) s.gpr[i] = 0x1111111111111111ULL * i;
  const std::array<std::uint8_t, 3> add_rax_r15 = {0x4C, 0x01, 0xF8};
  oracle.run(add_rax_r15, NativeOracle::kCode, s);
  EXPECT_EQ(s.vector, -1);
  EXPECT_EQ(s.gpr[0], 0xFFFFFFFFFFFFFFFFULL);
  EXPECT_EQ(s.gpr[4], 0x4444444444444444ULL);
  EXPECT_EQ(s.rip, NativeOracle::kCode + 3);
  EXPECT_EQ(s.rflags & 0x8D5, 0x84U);  // SF, PF
}

TEST(NativeOracle, Runs32BitCode) {
  if (!has_user32()) GTEST_SKIP() << "this host executes no 32-bit code";
  NativeOracle oracle;
  NativeState s;
  s.gpr[0] = 0xFFFFFFFF;
  const std::array<std::uint8_t, 2> inc_eax_daa = {0x40, 0x27};
  oracle.run(inc_eax_daa, NativeOracle::kCode, s, 32);
  EXPECT_EQ(s.vector, -1);
  EXPECT_EQ(s.gpr[0], 6U);  // 0 with AF set, adjusted
  const std::array<std::uint8_t, 3> aam_0 = {0x90, 0xD4, 0x00};
  oracle.run(aam_0, NativeOracle::kCode, s, 32);
  EXPECT_EQ(s.vector, 0);
  EXPECT_EQ(s.rip, NativeOracle::kCode + 1);
}

TEST(NativeOracle, ReportsFaults) {
  NativeOracle oracle;
  NativeState s;
  s.gpr[3] = NativeOracle::kAbsent;
  const std::array<std::uint8_t, 3> store = {0x90, 0x89, 0x03};
  oracle.run(store, NativeOracle::kCode, s);
  EXPECT_EQ(s.vector, 14);
  EXPECT_EQ(s.rip, NativeOracle::kCode + 1);
  EXPECT_EQ(s.cr2, NativeOracle::kAbsent);
  EXPECT_EQ(s.error & 2, 2U);
}

}  // namespace
}  // namespace strata::interp::test
