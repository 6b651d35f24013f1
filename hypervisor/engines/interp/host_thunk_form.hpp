// The normal form of an instruction that a thunk executes: which bytes, and what goes in and out.
#pragma once

#include <Zydis/Zydis.h>

#include <array>
#include <cstdint>
#include <optional>

#include "engines/interp/lower.hpp"

namespace strata::interp {

enum class ThunkKind : std::uint8_t { sse, avx, mmx, x87 };
enum class ThunkMemory : std::uint8_t { none, read, write };

/// One vector operand: which host register the thunk uses for it.
struct ThunkSlot {
  std::uint8_t host = 0;
  bool mmx = false;
  bool written = false;
};

/// Registers are renamed in operand order, general registers to RAX, memory to [R9]; so two guest
/// instructions that differ in register numbers and addresses only have the same form.
struct ThunkForm {
  std::array<std::uint8_t, 15> bytes{};
  std::uint8_t size = 0;
  std::uint8_t immediate_at = 0;  ///< index of the 8-bit immediate in `bytes`; 0: none
  ThunkKind kind = ThunkKind::sse;
  ThunkMemory memory = ThunkMemory::none;
  std::uint8_t memory_bytes = 0;
  std::uint8_t alignment = 1;  ///< of the guest's memory operand
  std::uint8_t slot_count = 0;
  std::uint8_t explicit_slots = 0;  ///< the rest is the implicit XMM0
  std::array<ThunkSlot, 4> slots{};
  bool gpr_read = false;
  bool gpr_write = false;
  bool length_inputs = false;  ///< PCMPESTRx: RAX and RDX
  bool index_output = false;   ///< PCMPxSTRI: RCX
  bool flags_written = false;  ///< x87 forms: or read (FCMOVcc)
  bool floating = false;       ///< reads MXCSR and may raise #XM
  bool uses_mmx = false;

  [[nodiscard]] std::uint8_t immediate() const noexcept {
    return immediate_at == 0 ? std::uint8_t{0} : bytes[immediate_at];
  }
};

/// The form of a decoded instruction, or nothing if it is not of a kind that thunks execute.
[[nodiscard]] std::optional<ThunkForm> normal_form(const Lowering& l);

}  // namespace strata::interp
