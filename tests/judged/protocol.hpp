// What the test and the judge's kernel tell each other, in a mailbox in the machine's memory.
#pragma once

#include <cstdint>

namespace strata::judged {

inline constexpr std::uint64_t kKernel = 0x100'0000;   ///< MA of the kernel
inline constexpr std::uint64_t kMailbox = 0x180'0000;  ///< MA
/// No frame of the dumped machine lies below: kernel, firmware and mailbox do.
inline constexpr std::uint64_t kReserved = 0x200'0000;
inline constexpr std::uint64_t kMagic = 0x4A55'4447'454D'4D55;
inline constexpr std::uint32_t kMaxProbes = 4096, kMaxFrames = 256;

/// Exit codes of SVM (APM 2 appendix C) ...
inline constexpr std::uint64_t kExitPageFault = 0x4E, kExitVmmcall = 0x81, kExitNestedFault = 0x400;
/// ... and exit reasons of VMX (SDM 3C appendix C); an exception has its vector in bits 15:8.
inline constexpr std::uint64_t kExitException = 0, kExitVmcall = 18, kExitEptViolation = 48;

/// One access that a guest of the processor makes: it enters at `rip` with `va` in RBX and `value`
/// in RCX, where a stub makes the access and calls VMMCALL or VMCALL.
struct Probe {
  std::uint64_t va, rip, value;
  std::uint64_t cr0, cr3, cr4, efer, rflags;
  std::uint64_t nested_root;  ///< nCR3 or EPTP; 0: no nested paging
  std::uint64_t pdpte[4];     ///< VMX: what CR3 loads with PAE
  std::uint32_t pkru;
  std::uint8_t user;       ///< CPL 3
  std::uint8_t long_mode;  ///< a 64-bit code segment
  std::uint8_t unused[2];
  // Answers.
  std::uint64_t exit_code, exit_info1, exit_info2, rax;
};

struct Mailbox {
  std::uint64_t magic;
  std::uint64_t count;
  std::uint64_t done;               ///< probes answered
  std::uint64_t frames;             ///< VMX: how many frames to send back
  std::uint64_t frame[kMaxFrames];  ///< their MAs
  Probe probes[kMaxProbes];
};
inline constexpr std::uint64_t kProbesAt = sizeof(std::uint64_t) * (4 + kMaxFrames);

/// Bochs's firmware, at the end of 4 GiB: the kernel at its begin, pages to copy from kRomPages on.
inline constexpr std::uint64_t kRomBase = 0xFFE0'0000, kRomBytes = 0x20'0000, kRomPages = 0x1'0000;

}  // namespace strata::judged
