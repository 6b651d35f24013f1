// A kernel that has the processor make the accesses that the mailbox lists, each in a guest of its
// own entered by VMLAUNCH with EPT, and then writes the answers and the frames asked for to port
// E9 (SDM 3C chapters 24 to 29, appendix B).
#include "../protocol.hpp"

namespace {

using strata::judged::Mailbox;
using strata::judged::Probe;

/// Field encodings of SDM 3C appendix B.
enum Field : std::uint64_t {
  kPinControls = 0x4000,
  kProcessorControls = 0x4002,
  kExceptionBitmap = 0x4004,
  kExitControls = 0x400C,
  kEntryControls = 0x4012,
  kSecondaryControls = 0x401E,
  kEptPointer = 0x201A,
  kLinkPointer = 0x2800,
  kGuestEfer = 0x2806,
  kGuestPdpte0 = 0x280A,
  kHostEfer = 0x2C02,
  kGuestPhysicalAddress = 0x2400,
  kExitReason = 0x4402,
  kExitInterruption = 0x4404,
  kExitErrorCode = 0x4406,
  kInstructionError = 0x4400,
  kQualification = 0x6400,
  kGuestSelectors = 0x0800,
  kGuestLimits = 0x4800,
  kGuestRights = 0x4814,
  kGuestCr0 = 0x6800,
  kGuestCr3 = 0x6802,
  kGuestCr4 = 0x6804,
  kGuestBases = 0x6806,
  kGuestDr7 = 0x681A,
  kGuestRip = 0x681E,
  kGuestRflags = 0x6820,
  kHostSelectors = 0x0C00,
  kHostCr0 = 0x6C00,
  kHostCr3 = 0x6C02,
  kHostCr4 = 0x6C04,
  kHostRip = 0x6C16,
};

alignas(4096) std::uint32_t vmxon_region[1024];
alignas(4096) std::uint32_t vmcs[1024];

std::uint64_t read_msr(std::uint32_t msr) {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
  return std::uint64_t{high} << 32 | low;
}
void write_msr(std::uint32_t msr, std::uint64_t value) {
  asm volatile("wrmsr" ::"c"(msr), "a"(static_cast<std::uint32_t>(value)),
               "d"(static_cast<std::uint32_t>(value >> 32)));
}
void write(std::uint64_t field, std::uint64_t value) {
  asm volatile("vmwrite %1, %0" ::"r"(field), "r"(value) : "cc");
}
std::uint64_t read(std::uint64_t field) {
  std::uint64_t value = 0;
  asm volatile("vmread %1, %0" : "=r"(value) : "r"(field) : "cc");
  return value;
}
std::uint64_t cr0() {
  std::uint64_t v = 0;
  asm volatile("mov %%cr0, %0" : "=r"(v));
  return v;
}
std::uint64_t cr3() {
  std::uint64_t v = 0;
  asm volatile("mov %%cr3, %0" : "=r"(v));
  return v;
}
std::uint64_t cr4() {
  std::uint64_t v = 0;
  asm volatile("mov %%cr4, %0" : "=r"(v));
  return v;
}
void out(std::uint16_t port, std::uint8_t value) {
  asm volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}
void send(const void* from, std::uint64_t bytes) {
  const auto* at = static_cast<const volatile std::uint8_t*>(from);
  for (std::uint64_t i = 0; i < bytes; ++i) out(0xE9, at[i]);
}

/// `wanted` with the bits that the capability MSR demands (SDM 3D A.3).
std::uint64_t adjusted(std::uint32_t msr, std::uint64_t wanted) {
  const std::uint64_t capability = read_msr(msr);
  return (wanted | (capability & 0xFFFF'FFFF)) & capability >> 32;
}

/// Puts the dumped pages in place.
void unpack() {
  auto at = strata::judged::kRomBase + strata::judged::kRomPages;
  const std::uint64_t count = *reinterpret_cast<const std::uint64_t*>(at);
  at += 8;
  for (std::uint64_t i = 0; i < count; ++i, at += 8 + 4096) {
    const auto* from = reinterpret_cast<const std::uint64_t*>(at);
    auto* to = reinterpret_cast<volatile std::uint64_t*>(*from);
    for (unsigned word = 0; word < 512; ++word) to[word] = from[word + 1];
  }
}

void enter_vmx() {
  write_msr(0x3A, 5);  // IA32_FEATURE_CONTROL: locked, VMXON outside SMX
  asm volatile("mov %0, %%cr4" ::"r"(cr4() | 1U << 13 | 1U << 22));  // VMXE, PKE
  vmxon_region[0] = vmcs[0] = static_cast<std::uint32_t>(read_msr(0x480)) & 0x7FFF'FFFF;
  const auto at = reinterpret_cast<std::uint64_t>(vmxon_region);
  asm volatile("vmxon %0" ::"m"(at) : "cc", "memory");
}

extern "C" void vm_exit();
extern "C" std::uint64_t enter(std::uint64_t rbx, std::uint64_t rcx);

void fill_host() {
  for (std::uint64_t i = 0; i < 6; ++i) write(kHostSelectors + 2 * i, i == 1 ? 0x08 : 0x10);
  write(kHostSelectors + 12, 0x18);  // TR
  write(kHostCr0, cr0());
  write(kHostCr3, cr3());
  write(kHostCr4, cr4());
  write(kHostEfer, 0xD00);
  write(kHostRip, reinterpret_cast<std::uint64_t>(&vm_exit));
}

void fill_guest(const Probe& p) {
  const std::uint64_t dpl = p.user != 0 ? 0x60 : 0;
  const std::uint64_t rpl = p.user != 0 ? 3 : 0;
  for (std::uint64_t i = 0; i < 8; ++i) {  // ES, CS, SS, DS, FS, GS, LDTR, TR
    std::uint64_t rights = 0xC093 | dpl;
    if (i == 1) rights = (p.long_mode != 0 ? 0xA09B : 0xC09B) | dpl;
    if (i == 6) rights = 0x1'0000;  // unusable
    if (i == 7) rights = 0x8B;
    write(kGuestSelectors + 2 * i, i < 6 ? (i == 1 ? 0x08 : 0x10) | rpl : i == 7 ? 0x18 : 0);
    write(kGuestLimits + 2 * i, i < 6 ? 0xFFFF'FFFF : 0xFFFF);
    write(kGuestRights + 2 * i, rights);
    write(kGuestBases + 2 * i, 0);
  }
  write(kGuestCr0, p.cr0);
  write(kGuestCr3, p.cr3);
  write(kGuestCr4, p.cr4 | 1U << 13);
  write(kGuestEfer, p.efer & ~0x1000ULL);  // SVME is AMD's
  for (std::uint64_t i = 0; i < 4; ++i) write(kGuestPdpte0 + 2 * i, p.pdpte[i]);
  write(kGuestDr7, 0x400);
  write(kGuestRip, p.rip);
  write(kGuestRflags, p.rflags);
  write(kLinkPointer, ~0ULL);
}

void fill_controls(const Probe& p) {
  write(kPinControls, adjusted(0x48D, 0));
  write(kProcessorControls, adjusted(0x48E, 1U << 31));
  write(kSecondaryControls, adjusted(0x48B, p.nested_root != 0 ? 2 : 0));
  write(kExceptionBitmap, 0xFFFF'FFFF);
  // Exit: to 64 bits, save and load EFER. Entry: the guest's width, load EFER.
  write(kExitControls, adjusted(0x48F, 1U << 9 | 1U << 20 | 1U << 21));
  write(kEntryControls, adjusted(0x490, (p.long_mode != 0 ? 1U << 9 : 0) | 1U << 15));
  write(kEptPointer, p.nested_root);
}

void run(Probe& p) {
  const auto at = reinterpret_cast<std::uint64_t>(vmcs);
  asm volatile("vmclear %0" ::"m"(at) : "cc", "memory");
  asm volatile("vmptrld %0" ::"m"(at) : "cc", "memory");
  fill_host();
  fill_guest(p);
  fill_controls(p);
  // Combined mappings of the last probe's tables (SDM 3C 29.4.3.1).
  const std::uint64_t everything[2] = {0, 0};
  asm volatile("invept %0, %1" ::"m"(everything), "r"(2ULL) : "cc", "memory");
  asm volatile("wrpkru" ::"a"(p.pkru), "c"(0), "d"(0));
  p.rax = enter(p.va, p.value);
  p.exit_code = p.rax == ~0ULL ? 0xBAD'0000 | read(kInstructionError) : read(kExitReason);
  if (p.exit_code == strata::judged::kExitException) {
    p.exit_code |= (read(kExitInterruption) & 0xFF) << 8;
    p.exit_info1 = read(kExitErrorCode);
    p.exit_info2 = read(kQualification);
  } else {
    p.exit_info1 = read(kQualification);
    p.exit_info2 = read(kGuestPhysicalAddress);
  }
}

}  // namespace

extern "C" void judge_main() {
  auto& box = *reinterpret_cast<volatile Mailbox*>(strata::judged::kMailbox);
  auto* probes = reinterpret_cast<Probe*>(strata::judged::kMailbox + strata::judged::kProbesAt);
  unpack();
  enter_vmx();
  for (std::uint64_t i = 0; box.magic == strata::judged::kMagic && i < box.count; ++i) {
    run(probes[i]);
    box.done = i + 1;
  }
  const std::uint64_t magic = strata::judged::kMagic;
  send(&magic, sizeof magic);
  send(probes, box.done * sizeof(Probe));
  for (std::uint64_t i = 0; i < box.frames; ++i) {
    send(reinterpret_cast<const void*>(box.frame[i]), 4096);
  }
  for (const char* c = "Shutdown"; *c != '\0'; ++c) out(0x8900, static_cast<std::uint8_t>(*c));
}
