#include "traps.hpp"

#include "boot/machine_layout.hpp"
#include "console.hpp"
#include "cpu.hpp"
#include "paging.hpp"
#include "power.hpp"
#include "smp.hpp"

namespace guest {
namespace {

constexpr std::uint64_t kKernelCode = 0x08, kKernelData = 0x10;
constexpr unsigned kStubBytes = 16;
constexpr unsigned kVectors = 256;

struct [[gnu::packed]] Gate {
  std::uint16_t low;
  std::uint16_t selector;
  std::uint8_t ist;
  std::uint8_t type;
  std::uint16_t middle;
  std::uint32_t high;
  std::uint32_t zero;
};

struct [[gnu::packed]] TablePointer {
  std::uint16_t limit;
  std::uint64_t base;
};

alignas(16) Gate idt[kVectors];
bool armed = false;
volatile Trap last{};
volatile std::uint64_t ticks = 0;
std::uint64_t demand_base = 0, demand_bytes = 0;
volatile std::uint64_t demand_count = 0;

void set_gate(unsigned vector, std::uint8_t type, std::uint8_t ist) {
  const std::uint64_t address = trap_stub_base + vector * kStubBytes;
  idt[vector] = {static_cast<std::uint16_t>(address),
                 kKernelCode,
                 ist,
                 type,
                 static_cast<std::uint16_t>(address >> 16),
                 static_cast<std::uint32_t>(address >> 32),
                 0};
}

/// Continues behind the probe, or behind enter_user() when ring 3 faulted.
void resume(TrapFrame& frame) {
  if ((frame.cs & 3) == 0) {
    frame.rip = reinterpret_cast<std::uint64_t>(&probe_resume);
    return;
  }
  frame.rip = reinterpret_cast<std::uint64_t>(&user_fault_resume);
  frame.cs = kKernelCode;
  frame.ss = kKernelData;
  frame.rsp = kernel_rsp;
  frame.rflags = 2;
}

bool demand(std::uint64_t address) {
  if (address - demand_base >= demand_bytes) return false;
  map(address & ~0xFFFULL, allocate_page(), kPresent | kWritable);
  demand_count = demand_count + 1;
  return true;
}

[[noreturn]] void unexpected(const TrapFrame& frame, std::uint64_t cr2) {
  print("\nFAIL unexpected trap ");
  print_number(frame.vector);
  print(" error ");
  print_hex(frame.error);
  print(" rip ");
  print_hex(frame.rip);
  print(" cr2 ");
  print_hex(cr2);
  print("\n");
  power_off();
  stop();
}

}  // namespace

extern "C" void handle_trap(TrapFrame* frame) {
  if (frame->vector == kTimerVector) {
    ticks = ticks + 1;
    constexpr std::uint64_t kEoi = strata::boot::layout::kLocalApicBase + 0xB0;
    *reinterpret_cast<volatile std::uint32_t*>(kEoi) = 0;
    return;
  }
  if (frame->vector == kUserVector) {
    ++frame->rax;
    return;
  }
  constexpr std::uint64_t kNmi = 2;
  if (frame->vector == kNmi || (frame->vector >= kWakeVector && frame->vector <= kLastIpiVector)) {
    handle_ipi(*frame);
    return;
  }
  const std::uint64_t cr2 = read_cr2();
  if (armed) {
    armed = false;
    last.happened = true;
    last.vector = frame->vector;
    last.error = frame->error;
    last.cr2 = cr2;
    last.from_user = (frame->cs & 3) == 3;
    resume(*frame);
    return;
  }
  if (frame->vector == 14 && demand(cr2)) return;
  unexpected(*frame, cr2);
}

void traps_init() {
  constexpr std::uint8_t kInterruptGate = 0x8E, kUserGate = 0xEE;
  for (unsigned vector = 0; vector < kVectors; ++vector) set_gate(vector, kInterruptGate, 0);
  set_gate(kUserVector, kUserGate, 0);
  set_gate(8, kInterruptGate, 1);  // double faults have a stack of their own
  traps_load();
}

void traps_load() {
  const TablePointer pointer{sizeof idt - 1, reinterpret_cast<std::uint64_t>(idt)};
  asm volatile("lidt %0" : : "m"(pointer));
}

void expect_trap() {
  last.happened = false;
  armed = true;
}

Trap take_trap() {
  armed = false;
  return {last.happened, last.vector, last.error, last.cr2, last.from_user};
}

std::uint64_t timer_ticks() { return ticks; }

void set_demand_region(std::uint64_t base, std::uint64_t bytes) {
  demand_base = base;
  demand_bytes = bytes;
}

std::uint64_t demand_faults() { return demand_count; }

void triple_fault() {
  const TablePointer nothing{0, 0};
  asm volatile("lidt %0; ud2" : : "m"(nothing));
  stop();
}

}  // namespace guest
