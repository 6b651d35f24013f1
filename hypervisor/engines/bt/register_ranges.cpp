#include "engines/bt/register_ranges.hpp"

#include <algorithm>
#include <limits>

namespace strata::bt {
namespace {

/// Farther than this nobody wants to know; sums of such can not overflow.
constexpr std::int64_t kFarthest = std::int64_t{1} << 40;
constexpr Range kWord{0, std::numeric_limits<std::uint32_t>::max()};
constexpr Range kSignedWord{std::numeric_limits<std::int32_t>::min(),
                            std::numeric_limits<std::int32_t>::max()};

using MaybeRange = std::optional<Range>;

MaybeRange limited(Range r) {
  if (r.low < -kFarthest || r.high > kFarthest) return {};
  return r;
}

bool is_within(const MaybeRange& r, Range bounds) {
  return r && r->low >= bounds.low && r->high <= bounds.high;
}

unsigned number_of(ZydisRegister whole) {
  return static_cast<unsigned>(ZydisRegisterGetId(whole)) & 15U;
}

bool is_register(const ZydisDecodedOperand& o) { return o.type == ZYDIS_OPERAND_TYPE_REGISTER; }

/// What a value of so many bits is when it is extended.
MaybeRange zero_extended(unsigned bits) {
  if (bits > 32) return {};
  return Range{0, static_cast<std::int64_t>((std::uint64_t{1} << bits) - 1)};
}
MaybeRange sign_extended(unsigned bits) {
  if (bits > 32) return {};
  const std::int64_t half = std::int64_t{1} << (bits - 1);
  return Range{-half, half - 1};
}

MaybeRange plus(const MaybeRange& a, const MaybeRange& b) {
  if (!a || !b) return {};
  return limited({a->low + b->low, a->high + b->high});
}
MaybeRange minus(const MaybeRange& a, const MaybeRange& b) {
  if (!a || !b) return {};
  return limited({a->low - b->high, a->high - b->low});
}
MaybeRange times(const MaybeRange& a, std::int64_t factor) {
  // Both below 2^41.
  if (!a || factor < 0 || factor > 1 << 20) return {};
  return limited({a->low * factor, a->high * factor});
}

/// The least that is certain: no bit is set above both.
MaybeRange masked(const MaybeRange& a, const MaybeRange& b) {
  const bool positive_a = a && a->low >= 0, positive_b = b && b->low >= 0;
  if (!positive_a && !positive_b) return {};
  const std::int64_t high = !positive_a   ? b->high
                            : !positive_b ? a->high
                                          : std::min(a->high, b->high);
  return Range{0, high};
}

MaybeRange shifted_right(const MaybeRange& a, unsigned bits, unsigned count) {
  if (count == 0) return a;
  if (a && a->low >= 0) return Range{a->low >> count, a->high >> count};
  return zero_extended(bits - count);
}

/// A 32-bit destination that it may leave alone, all 64 bits of it.
bool may_keep(const Insn& i) {
  switch (i.insn.mnemonic) {
    case ZYDIS_MNEMONIC_BSF:
    case ZYDIS_MNEMONIC_BSR:
    case ZYDIS_MNEMONIC_CMPXCHG:
      return true;
    default:
      return (i.ops[0].actions & ZYDIS_OPERAND_ACTION_WRITE) == 0 || flag_effect(i).may_keep;
  }
}

}  // namespace

MaybeRange RegisterRanges::source(const ZydisDecodedOperand& o) const {
  if (o.type == ZYDIS_OPERAND_TYPE_IMMEDIATE) return limited({o.imm.value.s, o.imm.value.s});
  if (!is_register(o)) return {};
  const auto& whole = known_[number_of(o.reg.value)];
  switch (ZydisRegisterGetClass(o.reg.value)) {
    case ZYDIS_REGCLASS_GPR64:
      return whole;
    case ZYDIS_REGCLASS_GPR32:
      return is_within(whole, kWord) ? whole : kWord;
    default:
      return {};
  }
}

MaybeRange RegisterRanges::sum(const ZydisDecodedOperand& address) const {
  const auto& m = address.mem;
  if (m.base == ZYDIS_REGISTER_RIP) return {};
  MaybeRange total = Range{0, 0};
  if (m.disp.has_displacement) total = limited({m.disp.value, m.disp.value});
  if (m.base != ZYDIS_REGISTER_NONE) total = plus(total, known_[number_of(m.base)]);
  if (m.index != ZYDIS_REGISTER_NONE && m.scale != 0) {
    total = plus(total, times(known_[number_of(m.index)], m.scale));
  }
  return total;
}

/// What an instruction of one destination, a register of 32 or 64 bits, leaves there; before what
/// 32 bits do to it.
MaybeRange RegisterRanges::result(const Insn& i) const {
  const ZydisDecodedOperand& to = i.ops[0];
  const ZydisDecodedOperand& from = i.ops[1];
  const MaybeRange old = source(to);
  const bool immediate = from.type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
  const unsigned count =
      immediate ? static_cast<unsigned>(from.imm.value.u) & (to.size == 64 ? 63U : 31U) : 0;
  switch (i.insn.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
      return source(from);
    case ZYDIS_MNEMONIC_MOVZX:
      return zero_extended(from.size);
    case ZYDIS_MNEMONIC_MOVSX:
      return sign_extended(from.size);
    case ZYDIS_MNEMONIC_MOVSXD:
      if (const MaybeRange r = source(from); is_within(r, {0, kSignedWord.high})) return r;
      return kSignedWord;
    case ZYDIS_MNEMONIC_CDQE:
      return kSignedWord;
    case ZYDIS_MNEMONIC_LEA:
      return i.insn.address_width == 64 ? sum(from) : MaybeRange{};
    case ZYDIS_MNEMONIC_INC:
      return plus(old, Range{1, 1});
    case ZYDIS_MNEMONIC_DEC:
      return minus(old, Range{1, 1});
    case ZYDIS_MNEMONIC_ADD:
      return plus(old, source(from));
    case ZYDIS_MNEMONIC_SUB:
      return minus(old, source(from));
    case ZYDIS_MNEMONIC_XOR:
      if (is_register(from) && from.reg.value == to.reg.value) return Range{0, 0};
      return {};
    case ZYDIS_MNEMONIC_AND:
      return masked(old, source(from));
    case ZYDIS_MNEMONIC_SHL:
      return immediate && count <= 20 ? times(old, std::int64_t{1} << count) : MaybeRange{};
    case ZYDIS_MNEMONIC_SHR:
      return immediate ? shifted_right(old, to.size, count) : MaybeRange{};
    default:
      return {};
  }
}

void RegisterRanges::execute(const Insn& i) {
  if (i.kind == Kind::steps) return known_.fill({});
  MaybeRange after;
  const ZydisDecodedOperand& to = i.ops[0];
  const bool has_result = (i.kind == Kind::verbatim || i.kind == Kind::lea) &&
                          i.insn.operand_count != 0 && is_register(to) &&
                          i.opcode.cls == isa::OpcodeClass::integer;
  const auto cls = has_result ? ZydisRegisterGetClass(to.reg.value) : ZYDIS_REGCLASS_INVALID;
  if (cls == ZYDIS_REGCLASS_GPR64 || cls == ZYDIS_REGCLASS_GPR32) {
    after = result(i);
    // Writing 32 bits clears the others (SDM 1 3.4.1.1).
    if (cls == ZYDIS_REGCLASS_GPR32 && !is_within(after, kWord)) after = kWord;
    if (may_keep(i)) after = {};
  }
  for (unsigned n = 0; n < i.insn.operand_count; ++n) {
    const ZydisDecodedOperand& o = i.ops[n];
    if (!is_register(o) || (o.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) == 0) continue;
    const ZydisRegister whole =
        ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, o.reg.value);
    if (ZydisRegisterGetClass(whole) != ZYDIS_REGCLASS_GPR64) continue;
    known_[number_of(whole)] = n == 0 ? after : MaybeRange{};
  }
}

}  // namespace strata::bt
