// Exceptions and interrupts: expected ones are recorded, others end the guest with a message.
#pragma once

#include <cstdint>

namespace guest {

inline constexpr std::uint8_t kTimerVector = 0x40;
inline constexpr std::uint8_t kUserVector = 0x80;

/// Pushed by start.S and the processor.
struct TrapFrame {
  std::uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
  std::uint64_t vector, error;
  std::uint64_t rip, cs, rflags, rsp, ss;
};

struct Trap {
  bool happened;
  std::uint64_t vector, error, cr2;
  bool from_user;
  [[nodiscard]] bool is(std::uint64_t v, std::uint64_t e) const {
    return happened && vector == v && error == e;
  }
};

void traps_init();
/// The table that traps_init() made, on this processor too.
void traps_load();
/// The next exception is expected: it is recorded and the probe returns.
void expect_trap();
/// What happened since expect_trap().
[[nodiscard]] Trap take_trap();
[[nodiscard]] std::uint64_t timer_ticks();
/// Page faults in [base, base + bytes) get a fresh page.
void set_demand_region(std::uint64_t base, std::uint64_t bytes);
[[nodiscard]] std::uint64_t demand_faults();
/// An empty IDT and an exception: the processor shuts down.
[[noreturn]] void triple_fault();

}  // namespace guest

extern "C" {
std::uint64_t probe_read(std::uint64_t address);
std::uint64_t probe_read8(std::uint64_t address);
void probe_write(std::uint64_t address);
std::uint64_t probe_execute(std::uint64_t address);
void probe_divide();
void probe_undefined();
void probe_breakpoint();
void probe_general();
/// Bytes left when it ended.
std::uint64_t probe_copy(std::uint64_t to, std::uint64_t from, std::uint64_t bytes);
std::uint64_t enter_user(std::uint64_t rip, std::uint64_t rsp);
std::uint32_t sse_sum(std::uint32_t a, std::uint32_t b);
void probe_resume();
void user_fault_resume();
void syscall_entry();
extern const char user_syscall[], user_syscall_end[], user_read[], user_read_end[], user_int80[],
    user_int80_end[], user_privileged[], user_privileged_end[];
extern const std::uint64_t trap_stub_base;
extern std::uint64_t kernel_rsp;
extern std::uint64_t pml4[512];
extern char image_end[];
}
