#include "engines/bt/region.hpp"

#include <algorithm>

#include "cpu/vcpu_state.hpp"
#include "engines/interp/vector.hpp"
#include "isa/decode.hpp"

namespace strata::bt {
namespace {

constexpr std::uint32_t kAll = cpu::rflags::ARITHMETIC;
using isa::OpcodeClass;

bool is_memory(const ZydisDecodedOperand& o) { return o.type == ZYDIS_OPERAND_TYPE_MEMORY; }

/// Operands and prefixes that only the interpreter handles.
bool is_odd(const Insn& i, const interp::DecodeMode& mode) {
  if (i.insn.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
      i.insn.encoding != ZYDIS_INSTRUCTION_ENCODING_VEX) {
    return true;
  }
  const ZydisDecodedOperand* m = memory_operand(i);
  if (m == nullptr) return false;
  if (mode.bits != 64 && (i.insn.address_width == 16 || m->mem.segment == ZYDIS_REGISTER_CS)) {
    return true;
  }
  if (m->mem.type != ZYDIS_MEMOP_TYPE_MEM || m->size == 0 || m->size > 256) return true;
  // AH to BH can not be named together with the REX prefix that a renamed address needs.
  return std::any_of(i.ops.begin(), i.ops.begin() + i.insn.operand_count_visible,
                     [](const ZydisDecodedOperand& o) {
                       return o.type == ZYDIS_OPERAND_TYPE_REGISTER &&
                              o.reg.value >= ZYDIS_REGISTER_AH && o.reg.value <= ZYDIS_REGISTER_BH;
                     });
}

Kind integer_kind(const Insn& i) {
  const auto& insn = i.insn;
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_LEA:
      return insn.address_width == 16 ? Kind::steps : Kind::lea;
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_PREFETCHNTA:
    case ZYDIS_MNEMONIC_PREFETCHT0:
    case ZYDIS_MNEMONIC_PREFETCHT1:
    case ZYDIS_MNEMONIC_PREFETCHT2:
    case ZYDIS_MNEMONIC_PREFETCHW:
      return Kind::nothing;
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
    case ZYDIS_MNEMONIC_LEAVE: {
      // Whole words only, and no POP into memory, whose address depends on the new RSP.
      const bool whole =
          insn.operand_width == (insn.machine_mode == ZYDIS_MACHINE_MODE_LONG_64 ? 64 : 32);
      if (!whole) return Kind::steps;
      if (insn.mnemonic == ZYDIS_MNEMONIC_LEAVE) return Kind::leave;
      if (insn.mnemonic == ZYDIS_MNEMONIC_PUSH) return Kind::push;
      return is_memory(i.ops[0]) ? Kind::steps : Kind::pop;
    }
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV:
      return insn.operand_width >= 32 && i.ops[0].size >= 32 ? Kind::divide : Kind::steps;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
      // With the bit's number in a register the address depends on it.
      if (!is_memory(i.ops[0]) || i.ops[1].type != ZYDIS_OPERAND_TYPE_REGISTER) {
        return Kind::verbatim;
      }
      return insn.operand_width >= 32 && insn.machine_mode == ZYDIS_MACHINE_MODE_LONG_64
                 ? Kind::bit_string
                 : Kind::steps;
    case ZYDIS_MNEMONIC_MOV:
      if (is_memory(i.ops[0]) || is_memory(i.ops[1])) {
        const auto& m = is_memory(i.ops[0]) ? i.ops[0] : i.ops[1];
        if (m.encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM) return Kind::absolute_mov;
      }
      return Kind::verbatim;
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
    case ZYDIS_MNEMONIC_ADC:
    case ZYDIS_MNEMONIC_SBB:
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_TEST:
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_DEC:
    case ZYDIS_MNEMONIC_NEG:
    case ZYDIS_MNEMONIC_NOT:
    case ZYDIS_MNEMONIC_MOVZX:
    case ZYDIS_MNEMONIC_MOVSX:
    case ZYDIS_MNEMONIC_MOVSXD:
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR:
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD:
    case ZYDIS_MNEMONIC_IMUL:
    case ZYDIS_MNEMONIC_MUL:
    case ZYDIS_MNEMONIC_XCHG:
    case ZYDIS_MNEMONIC_XADD:
    case ZYDIS_MNEMONIC_CMPXCHG:
    case ZYDIS_MNEMONIC_CMPXCHG8B:
    case ZYDIS_MNEMONIC_CMPXCHG16B:
    case ZYDIS_MNEMONIC_BSF:
    case ZYDIS_MNEMONIC_BSR:
    case ZYDIS_MNEMONIC_TZCNT:
    case ZYDIS_MNEMONIC_LZCNT:
    case ZYDIS_MNEMONIC_POPCNT:
    case ZYDIS_MNEMONIC_BSWAP:
    case ZYDIS_MNEMONIC_MOVBE:
    case ZYDIS_MNEMONIC_CBW:
    case ZYDIS_MNEMONIC_CWDE:
    case ZYDIS_MNEMONIC_CDQE:
    case ZYDIS_MNEMONIC_CWD:
    case ZYDIS_MNEMONIC_CDQ:
    case ZYDIS_MNEMONIC_CQO:
    case ZYDIS_MNEMONIC_CLC:
    case ZYDIS_MNEMONIC_STC:
    case ZYDIS_MNEMONIC_CMC:
    case ZYDIS_MNEMONIC_LAHF:
    case ZYDIS_MNEMONIC_SAHF:
    case ZYDIS_MNEMONIC_CRC32:
    case ZYDIS_MNEMONIC_MOVNTI:
    case ZYDIS_MNEMONIC_ADCX:
    case ZYDIS_MNEMONIC_ADOX:
    case ZYDIS_MNEMONIC_ANDN:
    case ZYDIS_MNEMONIC_BEXTR:
    case ZYDIS_MNEMONIC_BLSI:
    case ZYDIS_MNEMONIC_BLSMSK:
    case ZYDIS_MNEMONIC_BLSR:
    case ZYDIS_MNEMONIC_BZHI:
    case ZYDIS_MNEMONIC_MULX:
    case ZYDIS_MNEMONIC_PDEP:
    case ZYDIS_MNEMONIC_PEXT:
    case ZYDIS_MNEMONIC_RORX:
    case ZYDIS_MNEMONIC_SARX:
    case ZYDIS_MNEMONIC_SHLX:
    case ZYDIS_MNEMONIC_SHRX:
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_SFENCE:
      return Kind::verbatim;
    default:
      break;
  }
  const ZydisInstructionCategory category = insn.meta.category;
  return category == ZYDIS_CATEGORY_CMOV || category == ZYDIS_CATEGORY_SETCC ? Kind::verbatim
                                                                             : Kind::steps;
}

/// What the system does often and simply, of the privileged instructions.
Kind system_kind(const Insn& i, const CodeView& code) {
  const bool whole = i.insn.operand_width == code.mode.bits;
  switch (i.insn.mnemonic) {
    case ZYDIS_MNEMONIC_PUSHFQ:
    case ZYDIS_MNEMONIC_PUSHFD:
      return whole ? Kind::pushf : Kind::steps;
    case ZYDIS_MNEMONIC_CLI:
      return code.cpl == 0 ? Kind::cli : Kind::steps;
    case ZYDIS_MNEMONIC_STI:
      return code.cpl == 0 ? Kind::sti : Kind::steps;
    case ZYDIS_MNEMONIC_SWAPGS:
      return code.cpl == 0 && code.mode.bits == 64 ? Kind::swapgs : Kind::steps;
    case ZYDIS_MNEMONIC_MOV:
      break;
    default:
      return Kind::steps;
  }
  switch (i.ops[1].reg.value) {
    case ZYDIS_REGISTER_CR0:
    case ZYDIS_REGISTER_CR2:
    case ZYDIS_REGISTER_CR3:
    case ZYDIS_REGISTER_CR4:
      return code.cpl == 0 && i.ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER ? Kind::read_control
                                                                           : Kind::steps;
    default:
      return Kind::steps;
  }
}

Kind branch_kind(const Insn& i) {
  const unsigned whole = i.insn.machine_mode == ZYDIS_MACHINE_MODE_LONG_64 ? 64 : 32;
  if (i.insn.operand_width != whole) return Kind::steps;
  const bool relative = i.ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
  switch (i.insn.mnemonic) {
    case ZYDIS_MNEMONIC_JMP:
      return relative ? Kind::jump : Kind::jump_indirect;
    case ZYDIS_MNEMONIC_CALL:
      return relative ? Kind::call : Kind::call_indirect;
    case ZYDIS_MNEMONIC_RET:
      return Kind::ret;
    case ZYDIS_MNEMONIC_LOOP:
    case ZYDIS_MNEMONIC_LOOPE:
    case ZYDIS_MNEMONIC_LOOPNE:
    case ZYDIS_MNEMONIC_JCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
    case ZYDIS_MNEMONIC_JRCXZ:
      return Kind::steps;
    default:
      return Kind::jcc;
  }
}

/// Vector and x87 instructions run verbatim unless they touch more than registers and one operand:
/// control words, whole states, conditional elements, registers as addresses.
Kind unit_kind(const Insn& i) {
  switch (i.insn.mnemonic) {
    case ZYDIS_MNEMONIC_LDMXCSR:
    case ZYDIS_MNEMONIC_VLDMXCSR:
      return Kind::load_mxcsr;
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
    case ZYDIS_MNEMONIC_FLDCW:
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FNCLEX:
    case ZYDIS_MNEMONIC_FNINIT:
    case ZYDIS_MNEMONIC_FWAIT:
    case ZYDIS_MNEMONIC_VPCLMULQDQ:  // needs two features
      return Kind::steps;
    default:
      break;
  }
  switch (i.insn.meta.isa_set) {
    case ZYDIS_ISA_SET_FXSAVE:
    case ZYDIS_ISA_SET_FXSAVE64:
    case ZYDIS_ISA_SET_XSAVE:
    case ZYDIS_ISA_SET_XSAVEC:
    case ZYDIS_ISA_SET_XSAVEOPT:
    case ZYDIS_ISA_SET_XSAVES:
    case ZYDIS_ISA_SET_AVX2GATHER:
      return Kind::steps;
    default:
      return Kind::verbatim;
  }
}

/// What it refers to by a distance from itself may be more than 2 GiB from the page's beginning,
/// where code counts from.
bool reaches_too_far(const Insn& i) {
  constexpr std::int64_t kFarthest = (1LL << 31) - 2 * static_cast<std::int64_t>(kPageSize);
  return std::any_of(
      i.ops.begin(), i.ops.begin() + i.insn.operand_count_visible, [](const auto& o) {
        const bool near = o.type == ZYDIS_OPERAND_TYPE_IMMEDIATE && o.imm.is_relative != 0;
        const bool by_rip = o.type == ZYDIS_OPERAND_TYPE_MEMORY && o.mem.base == ZYDIS_REGISTER_RIP;
        const std::int64_t by = near ? o.imm.value.s : by_rip ? o.mem.disp.value : 0;
        return by > kFarthest || by < -kFarthest;
      });
}

Kind kind_of(const Insn& i, const CodeView& code) {
  Kind kind = Kind::steps;
  switch (i.opcode.cls) {
    case OpcodeClass::integer:
      kind = integer_kind(i);
      break;
    case OpcodeClass::branch:
      kind = branch_kind(i);
      break;
    case OpcodeClass::x87:
      // Where the host's would keep FIP, FDP and FOP, they are of translated code.
      if (code.exact_state) return Kind::steps;
      [[fallthrough]];
    case OpcodeClass::vector:
      kind = unit_kind(i);
      break;
    case OpcodeClass::system:
      kind = system_kind(i, code);
      break;
    default:
      return Kind::steps;
  }
  const bool odd = is_odd(i, code.mode) || reaches_too_far(i);
  return kind != Kind::nothing && odd ? Kind::steps : kind;
}

/// One instruction. False: it does not end within the bytes.
bool decode_one(const CodeView& code, const ZydisDecoder& decoder, std::size_t at, Insn& i) {
  i.bytes = code.bytes + at;
  i.offset = static_cast<std::uint16_t>(at);
  i.kind = Kind::steps;
  i.ends = i.loops = false;
  i.access = {};
  const std::size_t left = code.available - at;
  const ZyanStatus status = isa::decode(decoder, i.bytes, left, i.insn, i.ops.data());
  if (status == ZYDIS_STATUS_NO_MORE_DATA) return false;
  if (!ZYAN_SUCCESS(status)) {
    if (left < isa::kMaxInstructionBytes) return false;  // the next page may decide
    i.insn = {};
    i.insn.length = static_cast<std::uint8_t>(isa::kMaxInstructionBytes);
    i.opcode = {};
    i.ends = true;
    return true;
  }
  i.opcode = isa::opcode_of(i.insn, i.ops.data());
  if (!isa::available(i.opcode, i.insn, *code.model)) {
    i.opcode = {};
    i.ends = true;
    return true;
  }
  i.kind = kind_of(i, code);
  const bool goes_on = i.kind == Kind::jcc || i.kind == Kind::sti || i.kind == Kind::read_control;
  i.ends = i.opcode.has(isa::kEndsRun) && !goes_on;
  return true;
}

/// It may fault, and a handler sees all flags.
bool may_fault(const Insn& i) {
  if (i.access.is_grouped() && !i.access.may_fault)
    return i.opcode.cls == OpcodeClass::vector || i.opcode.cls == OpcodeClass::x87;
  switch (i.kind) {
    case Kind::jcc:
    case Kind::jump:
    case Kind::nothing:
    case Kind::lea:
      return false;
    case Kind::verbatim:
      return i.opcode.cls != OpcodeClass::integer || memory_operand(i) != nullptr;
    default:
      return true;
  }
}

/// What is live in front of an instruction that nothing but its fault could show flags at: a
/// handler would find those of an earlier block, which nobody else reads any more. Code whose
/// states are compared does not look ahead (flags_wanted_at()).
std::uint32_t live_before_unless_fault(const Insn& i, std::uint32_t live) {
  if (i.kind == Kind::steps || i.kind == Kind::pushf || i.ends) return kAll;
  const FlagEffect e = flag_effect(i);
  if (e.replaces) return e.reads;
  if (!e.may_keep) live &= ~(e.writes & ~(e.undefined & live));
  return live | e.reads;
}

std::uint32_t live_before(const Insn& i, std::uint32_t live) {
  return may_fault(i) ? kAll : live_before_unless_fault(i, live);
}

/// Repeats what of the region is a loop, from where its last instruction branches to on: what is
/// looked up and counted once a block then serves several rounds.
void unroll(Region& region) {
  constexpr unsigned kMostRounds = 4;
  const Insn& last = region.insns().back();
  if (last.kind != Kind::jcc) return;
  const std::int64_t target = last.offset + last.insn.length + last.ops[0].imm.value.s;
  unsigned head = 0;
  while (head < region.count && region.insns()[head].offset != target) ++head;
  if (head == region.count) return;
  const unsigned body = region.count - head;
  unsigned rounds = std::min(kMostRounds, 1 + (Region::kMaxInstructions - region.count) / body);
  for (; rounds > 1; --rounds) {
    region.insns().back().loops = true;
    for (unsigned n = 0; n < body; ++n, ++region.count) {
      region.next() = region.insns()[head + n];
      region.next().loops = false;
    }
  }
}

}  // namespace

const ZydisDecodedOperand* memory_operand(const Insn& i) noexcept {
  for (unsigned n = 0; n < i.insn.operand_count_visible; ++n) {
    const ZydisDecodedOperand& o = i.ops[n];
    if (is_memory(o) && o.mem.type != ZYDIS_MEMOP_TYPE_AGEN && i.kind != Kind::nothing) return &o;
  }
  return nullptr;
}

FlagEffect flag_effect(const Insn& i) noexcept {
  FlagEffect e;
  const ZydisAccessedFlags* f = i.insn.cpu_flags;
  if (f == nullptr) return e;
  e.reads = f->tested & kAll;
  e.undefined = f->undefined & kAll;
  e.writes = (f->modified | f->set_0 | f->set_1 | f->undefined) & kAll;
  e.replaces = i.opcode.has(isa::kReplacesFlags);
  e.may_keep = i.opcode.has(isa::kMayKeepFlags);
  if (e.may_keep) {
    // A shift by an immediate other than 0 does write.
    const auto& count = i.ops[i.insn.operand_count_visible - 1];
    const unsigned mask = i.insn.operand_width == 64 ? 63 : 31;
    if (count.type == ZYDIS_OPERAND_TYPE_IMMEDIATE && (count.imm.value.u & mask) != 0) {
      e.may_keep = false;
    }
  }
  return e;
}

std::uint32_t flags_wanted_at(const CodeView& code, std::int64_t page_offset, Region& region) {
  constexpr unsigned kLookAhead = 12;
  const auto start = static_cast<std::int64_t>(code.page_offset);
  const auto page_end = start + static_cast<std::int64_t>(code.available);
  if (code.exact_state || code.crosses || page_offset < 0 || page_offset >= page_end) return kAll;
  CodeView there = code;
  there.bytes = code.bytes + (page_offset - start);
  there.available = static_cast<std::size_t>(page_end - page_offset);
  const ZydisDecoder decoder = isa::make_decoder(code.mode.bits, code.mode.stack32, *code.model);
  std::uint32_t wanted = 0;
  std::uint32_t undecided = kAll;
  std::size_t at = 0;
  Insn i;
  for (unsigned n = 0; n < kLookAhead && at < there.available; ++n) {
    if (!decode_one(there, decoder, at, i)) break;
    region.from = std::min(region.from, static_cast<std::uint16_t>(page_offset));
    region.to = std::max(
        region.to,
        static_cast<std::uint16_t>(page_offset + static_cast<std::int64_t>(at) + i.insn.length));
    if (i.kind == Kind::call || i.kind == Kind::jump) {
      // Neither looks at flags: on with what comes then, as long as it is in the page.
      const std::int64_t next =
          page_offset + static_cast<std::int64_t>(at) + i.insn.length + i.ops[0].imm.value.s;
      if (next < start || next >= page_end) break;
      page_offset = next;
      there.bytes = code.bytes + (page_offset - start);
      there.available = static_cast<std::size_t>(page_end - page_offset);
      at = 0;
      continue;
    }
    if (i.ends || i.kind == Kind::jcc) break;
    // What it wants if nothing behind it wants anything, and what it passes on.
    wanted |= live_before_unless_fault(i, 0) & undecided;
    undecided &= live_before_unless_fault(i, kAll);
    if ((undecided & ~wanted) == 0) return wanted;
    at += i.insn.length;
  }
  return wanted | undecided;
}

void decode_region(const CodeView& code, Region& region) {
  region.count = 0;
  region.bytes = 0;
  const ZydisDecoder decoder = isa::make_decoder(code.mode.bits, code.mode.stack32, *code.model);
  std::size_t at = 0;
  while (region.count < Region::kMaxInstructions && at < code.available) {
    Insn& i = region.next();
    if (!decode_one(code, decoder, at, i)) break;
    ++region.count;
    at = std::min<std::size_t>(at + i.insn.length, code.available);
    if (i.ends || code.crosses) break;
    // A loop's end: what follows is another block.
    if (i.kind == Kind::jcc && i.ops[0].imm.value.s < 0) break;
  }
  region.bytes = static_cast<std::uint16_t>(at);
  region.from = static_cast<std::uint16_t>(code.page_offset);
  region.to = static_cast<std::uint16_t>(code.page_offset + at);
  region.groups.clear();
  if (region.count == 0) return;
  if (!code.crosses) unroll(region);
  const std::span<Insn> insns = region.insns();
  if (code.grouped && code.mode.bits == 64) group_accesses(code, region);
  const Insn& last = insns.back();
  const auto end = static_cast<std::int64_t>(code.page_offset + at);
  std::uint32_t live = last.ends ? kAll : flags_wanted_at(code, end, region);
  if (last.kind == Kind::jump || last.kind == Kind::call)
    live = flags_wanted_at(code, end + last.ops[0].imm.value.s, region);
  for (std::size_t n = insns.size(); n-- > 0;) {
    Insn& i = insns[n];
    if (i.kind == Kind::jcc) {
      const auto next = static_cast<std::int64_t>(code.page_offset) + i.offset + i.insn.length;
      const std::int64_t elsewhere = i.loops ? next : next + i.ops[0].imm.value.s;
      i.live_straight = i.live_taken = live;
      (i.loops ? i.live_straight : i.live_taken) = flags_wanted_at(code, elsewhere, region);
      live = i.live_straight | i.live_taken;
    }
    i.live_after = live;
    live = live_before(i, live);
  }
}

}  // namespace strata::bt
