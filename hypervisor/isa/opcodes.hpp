// What every engine, the fuzzer and the tests need to know about an opcode besides its encoding
// (design rule 9): which part of an engine executes it, which processor feature it needs, whether a
// run of instructions may go on behind it, and how it treats the arithmetic flags.
#pragma once

#include <Zydis/Zydis.h>

#include <cstdint>
#include <optional>
#include <span>

#include "cpu/cpu_model.hpp"

namespace strata::isa {

/// Which part of an engine executes an instruction.
enum class OpcodeClass : std::uint8_t {
  unknown,  ///< no engine has it: #UD
  integer,
  branch,  ///< near branches
  string,  ///< MOVS, STOS, LODS, CMPS, SCAS
  system,  ///< far transfers, control registers, ports, descriptor tables, CPUID ...
  vector,  ///< MMX, SSE, AVX, XSAVE
  x87,
};

/// Properties of an opcode, or'ed.
enum Trait : std::uint8_t {
  kNoTraits = 0,
  /// Nothing behind it belongs to the same run: it branches, or changes what decoding depends on.
  kEndsRun = 1,
  /// Leaves none of the six arithmetic flags as they were, undefined ones included.
  kReplacesFlags = 2,
  /// May write no flag at all, depending on its operands (shifts by CL, REP).
  kMayKeepFlags = 4,
  /// May raise an exception even without a memory operand.
  kMayFault = 8,
};

/// One opcode.
struct Opcode {
  OpcodeClass cls = OpcodeClass::unknown;
  std::uint8_t traits = kNoTraits;
  std::optional<cpu::Feature> feature{};  ///< #UD on models without it

  [[nodiscard]] constexpr bool has(Trait t) const noexcept { return (traits & t) != 0; }
  friend bool operator==(const Opcode&, const Opcode&) = default;
};

/// What the tables say of a decoded instruction. `operands` decide where one mnemonic is two
/// things: MOV of control and segment registers, PUSH and POP of segment registers, far branches.
[[nodiscard]] Opcode opcode_of(const ZydisDecodedInstruction& insn,
                               const ZydisDecodedOperand* operands) noexcept;

/// Whether a processor of this model has the instruction (SDM 2A CPUID; the feature lists of the
/// instructions' pages).
[[nodiscard]] bool available(const Opcode& opcode, const ZydisDecodedInstruction& insn,
                             const cpu::CpuModel& model) noexcept;

/// A mnemonic that its instruction set's default does not describe.
struct MnemonicEntry {
  ZydisMnemonic mnemonic = ZYDIS_MNEMONIC_INVALID;
  Opcode opcode{};
};
/// An instruction set (Zydis' grouping by CPUID bit) and the opcode its members are by default.
struct SetEntry {
  ZydisISASet set = ZYDIS_ISA_SET_INVALID;
  Opcode opcode{};
};
/// The tables themselves, for generators that walk over everything there is.
[[nodiscard]] std::span<const MnemonicEntry> mnemonic_table() noexcept;
[[nodiscard]] std::span<const SetEntry> set_table() noexcept;

}  // namespace strata::isa
