#include "smp.hpp"

#include "boot/machine_layout.hpp"
#include "cpu.hpp"
#include "paging.hpp"

namespace guest {

Cpu cpus[kMaxCpus];

namespace {

constexpr std::uint64_t kTrampoline = 0x40000;
constexpr std::uint32_t kInit = 0x4500, kStartUp = 0x4600;
constexpr std::uint32_t kApicBaseMsr = 0x1B, kX2Apic = 1U << 10;

volatile std::uint32_t& apic(std::uint32_t offset) {
  return *reinterpret_cast<volatile std::uint32_t*>(strata::boot::layout::kLocalApicBase + offset);
}
bool x2apic() { return (rdmsr(kApicBaseMsr) & kX2Apic) != 0; }

}  // namespace

unsigned cpu_count() {
  const unsigned count = cpuid(0xB, 1).ebx & 0xFFFF;
  return count == 0 ? 1 : count < kMaxCpus ? count : kMaxCpus;
}

unsigned this_cpu() { return cpuid(0xB).edx; }

void enable_apic() {
  if (x2apic()) {
    wrmsr(0x80F, 0x1FF);
  } else {
    apic(0xF0) = 0x1FF;
  }
}

void send_ipi(std::uint32_t destination, std::uint32_t low) {
  if (x2apic()) {
    // WRMSR to x2APIC registers does not serialize (SDM 3A 11.12.3).
    asm volatile("mfence" : : : "memory");
    wrmsr(0x830, static_cast<std::uint64_t>(destination) << 32 | low);
    return;
  }
  apic(0x310) = destination << 24;
  apic(0x300) = low;
}

bool start_cpu(unsigned cpu) {
  const auto* from = ap_trampoline;
  for (auto* to = reinterpret_cast<volatile char*>(kTrampoline); from != ap_trampoline_end;) {
    *to = *from;
    ++to;
    ++from;
  }
  const std::uint64_t before = cpus[cpu].starts;
  cpus[cpu].online = false;
  send_ipi(cpu, kInit);
  send_ipi(cpu, kStartUp | kTrampoline >> 12);
  for (std::uint64_t i = 0; i < 200'000'000 && !cpus[cpu].online; ++i) asm volatile("pause");
  // The second SIPI of the usual sequence must do nothing to a processor that runs.
  send_ipi(cpu, kStartUp | kTrampoline >> 12);
  return cpus[cpu].online && cpus[cpu].starts == before + 1;
}

void begin(unsigned cpu, Job job) {
  cpus[cpu].job = job;
  send_ipi(cpu, kWakeVector);
}

void finish(unsigned cpu) {
  while (cpus[cpu].job != nullptr) asm volatile("pause");
}

void handle_ipi(const TrapFrame& frame) {
  Cpu& me = cpus[this_cpu()];
  if (frame.vector == 2) {
    me.nmis = me.nmis + 1;
    return;
  }
  if (frame.vector == kPingVector) {
    me.pings = me.pings + 1;
    send_ipi(0, kPongVector);
  } else if (frame.vector == kPongVector) {
    me.pongs = me.pongs + 1;
  } else if (frame.vector == kFlushVector) {
    write_cr3(read_cr3());
    me.flushes = me.flushes + 1;
  } else if (frame.vector >= kCountVector) {
    me.counts = me.counts + 1;
  }
  if (x2apic()) {
    wrmsr(0x80B, 0);
  } else {
    apic(0xB0) = 0;
  }
}

extern "C" void ap_main(unsigned cpu) {
  traps_load();
  enable_apic();
  Cpu& me = cpus[cpu];
  me.starts = me.starts + 1;
  me.online = true;
  for (;;) {
    // With interrupts off from the look at the job to HLT, no wake-up is lost.
    asm volatile("cli");
    const Job job = me.job;
    if (job == nullptr) {
      asm volatile("sti; hlt" : : : "memory");
      continue;
    }
    asm volatile("sti");
    job(cpu);
    me.job = nullptr;
  }
}

}  // namespace guest
