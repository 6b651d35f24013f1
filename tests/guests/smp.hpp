// The other processors: started by INIT and SIPI, asleep in HLT until they are given a job.
#pragma once

#include <cstdint>

#include "traps.hpp"

namespace guest {

inline constexpr unsigned kMaxCpus = 8;
/// Vectors of IPIs: the first wakes an idle processor, the others count (see Cpu).
inline constexpr std::uint8_t kWakeVector = 0x50, kPingVector = 0x51, kPongVector = 0x52,
                              kFlushVector = 0x53, kCountVector = 0x54, kLastIpiVector = 0x5F;

using Job = void (*)(unsigned cpu);

struct alignas(64) Cpu {
  volatile bool online;
  volatile std::uint64_t starts;
  volatile Job job;  ///< null: idle
  volatile std::uint64_t pings, pongs, counts, nmis, flushes;
};
extern Cpu cpus[kMaxCpus];

/// Processors that CPUID says the machine has.
[[nodiscard]] unsigned cpu_count();
[[nodiscard]] unsigned this_cpu();
/// INIT, SIPI and waits until the processor is there. False: it did not come.
bool start_cpu(unsigned cpu);
/// Has an idle processor run `job`; returns at once.
void begin(unsigned cpu, Job job);
/// Waits until it is idle again.
void finish(unsigned cpu);
/// ICR as the xAPIC or x2APIC has it, whichever is on: `low` without the destination.
void send_ipi(std::uint32_t destination, std::uint32_t low);
/// The same on this processor's local APIC enabled by software.
void enable_apic();
/// Called for vectors 50h to 5Fh and NMIs.
void handle_ipi(const TrapFrame& frame);

/// Runs the checks for several processors; each prints a line. Returns how many ran and failed.
struct SmpResult {
  unsigned run, failed;
};
SmpResult run_smp_checks(unsigned first_number);

}  // namespace guest

extern "C" {
extern const char ap_trampoline[], ap_trampoline_end[];
std::uint32_t changing_function();
}
