// Random integer instructions for differential tests, with registers set up so that their memory
// operands fall into the oracle's window, and the interpreter beside the oracle.
#pragma once

#include <Zydis/Zydis.h>

#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "native_oracle.hpp"
#include "test_support.hpp"

namespace strata::interp::test {

using Random = std::mt19937_64;

/// A uniform number below `n`.
inline std::uint64_t below(Random& rng, std::uint64_t n) { return rng() % n; }
inline bool chance(Random& rng, unsigned percent) { return below(rng, 100) < percent; }
/// A 64-bit value of the kinds that find bugs: small, at the edges of a width, or any.
std::uint64_t interesting_value(Random& rng);

/// An instruction as bytes and as Zydis sees it.
struct RandomInstruction {
  std::vector<std::uint8_t> bytes;
  ZydisDecodedInstruction insn{};
  std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> ops{};

  [[nodiscard]] const ZydisDecodedOperand* memory() const;
  /// Overwrites the displacement field.
  void set_displacement(std::uint64_t value);
};

/// What make_instruction() may choose.
struct InstructionLimits {
  /// Memory operands are [R15 + disp32] only, disp within +-`reach`; R15 and RSP are not written
  /// and nothing uses the stack or is a string instruction: for sequences.
  bool sequence = false;
  unsigned bits = 64;  ///< or 32
  std::int32_t reach = 0;
};
/// A random instruction that the interpreter's integer part must know.
RandomInstruction make_instruction(Random& rng, const cpu::CpuModel& model,
                                   const InstructionLimits& limits = {});

/// These bytes as such an instruction.
RandomInstruction make_instruction(std::vector<std::uint8_t> bytes, const cpu::CpuModel& model);

/// Random registers and flags, then those that `i`, placed at `at`, uses for addresses set to reach
/// the window. May rewrite the displacement in `i`.
NativeState make_state(Random& rng, RandomInstruction& i, std::uint64_t at, unsigned bits = 64);

/// An interpreter whose memory looks like the oracle's, with every exception going to a HLT.
class Guest {
 public:
  Guest();
  /// Runs as NativeOracle::run() does; compares nothing.
  void run(std::span<const std::uint8_t> code, std::uint64_t at, NativeState& state,
           unsigned bits = 64);
  [[nodiscard]] std::byte* data() const { return machine.mmu.base() + NativeOracle::kData; }

  Machine machine;

 private:
  cpu::VcpuState base_;
};

}  // namespace strata::interp::test
