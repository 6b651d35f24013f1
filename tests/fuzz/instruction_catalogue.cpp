#include "instruction_catalogue.hpp"

#include <algorithm>
#include <array>

#include "isa/decode.hpp"

namespace strata::fuzz {
namespace {

constexpr std::array<std::uint8_t, 4> kMandatory = {0, 0x66, 0xF3, 0xF2};

std::uint8_t u8(std::uint64_t v) { return static_cast<std::uint8_t>(v); }

/// Bytes that are prefixes and not opcodes.
bool is_prefix(std::uint8_t opcode, unsigned bits) {
  constexpr std::array<std::uint8_t, 11> kPrefixes = {0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65,
                                                      0x66, 0x67, 0xF0, 0xF2, 0xF3};
  if (std::ranges::find(kPrefixes, opcode) != kPrefixes.end()) return true;
  return opcode == 0x0F || (bits == 64 && opcode >> 4 == 4);
}

/// A three-byte VEX prefix. `extend`: R, X, B as bits 2 to 0; `source`: the register in vvvv.
void append_vex(const OpcodePoint& p, unsigned extend, unsigned source,
                std::vector<std::uint8_t>& out) {
  const unsigned pp = p.prefix == 0x66 ? 1 : p.prefix == 0xF3 ? 2 : p.prefix == 0xF2 ? 3 : 0;
  out.push_back(0xC4);
  out.push_back(u8((~extend & 7U) << 5 | p.map));
  out.push_back(u8((p.w ? 0x80U : 0U) | (~source & 15U) << 3 | (p.l ? 4U : 0U) | pp));
}

void append_escape(const OpcodePoint& p, std::vector<std::uint8_t>& out) {
  if (p.map != 0) out.push_back(0x0F);
  if (p.map == 2) out.push_back(0x38);
  if (p.map == 3) out.push_back(0x3A);
}

/// The plainest instruction at a point, to ask the decoder about. Register 0 as VEX source is also
/// how "no source" is written; gathers want three registers that differ.
std::vector<std::uint8_t> sample(const OpcodePoint& p, unsigned bits) {
  std::vector<std::uint8_t> b;
  if (p.vex) {
    append_vex(p, 0, p.vsib ? p.reg ^ 1U : 0U, b);
  } else {
    if (p.prefix != 0) b.push_back(p.prefix);
    if (p.w && bits == 64) b.push_back(0x48);
    append_escape(p, b);
  }
  b.push_back(p.opcode);
  b.push_back(u8((!p.memory ? 0xC1U : p.vsib ? 0x04U : 0x06U) | p.reg << 3));
  if (p.vsib) b.push_back(u8((p.reg ^ 2U) << 3 | 6U));
  b.resize(b.size() + 14);
  return b;
}

/// ModRM with mod, rm and SIB random and the displacement's bytes zero.
void append_address(Random& rng, const OpcodePoint& p, bool wide_form,
                    std::vector<std::uint8_t>& out) {
  const auto mod = rng.below(3);
  const auto rm = p.vsib ? 4 : rng.below(8);
  out.push_back(u8(mod << 6 | p.reg << 3 | rm));
  if (wide_form && rm == 4) out.push_back(rng.byte());
}

template <class Field>
void put_field(std::vector<std::uint8_t>& out, std::size_t start, const Field& field,
               std::uint64_t value) {
  for (unsigned i = 0; i < field.size / 8U; ++i) out[start + field.offset + i] = u8(value >> 8 * i);
}

}  // namespace

void Catalogue::ask(OpcodePoint p, const cpu::CpuModel& model) {
  ZydisDecodedInstruction insn;
  std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> operands;
  const auto decodes = [&] {
    const std::vector<std::uint8_t> bytes = sample(p, bits_);
    return ZYAN_SUCCESS(isa::decode(decoder_, bytes.data(), bytes.size(), insn, operands.data()));
  };
  if (!decodes()) {
    if (!p.vex || !p.memory) return;
    p.vsib = true;
    if (!decodes()) return;
  }
  const isa::Opcode opcode = isa::opcode_of(insn, operands.data());
  if (!isa::available(opcode, insn, model)) return;
  p.modrm = (insn.attributes & ZYDIS_ATTRIB_HAS_MODRM) != 0;
  // Without a ModRM byte the point is the same for every register.
  if (!p.modrm && (p.reg != 0 || p.memory)) return;
  auto& numbers = classes_[static_cast<std::size_t>(opcode.cls)];
  const auto known = std::ranges::find_if(
      numbers, [&](std::uint32_t n) { return entries_[n].mnemonic == insn.mnemonic; });
  if (known != numbers.end()) {
    entries_[*known].points.push_back(p);
    return;
  }
  numbers.push_back(static_cast<std::uint32_t>(entries_.size()));
  entries_.push_back({insn.mnemonic, opcode.cls, {p}});
}

Catalogue::Catalogue(unsigned bits, const cpu::CpuModel& model)
    : bits_{bits},
      decoder_{isa::make_decoder(bits, bits != 16, model)},
      classes_(static_cast<std::size_t>(isa::OpcodeClass::x87) + 1) {
  for (unsigned n = 0; n < 256U * 4 * 4 * 2 * 2 * 8; ++n) {
    OpcodePoint p;
    p.opcode = u8(n);
    p.map = u8(n >> 8 & 3);
    p.prefix = kMandatory[n >> 10 & 3];
    p.w = (n >> 12 & 1) != 0;
    p.memory = (n >> 13 & 1) != 0;
    p.reg = u8(n >> 14 & 7);
    if (p.map == 0 && is_prefix(p.opcode, bits)) continue;
    if (!p.w || bits == 64) ask(p, model);
    if (p.map == 0) continue;
    p.vex = true;
    ask(p, model);
    p.l = true;
    ask(p, model);
  }
}

bool Catalogue::append(Random& rng, const OpcodePoint& p, ConstantSource& constants,
                       std::vector<std::uint8_t>& out) const {
  constexpr std::array<std::uint8_t, 6> kSegments = {0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65};
  const std::size_t start = out.size();
  const bool other_address = rng.chance(6);
  const bool wide_form = bits_ == 64 || (bits_ == 32) != other_address;
  if (rng.chance(8)) out.push_back(rng.pick(kSegments));
  if (other_address) out.push_back(0x67);
  if (p.vex) {
    const unsigned extend = bits_ == 64 ? static_cast<unsigned>(rng.below(8)) : 0;
    append_vex(p, extend, rng.chance(40) ? 0U : rng.byte(), out);
  } else {
    if (p.prefix != 0) out.push_back(p.prefix);
    if (p.prefix != 0x66 && rng.chance(10)) out.push_back(0x66);
    if (rng.chance(4)) out.push_back(0xF0);
    if (p.prefix == 0 && rng.chance(6)) out.push_back(rng.chance(50) ? 0xF3 : 0xF2);
    if (bits_ == 64 && (p.w || rng.chance(50))) {
      out.push_back(u8(0x40U | (p.w ? 8U : 0U) | rng.below(8)));
    }
    append_escape(p, out);
  }
  out.push_back(p.opcode);
  if (p.memory) {
    append_address(rng, p, wide_form, out);
  } else if (p.modrm) {
    out.push_back(u8(0xC0U | p.reg << 3 | rng.below(8)));
  }
  out.resize(out.size() + 14);
  ZydisDecodedInstruction insn;
  std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> operands;
  if (!ZYAN_SUCCESS(
          isa::decode(decoder_, out.data() + start, out.size() - start, insn, operands.data()))) {
    out.resize(out.size() - 12);
    return false;
  }
  out.resize(start + insn.length);
  const auto& raw = insn.raw;
  if (raw.disp.size != 0) {
    put_field(out, start, raw.disp, constants.displacement(rng, raw.disp.size / 8U));
  }
  for (const auto& imm : raw.imm) {
    if (imm.size == 0) continue;
    const unsigned bytes = imm.size / 8U;
    put_field(out, start, imm,
              imm.is_relative ? static_cast<std::uint64_t>(constants.branch_distance(rng))
                              : constants.immediate(rng, bytes));
  }
  return true;
}

}  // namespace strata::fuzz
