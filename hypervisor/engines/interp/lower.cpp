#include "engines/interp/lower.hpp"

#include <bit>

#include "cpu/vcpu_state.hpp"

namespace strata::interp {
namespace {

/// Never executed: a link slot only keeps a block's address for Core::jump_linked().
const Uop* link_slot_step(Core& /*core*/, const Uop* u) { return u; }

/// The operand the ModRM byte or a moffs field names. Hidden memory operands (stack, strings) are
/// the handlers' own business.
const ZydisDecodedOperand* visible_memory(const ZydisDecodedInstruction& insn,
                                          const ZydisDecodedOperand* ops) {
  for (unsigned i = 0; i < insn.operand_count_visible; ++i) {
    if (ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
        ops[i].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT) {
      return &ops[i];
    }
  }
  return nullptr;
}

std::uint8_t segment_number(ZydisRegister reg) {
  switch (reg) {
    case ZYDIS_REGISTER_ES:
      return cpu::SegmentName::ES;
    case ZYDIS_REGISTER_CS:
      return cpu::SegmentName::CS;
    case ZYDIS_REGISTER_SS:
      return cpu::SegmentName::SS;
    case ZYDIS_REGISTER_FS:
      return cpu::SegmentName::FS;
    case ZYDIS_REGISTER_GS:
      return cpu::SegmentName::GS;
    default:
      return cpu::SegmentName::DS;
  }
}

constexpr bool in_range(ZydisRegister reg, ZydisRegister first, ZydisRegister last) {
  return reg >= first && reg <= last;
}

constexpr std::uint8_t distance(ZydisRegister reg, ZydisRegister first) {
  return static_cast<std::uint8_t>(static_cast<unsigned>(reg) - static_cast<unsigned>(first));
}

}  // namespace

Lowering::Lowering(const Decoded& decoded, DecodeMode decode_mode, const cpu::CpuModel& cpu_model,
                   std::uint64_t block_page_offset, std::vector<Uop>& out)
    : d(decoded),
      insn(decoded.insn),
      ops(decoded.operands.data()),
      mode(decode_mode),
      model(cpu_model),
      block_page_offset_(block_page_offset),
      out_(out) {}

Uop Lowering::step(Handler fn) const {
  Uop u;
  u.fn = fn;
  u.length = insn.length;
  u.offset = d.offset;
  if (const ZydisDecodedOperand* op = visible_memory(insn, ops); op != nullptr) memory(u, *op);
  return u;
}

void Lowering::emit_link_slot() {
  Uop u;
  u.fn = link_slot_step;
  u.length = insn.length;
  u.offset = d.offset;
  emit(u);
}

std::uint8_t Lowering::reg_offset(ZydisRegister reg) {
  if (in_range(reg, ZYDIS_REGISTER_RAX, ZYDIS_REGISTER_R15)) {
    return static_cast<std::uint8_t>(distance(reg, ZYDIS_REGISTER_RAX) * 8);
  }
  if (in_range(reg, ZYDIS_REGISTER_EAX, ZYDIS_REGISTER_R15D)) {
    return static_cast<std::uint8_t>(distance(reg, ZYDIS_REGISTER_EAX) * 8);
  }
  if (in_range(reg, ZYDIS_REGISTER_AX, ZYDIS_REGISTER_R15W)) {
    return static_cast<std::uint8_t>(distance(reg, ZYDIS_REGISTER_AX) * 8);
  }
  if (in_range(reg, ZYDIS_REGISTER_AL, ZYDIS_REGISTER_BL)) {
    return static_cast<std::uint8_t>(distance(reg, ZYDIS_REGISTER_AL) * 8);
  }
  if (in_range(reg, ZYDIS_REGISTER_AH, ZYDIS_REGISTER_BH)) {
    return static_cast<std::uint8_t>(distance(reg, ZYDIS_REGISTER_AH) * 8 + 1);
  }
  if (in_range(reg, ZYDIS_REGISTER_SPL, ZYDIS_REGISTER_R15B)) {
    return static_cast<std::uint8_t>((distance(reg, ZYDIS_REGISTER_SPL) + 4) * 8);
  }
  if (reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP) return kPcSlot * 8;
  return kZeroSlot * 8;
}

std::uint8_t Lowering::reg_number(ZydisRegister reg) {
  return static_cast<std::uint8_t>(ZydisRegisterGetId(reg));
}

void Lowering::memory(Uop& u, const ZydisDecodedOperand& op) const {
  const ZydisDecodedOperandMem& m = op.mem;
  std::int64_t disp = m.disp.value;
  u.base = reg_offset(m.base);
  u.index = reg_offset(m.index);
  u.scale = m.scale > 1 ? static_cast<std::uint8_t>(std::countr_zero(m.scale)) : std::uint8_t{0};
  // RIP-relative operands count from the next instruction, the slot holds the block's first byte.
  if (u.base == kPcSlot * 8) disp += d.offset + insn.length;
  u.disp = static_cast<std::int32_t>(disp);
  implicit_memory(u, m.segment);
}

void Lowering::implicit_memory(Uop& u, ZydisRegister segment) const {
  const unsigned size = insn.address_width == 64 ? 0U : insn.address_width == 32 ? 1U : 2U;
  if (mode.bits == 64) {
    // Only FS and GS have a base (SDM 1 3.3.4).
    const bool based = segment == ZYDIS_REGISTER_FS || segment == ZYDIS_REGISTER_GS;
    u.segment = based ? segment_number(segment) : kFlatSegment;
    u.address_form = static_cast<std::uint8_t>(based || size != 0 ? size + 1 : 0);
    return;
  }
  u.segment = segment_number(segment);
  u.address_form = static_cast<std::uint8_t>((size + 1) | 0x80U);
}

bool Lowering::in_block_page(std::int64_t target_offset) const {
  const std::int64_t at = static_cast<std::int64_t>(block_page_offset_) + target_offset;
  return at >= 0 && at < static_cast<std::int64_t>(kPageSize);
}

}  // namespace strata::interp
