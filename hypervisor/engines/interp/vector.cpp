// lower_vector(): which of the files of this family an instruction belongs to, and what decides
// whether the guest's processor has it at all.
#include "engines/interp/vector.hpp"

namespace strata::interp {
namespace {

using cpu::Feature;

/// The feature behind an instruction set, for those that this folder executes.
bool has_set(const cpu::CpuModel& model, ZydisISASet set) {
  switch (set) {
    case ZYDIS_ISA_SET_X87:
      return model.has(Feature::fpu);
    // FCMOVcc and FCOMI, which Zydis counts to the Pentium Pro's.
    case ZYDIS_ISA_SET_FCMOV:
    case ZYDIS_ISA_SET_PPRO:
      return model.has(Feature::fpu) && model.has(Feature::cmov);
    case ZYDIS_ISA_SET_PENTIUMMMX:
      return model.has(Feature::mmx);
    case ZYDIS_ISA_SET_SSE:
    case ZYDIS_ISA_SET_SSEMXCSR:
      return model.has(Feature::sse);
    case ZYDIS_ISA_SET_SSE2:
    case ZYDIS_ISA_SET_SSE2MMX:
      return model.has(Feature::sse2);
    case ZYDIS_ISA_SET_SSE3:
    case ZYDIS_ISA_SET_SSE3X87:
      return model.has(Feature::sse3);
    case ZYDIS_ISA_SET_SSSE3:
    case ZYDIS_ISA_SET_SSSE3MMX:
      return model.has(Feature::ssse3);
    case ZYDIS_ISA_SET_SSE4:
      return model.has(Feature::sse4_1);
    case ZYDIS_ISA_SET_SSE42:
      return model.has(Feature::sse4_2);
    case ZYDIS_ISA_SET_AES:
    case ZYDIS_ISA_SET_AVXAES:
      return model.has(Feature::aes);
    case ZYDIS_ISA_SET_PCLMULQDQ:
      return model.has(Feature::pclmulqdq);
    case ZYDIS_ISA_SET_SHA:
      return model.has(Feature::sha);
    case ZYDIS_ISA_SET_AVX:
      return model.has(Feature::avx);
    case ZYDIS_ISA_SET_AVX2:
    case ZYDIS_ISA_SET_AVX2GATHER:
      return model.has(Feature::avx2);
    case ZYDIS_ISA_SET_FMA:
      return model.has(Feature::fma);
    case ZYDIS_ISA_SET_F16C:
      return model.has(Feature::f16c);
    case ZYDIS_ISA_SET_FXSAVE:
    case ZYDIS_ISA_SET_FXSAVE64:
      return model.has(Feature::fxsr);
    case ZYDIS_ISA_SET_XSAVE:
      return model.has(Feature::xsave);
    case ZYDIS_ISA_SET_XSAVEOPT:
      return model.has(Feature::xsaveopt);
    case ZYDIS_ISA_SET_XSAVEC:
      return model.has(Feature::xsavec);
    case ZYDIS_ISA_SET_PKU:
      return model.has(Feature::pku);
    default:
      return false;
  }
}

}  // namespace

bool is_vector_register(const ZydisDecodedOperand& op) noexcept {
  if (op.type != ZYDIS_OPERAND_TYPE_REGISTER) return false;
  const ZydisRegisterClass c = ZydisRegisterGetClass(op.reg.value);
  return c == ZYDIS_REGCLASS_XMM || c == ZYDIS_REGCLASS_YMM;
}

bool model_offers(const Lowering& l) {
  // EVEX, XOP and 3DNow! are not part of any model.
  if (l.insn.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && !is_vex(l)) return false;
  if (is_vex(l) && !l.model.has(Feature::avx)) return false;
  if (l.insn.mnemonic == ZYDIS_MNEMONIC_VPCLMULQDQ && !l.model.has(Feature::pclmulqdq)) {
    return false;
  }
  return has_set(l.model, l.insn.meta.isa_set);
}

unsigned required_alignment(const ZydisDecodedInstruction& insn,
                            const ZydisDecodedOperand& memory) {
  switch (insn.mnemonic) {
    // Class 4 without the alignment check, by their own pages in SDM 2.
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
      return 1;
    default:
      break;
  }
  if (insn.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
    return insn.meta.exception_class == ZYDIS_EXCEPTION_CLASS_AVX1 ? memory.size / 8U : 1U;
  }
  // Every other legacy SSE operand of 16 bytes is aligned (SDM 1 4.1.1).
  return memory.size == 128 ? 16U : 1U;
}

bool lower_vector(Lowering& l) {
  if (!model_offers(l)) return false;
  return lower_x87(l) || lower_vector_move(l) || lower_vector_lanes(l) || lower_vector_control(l) ||
         lower_xsave(l) || lower_xcontrol(l) || lower_vector_masked(l) || lower_thunk(l);
}

}  // namespace strata::interp
