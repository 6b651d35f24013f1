#include "isa/opcodes.hpp"

#include <algorithm>
#include <array>

namespace strata::isa {
namespace {

using cpu::Feature;
using enum OpcodeClass;

constexpr Opcode op(OpcodeClass cls, unsigned traits = kNoTraits,
                    std::optional<Feature> feature = std::nullopt) {
  return {cls, static_cast<std::uint8_t>(traits), feature};
}

/// Instruction sets and what their members are unless kMnemonics says otherwise. A set that is not
/// listed is one no model has.
constexpr std::array kSets = {
    SetEntry{ZYDIS_ISA_SET_ADOX_ADCX, op(integer, 0, Feature::adx)},
    SetEntry{ZYDIS_ISA_SET_AES, op(vector, 0, Feature::aes)},
    SetEntry{ZYDIS_ISA_SET_AMD, op(system, kEndsRun)},
    SetEntry{ZYDIS_ISA_SET_AVX, op(vector, 0, Feature::avx)},
    SetEntry{ZYDIS_ISA_SET_AVX2, op(vector, 0, Feature::avx2)},
    SetEntry{ZYDIS_ISA_SET_AVX2GATHER, op(vector, 0, Feature::avx2)},
    SetEntry{ZYDIS_ISA_SET_AVXAES, op(vector, 0, Feature::aes)},
    SetEntry{ZYDIS_ISA_SET_BMI1, op(integer, 0, Feature::bmi1)},
    SetEntry{ZYDIS_ISA_SET_BMI2, op(integer, 0, Feature::bmi2)},
    SetEntry{ZYDIS_ISA_SET_CLFLUSHOPT, op(integer, 0, Feature::clflushopt)},
    SetEntry{ZYDIS_ISA_SET_CLFSH, op(integer, 0, Feature::clflush)},
    SetEntry{ZYDIS_ISA_SET_CLWB, op(integer, 0, Feature::clwb)},
    SetEntry{ZYDIS_ISA_SET_CMOV, op(integer, 0, Feature::cmov)},
    SetEntry{ZYDIS_ISA_SET_CMPXCHG16B, op(integer, 0, Feature::cx16)},
    SetEntry{ZYDIS_ISA_SET_F16C, op(vector, 0, Feature::f16c)},
    SetEntry{ZYDIS_ISA_SET_FAT_NOP, op(integer)},
    SetEntry{ZYDIS_ISA_SET_FCMOV, op(x87, 0, Feature::cmov)},
    SetEntry{ZYDIS_ISA_SET_FMA, op(vector, 0, Feature::fma)},
    SetEntry{ZYDIS_ISA_SET_FXSAVE, op(vector, 0, Feature::fxsr)},
    SetEntry{ZYDIS_ISA_SET_FXSAVE64, op(vector, 0, Feature::fxsr)},
    SetEntry{ZYDIS_ISA_SET_I186, op(integer)},
    SetEntry{ZYDIS_ISA_SET_I286PROTECTED, op(system)},
    SetEntry{ZYDIS_ISA_SET_I286REAL, op(system)},
    SetEntry{ZYDIS_ISA_SET_I386, op(integer)},
    SetEntry{ZYDIS_ISA_SET_I486, op(integer)},
    SetEntry{ZYDIS_ISA_SET_I486REAL, op(integer)},
    SetEntry{ZYDIS_ISA_SET_I86, op(integer)},
    SetEntry{ZYDIS_ISA_SET_INVPCID, op(system, kEndsRun, Feature::invpcid)},
    SetEntry{ZYDIS_ISA_SET_LAHF, op(integer)},
    SetEntry{ZYDIS_ISA_SET_LONGMODE, op(integer)},
    SetEntry{ZYDIS_ISA_SET_LZCNT, op(integer, 0, Feature::lzcnt)},
    SetEntry{ZYDIS_ISA_SET_MONITOR, op(system, 0, Feature::monitor)},
    SetEntry{ZYDIS_ISA_SET_MOVBE, op(integer, 0, Feature::movbe)},
    SetEntry{ZYDIS_ISA_SET_PAUSE, op(integer)},
    SetEntry{ZYDIS_ISA_SET_PCLMULQDQ, op(vector, 0, Feature::pclmulqdq)},
    SetEntry{ZYDIS_ISA_SET_PENTIUMMMX, op(vector, 0, Feature::mmx)},
    SetEntry{ZYDIS_ISA_SET_PENTIUMREAL, op(system)},
    SetEntry{ZYDIS_ISA_SET_PKU, op(system, kEndsRun, Feature::pku)},
    SetEntry{ZYDIS_ISA_SET_POPCNT, op(integer, kReplacesFlags, Feature::popcnt)},
    SetEntry{ZYDIS_ISA_SET_PPRO, op(integer)},
    SetEntry{ZYDIS_ISA_SET_PREFETCH_NOP, op(integer)},
    SetEntry{ZYDIS_ISA_SET_PREFETCHWT1, op(integer)},
    SetEntry{ZYDIS_ISA_SET_RDPID, op(system, 0, Feature::rdpid)},
    SetEntry{ZYDIS_ISA_SET_RDPMC, op(system)},
    SetEntry{ZYDIS_ISA_SET_RDRAND, op(integer, 0, Feature::rdrand)},
    SetEntry{ZYDIS_ISA_SET_RDSEED, op(integer, 0, Feature::rdseed)},
    SetEntry{ZYDIS_ISA_SET_RDTSCP, op(system, 0, Feature::rdtscp)},
    SetEntry{ZYDIS_ISA_SET_RDWRFSGS, op(system, 0, Feature::fsgsbase)},
    SetEntry{ZYDIS_ISA_SET_SERIALIZE, op(integer, kEndsRun, Feature::serialize)},
    SetEntry{ZYDIS_ISA_SET_SHA, op(vector, 0, Feature::sha)},
    SetEntry{ZYDIS_ISA_SET_SMAP, op(system, kEndsRun, Feature::smap)},
    SetEntry{ZYDIS_ISA_SET_SSE, op(vector, 0, Feature::sse)},
    SetEntry{ZYDIS_ISA_SET_SSE2, op(vector, 0, Feature::sse2)},
    SetEntry{ZYDIS_ISA_SET_SSE2MMX, op(vector, 0, Feature::sse2)},
    SetEntry{ZYDIS_ISA_SET_SSE3, op(vector, 0, Feature::sse3)},
    SetEntry{ZYDIS_ISA_SET_SSE3X87, op(x87, 0, Feature::sse3)},
    SetEntry{ZYDIS_ISA_SET_SSE4, op(vector, 0, Feature::sse4_1)},
    SetEntry{ZYDIS_ISA_SET_SSE42, op(vector, 0, Feature::sse4_2)},
    SetEntry{ZYDIS_ISA_SET_SSEMXCSR, op(vector, 0, Feature::sse)},
    SetEntry{ZYDIS_ISA_SET_SSE_PREFETCH, op(integer)},
    SetEntry{ZYDIS_ISA_SET_SSSE3, op(vector, 0, Feature::ssse3)},
    SetEntry{ZYDIS_ISA_SET_SSSE3MMX, op(vector, 0, Feature::ssse3)},
    SetEntry{ZYDIS_ISA_SET_SVM, op(system, kEndsRun)},
    SetEntry{ZYDIS_ISA_SET_VTX, op(system, kEndsRun)},
    SetEntry{ZYDIS_ISA_SET_X87, op(x87, 0, Feature::fpu)},
    SetEntry{ZYDIS_ISA_SET_XSAVE, op(vector, 0, Feature::xsave)},
    SetEntry{ZYDIS_ISA_SET_XSAVEC, op(vector, 0, Feature::xsavec)},
    SetEntry{ZYDIS_ISA_SET_XSAVEOPT, op(vector, 0, Feature::xsaveopt)},
};

constexpr MnemonicEntry row(ZydisMnemonic mnemonic, Opcode opcode) { return {mnemonic, opcode}; }

constexpr unsigned kAll = kReplacesFlags;
constexpr unsigned kVariable = kMayKeepFlags;

constexpr std::array kUnsortedMnemonics = {
    // Arithmetic that leaves no flag alone.
    row(ZYDIS_MNEMONIC_ADD, op(integer, kAll)),
    row(ZYDIS_MNEMONIC_SUB, op(integer, kAll)),
    row(ZYDIS_MNEMONIC_ADC, op(integer, kAll)),
    row(ZYDIS_MNEMONIC_SBB, op(integer, kAll)),
    row(ZYDIS_MNEMONIC_AND, op(integer, kAll)),
    row(ZYDIS_MNEMONIC_OR, op(integer, kAll)),
    row(ZYDIS_MNEMONIC_XOR, op(integer, kAll)),
    row(ZYDIS_MNEMONIC_CMP, op(integer, kAll)),
    row(ZYDIS_MNEMONIC_TEST, op(integer, kAll)),
    row(ZYDIS_MNEMONIC_NEG, op(integer, kAll)),
    row(ZYDIS_MNEMONIC_XADD, op(integer, kAll)),
    row(ZYDIS_MNEMONIC_CMPXCHG, op(integer, kAll)),
    row(ZYDIS_MNEMONIC_CMPXCHG8B, op(integer, 0, Feature::cx8)),
    // Shifts and rotates by a count that may be zero.
    row(ZYDIS_MNEMONIC_SHL, op(integer, kVariable)),
    row(ZYDIS_MNEMONIC_SHR, op(integer, kVariable)),
    row(ZYDIS_MNEMONIC_SAR, op(integer, kVariable)),
    row(ZYDIS_MNEMONIC_ROL, op(integer, kVariable)),
    row(ZYDIS_MNEMONIC_ROR, op(integer, kVariable)),
    row(ZYDIS_MNEMONIC_RCL, op(integer, kVariable)),
    row(ZYDIS_MNEMONIC_RCR, op(integer, kVariable)),
    row(ZYDIS_MNEMONIC_SHLD, op(integer, kVariable)),
    row(ZYDIS_MNEMONIC_SHRD, op(integer, kVariable)),
    // Exceptions without a memory operand: #DE, #BR.
    row(ZYDIS_MNEMONIC_DIV, op(integer, kMayFault)),
    row(ZYDIS_MNEMONIC_IDIV, op(integer, kMayFault)),
    row(ZYDIS_MNEMONIC_AAM, op(integer, kMayFault)),
    row(ZYDIS_MNEMONIC_BOUND, op(integer, kMayFault)),
    // Integer instructions of vector extensions.
    row(ZYDIS_MNEMONIC_CRC32, op(integer, 0, Feature::sse4_2)),
    row(ZYDIS_MNEMONIC_MOVNTI, op(integer, 0, Feature::sse2)),
    row(ZYDIS_MNEMONIC_LFENCE, op(integer, 0, Feature::sse2)),
    row(ZYDIS_MNEMONIC_MFENCE, op(integer, 0, Feature::sse2)),
    row(ZYDIS_MNEMONIC_SFENCE, op(integer, 0, Feature::sse)),
    row(ZYDIS_MNEMONIC_CLDEMOTE, op(integer)),
    // Undefined on purpose.
    row(ZYDIS_MNEMONIC_UD0, op(integer, kEndsRun | kMayFault)),
    row(ZYDIS_MNEMONIC_UD1, op(integer, kEndsRun | kMayFault)),
    row(ZYDIS_MNEMONIC_UD2, op(integer, kEndsRun | kMayFault)),
    // Near branches.
    row(ZYDIS_MNEMONIC_JMP, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_CALL, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_RET, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JO, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JNO, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JB, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JNB, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JZ, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JNZ, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JBE, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JNBE, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JS, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JNS, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JP, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JNP, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JL, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JNL, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JLE, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JNLE, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JCXZ, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JECXZ, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_JRCXZ, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_LOOP, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_LOOPE, op(branch, kEndsRun)),
    row(ZYDIS_MNEMONIC_LOOPNE, op(branch, kEndsRun)),
    // Strings. MOVSD and CMPSD are also SSE2 instructions: opcode_of() tells them apart.
    row(ZYDIS_MNEMONIC_MOVSB, op(string)),
    row(ZYDIS_MNEMONIC_MOVSW, op(string)),
    row(ZYDIS_MNEMONIC_MOVSD, op(string)),
    row(ZYDIS_MNEMONIC_MOVSQ, op(string)),
    row(ZYDIS_MNEMONIC_STOSB, op(string)),
    row(ZYDIS_MNEMONIC_STOSW, op(string)),
    row(ZYDIS_MNEMONIC_STOSD, op(string)),
    row(ZYDIS_MNEMONIC_STOSQ, op(string)),
    row(ZYDIS_MNEMONIC_LODSB, op(string)),
    row(ZYDIS_MNEMONIC_LODSW, op(string)),
    row(ZYDIS_MNEMONIC_LODSD, op(string)),
    row(ZYDIS_MNEMONIC_LODSQ, op(string)),
    row(ZYDIS_MNEMONIC_CMPSB, op(string, kVariable)),
    row(ZYDIS_MNEMONIC_CMPSW, op(string, kVariable)),
    row(ZYDIS_MNEMONIC_CMPSD, op(string, kVariable)),
    row(ZYDIS_MNEMONIC_CMPSQ, op(string, kVariable)),
    row(ZYDIS_MNEMONIC_SCASB, op(string, kVariable)),
    row(ZYDIS_MNEMONIC_SCASW, op(string, kVariable)),
    row(ZYDIS_MNEMONIC_SCASD, op(string, kVariable)),
    row(ZYDIS_MNEMONIC_SCASQ, op(string, kVariable)),
    // System instructions of the basic sets. Which of them end a run is the lowerer's decision
    // where
    // it depends on operands; kEndsRun here is for those that always do.
    row(ZYDIS_MNEMONIC_CLI, op(system)),
    row(ZYDIS_MNEMONIC_STI, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_HLT, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_IN, op(system)),
    row(ZYDIS_MNEMONIC_OUT, op(system)),
    row(ZYDIS_MNEMONIC_INSB, op(system)),
    row(ZYDIS_MNEMONIC_INSW, op(system)),
    row(ZYDIS_MNEMONIC_INSD, op(system)),
    row(ZYDIS_MNEMONIC_OUTSB, op(system)),
    row(ZYDIS_MNEMONIC_OUTSW, op(system)),
    row(ZYDIS_MNEMONIC_OUTSD, op(system)),
    row(ZYDIS_MNEMONIC_INT, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_INT1, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_INT3, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_INTO, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_IRET, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_IRETD, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_IRETQ, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_PUSHF, op(system)),
    row(ZYDIS_MNEMONIC_PUSHFD, op(system)),
    row(ZYDIS_MNEMONIC_PUSHFQ, op(system)),
    row(ZYDIS_MNEMONIC_POPF, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_POPFD, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_POPFQ, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_LDS, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_LES, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_LFS, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_LGS, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_LSS, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_ARPL, op(system)),
    row(ZYDIS_MNEMONIC_CPUID, op(system)),
    row(ZYDIS_MNEMONIC_INVD, op(system)),
    row(ZYDIS_MNEMONIC_WBINVD, op(system)),
    row(ZYDIS_MNEMONIC_INVLPG, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_RSM, op(system, kEndsRun)),
    row(ZYDIS_MNEMONIC_SWAPGS, op(system)),
    row(ZYDIS_MNEMONIC_SYSCALL, op(system, kEndsRun, Feature::syscall)),
    row(ZYDIS_MNEMONIC_SYSRET, op(system, kEndsRun, Feature::syscall)),
    row(ZYDIS_MNEMONIC_SYSENTER, op(system, kEndsRun, Feature::sysenter)),
    row(ZYDIS_MNEMONIC_SYSEXIT, op(system, kEndsRun, Feature::sysenter)),
    row(ZYDIS_MNEMONIC_RDMSR, op(system, 0, Feature::msr)),
    row(ZYDIS_MNEMONIC_WRMSR, op(system, kEndsRun, Feature::msr)),
    row(ZYDIS_MNEMONIC_RDTSC, op(system, 0, Feature::tsc)),
    row(ZYDIS_MNEMONIC_XGETBV, op(system, 0, Feature::xsave)),
    row(ZYDIS_MNEMONIC_XSETBV, op(system, kEndsRun, Feature::xsave)),
    // x87 comparisons of the Pentium Pro.
    row(ZYDIS_MNEMONIC_FCOMI, op(x87, 0, Feature::cmov)),
    row(ZYDIS_MNEMONIC_FCOMIP, op(x87, 0, Feature::cmov)),
    row(ZYDIS_MNEMONIC_FUCOMI, op(x87, 0, Feature::cmov)),
    row(ZYDIS_MNEMONIC_FUCOMIP, op(x87, 0, Feature::cmov)),
};

constexpr auto kMnemonics = [] {
  auto sorted = kUnsortedMnemonics;
  std::ranges::sort(sorted, {}, &MnemonicEntry::mnemonic);
  return sorted;
}();
static_assert(std::ranges::adjacent_find(kMnemonics, {}, &MnemonicEntry::mnemonic) ==
                  kMnemonics.end(),
              "a mnemonic is listed twice");

constexpr auto kSetIndex = [] {
  std::array<Opcode, ZYDIS_ISA_SET_MAX_VALUE + 1> index{};
  for (const SetEntry& e : kSets) index[e.set] = e.opcode;
  return index;
}();

[[nodiscard]] bool is_system_register(const ZydisDecodedOperand& o) noexcept {
  if (o.type != ZYDIS_OPERAND_TYPE_REGISTER) return false;
  const ZydisRegisterClass c = ZydisRegisterGetClass(o.reg.value);
  return c == ZYDIS_REGCLASS_SEGMENT || c == ZYDIS_REGCLASS_CONTROL || c == ZYDIS_REGCLASS_DEBUG;
}

/// MOV, PUSH and POP of segment, control and debug registers, and far JMP, CALL and RET.
[[nodiscard]] bool is_system_form(const ZydisDecodedInstruction& insn,
                                  const ZydisDecodedOperand* operands) noexcept {
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
      return is_system_register(operands[0]) || is_system_register(operands[1]);
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
      return is_system_register(operands[0]);
    case ZYDIS_MNEMONIC_JMP:
    case ZYDIS_MNEMONIC_CALL:
    case ZYDIS_MNEMONIC_RET:
      return insn.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
    default:
      return false;
  }
}

}  // namespace

std::span<const MnemonicEntry> mnemonic_table() noexcept { return kMnemonics; }
std::span<const SetEntry> set_table() noexcept { return kSets; }

Opcode opcode_of(const ZydisDecodedInstruction& insn,
                 const ZydisDecodedOperand* operands) noexcept {
  const ZydisISASet set = insn.meta.isa_set;
  const bool sse2_twin = set == ZYDIS_ISA_SET_SSE2 && (insn.mnemonic == ZYDIS_MNEMONIC_MOVSD ||
                                                       insn.mnemonic == ZYDIS_MNEMONIC_CMPSD);
  if (!sse2_twin) {
    const auto* const found =
        std::ranges::lower_bound(kMnemonics, insn.mnemonic, {}, &MnemonicEntry::mnemonic);
    if (found != kMnemonics.end() && found->mnemonic == insn.mnemonic) {
      if (!is_system_form(insn, operands)) return found->opcode;
      return op(system, kEndsRun);
    }
  }
  Opcode opcode = static_cast<unsigned>(set) < kSetIndex.size() ? kSetIndex[set] : Opcode{};
  if (is_system_form(insn, operands)) opcode = op(system);
  return opcode;
}

bool available(const Opcode& opcode, const ZydisDecodedInstruction& insn,
               const cpu::CpuModel& model) noexcept {
  if (opcode.cls == unknown) return false;
  if (opcode.feature && !model.has(*opcode.feature)) return false;
  // Every VEX-encoded vector instruction also needs AVX (SDM 2A 2.3.11).
  if (opcode.cls == vector && insn.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
    return model.has(Feature::avx);
  }
  // LAHF and SAHF are a feature in 64-bit mode only (SDM 2A LAHF).
  if (insn.meta.isa_set == ZYDIS_ISA_SET_LAHF && insn.machine_mode == ZYDIS_MACHINE_MODE_LONG_64) {
    return model.has(Feature::lahf);
  }
  return true;
}

}  // namespace strata::isa
