#include "case_aim.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "case_values.hpp"
#include "cpu/vcpu_state.hpp"

namespace strata::differential {
namespace {

using fuzz::Random;
using isa::OpcodeClass;

/// Number 0-15 of a general register of any width.
unsigned number(ZydisRegister r) {
  return static_cast<unsigned>(
      ZydisRegisterGetId(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r)));
}

/// Where a memory operand goes: inside the window, across its pages, read-only, absent, nowhere.
std::uint64_t make_target(Random& rng, bool wide, unsigned alignment) {
  const std::uint64_t kind = rng.below(100);
  if (kind < 72) {
    const std::uint64_t at = kData + 0x400 + rng.below(0x3800);
    return rng.chance(70) ? at & ~std::uint64_t{alignment - 1} : at;
  }
  if (kind < 84) return kData + 0x1000 * (1 + rng.below(3)) - 1 - rng.below(32);
  if (kind < 90) return kReadOnly - 1 - rng.below(32);
  if (kind < 94) return kReadOnly + rng.below(0xFC0);
  if (kind < 97) return kAbsent - 1 - rng.below(32);
  if (kind < 98 && wide) return 0x8000'0000'0000'0000 | rng() >> 2;  // not canonical
  return kAbsent + rng.below(0x800);
}

/// Sets what an instruction's operands take addresses from.
class Aim {
 public:
  Aim(Random& rng, Case& c, const DecodedCase& d) : rng_{rng}, c_{c}, d_{d} {}

  void run() {
    wide_ = d_.insn.address_width == 64;
    aim_implicit();
    if (const ZydisDecodedOperand* m = d_.memory(); m != nullptr) aim_explicit(*m);
    if (d_.insn.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE) aim_branch();
    patch();
  }

 private:
  std::uint64_t& gpr(unsigned n) { return c_.before.gpr[n]; }
  /// Outside the address size anything may stand.
  std::uint64_t address(std::uint64_t v) {
    return wide_ || c_.bits == 32 ? v : rng_() << 32 | static_cast<std::uint32_t>(v);
  }

  void aim_explicit(const ZydisDecodedOperand& o) {
    unsigned alignment = d_.cls == OpcodeClass::vector ? std::max(1U, o.size / 8U) : 1;
    if (!std::has_single_bit(alignment)) alignment = 1;
    const bool by_base = o.mem.base != ZYDIS_REGISTER_NONE && o.mem.base != ZYDIS_REGISTER_RIP &&
                         o.mem.base != ZYDIS_REGISTER_EIP;
    std::uint64_t target = make_target(rng_, wide_ && by_base, alignment);
    target_ = target;
    if (o.mem.type == ZYDIS_MEMOP_TYPE_VSIB) {
      aim_vector_index(o, target);
      return;
    }
    if (is_bit_offset()) limit_bit_offset(target);
    if (!by_base && o.mem.base != ZYDIS_REGISTER_NONE) {
      set_displacement(target - c_.before.rip - c_.length);
      return;
    }
    const auto scale = static_cast<std::uint64_t>(o.mem.scale);
    const bool indexed = o.mem.index != ZYDIS_REGISTER_NONE;
    if (!by_base) {
      if (indexed) gpr(number(o.mem.index)) = address(rng_.below(0x1000));
      const std::uint64_t index = indexed ? gpr(number(o.mem.index)) : 0;
      set_displacement(target - static_cast<std::uint32_t>(index * scale));
      return;
    }
    const unsigned base = number(o.mem.base);
    const auto disp = static_cast<std::uint64_t>(o.mem.disp.value);
    if (!indexed) {
      gpr(base) = address(target - disp);
    } else if (const unsigned index = number(o.mem.index); index == base) {
      set_displacement(0);
      gpr(base) = target / (1 + scale);
    } else {
      gpr(base) = address(target - disp - gpr(index) * scale);
    }
  }

  void aim_vector_index(const ZydisDecodedOperand& o, std::uint64_t target) {
    if (o.mem.base != ZYDIS_REGISTER_NONE) {
      gpr(number(o.mem.base)) = address(target - static_cast<std::uint64_t>(o.mem.disp.value));
    }
    // Small indices, some of them far enough for another page.
    auto& index = c_.before.ymm[static_cast<unsigned>(ZydisRegisterGetId(o.mem.index))];
    const bool qwords = rng_.chance(50);
    for (auto& w : index) {
      const std::uint64_t low = rng_.below(0x400) - 0x200, high = rng_.below(0x400) - 0x200;
      w = qwords ? low : (low & 0xFFFFFFFF) | high << 32;
    }
  }

  [[nodiscard]] bool is_bit_offset() const {
    const ZydisMnemonic m = d_.insn.mnemonic;
    return (m == ZYDIS_MNEMONIC_BT || m == ZYDIS_MNEMONIC_BTS || m == ZYDIS_MNEMONIC_BTR ||
            m == ZYDIS_MNEMONIC_BTC) &&
           d_.ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
  }
  void limit_bit_offset(std::uint64_t& target) {
    // Where the bit number is also part of the address nobody can aim; it may fault anywhere.
    gpr(number(d_.ops[1].reg.value)) = rng_.below(8000) - 4000;
    target = kData + 0x1000 + rng_.below(0x2000);
  }

  /// Registers of implicit memory operands.
  void aim_implicit() {
    const ZydisDecodedOperand* m = d_.memory();
    for (unsigned k = 0; k < d_.insn.operand_count; ++k) {
      const ZydisDecodedOperand& o = d_.ops[k];
      if (o.type != ZYDIS_OPERAND_TYPE_MEMORY || &o == m) continue;
      if (o.mem.base == ZYDIS_REGISTER_NONE) continue;
      const unsigned base = number(o.mem.base);
      target_ = make_target(rng_, wide_, 1);
      gpr(base) = base == cpu::RSP ? target_ : address(target_);
    }
    constexpr std::uint64_t kRepeats =
        ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE;
    if (d_.cls == OpcodeClass::string && (d_.insn.attributes & kRepeats) != 0) {
      gpr(cpu::RCX) = address(rng_.below(rng_.chance(20) ? 2000 : 40));
      if (rng_.chance(30)) gpr(cpu::RAX) = 0;
    }
    const ZydisMnemonic mnemonic = d_.insn.mnemonic;
    if (mnemonic == ZYDIS_MNEMONIC_LEAVE || mnemonic == ZYDIS_MNEMONIC_ENTER) {
      gpr(cpu::RSP) = make_target(rng_, wide_, 1);
      gpr(cpu::RBP) = make_target(rng_, wide_, 1);
    }
    if (mnemonic == ZYDIS_MNEMONIC_ENTER) {
      c_.code[d_.insn.raw.imm[0].offset + 1] &= 3;  // locals within the window
    }
    if (mnemonic == ZYDIS_MNEMONIC_DIV || mnemonic == ZYDIS_MNEMONIC_IDIV) aim_division();
    // Compare and exchange: half of them succeed.
    if (mnemonic == ZYDIS_MNEMONIC_XLAT) gpr(cpu::RBX) = address(make_target(rng_, wide_, 1));
  }

  /// Quotients that fit, most of the time.
  void aim_division() {
    if (!rng_.chance(70)) return;
    const unsigned width = d_.insn.operand_width;
    const bool negative = d_.insn.mnemonic == ZYDIS_MNEMONIC_IDIV &&
                          (gpr(cpu::RAX) >> (width == 8 ? 15 : width - 1) & 1) != 0;
    gpr(cpu::RDX) = negative ? ~0ULL : rng_.below(3);
    if (width == 8) gpr(cpu::RAX) &= negative ? ~0ULL : ~0xFE00ULL;
  }

  /// A branch through a register or memory: to the code pages, or where nothing is.
  void aim_branch() {
    const std::uint64_t kind = rng_.below(100);
    // Not onto the instruction itself, which might not end then.
    std::uint64_t to = c_.before.rip + 16 + rng_.below(0x200);
    if (kind >= 80) to = kAbsent + rng_.below(0x800);
    if (kind >= 90) to = kData + rng_.below(0x4000);  // not executable
    if (kind >= 95 && c_.bits == 64) to = 0x8000'0000'0000'0000 | rng_() >> 2;
    const ZydisDecodedOperand& o = d_.ops[0];
    if (o.type == ZYDIS_OPERAND_TYPE_REGISTER &&
        o.visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT) {
      gpr(number(o.reg.value)) = to;
    }
    branch_to_ = to;
    // What the stack or memory holds decides: the pattern there would lead anywhere.
    if (target_ < kData || target_ > kData + 0x3F00) target_ = 0;
    const bool through_memory = d_.memory() != nullptr || d_.insn.mnemonic == ZYDIS_MNEMONIC_RET;
    if (!through_memory || target_ != 0) return;
    const std::uint64_t at = kData + 0x800 + rng_.below(0x3000);
    const ZydisDecodedOperand* m = d_.memory();
    if (m == nullptr) {
      gpr(cpu::RSP) = at;
    } else {
      aim_at(*m, at);
    }
    target_ = at;
  }

  void aim_at(const ZydisDecodedOperand& o, std::uint64_t at) {
    if (o.mem.base == ZYDIS_REGISTER_NONE || o.mem.index != ZYDIS_REGISTER_NONE ||
        o.mem.base == ZYDIS_REGISTER_RIP || o.mem.base == ZYDIS_REGISTER_EIP) {
      unusable_ = true;
      return;
    }
    gpr(number(o.mem.base)) = address(at - static_cast<std::uint64_t>(o.mem.disp.value));
  }

  /// Data worth operating on where the operand is.
  void patch() {
    c_.patch_at = kData + rng_.below(kWritableBytes - 64);
    if (target_ >= kData && target_ + 32 <= kReadOnly) c_.patch_at = target_;
    const std::uint64_t kind = rng_.below(4);
    for (std::size_t i = 0; i < 4; ++i) {
      std::uint64_t w = random_lane(rng_, kind);
      // CMPXCHG succeeds half the time.
      if (i == 0 && d_.insn.mnemonic == ZYDIS_MNEMONIC_CMPXCHG && rng_.chance(50)) {
        w = gpr(cpu::RAX);
      }
      std::memcpy(c_.patch.data() + 8 * i, &w, 8);
    }
    if (d_.cls == OpcodeClass::x87 && rng_.chance(60)) put_float80(rng_, c_.patch.data());
    if (branch_to_ != 0) std::memcpy(c_.patch.data(), &branch_to_, 8);
  }

  void set_displacement(std::uint64_t value) {
    for (unsigned k = 0; k < d_.insn.raw.disp.size / 8U; ++k) {
      c_.code[d_.insn.raw.disp.offset + k] = static_cast<std::uint8_t>(value >> 8 * k);
    }
  }

 public:
  [[nodiscard]] bool unusable() const { return unusable_; }

 private:
  Random& rng_;
  Case& c_;
  const DecodedCase& d_;
  bool wide_ = true;
  bool unusable_ = false;
  std::uint64_t target_ = 0;
  std::uint64_t branch_to_ = 0;
};

}  // namespace

bool aim_case(Random& rng, Case& c, const DecodedCase& d) {
  Aim aim{rng, c, d};
  aim.run();
  return !aim.unusable();
}

}  // namespace strata::differential
