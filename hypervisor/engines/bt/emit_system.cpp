// Privileged instructions that the kernel executes all the time, at CPL 0; and BT on bit strings.
#include "engines/bt/emitter.hpp"

namespace strata::bt {
namespace {

namespace rf = cpu::rflags;

}  // namespace

void Emitter::system(const Insn& i) {
  if (i.kind == Kind::swapgs) return swapgs();
  if (i.kind == Kind::read_control) {
    const cpu::VcpuState& s = c_.core->arch;
    const std::uint64_t* from = i.ops[1].reg.value == ZYDIS_REGISTER_CR0   ? &s.cr0
                                : i.ops[1].reg.value == ZYDIS_REGISTER_CR2 ? &s.cr2
                                : i.ops[1].reg.value == ZYDIS_REGISTER_CR3 ? &s.cr3
                                                                           : &s.cr4;
    const unsigned n = number(i.ops[0].reg.value);
    const bool homed = long_mode() && is_homed(n);
    const Reg to = homed ? kT2 : static_cast<Reg>(n);
    a_.op_mem({0, 0x8B}, long_mode(), to, absolute(from));
    if (homed) a_.store(absolute(&c_.core->r[n]), to);
    return;
  }
  spill_flags();
  if (i.kind == Kind::sti) return sti(i);
  a_.alu_imm(4, absolute(&c_.core->rflags_other), ~static_cast<std::int32_t>(rf::IF));
}

/// The next instruction is in the same block, and nothing can come between: no memory to look up,
/// no registers of units to load.
bool Emitter::next_surely_follows(const Insn& i) const {
  const std::size_t next = index_of(i) + 1;
  if (next == region_.insns().size()) return false;
  const Insn& n = region_.insns()[next];
  switch (n.kind) {
    case Kind::nothing:
    case Kind::lea:
    case Kind::jump:
    case Kind::jcc:
    case Kind::cli:
    case Kind::steps:
      return true;
    case Kind::verbatim:
      return n.opcode.cls == isa::OpcodeClass::integer && memory_operand(n) == nullptr;
    default:
      return false;
  }
}

/// Sets IF where nothing waits for it and the next instruction, for which interrupts and NMIs are
/// held off (SDM 2B, STI), runs before anybody looks: HLT would sleep on what came before it.
/// Otherwise the interpreter does, and the run loop looks.
void Emitter::sti(const Insn& i) {
  if (!next_surely_follows(i)) return steps(i);
  a_.alu_imm8(7, absolute(&c_.core->interrupt_waits), 0);
  const std::size_t waits = a_.jcc_later(kNotEqual);
  a_.alu_imm(1, absolute(&c_.core->rflags_other), static_cast<std::int32_t>(rf::IF));
  const std::size_t done = a_.jmp_later();
  a_.bind(waits);
  steps(i);
  a_.bind(done);
}

void Emitter::swapgs() {
  cpu::VcpuState& s = c_.core->arch;
  a_.load(kT0, absolute(&s.msr.kernel_gs_base));
  a_.load(kT1, absolute(&s.segment[cpu::GS].base));
  a_.store(absolute(&s.msr.kernel_gs_base), kT1);
  a_.store(absolute(&s.segment[cpu::GS].base), kT0);
  a_.store(absolute(&c_.core->segment_base[cpu::GS]), kT0);
}

void Emitter::pushf(const Insn& i) {
  spill_flags();
  check_push(i);
  a_.lea(kT1, {.base = kT0, .index = kT1});
  a_.mov(kRsp, kT0);
  // Core::flags is OF in bit 0 and LAHF's byte above it (interp/flags.hpp).
  const auto* flags = reinterpret_cast<const std::byte*>(&c_.core->flags);
  a_.op_mem({1, 0xB6}, false, kT0, absolute(flags));
  a_.shift_left32(kT0, 11);
  a_.op_mem({1, 0xB6}, false, kT2, absolute(flags + 1));
  a_.alu_imm(4, kT2, 0xD5, false);
  a_.alu(1, kT0, kT2);
  a_.alu(1, kT0, absolute(&c_.core->rflags_other));
  a_.alu_imm(4, kT0, ~static_cast<std::int32_t>(rf::RF | rf::VM));
  a_.op_mem({0, 0x89}, long_mode(), kT0, {.base = kT1});
}

/// BT, BTS, BTR, BTC of a bit in memory: the word that holds it is addressed, and the host's
/// instruction gets the bit's number within the word.
void Emitter::bit_string(const Insn& i) {
  const bool wide = i.insn.operand_width == 64;
  const auto bit = [&](Reg temporary) { return value(i.ops[1].reg.value, temporary); };
  spill_flags();
  const Reg va = address(i, i.ops[0]);
  a_.op_reg({0, 0x63}, true, kT2, bit(kT2));  // MOVSXD
  if (wide) a_.mov(kT2, bit(kT2));
  a_.op_reg({0, 0xC1}, true, 7, kT2);
  a_.byte(wide ? 6 : 5);
  a_.lea(kT0, {.base = va, .index = kT2, .scale = static_cast<std::uint8_t>(wide ? 3 : 2)},
         i.insn.address_width == 64);
  check(i, kT0, wide ? 8 : 4, i.insn.mnemonic != ZYDIS_MNEMONIC_BT);
  a_.lea(kT0, {.base = kT0, .index = kT1});
  const Reg number = bit(kT1);
  if (number != kT1) a_.mov(kT1, number);
  a_.alu_imm(4, kT1, wide ? 63 : 31, false);
  // It writes CF only; the others are those from before.
  need_flags();
  if ((i.insn.attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0) a_.byte(0xF0);
  a_.op_mem({1, i.insn.opcode}, wide, kT1, {.base = kT0});
  flags_written(i);
}

}  // namespace strata::bt
