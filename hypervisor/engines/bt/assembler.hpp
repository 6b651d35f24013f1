// Bytes of host instructions (SDM 2A 2.1-2.3): only the forms that translated code needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace strata::bt {

/// Host general registers, as instructions encode them.
enum Reg : std::uint8_t {
  kRax,
  kRcx,
  kRdx,
  kRbx,
  kRsp,
  kRbp,
  kRsi,
  kRdi,
  kR8,
  kR9,
  kR10,
  kR11,
  kR12,
  kR13,
  kR14,
  kR15,
  kNoReg = 255
};

/// A memory operand: [base + index << scale + disp], or [disp] without registers. RSP is no index.
struct Mem {
  Reg base = kNoReg;
  Reg index = kNoReg;
  std::uint8_t scale = 0;
  std::int32_t disp = 0;
};
/// The operand for something in low memory (interp/low_memory.hpp).
[[nodiscard]] inline Mem absolute(const void* p) noexcept {
  return {.disp = static_cast<std::int32_t>(reinterpret_cast<std::intptr_t>(p))};
}

/// Opcode maps: none, 0F, 0F 38, 0F 3A.
struct Op {
  std::uint8_t map = 0;
  std::uint8_t code = 0;
};

/// Fields of a three-byte VEX prefix (SDM 2A 2.3.5) that do not follow from the operands.
struct Vex {
  std::uint8_t map = 1;
  std::uint8_t w = 0;
  std::uint8_t vvvv = 0;  ///< register number, not inverted
  std::uint8_t l = 0;
  std::uint8_t pp = 0;
  std::uint8_t code = 0;
};

/// Condition codes (SDM 1 appendix B).
enum Condition : std::uint8_t {
  kOverflow = 0,
  kBelow = 2,
  kAboveEqual = 3,
  kEqual = 4,
  kNotEqual = 5,
  kBelowEqual = 6,
  kAbove = 7,
  kSign = 8,
  kLess = 12
};

class Assembler {
 public:
  /// `origin`: the address the first byte will have.
  explicit Assembler(std::uint64_t origin) : origin_{origin} { bytes_.reserve(4096); }

  [[nodiscard]] const std::vector<std::uint8_t>& bytes() const noexcept { return bytes_; }
  [[nodiscard]] std::uint64_t here() const noexcept { return origin_ + bytes_.size(); }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }

  void byte(unsigned b) { bytes_.push_back(static_cast<std::uint8_t>(b)); }
  void imm32(std::uint32_t v);
  void imm64(std::uint64_t v);

  /// REX (if needed or `rex`), opcode, ModRM. Prefixes come before, immediates after.
  void op_reg(Op op, bool w, unsigned reg, unsigned rm, bool rex = false);
  void op_mem(Op op, bool w, unsigned reg, const Mem& m, bool rex = false);
  void vex_plain(const Vex& v);  ///< without operands
  void vex_reg(const Vex& v, unsigned reg, unsigned rm);
  void vex_mem(const Vex& v, unsigned reg, const Mem& m);

  // Moves of 64 and 32 bits.
  void mov(Reg to, Reg from) { op_reg({0, 0x8B}, true, to, from); }
  void mov32(Reg to, Reg from) { op_reg({0, 0x8B}, false, to, from); }
  void load(Reg to, const Mem& m) { op_mem({0, 0x8B}, true, to, m); }
  void load32(Reg to, const Mem& m) { op_mem({0, 0x8B}, false, to, m); }
  void store(const Mem& m, Reg from) { op_mem({0, 0x89}, true, from, m); }
  void store32(const Mem& m, Reg from) { op_mem({0, 0x89}, false, from, m); }
  void mov_imm32(Reg to, std::uint32_t v);  ///< zero-extended
  void mov_imm(Reg to, std::uint64_t v);
  void mov_imm64(Reg to, std::uint64_t v);               ///< of ten bytes, whatever the value
  void lea_wide(Reg to, std::int32_t distance, bool w);  ///< adds to it, in seven bytes
  void lea(Reg to, const Mem& m, bool w = true) { op_mem({0, 0x8D}, w, to, m); }
  /// Group 1 with a 32-bit immediate: 0 add, 4 and, 5 sub, 7 cmp.
  void alu_imm(unsigned group, Reg r, std::int32_t v, bool w = true);
  void alu_imm(unsigned group, const Mem& m, std::int32_t v, bool w = true);
  void alu_imm8(unsigned group, const Mem& m, std::uint8_t v);  ///< byte operand
  void alu(unsigned group, Reg r, const Mem& m) {
    op_mem({0, static_cast<std::uint8_t>(group << 3 | 3)}, true, r, m);
  }
  void alu(unsigned group, Reg r, Reg from) {
    op_reg({0, static_cast<std::uint8_t>(group << 3 | 3)}, true, r, from);
  }
  void shift_right32(Reg r, unsigned count);
  void shift_left32(Reg r, unsigned count);

  /// Jumps to known addresses, and ones to be bound later: `bind` makes the one at `fixup` go here.
  void jmp(std::uint64_t target);
  void jcc(unsigned condition, std::uint64_t target);
  void jmp(const Mem& m) { op_mem({0, 0xFF}, false, 4, m); }
  void call(const Mem& m) { op_mem({0, 0xFF}, false, 2, m); }
  [[nodiscard]] std::size_t jmp_later();
  [[nodiscard]] std::size_t jcc_later(unsigned condition);
  void bind(std::size_t fixup);

 private:
  void modrm_mem(unsigned reg, const Mem& m);
  void map_bytes(const Op& op);

  std::uint64_t origin_;
  std::vector<std::uint8_t> bytes_;
};

}  // namespace strata::bt
