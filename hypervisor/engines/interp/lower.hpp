// Lowering: from one decoded instruction to steps. decoder.cpp decodes and calls the lowerer of the
// instruction's class; each lowerer picks handlers.
#pragma once

#include <Zydis/Zydis.h>

#include <array>
#include <cstdint>
#include <vector>

#include "engines/interp/uop.hpp"

namespace strata::cpu {
class CpuModel;
}

namespace strata::interp {

/// One instruction as Zydis decoded it, with what the block around it knows.
struct Decoded {
  ZydisDecodedInstruction insn;
  std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> operands;
  std::array<std::uint8_t, 16> bytes{};  ///< the instruction's bytes as fetched
  std::uint16_t offset = 0;              ///< from the block's first byte
  bool flags_live = true;                ///< somebody may read the arithmetic flags it writes
};

/// Where lowerers put steps, and the helpers they share.
class Lowering {
 public:
  Lowering(const Decoded& decoded, DecodeMode decode_mode, const cpu::CpuModel& cpu_model,
           std::uint64_t block_page_offset, std::vector<Uop>& out);

  const Decoded& d;
  const ZydisDecodedInstruction& insn;
  const ZydisDecodedOperand* ops;
  DecodeMode mode;
  const cpu::CpuModel& model;  ///< instructions it lacks are #UD (return false)

  /// A step with length, offset and, if the instruction has one, the memory operand filled in.
  [[nodiscard]] Uop step(Handler fn) const;
  void emit(const Uop& u) { out_.push_back(u); }
  /// A spare step for Core::jump_linked(); emit after the step that uses it.
  void emit_link_slot();
  /// The instruction ends the block.
  void end_block() { ends_ = true; }
  [[nodiscard]] bool ends() const noexcept { return ends_; }

  /// Byte offset of a general register into Core::r (AH..BH included).
  [[nodiscard]] static std::uint8_t reg_offset(ZydisRegister reg);
  /// Number 0-15 (0-7) of an XMM/YMM (MMX, segment, control, debug) register.
  [[nodiscard]] static std::uint8_t reg_number(ZydisRegister reg);
  /// Fills base, index, scale, disp, segment, address_form of `u` from memory operand `op`.
  void memory(Uop& u, const ZydisDecodedOperand& op) const;
  /// Address form and segment for implicit operands (strings, XLAT): base register given.
  void implicit_memory(Uop& u, ZydisRegister segment) const;
  /// Whether a relative target lies in the same page as the block's first byte, so that
  /// Core::jump_linked() may be used. `target_offset` is relative to the block's first byte.
  [[nodiscard]] bool in_block_page(std::int64_t target_offset) const;

 private:
  std::uint64_t block_page_offset_ = 0;
  std::vector<Uop>& out_;
  bool ends_ = false;
};

/// Each returns false if it does not know the instruction; it then raises #UD.
bool lower_integer(
    Lowering& l);                ///< integer.cpp and friends: data movement, ALU, branches, strings
bool lower_system(Lowering& l);  ///< system.cpp and friends: far transfers, CRs, MSRs, ports, CPUID
bool lower_vector(Lowering& l);  ///< vector.cpp and friends: x87, MMX, SSE, AVX, XSAVE

/// Decodes the run of instructions at `code` (`available` bytes to the page's end, or through the
/// next page when `crosses`) into steps. Returns instructions and bytes covered.
struct DecodeResult {
  unsigned instructions = 0;
  unsigned bytes = 0;
  bool needs_next_page = false;  ///< the first instruction runs past the available bytes
};
DecodeResult decode_block(const std::byte* code, std::size_t available, std::uint64_t va,
                          DecodeMode mode, const cpu::CpuModel& model, std::vector<Uop>& out);

}  // namespace strata::interp
