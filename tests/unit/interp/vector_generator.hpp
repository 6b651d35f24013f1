// Random instructions over the whole opcode space of the vector classes, and random operands with a
// liking for the values where floating point is difficult.
#pragma once

#include <Zydis/Zydis.h>

#include <array>
#include <bit>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "cpu/cpu_model.hpp"
#include "cpu/vcpu_state.hpp"
#include "host_stack.hpp"
#include "isa/opcodes.hpp"
#include "vector_native.hpp"

namespace strata::interp::test {

/// One place in the opcode space.
struct OpcodePoint {
  bool vex = false;
  std::uint8_t prefix = 0;  ///< mandatory prefix: 0, 1 = 66, 2 = F3, 3 = F2
  std::uint8_t map = 1;     ///< 0F, 0F38, 0F3A
  std::uint8_t opcode = 0;
  bool w = false;
  bool l = false;
};

struct Instruction {
  std::vector<std::uint8_t> bytes;
  ZydisDecodedInstruction insn{};
  std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> ops{};

  [[nodiscard]] const ZydisDecodedOperand* memory() const {
    for (unsigned i = 0; i < insn.operand_count; ++i) {
      if (ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY) return &ops[i];
    }
    return nullptr;
  }
  [[nodiscard]] std::string text() const {
    std::string s = ZydisMnemonicGetString(insn.mnemonic);
    for (const std::uint8_t b : bytes) {
      constexpr std::string_view kHex = "0123456789abcdef";
      s += ' ';
      s += kHex[b >> 4];
      s += kHex[b & 15];
    }
    return s;
  }
};

inline bool decode(std::span<const std::uint8_t> bytes, Instruction& out) {
  ZydisDecoder decoder;
  ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes.data(), bytes.size(), &out.insn,
                                           out.ops.data()))) {
    return false;
  }
  out.bytes.assign(bytes.begin(), bytes.begin() + out.insn.length);
  return true;
}

class Generator {
 public:
  explicit Generator(std::uint64_t seed) : random{seed} {}

  std::uint64_t below(std::uint64_t n) { return random() % n; }
  bool chance(unsigned percent) { return below(100) < percent; }

  /// Bytes of an instruction at this point with random registers or a random address.
  std::vector<std::uint8_t> bytes_at(const OpcodePoint& p, bool memory,
                                     bool low_registers = false) {
    std::vector<std::uint8_t> b;
    const unsigned extend = low_registers ? 0 : static_cast<unsigned>(below(8));  // R, X, B
    if (p.vex) {
      const auto vvvv = static_cast<unsigned>(low_registers ? below(8) : below(16));
      const unsigned inverted = chance(40) ? 15U : ~vvvv & 15U;  // many forms want 1111
      b = {0xC4, u8((~extend & 7U) << 5 | p.map),
           u8((p.w ? 0x80U : 0U) | inverted << 3 | (p.l ? 4U : 0U) | p.prefix)};
    } else {
      constexpr std::array<std::uint8_t, 4> kPrefix{0, 0x66, 0xF3, 0xF2};
      if (p.prefix != 0) b.push_back(kPrefix[p.prefix]);
      if (p.w || extend != 0) b.push_back(u8(0x40U | (p.w ? 8U : 0U) | extend));
      b.push_back(0x0F);
      if (p.map == 2) b.push_back(0x38);
      if (p.map == 3) b.push_back(0x3A);
    }
    b.push_back(p.opcode);
    add_modrm(b, memory);
    // Immediates; bit 7 of a register in one (VBLENDVPS) counts in 64-bit mode only.
    for (unsigned i = 0; i < 5; ++i) b.push_back(u8(below(low_registers ? 128 : 256)));
    return b;
  }

  /// Sets base and index registers so that the operand lies at `va`. False: not possible here.
  bool aim(const Instruction& i, std::uint64_t va, UnitState& s) {
    const ZydisDecodedOperand* op = i.memory();
    const bool vsib = op->mem.type == ZYDIS_MEMOP_TYPE_VSIB;
    const int base = number(op->mem.base);
    const int index = vsib ? -1 : number(op->mem.index);
    if (base < 0 || base == cpu::RSP || base == index) return false;
    std::uint64_t rest = va - static_cast<std::uint64_t>(op->mem.disp.value);
    if (index >= 0) {
      s.gpr[static_cast<unsigned>(index)] = below(4096) - 2048;
      rest -= s.gpr[static_cast<unsigned>(index)] * op->mem.scale;
    }
    s.gpr[static_cast<unsigned>(base)] = rest;
    return true;
  }

  /// A vector register's worth of data: bit patterns, or floats of a kind that operations on them
  /// meet every special case.
  std::array<std::uint64_t, 4> vector_value() {
    std::array<std::uint64_t, 4> v;
    const std::uint64_t kind = below(4);
    for (auto& w : v) {
      if (kind == 0) w = random();
      if (kind == 1) w = float32() | std::uint64_t{float32()} << 32;
      if (kind == 2) w = float64();
      if (kind == 3) w = chance(50) ? 0 : random() & random();
    }
    return v;
  }

  UnitState state(bool unmask) {
    UnitState s;
    for (auto& g : s.gpr) g = chance(30) ? below(64) - 32 : random();
    s.gpr[cpu::RSP] = usable_rsp(s.gpr[cpu::RSP]);
    for (auto& y : s.ymm) y = vector_value();
    s.flags = 2 | (random() & 0x8D5);
    s.mxcsr = static_cast<std::uint32_t>(random() & 0xE07F) | 0x1F80;
    if (chance(40)) s.mxcsr = 0x1F80;
    if (unmask) s.mxcsr &= ~static_cast<std::uint32_t>(random() & 0x1F80);
    return s;
  }

  std::uint32_t float32() {
    switch (below(8)) {
      case 0:
        return static_cast<std::uint32_t>(random() & 0x807FFFFF);  // denormal
      case 1:
        return static_cast<std::uint32_t>((random() & 0x80000000) | 0x7F800000);  // infinity
      case 2:
        return static_cast<std::uint32_t>(random() | 0x7F800000);  // NaN
      case 3:
        return static_cast<std::uint32_t>(random() & 0x80000000);  // zero
      case 4:
        return static_cast<std::uint32_t>(random() & 0x80FFFFFF) | 0x7F000000;  // huge
      case 5:
        return std::bit_cast<std::uint32_t>(static_cast<float>(below(2000)) - 1000.0F);
      case 6:
        return static_cast<std::uint32_t>(random() & 0x81FFFFFF);  // tiny
      default:
        return static_cast<std::uint32_t>(random());
    }
  }
  std::uint64_t float64() {
    constexpr std::uint64_t kSign = 1ULL << 63;
    switch (below(8)) {
      case 0:
        return random() & (kSign | 0xFFFFFFFFFFFFFULL);
      case 1:
        return (random() & kSign) | 0x7FF0000000000000ULL;
      case 2:
        return random() | 0x7FF0000000000000ULL;
      case 3:
        return random() & kSign;
      case 4:
        return (random() & 0x801FFFFFFFFFFFFFULL) | 0x7FE0000000000000ULL;
      case 5:
        return std::bit_cast<std::uint64_t>(static_cast<double>(below(2000)) - 1000.0);
      case 6:
        return random() & 0x803FFFFFFFFFFFFFULL;
      default:
        return random();
    }
  }

  std::mt19937_64 random;

 private:
  static std::uint8_t u8(std::uint64_t v) { return static_cast<std::uint8_t>(v); }
  static int number(ZydisRegister reg) {
    if (reg < ZYDIS_REGISTER_RAX || reg > ZYDIS_REGISTER_R15) return -1;
    return static_cast<int>(reg) - ZYDIS_REGISTER_RAX;
  }

  void add_modrm(std::vector<std::uint8_t>& b, bool memory) {
    const std::uint64_t reg = below(8) << 3;
    if (!memory) {
      b.push_back(u8(0xC0 | reg | below(8)));
      return;
    }
    const std::uint64_t mod = below(3);
    std::uint64_t rm = below(8);
    if (mod == 0 && rm == 5) rm = 3;  // RIP-relative: the two sides run at different addresses
    b.push_back(u8(mod << 6 | reg | rm));
    if (rm == 4) {
      std::uint64_t base = below(8);
      if (base == 4 || (mod == 0 && base == 5)) base = 1;
      b.push_back(u8(below(4) << 6 | below(8) << 3 | base));
    }
    const std::size_t displacement = mod == 0 ? 0 : mod == 1 ? 1 : 4;
    for (std::size_t i = 0; i < displacement; ++i) b.push_back(u8(i < 2 ? below(256) : 0));
  }
};

/// Every point whose instructions are vector instructions of the model, found by asking the
/// decoder: nothing is left out because somebody forgot it in a table.
inline std::vector<OpcodePoint> vector_points(const cpu::CpuModel& model) {
  std::vector<OpcodePoint> out;
  Generator g{1};
  const auto wanted = [&](const OpcodePoint& p) {
    for (unsigned attempt = 0; attempt < 60; ++attempt) {
      Instruction i;
      if (!decode(g.bytes_at(p, attempt % 2 == 0), i)) continue;
      const isa::Opcode opcode = isa::opcode_of(i.insn, i.ops.data());
      if (opcode.cls == isa::OpcodeClass::vector && isa::available(opcode, i.insn, model)) {
        return true;
      }
    }
    return false;
  };
  for (const bool vex : {false, true}) {
    for (std::uint8_t prefix = 0; prefix < 4; ++prefix) {
      for (std::uint8_t map = 1; map < 4; ++map) {
        for (unsigned opcode = 0; opcode < 256; ++opcode) {
          for (const bool w : {false, true}) {
            for (const bool l : {false, true}) {
              if (l && !vex) continue;
              const OpcodePoint p{vex, prefix, map, static_cast<std::uint8_t>(opcode), w, l};
              if (wanted(p)) out.push_back(p);
            }
          }
        }
      }
    }
  }
  return out;
}

}  // namespace strata::interp::test
