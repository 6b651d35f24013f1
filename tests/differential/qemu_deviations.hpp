// Where QEMU 7.2's user emulation differs from the architecture, instruction by instruction: what
// the manual says instead, computed here from the instruction's operands, or, where there is
// nothing to compute, which part of the state is not compared.
#pragma once

#include <string_view>

#include "case_operands.hpp"

namespace strata::differential {

/// Parts of the state that a comparison leaves out. Nothing unless set.
struct Omission {
  bool everything = false;
  bool exception = false;   ///< vector, error code and CR2; all else must agree
  std::uint32_t error = 0;  ///< bits of the error code
  bool cr2 = false;
  bool memory = false;
  std::uint32_t gpr = 0;  ///< a bit a register
  std::uint64_t rflags = 0;
  std::uint32_t mxcsr = 0;
  std::uint16_t fcw = 0, fsw = 0;
  bool tags = false;
  std::uint32_t st = 0;   ///< a bit a stack register
  std::uint32_t ymm = 0;  ///< a bit a register
  /// Relative differences that the manual allows an approximation, as powers of two; 0: none.
  int ymm_error = 0;  ///< of every 32-bit lane
  /// With FTZ, a lane of this width that is zero in one and the smallest normal in the other.
  unsigned flushed = 0;
  int st_error = 0;          ///< of ST(0) and ST(1)
  long double st_slack = 0;  ///< and, besides, an absolute one
};

/// What the interpreter is compared with.
struct Expected {
  Result result;
  Omission omitted;
};

/// What a deviation is decided on. Of the interpreter's result only whether and how it faulted.
struct QemuCase {
  const Case& c;
  const DecodedCase& d;
  const CaseOperands& in;
  std::uint32_t guest_vector;
  std::uint64_t guest_cr2;  ///< of a page fault
  [[nodiscard]] ZydisMnemonic mnemonic() const { return d.insn.mnemonic; }
  [[nodiscard]] bool is(std::initializer_list<ZydisMnemonic> list) const;
  /// Its name, in lower case.
  [[nodiscard]] std::string_view name() const;
  [[nodiscard]] bool vex() const { return d.insn.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX; }
  [[nodiscard]] std::uint32_t mxcsr() const;
};

struct QemuDeviation {
  std::string_view instructions;
  std::string_view why;  ///< with the manual's section
  /// True: it concerns this case, and `e` is now right.
  bool (*amend)(const QemuCase& q, Expected& e);
};

/// In the order in which they are applied. The last two parts are in files of their own.
[[nodiscard]] std::span<const QemuDeviation> general_deviations();
[[nodiscard]] std::span<const QemuDeviation> vector_deviations();
[[nodiscard]] std::span<const QemuDeviation> x87_deviations();
[[nodiscard]] std::span<const QemuDeviation> trigonometry_deviations();

/// Instructions that QEMU 7.2 cannot judge in any form, and why.
[[nodiscard]] std::span<const Exclusion> never_for_qemu();

/// Cases (of 64-bit code) that QEMU 7.2 is not given; the reason, or empty.
[[nodiscard]] std::string_view beyond_qemu(const DecodedCase& d);

/// Takes from a case what QEMU 7.2's user emulation does not have: unmasked floating-point
/// exceptions (neither #XM nor #MF) and x87 stack faults (SDM 1 8.5.1.1).
void fit_for_qemu(Case& c, const DecodedCase& d);

/// The same operation in an instruction that QEMU can run: ADC for ADCX and ADOX, which make it
/// abort. The flags that differ are put right by a deviation.
[[nodiscard]] Case stand_in(const Case& c, const DecodedCase& d);

}  // namespace strata::differential
