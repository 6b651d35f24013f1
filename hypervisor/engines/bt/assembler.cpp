#include "engines/bt/assembler.hpp"

#include <cstring>

namespace strata::bt {
namespace {

unsigned high(unsigned reg) { return reg >> 3 & 1; }
unsigned high_of(Reg reg) { return reg == kNoReg ? 0U : high(reg); }

}  // namespace

void Assembler::imm32(std::uint32_t v) {
  for (unsigned i = 0; i < 4; ++i) byte(v >> 8 * i);
}

void Assembler::imm64(std::uint64_t v) {
  imm32(static_cast<std::uint32_t>(v));
  imm32(static_cast<std::uint32_t>(v >> 32));
}

void Assembler::map_bytes(const Op& op) {
  if (op.map != 0) byte(0x0F);
  if (op.map == 2) byte(0x38);
  if (op.map == 3) byte(0x3A);
  byte(op.code);
}

void Assembler::modrm_mem(unsigned reg, const Mem& m) {
  const unsigned field = (reg & 7) << 3;
  if (m.base == kNoReg) {
    // A SIB byte without base is the only absolute form in 64-bit mode (SDM 2A 2.2.1.6).
    byte(field | 4);
    byte((m.index == kNoReg ? 4U : m.index & 7U) << 3 | 5U | static_cast<unsigned>(m.scale) << 6);
    imm32(static_cast<std::uint32_t>(m.disp));
    return;
  }
  const bool small = m.disp >= -128 && m.disp <= 127;
  // RBP and R13 as a base have no form without displacement.
  const unsigned mod = m.disp == 0 && (m.base & 7) != 5 ? 0U : small ? 1U : 2U;
  if (m.index != kNoReg || (m.base & 7) == 4) {
    byte(mod << 6 | field | 4);
    byte((m.index == kNoReg ? 4U : m.index & 7U) << 3 | (m.base & 7U) |
         static_cast<unsigned>(m.scale) << 6);
  } else {
    byte(mod << 6 | field | (m.base & 7U));
  }
  if (mod == 1) byte(static_cast<std::uint8_t>(m.disp));
  if (mod == 2) imm32(static_cast<std::uint32_t>(m.disp));
}

void Assembler::op_reg(Op op, bool w, unsigned reg, unsigned rm, bool rex) {
  const unsigned bits = (w ? 8U : 0U) | high(reg) << 2 | high(rm);
  if (bits != 0 || rex) byte(0x40 | bits);
  map_bytes(op);
  byte(0xC0 | (reg & 7) << 3 | (rm & 7));
}

void Assembler::op_mem(Op op, bool w, unsigned reg, const Mem& m, bool rex) {
  const unsigned bits = (w ? 8U : 0U) | high(reg) << 2 | high_of(m.index) << 1 | high_of(m.base);
  if (bits != 0 || rex) byte(0x40 | bits);
  map_bytes(op);
  modrm_mem(reg, m);
}

void Assembler::vex_plain(const Vex& v) {
  byte(0xC4);
  byte(7U << 5 | v.map);
  byte(static_cast<unsigned>(v.w) << 7 | 15U << 3 | static_cast<unsigned>(v.l) << 2 | v.pp);
  byte(v.code);
}

void Assembler::vex_reg(const Vex& v, unsigned reg, unsigned rm) {
  byte(0xC4);
  byte((high(reg) ^ 1) << 7 | 1U << 6 | (high(rm) ^ 1) << 5 | v.map);
  byte(static_cast<unsigned>(v.w) << 7 | (~static_cast<unsigned>(v.vvvv) & 15) << 3 |
       static_cast<unsigned>(v.l) << 2 | v.pp);
  byte(v.code);
  byte(0xC0 | (reg & 7) << 3 | (rm & 7));
}

void Assembler::vex_mem(const Vex& v, unsigned reg, const Mem& m) {
  byte(0xC4);
  byte((high(reg) ^ 1) << 7 | (high_of(m.index) ^ 1) << 6 | (high_of(m.base) ^ 1) << 5 | v.map);
  byte(static_cast<unsigned>(v.w) << 7 | (~static_cast<unsigned>(v.vvvv) & 15) << 3 |
       static_cast<unsigned>(v.l) << 2 | v.pp);
  byte(v.code);
  modrm_mem(reg, m);
}

void Assembler::mov_imm32(Reg to, std::uint32_t v) {
  if (high(to) != 0) byte(0x41);
  byte(0xB8 | (to & 7U));
  imm32(v);
}

void Assembler::mov_imm(Reg to, std::uint64_t v) {
  if (v >> 32 == 0) return mov_imm32(to, static_cast<std::uint32_t>(v));
  if (static_cast<std::uint64_t>(static_cast<std::int64_t>(static_cast<std::int32_t>(v))) == v) {
    op_reg({0, 0xC7}, true, 0, to);
    return imm32(static_cast<std::uint32_t>(v));
  }
  mov_imm64(to, v);
}

void Assembler::mov_imm64(Reg to, std::uint64_t v) {
  byte(0x48 | high(to));
  byte(0xB8 | (to & 7U));
  imm64(v);
}

void Assembler::lea_wide(Reg to, std::int32_t distance, bool w) {
  byte((w ? 0x48U : 0x40U) | high(to) << 2 | high(to));
  byte(0x8D);
  byte(0x80 | (to & 7U) << 3 | (to & 7U));
  imm32(static_cast<std::uint32_t>(distance));
}

void Assembler::alu_imm(unsigned group, Reg r, std::int32_t v, bool w) {
  const bool small = v >= -128 && v <= 127;
  op_reg({0, static_cast<std::uint8_t>(small ? 0x83 : 0x81)}, w, group, r);
  if (small) {
    byte(static_cast<std::uint8_t>(v));
  } else {
    imm32(static_cast<std::uint32_t>(v));
  }
}

void Assembler::alu_imm(unsigned group, const Mem& m, std::int32_t v, bool w) {
  const bool small = v >= -128 && v <= 127;
  op_mem({0, static_cast<std::uint8_t>(small ? 0x83 : 0x81)}, w, group, m);
  if (small) {
    byte(static_cast<std::uint8_t>(v));
  } else {
    imm32(static_cast<std::uint32_t>(v));
  }
}

void Assembler::alu_imm8(unsigned group, const Mem& m, std::uint8_t v) {
  op_mem({0, 0x80}, false, group, m);
  byte(v);
}

void Assembler::shift_right32(Reg r, unsigned count) {
  op_reg({0, 0xC1}, false, 5, r);
  byte(count);
}

void Assembler::shift_left32(Reg r, unsigned count) {
  op_reg({0, 0xC1}, false, 4, r);
  byte(count);
}

void Assembler::jmp(std::uint64_t target) {
  byte(0xE9);
  imm32(static_cast<std::uint32_t>(target - (here() + 4)));
}

void Assembler::jcc(unsigned condition, std::uint64_t target) {
  byte(0x0F);
  byte(0x80 | condition);
  imm32(static_cast<std::uint32_t>(target - (here() + 4)));
}

std::size_t Assembler::jmp_later() {
  byte(0xE9);
  imm32(0);
  return bytes_.size() - 4;
}

std::size_t Assembler::jcc_later(unsigned condition) {
  byte(0x0F);
  byte(0x80 | condition);
  imm32(0);
  return bytes_.size() - 4;
}

void Assembler::bind(std::size_t fixup) {
  const auto distance = static_cast<std::uint32_t>(bytes_.size() - (fixup + 4));
  std::memcpy(bytes_.data() + fixup, &distance, sizeof distance);
}

}  // namespace strata::bt
