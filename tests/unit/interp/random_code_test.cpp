#include "random_code.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "host_stack.hpp"
#include "isa/decode.hpp"
#include "isa/opcodes.hpp"

namespace strata::interp::test {
namespace {

constexpr std::uint64_t kIdt = 0x30000, kTss = 0x31000, kStubs = 0x32000, kGdt = 0x33000,
                        kIst = 0x40000;

std::uint8_t byte(Random& rng) { return static_cast<std::uint8_t>(rng()); }

/// Opcode bytes of the VEX maps 2 and 3 and of 0F38 with integer instructions.
constexpr std::array<std::uint8_t, 5> kVexOpcodes = {0xF2, 0xF3, 0xF5, 0xF6, 0xF7};
constexpr std::array<std::uint8_t, 3> k0f38Opcodes = {0xF0, 0xF1, 0xF6};

/// ModRM and what follows; for sequences a register or [R15 + disp32].
void put_modrm(Random& rng, const InstructionLimits& limits, std::vector<std::uint8_t>& out,
               bool memory) {
  if (!limits.sequence) {
    // As often a register as memory.
    out.push_back(static_cast<std::uint8_t>(chance(rng, 40) ? byte(rng) | 0xC0 : byte(rng)));
    return;
  }
  out.push_back(static_cast<std::uint8_t>(memory ? (byte(rng) & 0x38) | 0x87 : byte(rng) | 0xC0));
  if (!memory) return;
  const auto span = static_cast<std::uint64_t>(limits.reach) * 2;
  const auto disp = static_cast<std::int32_t>(below(rng, span)) - limits.reach;
  for (unsigned i = 0; i < 4; ++i) {
    out.push_back(static_cast<std::uint8_t>(static_cast<std::uint32_t>(disp) >> 8 * i));
  }
}

void put_legacy(Random& rng, const InstructionLimits& limits, std::vector<std::uint8_t>& out) {
  const bool memory = chance(rng, 35);
  if (chance(rng, 20)) out.push_back(0x66);
  if (!limits.sequence && chance(rng, 8)) out.push_back(0x67);
  if (chance(rng, 12)) out.push_back(chance(rng, 50) ? 0xF3 : 0xF2);
  if (chance(rng, 8)) out.push_back(0xF0);
  std::uint8_t rex = limits.bits == 64 && chance(rng, 70)
                         ? static_cast<std::uint8_t>(0x40 | (byte(rng) & 0xF))
                         : 0;
  if (limits.sequence && memory) rex = static_cast<std::uint8_t>((rex | 0x41) & ~2U);
  if (rex != 0) out.push_back(rex);
  const std::uint64_t map = below(rng, 100);
  if (map < 60) {
    out.push_back(byte(rng));
  } else {
    out.push_back(0x0F);
    if (map < 89) {
      out.push_back(byte(rng));
    } else if (map < 93) {
      out.push_back(chance(rng, 50) ? 0xC7 : 0xAE);  // CMPXCHG8B, CMPXCHG16B; fences, CLFLUSH
    } else {
      out.push_back(0x38);
      out.push_back(k0f38Opcodes[below(rng, k0f38Opcodes.size())]);
    }
  }
  put_modrm(rng, limits, out, memory);
}

void put_vex(Random& rng, const InstructionLimits& limits, std::vector<std::uint8_t>& out) {
  const bool memory = chance(rng, 35);
  const bool rorx = chance(rng, 15);
  std::uint8_t rxb = static_cast<std::uint8_t>(byte(rng) & 0xE0);
  if (limits.bits == 32) rxb |= 0xC0;  // else it is LES
  if (limits.sequence && memory) rxb = static_cast<std::uint8_t>((rxb | 0x40) & ~0x20U);
  out.push_back(0xC4);
  out.push_back(static_cast<std::uint8_t>(rxb | (rorx ? 3 : 2)));
  const std::uint8_t vvvv = rorx ? 0x78 : static_cast<std::uint8_t>(byte(rng) & 0x78);
  out.push_back(static_cast<std::uint8_t>((byte(rng) & 0x83) | vvvv));
  out.push_back(rorx ? 0xF0 : kVexOpcodes[below(rng, kVexOpcodes.size())]);
  put_modrm(rng, limits, out, memory);
}

bool decode(const cpu::CpuModel& model, unsigned bits, RandomInstruction& i) {
  const ZydisDecoder decoder = isa::make_decoder(bits, true, model);
  const ZyanStatus status =
      isa::decode(decoder, i.bytes.data(), i.bytes.size(), i.insn, i.ops.data());
  if (!ZYAN_SUCCESS(status)) return false;
  i.bytes.resize(i.insn.length);
  const isa::Opcode opcode = isa::opcode_of(i.insn, i.ops.data());
  return isa::available(opcode, i.insn, model) &&
         (opcode.cls == isa::OpcodeClass::integer || opcode.cls == isa::OpcodeClass::string);
}

/// Random by nature, or not comparable with a process.
bool excluded(const RandomInstruction& i) {
  switch (i.insn.mnemonic) {
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED:
    case ZYDIS_MNEMONIC_SERIALIZE:
      return true;
    default:
      break;
  }
  // 0F 0D with a register is a NOP for Intel and #UD for AMD.
  if (i.insn.meta.isa_set == ZYDIS_ISA_SET_PREFETCH_NOP && i.memory() == nullptr) return true;
  return std::any_of(i.ops.begin(), i.ops.begin() + i.insn.operand_count, [&i](const auto& o) {
    if (o.type != ZYDIS_OPERAND_TYPE_MEMORY || o.mem.type == ZYDIS_MEMOP_TYPE_AGEN) return false;
    // The process has no base in FS and GS; and CS is not writable.
    if (o.mem.segment == ZYDIS_REGISTER_FS || o.mem.segment == ZYDIS_REGISTER_GS ||
        (o.mem.segment == ZYDIS_REGISTER_CS &&
         i.insn.machine_mode == ZYDIS_MACHINE_MODE_LEGACY_32)) {
      return true;
    }
    // 16-bit addresses do not reach the window; the stack's are not of that kind.
    return i.insn.address_width == 16 && o.mem.base != ZYDIS_REGISTER_ESP;
  });
}

/// Number 0-15 of a register of any width.
unsigned number(ZydisRegister r) {
  const ZydisRegister wide = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r);
  return static_cast<unsigned>(ZydisRegisterGetId(wide));
}

bool bit_instruction(ZydisMnemonic m) {
  return m == ZYDIS_MNEMONIC_BT || m == ZYDIS_MNEMONIC_BTS || m == ZYDIS_MNEMONIC_BTR ||
         m == ZYDIS_MNEMONIC_BTC;
}

/// A bit number in a register that is also part of the address: nobody can aim that.
bool reaches_anywhere(const RandomInstruction& i) {
  const ZydisDecodedOperand* m = i.memory();
  if (m == nullptr || !bit_instruction(i.insn.mnemonic)) return false;
  if (i.ops[1].type != ZYDIS_OPERAND_TYPE_REGISTER) return false;
  const unsigned bit = number(i.ops[1].reg.value);
  return (m->mem.base != ZYDIS_REGISTER_NONE && number(m->mem.base) == bit) ||
         (m->mem.index != ZYDIS_REGISTER_NONE && number(m->mem.index) == bit);
}

bool writes(const RandomInstruction& i, ZydisRegister wide) {
  return std::any_of(i.ops.begin(), i.ops.begin() + i.insn.operand_count, [wide](const auto& o) {
    return o.type == ZYDIS_OPERAND_TYPE_REGISTER &&
           (o.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0 &&
           ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, o.reg.value) == wide;
  });
}

bool fits_sequence(const RandomInstruction& i, const InstructionLimits& limits) {
  if (writes(i, ZYDIS_REGISTER_R15) || writes(i, ZYDIS_REGISTER_RSP)) return false;
  for (unsigned k = 0; k < i.insn.operand_count; ++k) {
    const ZydisDecodedOperand& o = i.ops[k];
    if (o.type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
    if (o.visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT) return false;
    if (o.mem.base != ZYDIS_REGISTER_R15 || o.mem.index != ZYDIS_REGISTER_NONE) return false;
    if (o.mem.disp.value < -limits.reach || o.mem.disp.value > limits.reach) return false;
  }
  switch (i.insn.mnemonic) {
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
      return i.memory() == nullptr || i.ops[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
      return false;
    default:
      return true;
  }
}

/// Where a memory operand of the window goes: inside, across pages, into the pages that fault.
std::uint64_t make_target(Random& rng, bool wide) {
  const std::uint64_t kind = below(rng, 100);
  if (kind < 70) return NativeOracle::kData + 0x400 + below(rng, 0x3800);
  if (kind < 84) return NativeOracle::kData + 0x1000 * (1 + below(rng, 3)) - 1 - below(rng, 16);
  if (kind < 90) return NativeOracle::kReadOnly - 1 - below(rng, 16);
  if (kind < 94) return NativeOracle::kReadOnly + below(rng, 0xFE0);
  if (kind < 97) return NativeOracle::kAbsent - 1 - below(rng, 16);
  if (kind < 98 && wide) return 0x8000'0000'0000'0000ULL | rng() >> 2;  // not canonical
  return NativeOracle::kAbsent + below(rng, 0x800);
}

/// An address register's value: outside the address size anything may stand.
std::uint64_t address_value(Random& rng, const RandomInstruction& i, std::uint64_t v) {
  return i.insn.address_width == 32 ? (rng() << 32) | static_cast<std::uint32_t>(v) : v;
}

void aim_explicit(Random& rng, RandomInstruction& i, std::uint64_t at, NativeState& s) {
  const ZydisDecodedOperand& o = *i.memory();
  // Without a base register only the displacement's 32 bits aim.
  const bool wide = i.insn.address_width == 64 && o.mem.base != ZYDIS_REGISTER_NONE &&
                    o.mem.base != ZYDIS_REGISTER_RIP;
  const std::uint64_t target = make_target(rng, wide);
  const auto scale = static_cast<std::uint64_t>(o.mem.scale);
  if (o.mem.base == ZYDIS_REGISTER_RIP || o.mem.base == ZYDIS_REGISTER_EIP) {
    i.set_displacement(target - at - i.bytes.size());
    return;
  }
  if (o.mem.base == ZYDIS_REGISTER_NONE) {
    std::uint64_t index = 0;
    if (o.mem.index != ZYDIS_REGISTER_NONE) {
      index = below(rng, 0x1000);
      s.gpr[number(o.mem.index)] = address_value(rng, i, index);
    }
    i.set_displacement(target - index * scale);
    return;
  }
  const unsigned base = number(o.mem.base);
  const auto disp = static_cast<std::uint64_t>(o.mem.disp.value);
  if (o.mem.index == ZYDIS_REGISTER_NONE) {
    s.gpr[base] = address_value(rng, i, target - disp);
  } else if (const unsigned index = number(o.mem.index); index == base) {
    if (o.mem.disp.has_displacement) i.set_displacement(0x40);
    s.gpr[base] = (target - 0x40) / (1 + scale);
  } else {
    s.gpr[base] = address_value(rng, i, target - disp - s.gpr[index] * scale);
  }
}

/// Registers of implicit memory operands, and inputs that make rare outcomes common.
void aim_implicit(Random& rng, RandomInstruction& i, NativeState& s) {
  bool explicit_base_sp = false;
  const ZydisDecodedOperand* m = i.memory();
  if (m != nullptr) explicit_base_sp = m->mem.base == ZYDIS_REGISTER_RSP;
  for (unsigned k = 0; k < i.insn.operand_count; ++k) {
    const ZydisDecodedOperand& o = i.ops[k];
    if (o.type != ZYDIS_OPERAND_TYPE_MEMORY || &o == m) continue;
    if (o.mem.base == ZYDIS_REGISTER_NONE) continue;
    const unsigned base = number(o.mem.base);
    if (base == cpu::RSP && explicit_base_sp) continue;
    // The stack's width does not depend on the address size.
    s.gpr[base] = base == cpu::RSP
                      ? make_target(rng, i.insn.address_width == 64)
                      : address_value(rng, i, make_target(rng, i.insn.address_width == 64));
  }
  if ((i.insn.attributes &
       (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) != 0 &&
      i.insn.meta.category == ZYDIS_CATEGORY_STRINGOP) {
    s.gpr[cpu::RCX] = address_value(rng, i, below(rng, chance(rng, 20) ? 2000 : 40));
    if (chance(rng, 30)) s.gpr[cpu::RAX] = 0;
  }
  if (i.insn.mnemonic == ZYDIS_MNEMONIC_XLAT) {
    s.gpr[cpu::RBX] = address_value(rng, i, make_target(rng, i.insn.address_width == 64));
  }
  if (i.insn.mnemonic == ZYDIS_MNEMONIC_LEAVE || i.insn.mnemonic == ZYDIS_MNEMONIC_ENTER) {
    s.gpr[cpu::RSP] = make_target(rng, i.insn.address_width == 64);
    s.gpr[cpu::RBP] = make_target(rng, i.insn.address_width == 64);
  }
  if (i.insn.mnemonic == ZYDIS_MNEMONIC_ENTER) {
    i.bytes[i.insn.raw.imm[0].offset + 1] &= 3;  // locals within the window
  }
}

void prefer_rare_outcomes(Random& rng, const RandomInstruction& i, NativeState& s) {
  const bool division =
      i.insn.mnemonic == ZYDIS_MNEMONIC_DIV || i.insn.mnemonic == ZYDIS_MNEMONIC_IDIV;
  if (division && chance(rng, 70)) {
    const bool sign = (s.gpr[cpu::RAX] >> 63) != 0 && i.insn.mnemonic == ZYDIS_MNEMONIC_IDIV;
    s.gpr[cpu::RDX] = sign ? ~0ULL : below(rng, 3);
  }
}

}  // namespace

std::uint64_t interesting_value(Random& rng) {
  const unsigned bits = static_cast<unsigned>(below(rng, 64));
  switch (below(rng, 8)) {
    case 0:
      return below(rng, 3) - 1;
    case 1:
      return 1ULL << bits;
    case 2:
      return (1ULL << bits) - 1;
    case 3:
      return ~(1ULL << bits);
    case 4:
      return below(rng, 256);
    case 5:
      return rng() >> bits;
    default:
      return rng();
  }
}

const ZydisDecodedOperand* RandomInstruction::memory() const {
  for (unsigned k = 0; k < insn.operand_count_visible; ++k) {
    if (ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY &&
        ops[k].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT) {
      return &ops[k];
    }
  }
  return nullptr;
}

void RandomInstruction::set_displacement(std::uint64_t value) {
  for (unsigned k = 0; k < insn.raw.disp.size / 8U; ++k) {
    bytes[insn.raw.disp.offset + k] = static_cast<std::uint8_t>(value >> 8 * k);
  }
}

RandomInstruction make_instruction(std::vector<std::uint8_t> bytes, const cpu::CpuModel& model) {
  RandomInstruction i;
  i.bytes = std::move(bytes);
  if (!decode(model, 64, i)) throw std::invalid_argument("not an instruction of this model");
  return i;
}

RandomInstruction make_instruction(Random& rng, const cpu::CpuModel& model,
                                   const InstructionLimits& limits) {
  for (;;) {
    RandomInstruction i;
    if (chance(rng, 12)) {
      put_vex(rng, limits, i.bytes);
    } else {
      put_legacy(rng, limits, i.bytes);
    }
    while (i.bytes.size() < 20) i.bytes.push_back(byte(rng));
    if (!decode(model, limits.bits, i) || excluded(i) || reaches_anywhere(i)) continue;
    if (limits.sequence && !fits_sequence(i, limits)) continue;
    return i;
  }
}

NativeState make_state(Random& rng, RandomInstruction& i, std::uint64_t at, unsigned bits) {
  NativeState s;
  for (std::uint64_t& r : s.gpr) r = interesting_value(rng);
  s.rflags = 2 | (rng() & 0x8D5) | (chance(rng, 25) ? 0x400U : 0U);
  prefer_rare_outcomes(rng, i, s);
  const ZydisDecodedOperand* m = i.memory();
  if (bit_instruction(i.insn.mnemonic) && m != nullptr &&
      i.ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER) {
    s.gpr[number(i.ops[1].reg.value)] = below(rng, 8000) - 4000;
  }
  aim_implicit(rng, i, s);
  if (m != nullptr) aim_explicit(rng, i, at, s);
  if (bits == 32) {
    for (std::size_t r = 0; r < 16; ++r)
      s.gpr[r] = r < 8 ? static_cast<std::uint32_t>(s.gpr[r]) : 0;
  }
  s.gpr[cpu::RSP] = usable_rsp(s.gpr[cpu::RSP]);
  return s;
}

Guest::Guest() : base_(Machine::long_mode_state()) {
  // Only what the oracle has, and the tables for exceptions, exists.
  for (std::uint64_t va = 0; va < machine.mmu.size(); va += kPageSize) {
    machine.mmu.page(va).present = false;
  }
  for (const std::uint64_t va : {kIdt, kTss, kStubs, kGdt, kIst - kPageSize, NativeOracle::kCode,
                                 NativeOracle::kCode + kPageSize}) {
    machine.mmu.page(va).present = true;
  }
  for (std::uint64_t va = NativeOracle::kData; va < NativeOracle::kAbsent; va += kPageSize) {
    machine.mmu.page(va).present = true;
  }
  machine.mmu.page(NativeOracle::kReadOnly).writable = false;
  machine.poke<std::uint64_t>(kGdt + 8, 0x00AF9B000000FFFFULL);
  machine.poke<std::uint64_t>(kGdt + 16, 0x00CF93000000FFFFULL);
  machine.poke<std::uint64_t>(kTss + 36, kIst);
  for (unsigned v = 0; v < 32; ++v) {
    const std::uint64_t stub = kStubs + v * 16;
    machine.poke<std::uint8_t>(stub, 0xF4);
    machine.poke<std::uint64_t>(kIdt + v * 16, (stub & 0xFFFF) | 8ULL << 16 | 1ULL << 32 |
                                                   0x8EULL << 40 | (stub >> 16 & 0xFFFF) << 48);
    machine.poke<std::uint64_t>(kIdt + v * 16 + 8, 0);
  }
  base_.gdtr = {kGdt, 0x17};
  base_.idtr = {kIdt, 32 * 16 - 1};
  base_.tr.base = kTss;
}

void Guest::run(std::span<const std::uint8_t> code, std::uint64_t at, NativeState& state,
                unsigned bits) {
  std::vector<std::uint8_t> bytes(code.begin(), code.end());
  bytes.push_back(0xF4);
  machine.write(at, bytes);
  cpu::VcpuState s = base_;
  s.gpr = state.gpr;
  s.rip = at;
  s.rflags = state.rflags;
  if (bits == 32) s.segment[cpu::CS].attributes = 0xC09B;  // compatibility mode
  machine.core->set_state(s);
  const engine::Exit exit = machine.core->run();
  ASSERT_EQ(exit.kind, engine::ExitKind::halt) << exit.reason;
  s = machine.core->state();
  state.gpr = s.gpr;
  state.rflags = s.rflags;
  state.rip = s.rip - 1;
  state.vector = -1;
  if (state.rip < kStubs || state.rip >= kStubs + 32 * 16) return;
  const unsigned vector = static_cast<unsigned>((state.rip - kStubs) / 16);
  const std::uint64_t frame = s.gpr[cpu::RSP];
  const bool has_error = frame == kIst - 48;
  const std::uint64_t at_rip = frame + (has_error ? 8 : 0);
  state.vector = static_cast<int>(vector);
  state.error = has_error ? machine.read<std::uint64_t>(frame) : 0;
  state.cr2 = vector == 14 ? s.cr2 : 0;
  state.rip = machine.read<std::uint64_t>(at_rip);
  state.rflags = machine.read<std::uint64_t>(at_rip + 16);
  state.gpr[cpu::RSP] = machine.read<std::uint64_t>(at_rip + 24);
}

}  // namespace strata::interp::test
