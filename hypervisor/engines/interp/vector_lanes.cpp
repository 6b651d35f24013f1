// The integer operations that string functions and clearing of registers consist of, without the
// call and the pointers of a thunk. They treat 128-bit lanes alike, so one SSE2 operation each
// serves legacy SSE, VEX.128 and, twice, VEX.256.
#include <emmintrin.h>

#include "engines/interp/vector.hpp"

namespace strata::interp {
namespace {

using Lane = __m128i;

/// A two-operand lane operation as a type, so that handlers inline it.
#define STRATA_LANE_OPERATION(Name, intrinsic)                    \
  struct Name {                                                   \
    static Lane apply(Lane a, Lane b) { return intrinsic(a, b); } \
  }
STRATA_LANE_OPERATION(Xor, _mm_xor_si128);
STRATA_LANE_OPERATION(Or, _mm_or_si128);
STRATA_LANE_OPERATION(And, _mm_and_si128);
STRATA_LANE_OPERATION(AndNot, _mm_andnot_si128);
STRATA_LANE_OPERATION(EqualB, _mm_cmpeq_epi8);
STRATA_LANE_OPERATION(EqualW, _mm_cmpeq_epi16);
STRATA_LANE_OPERATION(EqualD, _mm_cmpeq_epi32);
STRATA_LANE_OPERATION(GreaterB, _mm_cmpgt_epi8);
STRATA_LANE_OPERATION(GreaterD, _mm_cmpgt_epi32);
STRATA_LANE_OPERATION(MinUb, _mm_min_epu8);
STRATA_LANE_OPERATION(MaxUb, _mm_max_epu8);
STRATA_LANE_OPERATION(AddB, _mm_add_epi8);
STRATA_LANE_OPERATION(AddW, _mm_add_epi16);
STRATA_LANE_OPERATION(AddD, _mm_add_epi32);
STRATA_LANE_OPERATION(AddQ, _mm_add_epi64);
STRATA_LANE_OPERATION(SubB, _mm_sub_epi8);
STRATA_LANE_OPERATION(SubD, _mm_sub_epi32);
STRATA_LANE_OPERATION(SubQ, _mm_sub_epi64);
STRATA_LANE_OPERATION(UnpackLowBw, _mm_unpacklo_epi8);
STRATA_LANE_OPERATION(UnpackLowWd, _mm_unpacklo_epi16);
STRATA_LANE_OPERATION(UnpackLowDq, _mm_unpacklo_epi32);
STRATA_LANE_OPERATION(UnpackLowQdq, _mm_unpacklo_epi64);
STRATA_LANE_OPERATION(UnpackHighQdq, _mm_unpackhi_epi64);
#undef STRATA_LANE_OPERATION

Lane* lanes(VectorRegister& r) noexcept { return reinterpret_cast<Lane*>(r.data()); }

/// dst = op(src, aux or memory). Legacy forms have dst and src the same.
template <class Op, bool Vex, unsigned Bytes, bool Memory>
const Uop* lane_operation(Core& core, const Uop* u) {
  if (const auto why = refusal < Vex ? Unit::avx : Unit::sse > (core); why != 0) [[unlikely]] {
    return core.fault(u, why);
  }
  alignas(32) std::conditional_t<Bytes == 32, Bytes32, Bytes16> operand;
  const Lane* b = lanes(vector_register(core, u->aux));
  if constexpr (Memory) {
    const std::uint64_t va = core.ea(u);
    if (!Vex && (va & 15) != 0) [[unlikely]]
      return core.fault(u, cpu::GP, 0);
    if (!core.load(va, operand)) return refuse(core, u);
    b = reinterpret_cast<const Lane*>(operand.word.data());
  }
  const Lane* a = lanes(vector_register(core, u->src));
  Lane* d = lanes(vector_register(core, u->dst));
  const Lane low = Op::apply(a[0], b[0]);
  if constexpr (Bytes == 32) {
    d[1] = Op::apply(a[1], b[1]);
  } else if constexpr (Vex) {
    d[1] = _mm_setzero_si128();
  }
  d[0] = low;
  return u + 1;
}

/// PMOVMSKB and VPMOVMSKB.
template <bool Vex, unsigned Bytes>
const Uop* byte_mask(Core& core, const Uop* u) {
  if (const auto why = refusal < Vex ? Unit::avx : Unit::sse > (core); why != 0) [[unlikely]] {
    return core.fault(u, why);
  }
  const Lane* a = lanes(vector_register(core, u->src));
  auto mask = static_cast<std::uint32_t>(_mm_movemask_epi8(a[0]));
  if constexpr (Bytes == 32) mask |= static_cast<std::uint32_t>(_mm_movemask_epi8(a[1])) << 16;
  core.set_reg(u->dst, mask);
  return u + 1;
}

template <class Op>
Handler lane_handler(const Lowering& l, bool memory) {
  if (!is_vex(l))
    return memory ? lane_operation<Op, false, 16, true> : lane_operation<Op, false, 16, false>;
  if (l.insn.avx.vector_length == 256) {
    return memory ? lane_operation<Op, true, 32, true> : lane_operation<Op, true, 32, false>;
  }
  return memory ? lane_operation<Op, true, 16, true> : lane_operation<Op, true, 16, false>;
}

Handler logical_handler(const Lowering& l, bool memory) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_PXOR:
    case ZYDIS_MNEMONIC_VPXOR:
    case ZYDIS_MNEMONIC_XORPS:
    case ZYDIS_MNEMONIC_VXORPS:
    case ZYDIS_MNEMONIC_XORPD:
    case ZYDIS_MNEMONIC_VXORPD:
      return lane_handler<Xor>(l, memory);
    case ZYDIS_MNEMONIC_POR:
    case ZYDIS_MNEMONIC_VPOR:
    case ZYDIS_MNEMONIC_ORPS:
    case ZYDIS_MNEMONIC_VORPS:
    case ZYDIS_MNEMONIC_ORPD:
    case ZYDIS_MNEMONIC_VORPD:
      return lane_handler<Or>(l, memory);
    case ZYDIS_MNEMONIC_PAND:
    case ZYDIS_MNEMONIC_VPAND:
    case ZYDIS_MNEMONIC_ANDPS:
    case ZYDIS_MNEMONIC_VANDPS:
    case ZYDIS_MNEMONIC_ANDPD:
    case ZYDIS_MNEMONIC_VANDPD:
      return lane_handler<And>(l, memory);
    case ZYDIS_MNEMONIC_PANDN:
    case ZYDIS_MNEMONIC_VPANDN:
    case ZYDIS_MNEMONIC_ANDNPS:
    case ZYDIS_MNEMONIC_VANDNPS:
    case ZYDIS_MNEMONIC_ANDNPD:
    case ZYDIS_MNEMONIC_VANDNPD:
      return lane_handler<AndNot>(l, memory);
    default:
      return nullptr;
  }
}

Handler integer_handler(const Lowering& l, bool memory) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_PCMPEQB:
    case ZYDIS_MNEMONIC_VPCMPEQB:
      return lane_handler<EqualB>(l, memory);
    case ZYDIS_MNEMONIC_PCMPEQW:
    case ZYDIS_MNEMONIC_VPCMPEQW:
      return lane_handler<EqualW>(l, memory);
    case ZYDIS_MNEMONIC_PCMPEQD:
    case ZYDIS_MNEMONIC_VPCMPEQD:
      return lane_handler<EqualD>(l, memory);
    case ZYDIS_MNEMONIC_PCMPGTB:
    case ZYDIS_MNEMONIC_VPCMPGTB:
      return lane_handler<GreaterB>(l, memory);
    case ZYDIS_MNEMONIC_PCMPGTD:
    case ZYDIS_MNEMONIC_VPCMPGTD:
      return lane_handler<GreaterD>(l, memory);
    case ZYDIS_MNEMONIC_PMINUB:
    case ZYDIS_MNEMONIC_VPMINUB:
      return lane_handler<MinUb>(l, memory);
    case ZYDIS_MNEMONIC_PMAXUB:
    case ZYDIS_MNEMONIC_VPMAXUB:
      return lane_handler<MaxUb>(l, memory);
    case ZYDIS_MNEMONIC_PADDB:
    case ZYDIS_MNEMONIC_VPADDB:
      return lane_handler<AddB>(l, memory);
    case ZYDIS_MNEMONIC_PADDW:
    case ZYDIS_MNEMONIC_VPADDW:
      return lane_handler<AddW>(l, memory);
    case ZYDIS_MNEMONIC_PADDD:
    case ZYDIS_MNEMONIC_VPADDD:
      return lane_handler<AddD>(l, memory);
    case ZYDIS_MNEMONIC_PADDQ:
    case ZYDIS_MNEMONIC_VPADDQ:
      return lane_handler<AddQ>(l, memory);
    case ZYDIS_MNEMONIC_PSUBB:
    case ZYDIS_MNEMONIC_VPSUBB:
      return lane_handler<SubB>(l, memory);
    case ZYDIS_MNEMONIC_PSUBD:
    case ZYDIS_MNEMONIC_VPSUBD:
      return lane_handler<SubD>(l, memory);
    case ZYDIS_MNEMONIC_PSUBQ:
    case ZYDIS_MNEMONIC_VPSUBQ:
      return lane_handler<SubQ>(l, memory);
    case ZYDIS_MNEMONIC_PUNPCKLBW:
    case ZYDIS_MNEMONIC_VPUNPCKLBW:
      return lane_handler<UnpackLowBw>(l, memory);
    case ZYDIS_MNEMONIC_PUNPCKLWD:
    case ZYDIS_MNEMONIC_VPUNPCKLWD:
      return lane_handler<UnpackLowWd>(l, memory);
    case ZYDIS_MNEMONIC_PUNPCKLDQ:
    case ZYDIS_MNEMONIC_VPUNPCKLDQ:
      return lane_handler<UnpackLowDq>(l, memory);
    case ZYDIS_MNEMONIC_PUNPCKLQDQ:
    case ZYDIS_MNEMONIC_VPUNPCKLQDQ:
      return lane_handler<UnpackLowQdq>(l, memory);
    case ZYDIS_MNEMONIC_PUNPCKHQDQ:
    case ZYDIS_MNEMONIC_VPUNPCKHQDQ:
      return lane_handler<UnpackHighQdq>(l, memory);
    default:
      return nullptr;
  }
}

bool lower_byte_mask(Lowering& l) {
  if (!is_vector_register(l.ops[1])) return false;
  Uop u = l.step(!is_vex(l)                        ? byte_mask<false, 16>
                 : l.insn.avx.vector_length == 256 ? byte_mask<true, 32>
                                                   : byte_mask<true, 16>);
  u.dst = Lowering::reg_offset(l.ops[0].reg.value);
  u.src = Lowering::reg_number(l.ops[1].reg.value);
  l.emit(u);
  return true;
}

}  // namespace

bool lower_vector_lanes(Lowering& l) {
  if (l.insn.mnemonic == ZYDIS_MNEMONIC_PMOVMSKB || l.insn.mnemonic == ZYDIS_MNEMONIC_VPMOVMSKB) {
    return lower_byte_mask(l);
  }
  // The MMX forms share mnemonics.
  if (!is_vector_register(l.ops[0])) return false;
  const unsigned last = is_vex(l) ? 2 : 1;
  const bool memory = l.ops[last].type == ZYDIS_OPERAND_TYPE_MEMORY;
  Handler fn = logical_handler(l, memory);
  if (fn == nullptr) fn = integer_handler(l, memory);
  if (fn == nullptr) return false;
  Uop u = l.step(fn);
  u.dst = Lowering::reg_number(l.ops[0].reg.value);
  u.src = Lowering::reg_number(l.ops[last - 1].reg.value);
  if (!memory) u.aux = Lowering::reg_number(l.ops[last].reg.value);
  l.emit(u);
  return true;
}

}  // namespace strata::interp
