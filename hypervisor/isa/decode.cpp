#include "isa/decode.hpp"

#include <algorithm>
#include <array>

namespace strata::isa {
namespace {

using cpu::Feature;

/// F3 90 is PAUSE only without REX.B: F3 41 90 exchanges RAX with R8, whatever Zydis calls it.
bool is_exchange_named_pause(const ZydisDecodedInstruction& insn) noexcept {
  return insn.mnemonic == ZYDIS_MNEMONIC_PAUSE && insn.raw.rex.B != 0;
}

/// Decodes it with F3, which means nothing to XCHG, turned into an ignored segment override.
ZyanStatus decode_exchange(const ZydisDecoder& decoder, const void* bytes,
                           ZydisDecodedInstruction& insn, ZydisDecodedOperand* operands) noexcept {
  std::array<std::uint8_t, kMaxInstructionBytes> copy{};
  const std::size_t length = insn.length;
  std::copy_n(static_cast<const std::uint8_t*>(bytes), length, copy.begin());
  std::replace(copy.begin(), copy.begin() + insn.raw.rex.offset, std::uint8_t{0xF3},
               std::uint8_t{0x3E});
  return ZydisDecoderDecodeFull(&decoder, copy.data(), length, &insn, operands);
}

/// A SIB byte with base 5 and mod 0 has no base but a displacement (SDM 2A table 2-3). Zydis knows
/// that of EBP, RBP and R13, and gives R13D as a base.
void correct_base(const ZydisDecodedInstruction& insn, ZydisDecodedOperand* operands) noexcept {
  const bool no_base = (insn.attributes & ZYDIS_ATTRIB_HAS_SIB) != 0 && insn.raw.modrm.mod == 0 &&
                       insn.raw.sib.base == 5;
  if (!no_base) return;
  for (unsigned i = 0; i < insn.operand_count_visible; ++i) {
    ZydisDecodedOperand& op = operands[i];
    if (op.type != ZYDIS_OPERAND_TYPE_MEMORY || op.mem.base != ZYDIS_REGISTER_R13D) continue;
    op.mem.base = ZYDIS_REGISTER_NONE;
    op.mem.disp.has_displacement = ZYAN_TRUE;
    op.mem.disp.value = insn.raw.disp.value;
  }
}

}  // namespace

ZydisDecoder make_decoder(unsigned bits, bool stack32, const cpu::CpuModel& model) noexcept {
  const auto machine = bits == 64   ? ZYDIS_MACHINE_MODE_LONG_64
                       : bits == 32 ? ZYDIS_MACHINE_MODE_LEGACY_32
                                    : ZYDIS_MACHINE_MODE_LEGACY_16;
  const auto stack = bits == 64 ? ZYDIS_STACK_WIDTH_64
                     : stack32  ? ZYDIS_STACK_WIDTH_32
                                : ZYDIS_STACK_WIDTH_16;
  ZydisDecoder decoder;
  ZydisDecoderInit(&decoder, machine, stack);
  const auto enable = [&decoder](ZydisDecoderMode what, bool on) {
    ZydisDecoderEnableMode(&decoder, what, on ? ZYAN_TRUE : ZYAN_FALSE);
  };
  // No model has MPX or CET: their opcodes are the NOPs they were reserved as (SDM 2B NOP).
  enable(ZYDIS_DECODER_MODE_MPX, false);
  enable(ZYDIS_DECODER_MODE_CET, false);
  // F3 BSF and F3 BSR are what they say without these features.
  enable(ZYDIS_DECODER_MODE_LZCNT, model.has(Feature::lzcnt));
  enable(ZYDIS_DECODER_MODE_TZCNT, model.has(Feature::bmi1));
  enable(ZYDIS_DECODER_MODE_WBNOINVD, false);
  enable(ZYDIS_DECODER_MODE_CLDEMOTE, false);
  return decoder;
}

ZyanStatus decode(const ZydisDecoder& decoder, const void* bytes, std::size_t available,
                  ZydisDecodedInstruction& insn, ZydisDecodedOperand* operands) noexcept {
  ZyanStatus status = ZydisDecoderDecodeFull(&decoder, bytes, available, &insn, operands);
  if (!ZYAN_SUCCESS(status)) return status;
  if (is_exchange_named_pause(insn)) status = decode_exchange(decoder, bytes, insn, operands);
  correct_base(insn, operands);
  return status;
}

}  // namespace strata::isa
