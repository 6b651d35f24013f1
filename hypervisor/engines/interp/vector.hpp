// Vector, x87 and extended-state instructions: what the files behind lower_vector() share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/cpu_model.hpp"
#include "cpu/vcpu_state.hpp"
#include "engines/interp/access.hpp"
#include "engines/interp/core.hpp"
#include "engines/interp/lower.hpp"
#include "engines/interp/uop.hpp"

namespace strata::interp {

/// Memory operands of 16 and 32 bytes, for Core::load and Core::store.
struct Bytes16 {
  std::array<std::uint64_t, 2> word{};
};
struct Bytes32 {
  std::array<std::uint64_t, 4> word{};
};

/// Which registers an instruction needs the operating system to have enabled.
enum class Unit : std::uint8_t { sse, avx, mmx, x87, x87_waiting };

using VectorRegister = std::array<std::uint64_t, 4>;

[[nodiscard]] inline VectorRegister& vector_register(Core& core, std::uint8_t number) noexcept {
  return core.arch.vector.ymm[number];
}

/// A field of the FXSAVE64 image that holds the x87 registers (SDM 1 table 10-2).
namespace fx {
inline constexpr std::size_t kFcw = 0, kFsw = 2, kFtw = 4, kFop = 6, kFip = 8, kFdp = 16,
                             kMxcsr = 24, kMxcsrMask = 28, kSt = 32, kStStride = 16, kXmm = 160;
}
template <class T>
[[nodiscard]] T fx_get(const Core& core, std::size_t at) noexcept {
  T v;
  std::memcpy(&v, core.arch.vector.legacy.data() + at, sizeof v);
  return v;
}
template <class T>
void fx_set(Core& core, std::size_t at, T v) noexcept {
  std::memcpy(core.arch.vector.legacy.data() + at, &v, sizeof v);
}

/// An unmasked x87 exception waits for the next waiting instruction (SDM 1 8.1.3.3: ES summarises
/// the flags that the control word does not mask).
[[nodiscard]] inline bool x87_exception_pending(const Core& core) noexcept {
  const unsigned fcw = fx_get<std::uint16_t>(core, fx::kFcw);
  const unsigned fsw = fx_get<std::uint16_t>(core, fx::kFsw);
  return (fsw & ~fcw & 0x3FU) != 0;
}

/// Why the instruction may not run now, as an exception vector; 0 if it may. SDM 2A 2.4 (tables of
/// #UD and #NM causes by exception class), SDM 3A 2.5 for the x87 rows, SDM 3A 9.6 for MMX.
template <Unit Which>
[[nodiscard]] inline std::uint8_t refusal(const Core& core) noexcept {
  namespace cr0 = cpu::cr0;
  namespace cr4 = cpu::cr4;
  const std::uint64_t c0 = core.arch.cr0;
  if constexpr (Which == Unit::sse) {
    if ((c0 & cr0::EM) != 0 || (core.arch.cr4 & cr4::OSFXSR) == 0) [[unlikely]]
      return cpu::UD;
    if ((c0 & cr0::TS) != 0) [[unlikely]]
      return cpu::NM;
  } else if constexpr (Which == Unit::avx) {
    // VEX prefixes do not exist in real-address and virtual-8086 mode (SDM 2A 2.3.3).
    const bool protected_mode = (c0 & cr0::PE) != 0 && (core.rflags_other & cpu::rflags::VM) == 0;
    if ((core.arch.cr4 & cr4::OSXSAVE) == 0 || (core.arch.vector.xcr0 & 6) != 6 || !protected_mode)
        [[unlikely]] {
      return cpu::UD;
    }
    if ((c0 & cr0::TS) != 0) [[unlikely]]
      return cpu::NM;
  } else if constexpr (Which == Unit::mmx) {
    if ((c0 & cr0::EM) != 0) [[unlikely]]
      return cpu::UD;
    if ((c0 & cr0::TS) != 0) [[unlikely]]
      return cpu::NM;
    if (x87_exception_pending(core)) [[unlikely]]
      return cpu::MF;
  } else {
    if ((c0 & (cr0::EM | cr0::TS)) != 0) [[unlikely]]
      return cpu::NM;
    if (Which == Unit::x87_waiting && x87_exception_pending(core)) [[unlikely]]
      return cpu::MF;
  }
  return 0;
}

/// Whether `op` is a register of the XMM or YMM file.
[[nodiscard]] bool is_vector_register(const ZydisDecodedOperand& op) noexcept;
/// VEX encoded, as opposed to legacy SSE, which keeps the upper halves.
[[nodiscard]] inline bool is_vex(const Lowering& l) noexcept {
  return l.insn.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
}
/// Whether the model has the feature that the decoded instruction belongs to.
[[nodiscard]] bool model_offers(const Lowering& l);
/// Bytes that the address of the memory operand has to be a multiple of, or 1 (SDM 2A 2.4, the
/// alignment rows of exception classes 1, 2 and 4).
[[nodiscard]] unsigned required_alignment(const ZydisDecodedInstruction& insn,
                                          const ZydisDecodedOperand& memory);

/// The parts of lower_vector(). Each returns false if the instruction is not one of its own.
bool lower_vector_move(Lowering& l);    ///< vector_move.cpp: whole-register and scalar moves
bool lower_vector_lanes(Lowering& l);   ///< vector_lanes.cpp: frequent integer operations
bool lower_vector_masked(Lowering& l);  ///< vector_masked.cpp: masked moves and gathers
/// vector_masked.cpp: a store of register dst under the mask src at rDI, the hidden operand.
bool lower_maskmov(Lowering& l, Handler fn);
bool lower_maskmovq(Lowering& l);        ///< vector_mmx.cpp: MASKMOVQ itself
bool lower_vector_control(Lowering& l);  ///< vector_control.cpp: MXCSR, VZEROALL, EMMS
bool lower_xsave(Lowering& l);           ///< xsave.cpp: FXSAVE, XSAVE and relatives
bool lower_xcontrol(Lowering& l);        ///< xsave_control.cpp: XGETBV, XSETBV, PKRU
bool lower_x87(Lowering& l);             ///< x87.cpp
bool lower_thunk(Lowering& l);           ///< vector_thunk.cpp: everything else, on the host's units

}  // namespace strata::interp
