// A kernel that has the processor make the accesses that the mailbox lists: each one in a guest of
// its own, entered by VMRUN with the paging registers that the probe says (APM 2 15.5).
#include "../protocol.hpp"

namespace {

using strata::judged::Mailbox;
using strata::judged::Probe;

constexpr std::uint32_t kEfer = 0xC000'0080;
constexpr std::uint32_t kVmHsavePa = 0xC001'0117;
constexpr std::uint16_t kDebugExit = 0xF4;

/// A segment as the VMCB keeps it (APM 2 appendix B, table B-2).
struct Segment {
  std::uint16_t selector, attributes;
  std::uint32_t limit;
  std::uint64_t base;
};

/// The fields of APM 2 appendix B that are not zero here.
struct alignas(4096) Vmcb {
  std::uint32_t intercept_cr = 0, intercept_dr = 0;
  std::uint32_t intercept_exceptions = 0;
  std::uint32_t intercept_misc1 = 0, intercept_misc2 = 0;
  std::uint8_t reserved1[0x40 - 0x14] = {};
  std::uint64_t iopm = 0, msrpm = 0, tsc_offset = 0;
  std::uint32_t asid = 0;
  std::uint8_t tlb_control = 0, reserved2[3] = {};
  std::uint64_t virtual_interrupt = 0, interrupt_shadow = 0;
  std::uint64_t exit_code = 0, exit_info1 = 0, exit_info2 = 0, exit_int_info = 0;
  std::uint64_t nested_enable = 0;
  std::uint8_t reserved3[0xB0 - 0x98] = {};
  std::uint64_t nested_cr3 = 0;
  std::uint8_t reserved4[0x400 - 0xB8] = {};
  Segment es{}, cs{}, ss{}, ds{}, fs{}, gs{}, gdtr{}, ldtr{}, idtr{}, tr{};
  std::uint8_t reserved5[0x4CB - 0x4A0] = {};
  std::uint8_t cpl = 0;
  std::uint32_t reserved6 = 0;
  std::uint64_t efer = 0;
  std::uint8_t reserved7[0x548 - 0x4D8] = {};
  std::uint64_t cr4 = 0, cr3 = 0, cr0 = 0, dr7 = 0, dr6 = 0, rflags = 0, rip = 0;
  std::uint8_t reserved8[0x5D8 - 0x580] = {};
  std::uint64_t rsp = 0;
  std::uint8_t reserved9[0x5F8 - 0x5E0] = {};
  std::uint64_t rax = 0;
  std::uint8_t reserved10[0x668 - 0x600] = {};
  std::uint64_t pat = 0;
};
static_assert(__builtin_offsetof(Vmcb, intercept_exceptions) == 0x08);
static_assert(__builtin_offsetof(Vmcb, asid) == 0x58);
static_assert(__builtin_offsetof(Vmcb, exit_code) == 0x70);
static_assert(__builtin_offsetof(Vmcb, nested_enable) == 0x90);
static_assert(__builtin_offsetof(Vmcb, nested_cr3) == 0xB0);
static_assert(__builtin_offsetof(Vmcb, tr) == 0x490);
static_assert(__builtin_offsetof(Vmcb, cpl) == 0x4CB);
static_assert(__builtin_offsetof(Vmcb, efer) == 0x4D0);
static_assert(__builtin_offsetof(Vmcb, rip) == 0x578);
static_assert(__builtin_offsetof(Vmcb, rax) == 0x5F8);
static_assert(__builtin_offsetof(Vmcb, pat) == 0x668);

Vmcb vmcb;
alignas(4096) unsigned char host_save[4096];
alignas(4096) unsigned char permissions[16384];  // of I/O ports and MSRs: never consulted

void write_msr(std::uint32_t msr, std::uint64_t value) {
  asm volatile("wrmsr" ::"c"(msr), "a"(static_cast<std::uint32_t>(value)),
               "d"(static_cast<std::uint32_t>(value >> 32)));
}
std::uint64_t read_cr4() {
  std::uint64_t value = 0;
  asm volatile("mov %%cr4, %0" : "=r"(value));
  return value;
}

void fill(const Probe& p) {
  vmcb = Vmcb{};
  vmcb.intercept_exceptions = 0xFFFF'FFFF;
  vmcb.intercept_misc1 = 1U << 31 | 1U << 24;  // shutdown, HLT
  vmcb.intercept_misc2 = 1U << 1 | 1U << 0;    // VMMCALL, VMRUN
  vmcb.iopm = reinterpret_cast<std::uint64_t>(permissions);
  vmcb.msrpm = reinterpret_cast<std::uint64_t>(permissions);
  vmcb.asid = 1;
  vmcb.tlb_control = 1;  // flush everything
  if (p.nested_root != 0) {
    vmcb.nested_enable = 1;
    vmcb.nested_cr3 = p.nested_root;
  }
  const std::uint16_t dpl = p.user != 0 ? 0x60 : 0;
  const std::uint16_t rpl = p.user != 0 ? 3 : 0;
  const auto code = static_cast<std::uint16_t>((p.long_mode != 0 ? 0xA9B : 0xC9B) | dpl);
  const auto data = static_cast<std::uint16_t>(0xC93 | dpl);
  vmcb.cs = {static_cast<std::uint16_t>(0x08 | rpl), code, 0xFFFF'FFFF, 0};
  const Segment flat{static_cast<std::uint16_t>(0x10 | rpl), data, 0xFFFF'FFFF, 0};
  vmcb.ss = vmcb.ds = vmcb.es = vmcb.fs = vmcb.gs = flat;
  vmcb.tr = {0x18, 0x8B, 0xFFFF, 0};
  vmcb.cpl = p.user != 0 ? 3 : 0;
  vmcb.efer = p.efer;
  vmcb.cr0 = p.cr0;
  vmcb.cr3 = p.cr3;
  vmcb.cr4 = p.cr4;
  vmcb.dr6 = 0xFFFF'0FF0;
  vmcb.dr7 = 0x400;
  vmcb.rflags = p.rflags;
  vmcb.rip = p.rip;
  vmcb.pat = 0x0007'0406'0007'0406;
}

}  // namespace

extern "C" void enter(std::uint64_t vmcb, std::uint64_t rbx, std::uint64_t rcx);

extern "C" void judge_main() {
  auto& box = *reinterpret_cast<volatile Mailbox*>(strata::judged::kMailbox);
  auto* probes = reinterpret_cast<Probe*>(strata::judged::kMailbox + strata::judged::kProbesAt);
  write_msr(kEfer, 0x1D00);  // LME and LMA, NXE, SVME
  write_msr(kVmHsavePa, reinterpret_cast<std::uint64_t>(host_save));
  asm volatile("mov %0, %%cr4" ::"r"(read_cr4() | 1ULL << 22));  // PKE, so that PKRU is there
  for (std::uint64_t i = 0; box.magic == strata::judged::kMagic && i < box.count; ++i) {
    Probe& p = probes[i];
    asm volatile("wrpkru" ::"a"(p.pkru), "c"(0), "d"(0));
    fill(p);
    enter(reinterpret_cast<std::uint64_t>(&vmcb), p.va, p.value);
    p.exit_code = vmcb.exit_code;
    p.exit_info1 = vmcb.exit_info1;
    p.exit_info2 = vmcb.exit_info2;
    p.rax = vmcb.rax;
    box.done = i + 1;
  }
  asm volatile("outb %0, %1" ::"a"(static_cast<unsigned char>(0)), "Nd"(kDebugExit));
}
