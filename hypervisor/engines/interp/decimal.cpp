// Decimal adjustment and BOUND: they exist outside 64-bit mode only, so no host instruction can be
// run for them. Flags the manual leaves undefined follow from the result, OF is cleared.
#include <type_traits>

#include "engines/interp/access.hpp"
#include "engines/interp/host_alu.hpp"
#include "engines/interp/integer.hpp"

namespace strata::interp {
namespace {

constexpr std::uint8_t kAl = cpu::RAX * 8;
constexpr std::uint8_t kAh = cpu::RAX * 8 + 1;

/// SF, ZF, PF of `al`; CF and AF as given; OF 0.
ArithFlags result_flags(std::uint8_t al, bool carry, bool auxiliary) {
  std::uint8_t v = al;
  const unsigned f = host::binary<host::Binary::test>(v, v, ArithFlags{0}) &
                     (unsigned{kFlagSF} | kFlagZF | kFlagPF);
  return static_cast<ArithFlags>(f | (carry ? kFlagCF : 0U) | (auxiliary ? kFlagAF : 0U));
}

/// AAA (Add) and AAS (SDM 2A).
template <bool Add>
const Uop* adjust_unpacked(Core& core, const Uop* u) {
  auto ax = core.reg<std::uint16_t>(kAl);
  const bool adjust = (ax & 0xF) > 9 || (core.flags & kFlagAF) != 0;
  if (adjust) {
    ax = static_cast<std::uint16_t>(Add ? ax + 0x106 : ax - 0x106);
  }
  ax &= 0xFF0F;
  core.set_reg<std::uint16_t>(kAl, ax);
  core.flags = result_flags(static_cast<std::uint8_t>(ax), adjust, adjust);
  return next(core, u);
}

/// DAA (Add) and DAS (SDM 2A).
template <bool Add>
const Uop* adjust_packed(Core& core, const Uop* u) {
  const auto old = core.reg<std::uint8_t>(kAl);
  const bool old_carry = (core.flags & kFlagCF) != 0;
  const bool low = (old & 0xF) > 9 || (core.flags & kFlagAF) != 0;
  const bool high = old > 0x99 || old_carry;
  unsigned al = old;
  bool carry = high;
  if (low) {
    // DAS also keeps the borrow out of the first subtraction.
    if (!Add && old < 6) carry = true;
    al = Add ? al + 6 : al - 6;
  }
  if (high) al = Add ? al + 0x60 : al - 0x60;
  core.set_reg<std::uint8_t>(kAl, static_cast<std::uint8_t>(al));
  core.flags = result_flags(static_cast<std::uint8_t>(al), carry, low);
  return next(core, u);
}

/// AAM: a base of zero is #DE.
const Uop* aam(Core& core, const Uop* u) {
  const auto base = static_cast<std::uint8_t>(u->imm);
  if (base == 0) return core.fault(u, cpu::DE);
  const auto al = core.reg<std::uint8_t>(kAl);
  core.set_reg<std::uint8_t>(kAh, static_cast<std::uint8_t>(al / base));
  core.set_reg<std::uint8_t>(kAl, static_cast<std::uint8_t>(al % base));
  core.flags = result_flags(static_cast<std::uint8_t>(al % base), false, false);
  return next(core, u);
}

/// AAD: AL += AH * base, AH = 0; the flags are the addition's.
const Uop* aad(Core& core, const Uop* u) {
  auto al = core.reg<std::uint8_t>(kAl);
  const auto tens = static_cast<std::uint8_t>(core.reg<std::uint8_t>(kAh) * u->imm);
  core.flags = host::binary<host::Binary::add>(al, tens, core.flags);
  core.set_reg<std::uint16_t>(kAl, al);
  return next(core, u);
}

/// BOUND: #BR if the signed index is outside the pair of bounds in memory, ends included.
template <class T>
const Uop* bound(Core& core, const Uop* u) {
  using S = std::make_signed_t<T>;
  const std::uint64_t offset = core.offset_of(u);
  T lower;
  T upper;
  if (!load_value(core, core.linear(u, offset), lower) ||
      !load_value(core, core.linear(u, offset + sizeof(T)), upper)) {
    return refuse(core, u);
  }
  const auto index = static_cast<S>(core.reg<T>(u->dst));
  if (index < static_cast<S>(lower) || index > static_cast<S>(upper)) {
    return core.fault(u, cpu::BR);
  }
  return next(core, u);
}

bool emit_decimal(Lowering& l, Handler fn) {
  Uop u = l.step(fn);
  if (l.insn.operand_count_visible > 0) u.imm = l.ops[0].imm.value.u & 0xFF;
  l.emit(u);
  return true;
}

}  // namespace

bool lower_decimal(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_AAA:
      return emit_decimal(l, &adjust_unpacked<true>);
    case ZYDIS_MNEMONIC_AAS:
      return emit_decimal(l, &adjust_unpacked<false>);
    case ZYDIS_MNEMONIC_DAA:
      return emit_decimal(l, &adjust_packed<true>);
    case ZYDIS_MNEMONIC_DAS:
      return emit_decimal(l, &adjust_packed<false>);
    case ZYDIS_MNEMONIC_AAM:
      return emit_decimal(l, &aam);
    case ZYDIS_MNEMONIC_AAD:
      return emit_decimal(l, &aad);
    case ZYDIS_MNEMONIC_BOUND: {
      Uop u = l.step(l.insn.operand_width == 16 ? &bound<std::uint16_t> : &bound<std::uint32_t>);
      u.dst = Lowering::reg_offset(l.ops[0].reg.value);
      l.emit(u);
      return true;
    }
    default:
      return false;
  }
}

}  // namespace strata::interp
