#include "qemu_deviations.hpp"

#include <algorithm>
#include <cstring>

#include "compare.hpp"
#include "cpu/vcpu_state.hpp"

namespace strata::differential {

bool QemuCase::is(std::initializer_list<ZydisMnemonic> list) const {
  return std::ranges::find(list, mnemonic()) != list.end();
}

std::string_view QemuCase::name() const { return ZydisMnemonicGetString(mnemonic()); }

std::uint32_t QemuCase::mxcsr() const {
  std::uint32_t v = 0;
  std::memcpy(&v, c.before.fx.data() + 24, 4);
  return v;
}

namespace {

namespace rf = cpu::rflags;

bool is_mmx(const ZydisDecodedOperand& o) {
  return o.type == ZYDIS_OPERAND_TYPE_REGISTER &&
         ZydisRegisterGetClass(o.reg.value) == ZYDIS_REGCLASS_MMX;
}

/// VEX.L on an instruction that ignores it: operands, and none of 256 bits.
bool is_scalar_vex(const DecodedCase& d) {
  if (d.insn.encoding != ZYDIS_INSTRUCTION_ENCODING_VEX || d.insn.raw.vex.L == 0) return false;
  const auto* end = d.ops.data() + d.insn.operand_count_visible;
  return d.insn.operand_count_visible != 0 && std::none_of(d.ops.data(), end, [](const auto& o) {
           return o.size == 256 || (o.type == ZYDIS_OPERAND_TYPE_REGISTER &&
                                    ZydisRegisterGetClass(o.reg.value) == ZYDIS_REGCLASS_YMM);
         });
}

/// An instruction's general-register destination, as a bit.
std::uint32_t destination(const QemuCase& q) {
  return 1U << (ZydisRegisterGetId(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64,
                                                                    q.d.ops[0].reg.value)) &
                15);
}

bool faulted(const QemuCase& q) { return q.guest_vector != cpu::BP; }

bool not_canonical(const QemuCase& q, Expected& e) {
  const bool protection = q.guest_vector == cpu::GP || q.guest_vector == cpu::SS_FAULT;
  const bool nowhere = e.result.cr2 >> 47 != 0 || e.result.cr2 == 0;  // the host's signal says 0
  const bool branch = q.d.insn.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE;
  if (!protection || e.result.vector != cpu::PF || (!nowhere && !branch)) return false;
  e.omitted.exception = true;
  if (!branch) return true;
  // QEMU has branched by then.
  e.result.after.rip = q.c.before.rip;
  e.result.after.gpr[cpu::RSP] = q.c.before.gpr[cpu::RSP];
  e.omitted.memory = true;
  return true;
}

bool page_fault_details(const QemuCase& q, Expected& e) {
  if (q.guest_vector != cpu::PF || e.result.vector != cpu::PF) return false;
  // P and the instruction-fetch bit; W and U remain, but where the same operand is read first.
  e.omitted.error = 1 | 16;
  const ZydisDecodedOperand* m = q.d.memory();
  if (m != nullptr && (m->actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0 &&
      (m->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0) {
    e.omitted.error |= 2;
  }
  return true;
}

bool executor_pages(const QemuCase& q, Expected& e) {
  const ZydisDecodedOperand* m = q.d.memory();
  const bool gather = m != nullptr && m->mem.type == ZYDIS_MEMOP_TYPE_VSIB;
  if (!gather || q.guest_vector != cpu::PF || q.guest_cr2 < kAbsent + 0x1000) return false;
  e.omitted.everything = true;
  return true;
}

bool across_pages(const QemuCase& q, Expected& e) {
  if (q.guest_vector != cpu::PF || e.result.vector != cpu::PF) return false;
  const ZydisDecodedOperand* m = q.d.memory();
  if (m == nullptr) {
    if (e.result.cr2 % 0x1000 != 0 && q.name().find("maskmov") == std::string_view::npos) {
      return false;
    }
  } else if (const std::uint64_t at = q.in.address(*m); m->mem.type != ZYDIS_MEMOP_TYPE_VSIB) {
    if (at / 0x1000 == (at + m->size / 8U - 1) / 0x1000 && m->size != 80) return false;
  }
  e.omitted.error = ~0U;
  e.omitted.cr2 = true;
  // Not by the host, so that the part before the fault is QEMU's affair.
  e.omitted.memory = true;
  return true;
}

bool is_masked_move(const QemuCase& q) {
  return q.name().starts_with("vmaskmov") || q.name().starts_with("vpmaskmov");
}

bool masked_elements(const QemuCase& q, Expected& e) {
  if (!is_masked_move(q) || e.result.vector != cpu::PF) return false;
  e.omitted.cr2 = true;
  e.omitted.everything = q.guest_vector == cpu::BP;
  return true;
}

bool reads_too_much(const QemuCase& q, Expected& e) {
  const ZydisDecodedOperand* m = q.d.memory();
  if (q.guest_vector != cpu::BP || e.result.vector != cpu::PF || m == nullptr) return false;
  const std::uint64_t at = q.in.address(*m);
  const bool near_end = at % 0x1000 + 32 > 0x1000 && at % 0x1000 + m->size / 8U <= 0x1000;
  if (q.d.cls != isa::OpcodeClass::vector || !near_end) return false;
  e.omitted.everything = true;
  return true;
}

bool flags_of_faulting_vector(const QemuCase& q, Expected& e) {
  if (!faulted(q) || q.d.cls != isa::OpcodeClass::vector) return false;
  std::memcpy(e.result.after.fx.data() + 24, q.c.before.fx.data() + 24, 4);
  return true;
}

bool last_push_of_enter(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_ENTER}) || q.guest_vector != cpu::PF || e.result.vector != cpu::BP) {
    return false;
  }
  e.omitted.everything = true;
  return true;
}

bool reserved_mxcsr(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_LDMXCSR, ZYDIS_MNEMONIC_VLDMXCSR}) || q.guest_vector != cpu::GP) {
    return false;
  }
  e.omitted.everything = true;
  return true;
}

bool port_permission(const QemuCase& q, Expected& e) {
  if (q.guest_vector != cpu::BP || e.result.vector != cpu::GP) return false;
  if (!q.name().starts_with("ins") && !q.name().starts_with("outs")) return false;
  e.omitted.everything = true;
  return true;
}

bool misaligned(const QemuCase& q, Expected& e) {
  const ZydisDecodedOperand* m = q.d.memory();
  if (q.guest_vector != cpu::GP || m == nullptr || m->size < 128) return false;
  if (q.in.address(*m) % (m->size / 8U) == 0) return false;
  e.omitted.everything = true;
  return true;
}

bool cache_line_flush(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_CLFLUSH, ZYDIS_MNEMONIC_CLFLUSHOPT, ZYDIS_MNEMONIC_CLWB}) ||
      !faulted(q)) {
    return false;
  }
  e.omitted.everything = true;
  return true;
}

bool undefined(const QemuCase& q, Expected& e) {
  const std::uint64_t flags = undefined_flags(q.d);
  e.omitted.rflags |= flags;
  return flags != 0;
}

bool flags_of_fault(const QemuCase& q, Expected& e) {
  if (!faulted(q) || e.result.vector != cpu::PF) return false;
  const bool locked = (q.d.insn.attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0;
  const bool compares = q.d.cls == isa::OpcodeClass::string &&
                        (q.name().starts_with("cmps") || q.name().starts_with("scas"));
  if (!locked && !compares &&
      !q.is({ZYDIS_MNEMONIC_XCHG, ZYDIS_MNEMONIC_RCL, ZYDIS_MNEMONIC_RCR})) {
    return false;
  }
  e.result.after.rflags = q.c.before.rflags;
  return true;
}

bool order_of_reads(const QemuCase& q, Expected& e) {
  if (!q.name().starts_with("cmps") || q.d.cls != isa::OpcodeClass::string || !faulted(q)) {
    return false;
  }
  e.omitted.exception = true;
  return true;
}

bool bit_scan_of_zero(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_BSF, ZYDIS_MNEMONIC_BSR}) || faulted(q)) return false;
  if ((e.result.after.rflags & rf::ZF) == 0) return false;
  e.omitted.gpr |= destination(q);
  return true;
}

bool swap_of_a_word(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_BSWAP}) || q.d.ops[0].size != 16) return false;
  e.omitted.gpr |= destination(q);
  return true;
}

bool long_double_shift(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_SHLD, ZYDIS_MNEMONIC_SHRD}) || q.d.insn.operand_width != 16) {
    return false;
  }
  const std::uint64_t count = q.d.ops[2].type == ZYDIS_OPERAND_TYPE_IMMEDIATE
                                  ? q.d.ops[2].imm.value.u
                                  : q.c.before.gpr[cpu::RCX];
  if ((count & 31) <= 16) return false;
  e.omitted.rflags = rf::ARITHMETIC;
  if (q.d.memory() == nullptr) {
    e.omitted.gpr |= destination(q);
  } else {
    e.omitted.memory = true;
  }
  return true;
}

bool return_and_pop(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_RET}) || q.d.insn.raw.imm[0].size == 0) return false;
  if (e.result.after.gpr[cpu::RSP] == q.c.before.gpr[cpu::RSP]) return false;  // it faulted
  e.result.after.gpr[cpu::RSP] =
      q.c.before.gpr[cpu::RSP] + 8 + (q.d.insn.raw.imm[0].value.u & 0xFFFF);
  return true;
}

bool lowest_set_bit(const QemuCase& q, Expected& e) {
  if (!q.is({ZYDIS_MNEMONIC_BLSI}) || faulted(q)) return false;
  const auto source = q.in.value(q.d.ops[1]);
  if (!source) return false;
  const std::uint64_t carry = source->lane<std::uint64_t>(0) != 0 ? rf::CF : 0;
  e.result.after.rflags = (e.result.after.rflags & ~std::uint64_t{rf::CF}) | carry;
  return true;
}

bool add_with_one_flag(const QemuCase& q, Expected& e) {
  const bool overflow = q.is({ZYDIS_MNEMONIC_ADOX});
  if (!overflow && !q.is({ZYDIS_MNEMONIC_ADCX})) return false;
  const std::uint64_t changed = overflow ? rf::OF : rf::CF;
  const bool carry = (e.result.after.rflags & rf::CF) != 0;
  e.result.after.rflags = q.c.before.rflags;
  if (!faulted(q)) {
    e.result.after.rflags = (q.c.before.rflags & ~changed) | (carry ? changed : 0);
  }
  return true;
}

constexpr std::array kGeneral = {
    QemuDeviation{"all with memory operands",
                  "an address that is not canonical is #PF in user emulation, #GP or #SS by SDM "
                  "1 3.3.7.1",
                  not_canonical},
    QemuDeviation{"all with memory operands",
                  "user emulation takes PROT_NONE for a present page and does not tell fetches "
                  "(SDM 3A 4.7); the host's kernel is compared in full",
                  page_fault_details},
    QemuDeviation{"gathers",
                  "of indices that lead far away: there may be memory of the executor's own (no "
                  "deviation of QEMU's)",
                  executor_pages},
    QemuDeviation{"all with memory operands",
                  "across two pages QEMU reports another byte of the operand and keeps what it "
                  "stored before the fault (SDM 3A 4.7, 6.5)",
                  across_pages},
    QemuDeviation{"VMASKMOV, VPMASKMOV",
                  "QEMU reads masked elements, too (SDM 2C VMASKMOV: no fault)", masked_elements},
    QemuDeviation{"vector instructions with a short operand before a page that is absent",
                  "QEMU reads 16 or 32 bytes for PUNPCKLDQ's 4, VFMADDSS's 4, VPSLLW's 16 (SDM 2, "
                  "the instructions' pages)",
                  reads_too_much},
    QemuDeviation{"vector instructions that fault",
                  "QEMU sets MXCSR flags before a store faults (SDM 3A 6.5)",
                  flags_of_faulting_vector},
    QemuDeviation{"ENTER", "QEMU does not try the final stack pointer (SDM 2A ENTER)",
                  last_push_of_enter},
    QemuDeviation{"LDMXCSR", "reserved bits are #GP (SDM 2A LDMXCSR), QEMU drops them",
                  reserved_mxcsr},
    QemuDeviation{"REP INS, REP OUTS",
                  "QEMU asks for permission even where there is nothing to do (SDM 2B REP)",
                  port_permission},
    QemuDeviation{"SSE instructions with aligned operands",
                  "QEMU does not check alignment (SDM 2A 2.4, exception classes 1, 2 and 4)",
                  misaligned},
    QemuDeviation{"CLFLUSH, CLFLUSHOPT", "QEMU makes a NOP of it; it faults like a load (SDM 2A)",
                  cache_line_flush},
    QemuDeviation{"those that leave flags undefined", "SDM 2, each instruction's page", undefined},
    QemuDeviation{"XCHG, RCL, RCR, those with LOCK, REP CMPS, REP SCAS",
                  "QEMU changes flags before the fault; a fault leaves them (SDM 3A 6.5, 2B REP)",
                  flags_of_fault},
    QemuDeviation{"CMPS", "which operand is read first, the manual leaves open (SDM 2A CMPS)",
                  order_of_reads},
    QemuDeviation{"BSF, BSR", "the destination is undefined where the source is 0 (SDM 2A BSF)",
                  bit_scan_of_zero},
    QemuDeviation{"BSWAP r16", "undefined (SDM 2A BSWAP)", swap_of_a_word},
    QemuDeviation{"SHLD, SHRD",
                  "result and flags are undefined where the count exceeds the operand (SDM 2B)",
                  long_double_shift},
    QemuDeviation{"RET imm16", "QEMU takes the count for signed (SDM 2B RET: unsigned)",
                  return_and_pop},
    QemuDeviation{"BLSI", "QEMU inverts CF: set where the source is not 0 (SDM 2A BLSI)",
                  lowest_set_bit},
    QemuDeviation{"ADCX, ADOX",
                  "ADC stands in; of the flags only CF or OF changes (SDM 2A ADCX, ADOX)",
                  add_with_one_flag},
};

/// MMX registers have no fourth bit: REX.R and REX.B are ignored (SDM 2A 2.2.1.2).
bool extends_mmx(const DecodedCase& d) {
  if ((d.insn.attributes & ZYDIS_ATTRIB_HAS_REX) == 0) return false;
  for (unsigned k = 0; k < d.insn.operand_count_visible; ++k) {
    if (!is_mmx(d.ops[k])) continue;
    const bool reg = d.ops[k].encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG;
    if ((reg ? d.insn.raw.rex.R : d.insn.raw.rex.B) != 0) return true;
  }
  return false;
}

bool is(const DecodedCase& d, std::initializer_list<ZydisMnemonic> list) {
  return std::ranges::find(list, d.insn.mnemonic) != list.end();
}

const ZydisDecodedOperand* vector_index(const DecodedCase& d) {
  const ZydisDecodedOperand* m = d.memory();
  return m != nullptr && m->mem.type == ZYDIS_MEMOP_TYPE_VSIB ? m : nullptr;
}

bool fourth_index(const DecodedCase& d) {
  const ZydisDecodedOperand* m = vector_index(d);
  return m != nullptr && ZydisRegisterGetId(m->mem.index) == 4;
}

bool narrow_gather(const DecodedCase& d) {
  return vector_index(d) != nullptr && d.insn.address_width == 32;
}

bool relative_double_shift(const DecodedCase& d) {
  const ZydisDecodedOperand* m = d.memory();
  return is(d, {ZYDIS_MNEMONIC_SHLD, ZYDIS_MNEMONIC_SHRD}) && m != nullptr &&
         (m->mem.base == ZYDIS_REGISTER_RIP || m->mem.base == ZYDIS_REGISTER_EIP) &&
         d.insn.raw.imm[0].size != 0;
}

bool two_widths(const DecodedCase& d) {
  return is(d, {ZYDIS_MNEMONIC_MOVBE, ZYDIS_MNEMONIC_CRC32}) && d.insn.raw.rex.W != 0 &&
         (d.insn.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE) != 0;
}

bool test_alias(const DecodedCase& d) {
  return is(d, {ZYDIS_MNEMONIC_TEST}) && d.insn.raw.modrm.reg == 1 && d.insn.opcode >= 0xF6;
}

bool register_hint(const DecodedCase& d) {
  return is(d, {ZYDIS_MNEMONIC_NOP}) && d.insn.opcode == 0x18 && d.memory() == nullptr;
}

bool loads_last_register(const DecodedCase& d) {
  return is(d, {ZYDIS_MNEMONIC_FLD}) &&
         std::any_of(
             d.ops.begin(), d.ops.begin() + d.insn.operand_count_visible, [](const auto& o) {
               return o.type == ZYDIS_OPERAND_TYPE_REGISTER && o.reg.value == ZYDIS_REGISTER_ST7;
             });
}

/// Forms of instructions whose other forms are compared.
struct Beyond {
  std::string_view why;
  bool (*applies)(const DecodedCase& d);
};
constexpr std::array kBeyond = {
    Beyond{"VEX.L on a scalar instruction: QEMU aborts or has #UD; the manual warns of it (SDM 2A "
           "ADDSD), and with VEX.L 0 it is compared",
           is_scalar_vex},
    Beyond{"QEMU takes vector index 4 for none (SDM 2A 2.3.12)", fourth_index},
    Beyond{"QEMU does not cut gathers' addresses to 32 bits (SDM 2A 2.3.12)", narrow_gather},
    Beyond{"QEMU forgets the immediate in a RIP-relative address (SDM 2A 2.2.1.6)",
           relative_double_shift},
    Beyond{"QEMU lets 66 win over REX.W (SDM 2A 2.2.1.2: REX.W wins)", two_widths},
    Beyond{"QEMU reads beyond the MMX registers where REX has a fourth bit (SDM 2A 2.2.1.2)",
           extends_mmx},
    Beyond{"F6 /1 and F7 /1, #UD for QEMU, are not in the manual", test_alias},
    Beyond{"0F 18 with a register, a NOP (SDM 2B PREFETCHh), is #UD for QEMU", register_hint},
    Beyond{"FLD ST7 is a stack fault where there is room for it (SDM 1 8.5.1.1)",
           loads_last_register},
};

}  // namespace

std::span<const Exclusion> never_for_qemu() {
  static constexpr std::array kNever = {
      Exclusion{ZYDIS_MNEMONIC_INVPCID, "QEMU's user processor has no INVPCID (#UD before #GP)"},
  };
  return kNever;
}

std::span<const QemuDeviation> general_deviations() { return kGeneral; }

std::string_view beyond_qemu(const DecodedCase& d) {
  for (const Exclusion& e : never_for_qemu()) {
    if (e.mnemonic == d.insn.mnemonic) return e.why;
  }
  for (const Beyond& b : kBeyond) {
    if (b.applies(d)) return b.why;
  }
  return {};
}

Case stand_in(const Case& c, const DecodedCase& d) {
  const bool overflow = d.insn.mnemonic == ZYDIS_MNEMONIC_ADOX;
  if (!overflow && d.insn.mnemonic != ZYDIS_MNEMONIC_ADCX) return c;
  Case out = c;
  // 0F 38 F6 becomes 13, with prefixes that mean nothing in 64-bit mode for what is left over.
  const std::size_t opcode = d.insn.raw.modrm.offset - 3U;
  const bool rex = (d.insn.attributes & ZYDIS_ATTRIB_HAS_REX) != 0;
  const std::size_t kept = opcode - (rex ? 1 : 0);
  constexpr std::uint8_t kNothing = 0x3E, kAddressSize = 0x67, kAdc = 0x13;
  for (std::size_t i = 0; i < kept + 2; ++i) {
    const bool address_size = i < kept && c.code[i] == kAddressSize;
    out.code[i] = address_size ? kAddressSize : kNothing;
  }
  if (rex) out.code[opcode + 1] = c.code[opcode - 1];
  out.code[opcode + 2] = kAdc;
  if (overflow) {
    const std::uint64_t carry = (c.before.rflags & rf::OF) != 0 ? rf::CF : 0;
    out.before.rflags = (c.before.rflags & ~std::uint64_t{rf::CF}) | carry;
  }
  return out;
}

}  // namespace strata::differential
