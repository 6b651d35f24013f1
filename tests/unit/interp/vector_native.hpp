// The host's own processor as oracle: executes an instruction's original bytes with the registers
// loaded, and reports registers, memory and the trap if there was one. Shares no code with the
// thunks of the interpreter.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

namespace strata::interp::test {

/// Registers as both sides see them.
struct UnitState {
  std::array<std::uint64_t, 16> gpr{};
  std::uint64_t flags = 2;
  std::array<std::array<std::uint64_t, 4>, 16> ymm{};
  alignas(16) std::array<std::uint8_t, 512> fx{};  ///< FXSAVE64 image; XMM fields not used
  std::uint32_t mxcsr = 0x1F80;
  int trap = -1;  ///< exception vector, -1: none

  UnitState() {
    fx[0] = 0x7F;
    fx[1] = 0x03;
  }
};

/// Maps its context, its code and the operand memory at fixed low addresses, so that guest and host
/// can use the same register values.
class NativeCpu {
 public:
  static constexpr std::uint64_t kData = 0x100000;
  static constexpr std::size_t kDataBytes = 4 * 4096;
  static constexpr std::uint64_t kContext = 0x300000;
  static constexpr std::uint64_t kCode = 0x310000;
  static constexpr std::size_t kCodeBytes = 4096;

  NativeCpu() {
    map(kData, kDataBytes, PROT_READ | PROT_WRITE);
    map(kContext, 4096, PROT_READ | PROT_WRITE);
    map(kCode, kCodeBytes, PROT_READ | PROT_WRITE | PROT_EXEC);
    alternate_stack_.resize(64 << 10);
    stack_t stack{};
    stack.ss_sp = alternate_stack_.data();
    stack.ss_size = alternate_stack_.size();
    sigaltstack(&stack, &old_stack_);
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
      sigaction(kSignals[i], &action, &old_actions_[i]);
    }
  }
  NativeCpu(const NativeCpu&) = delete;
  NativeCpu& operator=(const NativeCpu&) = delete;
  ~NativeCpu() {
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
      sigaction(kSignals[i], &old_actions_[i], nullptr);
    }
    sigaltstack(&old_stack_, nullptr);
    munmap(at(kData), kDataBytes);
    munmap(at(kContext), 4096);
    munmap(at(kCode), kCodeBytes);
  }

  [[nodiscard]] std::span<std::uint8_t> data() const {
    return {static_cast<std::uint8_t*>(at(kData)), kDataBytes};
  }
  void protect(std::uint64_t va, bool readable, bool writable) {
    mprotect(at(va), 4096, (readable ? PROT_READ : PROT_NONE) | (writable ? PROT_WRITE : 0));
  }

  [[nodiscard]] UnitState run(std::span<const std::uint8_t> code, const UnitState& in) {
    build(code);
    Context& c = context();
    std::memcpy(c.fx, in.fx.data(), 512);
    std::memcpy(c.fx + 24, &in.mxcsr, 4);
    std::memcpy(c.ymm, in.ymm.data(), sizeof c.ymm);
    std::memcpy(c.gpr, in.gpr.data(), sizeof c.gpr);
    c.rflags = in.flags;
    c.trap = -1;
    reinterpret_cast<void (*)()>(kCode)();
    UnitState out;
    std::memcpy(out.fx.data(), c.fx, 512);
    std::memcpy(&out.mxcsr, c.fx + 24, 4);
    std::memcpy(out.ymm.data(), c.ymm, sizeof c.ymm);
    std::memcpy(out.gpr.data(), c.gpr, sizeof c.gpr);
    out.flags = c.rflags;
    out.trap = static_cast<int>(c.trap);
    if (c.trap >= 0) out.gpr[4] = c.trap_rsp;
    return out;
  }

 private:
  struct Context {
    alignas(64) std::uint8_t fx[512];
    alignas(32) std::uint64_t ymm[16][4];
    std::uint64_t gpr[16];
    std::uint64_t rflags;
    std::uint64_t host_rsp;
    std::int64_t trap;
    std::uint64_t trap_rsp;
    std::uint64_t exit;  ///< address of the part that saves
    std::uint32_t host_mxcsr;
  };
  static constexpr std::array<int, 4> kSignals{SIGSEGV, SIGILL, SIGFPE, SIGBUS};

  static void* at(std::uint64_t address) { return reinterpret_cast<void*>(address); }
  static Context& context() { return *static_cast<Context*>(at(kContext)); }
  static void map(std::uint64_t address, std::size_t bytes, int protection) {
    void* p = mmap(at(address), bytes, protection,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (p != at(address)) throw std::runtime_error("no room at a low address");
  }

  /// A trap of the tested code: note the vector and go on where results are saved. The registers
  /// at the trap come back with the signal's return, except RSP: some hosts do not return to one
  /// that is not canonical.
  static void on_signal(int number, siginfo_t* /*info*/, void* raw) {
    auto* uc = static_cast<ucontext_t*>(raw);
    const auto rip = static_cast<std::uint64_t>(uc->uc_mcontext.gregs[REG_RIP]);
    if (rip < kCode || rip >= kCode + kCodeBytes) {
      signal(number, SIG_DFL);
      return;
    }
    Context& c = context();
    c.trap = uc->uc_mcontext.gregs[REG_TRAPNO];
    c.trap_rsp = static_cast<std::uint64_t>(
        std::exchange(uc->uc_mcontext.gregs[REG_RSP], static_cast<greg_t>(c.host_rsp)));
    uc->uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(c.exit);
  }

  // ---- code ---------------------------------------------------------------------------------
  void put(std::initializer_list<unsigned> bytes) {
    for (const unsigned b : bytes) *cursor_++ = static_cast<std::uint8_t>(b);
  }
  /// ModRM and SIB for [disp32] with `reg`.
  void absolute(unsigned reg, std::size_t offset) {
    put({reg << 3 | 4, 0x25});
    const auto address = static_cast<std::uint32_t>(kContext + offset);
    std::memcpy(cursor_, &address, 4);
    cursor_ += 4;
  }
  void move_gpr(unsigned reg, bool store) {
    put({0x48U | (reg >= 8 ? 4U : 0U), store ? 0x89U : 0x8BU});
    absolute(reg & 7, offsetof(Context, gpr) + 8 * reg);
  }
  void move_ymm(unsigned reg, bool store) {
    put({0xC5, reg < 8 ? 0xFEU : 0x7EU, store ? 0x7FU : 0x6FU});
    absolute(reg & 7, offsetof(Context, ymm) + 32 * reg);
  }

  void build(std::span<const std::uint8_t> code) {
    cursor_ = static_cast<std::uint8_t*>(at(kCode));
    put({0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57});  // push rbx rbp r12-r15
    put({0x48, 0x89});
    absolute(4, offsetof(Context, host_rsp));
    put({0x0F, 0xAE});
    absolute(3, offsetof(Context, host_mxcsr));  // stmxcsr
    put({0x48, 0x0F, 0xAE});
    absolute(1, offsetof(Context, fx));  // fxrstor64
    for (unsigned i = 0; i < 16; ++i) move_ymm(i, false);
    put({0xFF});
    absolute(6, offsetof(Context, rflags));  // push
    put({0x9D});                             // popfq
    for (unsigned i = 0; i < 16; ++i) move_gpr(i, false);
    for (const std::uint8_t b : code) put({b});
    context().exit = reinterpret_cast<std::uint64_t>(cursor_);
    for (unsigned i = 0; i < 16; ++i) move_gpr(i, true);
    put({0x48, 0x8B});
    absolute(4, offsetof(Context, host_rsp));
    put({0x9C, 0x8F});
    absolute(0, offsetof(Context, rflags));     // pushfq; pop
    put({0x68, 0x02, 0x02, 0x00, 0x00, 0x9D});  // push 202h; popfq
    for (unsigned i = 0; i < 16; ++i) move_ymm(i, true);
    put({0x48, 0x0F, 0xAE});
    absolute(0, offsetof(Context, fx));  // fxsave64
    put({0xDB, 0xE3, 0x0F, 0xAE});       // fninit; ldmxcsr
    absolute(2, offsetof(Context, host_mxcsr));
    put({0xC5, 0xF8, 0x77});  // vzeroupper
    put({0x41, 0x5F, 0x41, 0x5E, 0x41, 0x5D, 0x41, 0x5C, 0x5D, 0x5B, 0xC3});
  }

  std::uint8_t* cursor_ = nullptr;
  std::vector<std::uint8_t> alternate_stack_;
  stack_t old_stack_{};
  std::array<struct sigaction, 4> old_actions_{};
};

}  // namespace strata::interp::test
