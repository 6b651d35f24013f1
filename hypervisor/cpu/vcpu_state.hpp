// The architectural state of one vCPU, as every engine and every boot protocol sees it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace strata::cpu {

/// Register numbers as instructions encode them.
enum Gpr : std::uint8_t {
  RAX,
  RCX,
  RDX,
  RBX,
  RSP,
  RBP,
  RSI,
  RDI,
  R8,
  R9,
  R10,
  R11,
  R12,
  R13,
  R14,
  R15
};
enum SegmentName : std::uint8_t { ES, CS, SS, DS, FS, GS };

/// A segment register with its hidden part (SDM 3A 3.4.3).
struct Segment {
  std::uint64_t base = 0;
  std::uint32_t limit = 0;  ///< in bytes, granularity applied
  std::uint16_t selector = 0;
  /// Descriptor bits 55:52 and 47:40 as VMX and SVM pack them: type 3:0, S 4, DPL 6:5, P 7,
  /// AVL 12, L 13, D/B 14, G 15; bit 16 set: unusable (null selector).
  std::uint32_t attributes = 1U << 16;

  [[nodiscard]] constexpr unsigned type() const noexcept { return attributes & 0xF; }
  [[nodiscard]] constexpr unsigned dpl() const noexcept { return attributes >> 5 & 3; }
  [[nodiscard]] constexpr bool present() const noexcept { return (attributes & 1U << 7) != 0; }
  [[nodiscard]] constexpr bool long_mode() const noexcept { return (attributes & 1U << 13) != 0; }
  [[nodiscard]] constexpr bool big() const noexcept { return (attributes & 1U << 14) != 0; }
  [[nodiscard]] constexpr bool unusable() const noexcept { return (attributes & 1U << 16) != 0; }
  friend bool operator==(const Segment&, const Segment&) = default;
};

struct DescriptorTable {
  std::uint64_t base = 0;
  std::uint16_t limit = 0;
  friend bool operator==(const DescriptorTable&, const DescriptorTable&) = default;
};

/// CR0, CR4, EFER and RFLAGS bits (SDM 3A 2.5, 2.2.1, 2.3).
namespace cr0 {
inline constexpr std::uint64_t PE = 1ULL << 0, MP = 1ULL << 1, EM = 1ULL << 2, TS = 1ULL << 3,
                               ET = 1ULL << 4, NE = 1ULL << 5, WP = 1ULL << 16, AM = 1ULL << 18,
                               NW = 1ULL << 29, CD = 1ULL << 30, PG = 1ULL << 31;
}
namespace cr4 {
inline constexpr std::uint64_t VME = 1ULL << 0, PVI = 1ULL << 1, TSD = 1ULL << 2, DE = 1ULL << 3,
                               PSE = 1ULL << 4, PAE = 1ULL << 5, MCE = 1ULL << 6, PGE = 1ULL << 7,
                               PCE = 1ULL << 8, OSFXSR = 1ULL << 9, OSXMMEXCPT = 1ULL << 10,
                               UMIP = 1ULL << 11, LA57 = 1ULL << 12, FSGSBASE = 1ULL << 16,
                               PCIDE = 1ULL << 17, OSXSAVE = 1ULL << 18, SMEP = 1ULL << 20,
                               SMAP = 1ULL << 21, PKE = 1ULL << 22;
}
namespace efer {
inline constexpr std::uint64_t SCE = 1ULL << 0, LME = 1ULL << 8, LMA = 1ULL << 10, NXE = 1ULL << 11;
}
namespace rflags {
inline constexpr std::uint64_t CF = 1ULL << 0, FIXED = 1ULL << 1, PF = 1ULL << 2, AF = 1ULL << 4,
                               ZF = 1ULL << 6, SF = 1ULL << 7, TF = 1ULL << 8, IF = 1ULL << 9,
                               DF = 1ULL << 10, OF = 1ULL << 11, IOPL = 3ULL << 12, NT = 1ULL << 14,
                               RF = 1ULL << 16, VM = 1ULL << 17, AC = 1ULL << 18, VIF = 1ULL << 19,
                               VIP = 1ULL << 20, ID = 1ULL << 21;
inline constexpr std::uint64_t ARITHMETIC = CF | PF | AF | ZF | SF | OF;
}  // namespace rflags

/// Exception vectors (SDM 3A table 6-1).
enum Vector : std::uint8_t {
  DE = 0,
  DB = 1,
  NMI = 2,
  BP = 3,
  OF = 4,
  BR = 5,
  UD = 6,
  NM = 7,
  DF = 8,
  TS = 10,
  NP = 11,
  SS_FAULT = 12,
  GP = 13,
  PF = 14,
  MF = 16,
  AC = 17,
  MC = 18,
  XM = 19
};

/// Model-specific registers that are the vCPU's own; what the VMM answers (APIC base, x2APIC,
/// TSC deadline, paravirtual clock) is not here.
struct Msrs {
  std::uint64_t star = 0, lstar = 0, cstar = 0, sfmask = 0, kernel_gs_base = 0;
  std::uint64_t sysenter_cs = 0, sysenter_esp = 0, sysenter_eip = 0;
  std::uint64_t pat = 0x0007040600070406ULL;  ///< power-on value (SDM 3A 12.12.4)
  std::uint64_t tsc_aux = 0, tsc_adjust = 0, misc_enable = 1, debugctl = 0, spec_ctrl = 0;
  std::uint64_t mtrr_def_type = 0;
  std::array<std::uint64_t, 11> mtrr_fixed{};
  std::array<std::uint64_t, 16> mtrr_variable{};  ///< base, mask, base, mask ...
  std::uint64_t mcg_status = 0, mcg_ctl = 0;
  std::array<std::array<std::uint64_t, 4>, 4> mc_banks{};  ///< each CTL, STATUS, ADDR, MISC
  std::array<std::uint64_t, 8> k7_counters{};  ///< AMD's event selects and counters 0 to 3
  friend bool operator==(const Msrs&, const Msrs&) = default;
};

/// x87, SSE and AVX state. `legacy` is an FXSAVE64 image (SDM 1 10.5.1) whose XMM fields are not
/// used: the vector registers live in `ymm`.
struct alignas(64) VectorState {
  alignas(64) std::array<std::byte, 512> legacy{};
  alignas(32) std::array<std::array<std::uint64_t, 4>, 16> ymm{};
  std::uint32_t mxcsr = 0x1F80;
  std::uint64_t xcr0 = 1;
  /// Of `legacy` its x87 part: what else is in it are leftovers of whoever executed FXSAVE.
  friend bool operator==(const VectorState& a, const VectorState& b) noexcept {
    constexpr std::size_t kMxcsr = 24, kRegisters = 32, kXmm = 160, kSlot = 16, kRegister = 10;
    bool equal = std::memcmp(a.legacy.data(), b.legacy.data(), kMxcsr) == 0;
    for (std::size_t at = kRegisters; at < kXmm; at += kSlot) {
      equal &= std::memcmp(a.legacy.data() + at, b.legacy.data() + at, kRegister) == 0;
    }
    return equal && a.ymm == b.ymm && a.mxcsr == b.mxcsr && a.xcr0 == b.xcr0;
  }
};

/// Everything a vCPU is, at an instruction boundary.
struct VcpuState {
  std::array<std::uint64_t, 16> gpr{};
  std::uint64_t rip = 0;
  std::uint64_t rflags = rflags::FIXED;
  std::array<Segment, 6> segment{};
  Segment ldtr{}, tr{};
  DescriptorTable gdtr{}, idtr{};
  std::uint64_t cr0 = 0, cr2 = 0, cr3 = 0, cr4 = 0, efer = 0;
  std::array<std::uint64_t, 8> dr{0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400};
  std::uint32_t pkru = 0;
  Msrs msr{};
  VectorState vector{};
  /// Interrupts are held off for one instruction after STI, MOV SS, POP SS (SDM 3A 6.8.3).
  bool interrupt_shadow = false;
  /// ... and after MOV SS and POP SS debug exceptions are, too.
  bool debug_shadow = false;
  /// DR6 bits of breakpoints that wait behind that shadow ("pending debug exceptions", SDM 3C
  /// 24.4.2).
  std::uint64_t pending_debug = 0;
  bool nmi_blocked = false;
  bool halted = false;
  friend bool operator==(const VcpuState&, const VcpuState&) = default;
};

/// A freshly initialised FXSAVE image: FCW 037Fh, empty stack (SDM 1 8.1.5).
void reset_x87(VectorState& v) noexcept;

/// Flat 32-bit protected mode with paging off at `entry`: how PVH and Multiboot enter.
[[nodiscard]] VcpuState flat_protected_mode(std::uint32_t entry) noexcept;

/// What INIT leaves of `before` (SDM 3A table 9-1): x87 and vector state, XCR0, the MSRs other than
/// EFER, and CR0.CD and NW stay. `signature` is CPUID.1:EAX, which RDX gets.
[[nodiscard]] VcpuState after_init(const VcpuState& before, std::uint32_t signature) noexcept;
/// SIPI: the vCPU starts at CS = vector << 8, IP = 0 in real mode (SDM 3A 9.4.2).
void start_up(VcpuState& state, std::uint8_t vector) noexcept;

}  // namespace strata::cpu
