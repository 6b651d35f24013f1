// Instructions that C++ has no words for. Guest code: runs at CPL 0 in long mode.
#pragma once

#include <cstdint>

namespace guest {

inline void out8(std::uint16_t port, std::uint8_t value) {
  asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}
inline void out16(std::uint16_t port, std::uint16_t value) {
  asm volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}
inline std::uint8_t in8(std::uint16_t port) {
  std::uint8_t value = 0;
  asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
inline std::uint64_t rdmsr(std::uint32_t msr) {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
  return static_cast<std::uint64_t>(high) << 32 | low;
}
inline void wrmsr(std::uint32_t msr, std::uint64_t value) {
  asm volatile("wrmsr"
               :
               : "c"(msr), "a"(static_cast<std::uint32_t>(value)),
                 "d"(static_cast<std::uint32_t>(value >> 32))
               : "memory");
}
struct Cpuid {
  std::uint32_t eax, ebx, ecx, edx;
};
inline Cpuid cpuid(std::uint32_t leaf, std::uint32_t subleaf = 0) {
  Cpuid r{};
  asm volatile("cpuid"
               : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
               : "a"(leaf), "c"(subleaf));
  return r;
}
inline std::uint64_t rdtsc() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  asm volatile("rdtsc" : "=a"(low), "=d"(high));
  return static_cast<std::uint64_t>(high) << 32 | low;
}
inline std::uint64_t read_cr0() {
  std::uint64_t value = 0;
  asm volatile("mov %%cr0, %0" : "=r"(value));
  return value;
}
inline void write_cr0(std::uint64_t value) {
  asm volatile("mov %0, %%cr0" : : "r"(value) : "memory");
}
inline std::uint64_t read_cr2() {
  std::uint64_t value = 0;
  asm volatile("mov %%cr2, %0" : "=r"(value));
  return value;
}
inline std::uint64_t read_cr3() {
  std::uint64_t value = 0;
  asm volatile("mov %%cr3, %0" : "=r"(value));
  return value;
}
inline void write_cr3(std::uint64_t value) {
  asm volatile("mov %0, %%cr3" : : "r"(value) : "memory");
}
inline std::uint64_t read_cr4() {
  std::uint64_t value = 0;
  asm volatile("mov %%cr4, %0" : "=r"(value));
  return value;
}
inline void write_cr4(std::uint64_t value) {
  asm volatile("mov %0, %%cr4" : : "r"(value) : "memory");
}
inline void invlpg(std::uint64_t address) {
  asm volatile("invlpg (%0)" : : "r"(address) : "memory");
}
/// Waits for one interrupt. STI holds interrupts off until HLT has begun, so none is missed.
inline void wait_for_interrupt() { asm volatile("sti; hlt; cli" : : : "memory"); }
[[noreturn]] inline void stop() {
  for (;;) asm volatile("cli; hlt");
}

}  // namespace guest
