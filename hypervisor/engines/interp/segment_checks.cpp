#include "engines/interp/segment_checks.hpp"

#include "engines/interp/segments.hpp"

namespace strata::interp {

namespace {

using cpu::Segment;

/// Uop::aux of a check.
enum CheckBit : std::uint8_t { kWrite = 1, kLimit = 2 };

bool access_allowed(const Core& core, const Segment& s, std::uint64_t offset, unsigned size,
                    bool write) noexcept {
  if (s.unusable() || !within_limit(s, offset, size)) return false;
  // Types restrict nothing where selectors name no descriptors.
  if (!descriptors_in_use(core)) return true;
  constexpr unsigned kCode = 8, kBit1 = 2;  // bit 1: code can be read, data written
  const unsigned type = s.type() & (kCode | kBit1);
  return write ? type == kBit1 : type != kCode;
}

std::uint8_t limit_vector(std::uint8_t segment) noexcept {
  return segment == cpu::SS ? cpu::SS_FAULT : cpu::GP;
}

/// imm: size; aux2: address bits that must be clear.
const Uop* check_at(Core& core, const Uop* u, std::uint64_t offset) {
  const auto size = static_cast<unsigned>(u->imm);
  if ((u->aux & kLimit) != 0 &&
      !access_allowed(core, core.arch.segment[u->segment], offset, size, (u->aux & kWrite) != 0)) {
    return core.fault(u, limit_vector(u->segment), 0);
  }
  if ((core.linear(u, offset) & u->aux2) != 0) return core.fault(u, cpu::AC, 0);
  return u + 1;
}

const Uop* check_operand(Core& core, const Uop* u) { return check_at(core, u, core.offset_of(u)); }

/// BT and its family with the bit's number in a register, which reaches beyond the operand
/// (SDM 2A, BT). dst: log2 of the operand's bytes.
template <class T>
const Uop* check_bit_string(Core& core, const Uop* u) {
  using Signed = std::make_signed_t<T>;
  const auto bit = static_cast<std::int64_t>(static_cast<Signed>(core.reg<T>(u->src)));
  constexpr int kLog2Bits = sizeof(T) == 8 ? 6 : sizeof(T) == 4 ? 5 : 4;
  const std::int64_t moved = (bit >> kLog2Bits) * static_cast<std::int64_t>(sizeof(T));
  std::uint64_t offset = core.offset_of(u) + static_cast<std::uint64_t>(moved);
  const unsigned form = u->address_form & 0x7FU;
  if (form == 2) offset = static_cast<std::uint32_t>(offset);
  if (form == 3) offset = static_cast<std::uint16_t>(offset);
  return check_at(core, u, offset);
}

/// XLAT: [rBX + AL].
const Uop* check_xlat(Core& core, const Uop* u) {
  std::uint64_t offset = core.r[cpu::RBX] + core.reg<std::uint8_t>(cpu::RAX * 8);
  const unsigned form = u->address_form & 0x7FU;
  if (form == 2) offset = static_cast<std::uint32_t>(offset);
  if (form == 3) offset = static_cast<std::uint16_t>(offset);
  return check_at(core, u, offset);
}

/// How an instruction uses the stack.
enum class StackUse : std::uint8_t { none, push, pop, leave };

/// src: StackUse; dst: how many elements of imm bytes.
const Uop* check_stack(Core& core, const Uop* u) {
  const std::uint64_t mask = core.long_mode()           ? ~0ULL
                             : core.decode_mode.stack32 ? 0xFFFFFFFFULL
                                                        : 0xFFFFULL;
  const auto use = static_cast<StackUse>(u->src);
  std::uint64_t sp = core.r[use == StackUse::leave ? cpu::RBP : cpu::RSP];
  for (unsigned i = 0; i < u->dst; ++i) {
    if (use == StackUse::push) sp -= u->imm;
    if (const Uop* next = check_at(core, u, sp & mask); next != u + 1) return next;
    if (use != StackUse::push) sp += u->imm;
  }
  return u + 1;
}

// ---- lowering -----------------------------------------------------------------------------------

/// Address bits that must be clear for `size` bytes. Vectors have rules of their own (#GP).
std::uint8_t alignment_mask(const DecodeMode& mode, unsigned size) noexcept {
  if (!mode.aligned) return 0;
  if (size == 10) return 7;  // x87 double extended
  return size == 2 || size == 4 || size == 8 ? static_cast<std::uint8_t>(size - 1) : 0;
}

bool is_bit_string(const Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
      return l.ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
    default:
      return false;
  }
}

/// Completes and emits a check of which address and handler are in place.
void emit_check(Lowering& l, Uop u, unsigned size, bool write) {
  u.imm = size;
  u.aux = static_cast<std::uint8_t>((write ? kWrite : 0) |
                                    (needs_checks(l.mode, u.segment) ? kLimit : 0));
  u.aux2 = alignment_mask(l.mode, size);
  if ((u.aux & kLimit) != 0 || u.aux2 != 0) l.emit(u);
}

void emit_explicit(Lowering& l, const ZydisDecodedOperand& op) {
  Uop u = l.step(&check_operand);
  if (is_bit_string(l)) {
    u.fn = l.insn.operand_width == 64   ? &check_bit_string<std::uint64_t>
           : l.insn.operand_width == 32 ? &check_bit_string<std::uint32_t>
                                        : &check_bit_string<std::uint16_t>;
    u.src = Lowering::reg_offset(l.ops[1].reg.value);
  }
  // POP computes its address with the stack pointer already moved.
  const bool pop = l.insn.mnemonic == ZYDIS_MNEMONIC_POP && u.base == cpu::RSP * 8;
  if (pop) u.disp += op.size / 8;
  emit_check(l, u, op.size / 8U, (op.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0);
}

/// The stack accesses of near instructions; system ones go through class Stack, which checks.
StackUse stack_use(const Lowering& l, unsigned& elements) {
  elements = 1;
  const bool system = l.insn.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_CALL:
      return system ? StackUse::none : StackUse::push;
    case ZYDIS_MNEMONIC_POP:
    case ZYDIS_MNEMONIC_RET:
      return system ? StackUse::none : StackUse::pop;
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD:
      elements = 8;
      return StackUse::push;
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD:
      elements = 8;
      return StackUse::pop;
    case ZYDIS_MNEMONIC_ENTER:
      elements = 1 + (l.ops[1].imm.value.u & 0x1F);
      return StackUse::push;
    case ZYDIS_MNEMONIC_LEAVE:
      return StackUse::leave;
    default:
      return StackUse::none;
  }
}

void emit_stack(Lowering& l) {
  unsigned elements = 0;
  const StackUse use = stack_use(l, elements);
  if (use == StackUse::none) return;
  Uop u;
  u.fn = &check_stack;
  u.length = l.insn.length;
  u.offset = l.d.offset;
  if (l.mode.bits != 64) {
    u.segment = cpu::SS;
    u.address_form = 0x82;
  }
  u.src = static_cast<std::uint8_t>(use);
  u.dst = static_cast<std::uint8_t>(elements);
  const bool word = l.insn.operand_width == 16;
  emit_check(l, u, word ? 2 : l.mode.bits == 64 ? 8 : 4, use == StackUse::push);
}

/// Operands that no ModRM byte names: XLAT's, and what MASKMOVDQU stores at [rDI].
void emit_hidden(Lowering& l, const ZydisDecodedOperand& op) {
  Handler fn = nullptr;
  if (l.insn.mnemonic == ZYDIS_MNEMONIC_XLAT) fn = &check_xlat;
  if (l.insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || l.insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU) {
    fn = &check_operand;
  }
  if (fn == nullptr) return;
  Uop u;
  u.fn = fn;
  u.length = l.insn.length;
  u.offset = l.d.offset;
  l.implicit_memory(u, op.mem.segment);
  if (fn == &check_operand) u.base = cpu::RDI * 8;
  emit_check(l, u, op.size / 8U, (op.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0);
}

}  // namespace

bool needs_checks(const DecodeMode& mode, std::uint8_t segment) noexcept {
  if (mode.bits == 64) return false;
  return mode.checked || segment == cpu::CS || segment == cpu::FS || segment == cpu::GS;
}

bool check_implicit(Core& core, std::uint8_t segment, std::uint64_t offset, unsigned size,
                    bool write) noexcept {
  if (!access_allowed(core, core.arch.segment[segment], offset, size, write)) {
    return core.record_exception(limit_vector(segment), 0);
  }
  return true;
}

void emit_checks(Lowering& l) {
  if (l.mode.bits == 64 && !l.mode.aligned) return;
  for (unsigned i = 0; i < l.insn.operand_count; ++i) {
    const ZydisDecodedOperand& op = l.ops[i];
    const bool accessed =
        op.type == ZYDIS_OPERAND_TYPE_MEMORY && op.mem.type != ZYDIS_MEMOP_TYPE_AGEN &&
        (op.actions & (ZYDIS_OPERAND_ACTION_MASK_READ | ZYDIS_OPERAND_ACTION_MASK_WRITE)) != 0;
    if (!accessed) continue;
    if (op.visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT) {
      emit_explicit(l, op);
    } else {
      emit_hidden(l, op);
    }
  }
  emit_stack(l);
}

}  // namespace strata::interp
