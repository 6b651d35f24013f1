#include "generator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "cpu/vcpu_state.hpp"
#include "isa/decode.hpp"

namespace strata::differential {
namespace {

using fuzz::Random;
using isa::OpcodeClass;

std::uint8_t u8(std::uint64_t v) { return static_cast<std::uint8_t>(v); }

constexpr std::string_view kEnters = "enters the host's kernel";
constexpr std::string_view kMachine = "its result is a property of the machine";
constexpr std::string_view kTables = "depends on the host's descriptor tables";
constexpr std::string_view kPointers =
    "saves or loads instruction and data pointers, which makers treat differently";
constexpr std::array kExclusions = {
    Exclusion{ZYDIS_MNEMONIC_SYSCALL, kEnters},
    Exclusion{ZYDIS_MNEMONIC_SYSENTER, kEnters},
    Exclusion{ZYDIS_MNEMONIC_SYSRET, "makers differ in compatibility mode"},
    Exclusion{ZYDIS_MNEMONIC_SYSEXIT, "AMD has none in long mode"},
    Exclusion{ZYDIS_MNEMONIC_INT, kEnters},
    Exclusion{ZYDIS_MNEMONIC_INT1, kEnters},
    Exclusion{ZYDIS_MNEMONIC_INT3, "ends every case"},
    Exclusion{ZYDIS_MNEMONIC_INTO, kEnters},
    Exclusion{ZYDIS_MNEMONIC_IRET, kTables},
    Exclusion{ZYDIS_MNEMONIC_IRETD, kTables},
    Exclusion{ZYDIS_MNEMONIC_IRETQ, kTables},
    Exclusion{ZYDIS_MNEMONIC_POPF, "may set TF"},
    Exclusion{ZYDIS_MNEMONIC_POPFD, "may set TF"},
    Exclusion{ZYDIS_MNEMONIC_POPFQ, "may set TF"},
    Exclusion{ZYDIS_MNEMONIC_CPUID, kMachine},
    Exclusion{ZYDIS_MNEMONIC_RDTSC, kMachine},
    Exclusion{ZYDIS_MNEMONIC_RDTSCP, kMachine},
    Exclusion{ZYDIS_MNEMONIC_RDPID, kMachine},
    Exclusion{ZYDIS_MNEMONIC_RDPMC, kMachine},
    Exclusion{ZYDIS_MNEMONIC_RDRAND, kMachine},
    Exclusion{ZYDIS_MNEMONIC_RDSEED, kMachine},
    Exclusion{ZYDIS_MNEMONIC_XGETBV, kMachine},
    Exclusion{ZYDIS_MNEMONIC_RDPKRU, kMachine},
    Exclusion{ZYDIS_MNEMONIC_WRPKRU, kMachine},
    Exclusion{ZYDIS_MNEMONIC_SERIALIZE, "many hosts lack it"},
    Exclusion{ZYDIS_MNEMONIC_SGDT, kTables},
    Exclusion{ZYDIS_MNEMONIC_SIDT, kTables},
    Exclusion{ZYDIS_MNEMONIC_SLDT, kTables},
    Exclusion{ZYDIS_MNEMONIC_STR, kTables},
    Exclusion{ZYDIS_MNEMONIC_SMSW, kTables},
    Exclusion{ZYDIS_MNEMONIC_LAR, kTables},
    Exclusion{ZYDIS_MNEMONIC_LSL, kTables},
    Exclusion{ZYDIS_MNEMONIC_VERR, kTables},
    Exclusion{ZYDIS_MNEMONIC_VERW, kTables},
    Exclusion{ZYDIS_MNEMONIC_LDS, kTables},
    Exclusion{ZYDIS_MNEMONIC_LES, kTables},
    Exclusion{ZYDIS_MNEMONIC_LFS, kTables},
    Exclusion{ZYDIS_MNEMONIC_LGS, kTables},
    Exclusion{ZYDIS_MNEMONIC_LSS, kTables},
    Exclusion{ZYDIS_MNEMONIC_RDFSBASE, "the process needs its FS"},
    Exclusion{ZYDIS_MNEMONIC_RDGSBASE, "the process needs its GS"},
    Exclusion{ZYDIS_MNEMONIC_WRFSBASE, "the process needs its FS"},
    Exclusion{ZYDIS_MNEMONIC_WRGSBASE, "the process needs its GS"},
    Exclusion{ZYDIS_MNEMONIC_VMCALL, "reaches the host's hypervisor"},
    Exclusion{ZYDIS_MNEMONIC_VMMCALL, "reaches the host's hypervisor"},
    Exclusion{ZYDIS_MNEMONIC_UD0, "makers differ in whether it has a ModRM byte"},
    Exclusion{ZYDIS_MNEMONIC_FLDENV, kPointers},
    Exclusion{ZYDIS_MNEMONIC_FNSTENV, kPointers},
    Exclusion{ZYDIS_MNEMONIC_FNSAVE, kPointers},
    Exclusion{ZYDIS_MNEMONIC_FRSTOR, kPointers},
    Exclusion{ZYDIS_MNEMONIC_FXSAVE, kPointers},
    Exclusion{ZYDIS_MNEMONIC_FXSAVE64, kPointers},
    Exclusion{ZYDIS_MNEMONIC_FXRSTOR, kPointers},
    Exclusion{ZYDIS_MNEMONIC_FXRSTOR64, kPointers},
    Exclusion{ZYDIS_MNEMONIC_XSAVE, kPointers},
    Exclusion{ZYDIS_MNEMONIC_XSAVE64, kPointers},
    Exclusion{ZYDIS_MNEMONIC_XSAVEC, kPointers},
    Exclusion{ZYDIS_MNEMONIC_XSAVEC64, kPointers},
    Exclusion{ZYDIS_MNEMONIC_XSAVEOPT, kPointers},
    Exclusion{ZYDIS_MNEMONIC_XSAVEOPT64, kPointers},
    Exclusion{ZYDIS_MNEMONIC_XRSTOR, kPointers},
    Exclusion{ZYDIS_MNEMONIC_XRSTOR64, kPointers},
};

bool excluded(ZydisMnemonic m) {
  return std::ranges::find(kExclusions, m, &Exclusion::mnemonic) != kExclusions.end();
}

/// How often each class is chosen, of 100.
struct Share {
  OpcodeClass cls;
  unsigned percent;
};
constexpr std::array kShares = {Share{OpcodeClass::integer, 42}, Share{OpcodeClass::branch, 6},
                                Share{OpcodeClass::string, 8},   Share{OpcodeClass::system, 3},
                                Share{OpcodeClass::vector, 31},  Share{OpcodeClass::x87, 10}};

/// Number 0-15 of a general register of any width.
unsigned number(ZydisRegister r) {
  return static_cast<unsigned>(
      ZydisRegisterGetId(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r)));
}

class Constants final : public fuzz::ConstantSource {
 public:
  std::uint64_t displacement(Random& rng, unsigned bytes) override {
    return bytes == 1 ? rng.below(256) - 128 : rng.below(0x2000) - 0x1000;
  }
  std::uint64_t immediate(Random& rng, unsigned /*bytes*/) override { return rng.edge(); }
  std::int64_t branch_distance(Random& rng) override {
    // Never back onto the instruction itself, which might not end then.
    const auto distance = static_cast<std::int64_t>(rng.below(100));
    return rng.chance(50) ? distance : -20 - distance;
  }
};

bool has_segment_override(const DecodedCase& d) {
  constexpr std::uint64_t kFsGs = ZYDIS_ATTRIB_HAS_SEGMENT_FS | ZYDIS_ATTRIB_HAS_SEGMENT_GS;
  // And CS is not writable.
  return (d.insn.attributes & (kFsGs | ZYDIS_ATTRIB_HAS_SEGMENT_CS)) != 0;
}

bool loads_segment(const DecodedCase& d) {
  return std::any_of(d.ops.begin(), d.ops.begin() + d.insn.operand_count, [](const auto& o) {
    return o.type == ZYDIS_OPERAND_TYPE_REGISTER &&
           ZydisRegisterGetClass(o.reg.value) == ZYDIS_REGCLASS_SEGMENT;
  });
}

bool comparable(const DecodedCase& d) {
  if (excluded(d.insn.mnemonic) || has_segment_override(d) || loads_segment(d)) return false;
  if (d.insn.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) return false;
  const bool branch = d.insn.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE;
  // AMD takes an operand-size prefix on near branches for what it says, Intel ignores it in 64-bit
  // mode (SDM 2A JMP); in 32-bit code it cuts EIP to where the executor has nothing.
  if (branch && (d.insn.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE) != 0) return false;
  // A repeat prefix on anything but strings is reserved (SDM 2A 2.1.1); processors of old let it
  // choose LOOPE's condition, and AMD's still do.
  constexpr std::uint64_t kRepeat =
      ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE;
  const bool loop =
      d.insn.mnemonic == ZYDIS_MNEMONIC_LOOPE || d.insn.mnemonic == ZYDIS_MNEMONIC_LOOPNE;
  const bool repeated =
      (d.insn.attributes & kRepeat) != 0 ||
      std::any_of(d.insn.raw.prefixes, d.insn.raw.prefixes + d.insn.raw.prefix_count,
                  [](const auto& p) { return p.value == 0xF2 || p.value == 0xF3; });
  if (loop && repeated) return false;
  // 0F 0D with a register is a NOP for Intel and #UD for AMD.
  if (d.insn.meta.isa_set == ZYDIS_ISA_SET_PREFETCH_NOP && d.memory() == nullptr) return false;
  // 16-bit addresses do not reach the window.
  return d.insn.address_width != 16;
}

// ---- values -------------------------------------------------------------------------------------

std::uint32_t float32(Random& rng) {
  const std::uint64_t r = rng();
  switch (rng.below(8)) {
    case 0:
      return static_cast<std::uint32_t>(r & 0x807FFFFF);  // denormal
    case 1:
      return static_cast<std::uint32_t>((r & 0x80000000) | 0x7F800000);  // infinity
    case 2:
      return static_cast<std::uint32_t>(r | 0x7F800000);  // NaN
    case 3:
      return static_cast<std::uint32_t>(r & 0x80000000);  // zero
    case 4:
      return static_cast<std::uint32_t>((r & 0x80FFFFFF) | 0x7F000000);  // huge
    case 5:
      return std::bit_cast<std::uint32_t>(static_cast<float>(rng.below(2000)) - 1000.0F);
    case 6:
      return static_cast<std::uint32_t>(r & 0x81FFFFFF);  // tiny
    default:
      return static_cast<std::uint32_t>(r);
  }
}

std::uint64_t float64(Random& rng) {
  constexpr std::uint64_t kSign = 1ULL << 63;
  const std::uint64_t r = rng();
  switch (rng.below(8)) {
    case 0:
      return r & (kSign | 0xF'FFFF'FFFF'FFFF);
    case 1:
      return (r & kSign) | 0x7FF0'0000'0000'0000;
    case 2:
      return r | 0x7FF0'0000'0000'0000;
    case 3:
      return r & kSign;
    case 4:
      return (r & 0x801F'FFFF'FFFF'FFFF) | 0x7FE0'0000'0000'0000;
    case 5:
      return std::bit_cast<std::uint64_t>(static_cast<double>(rng.below(2000)) - 1000.0);
    case 6:
      return r & 0x803F'FFFF'FFFF'FFFF;
    default:
      return r;
  }
}

/// An 80-bit number with, sometimes, an integer bit that does not fit its exponent.
void put_float80(Random& rng, std::uint8_t* at) {
  std::uint64_t significand = rng();
  auto exponent = static_cast<std::uint16_t>(rng());
  switch (rng.below(6)) {
    case 0:
      exponent = static_cast<std::uint16_t>((exponent & 0x8000) | (0x3FF0 + rng.below(80)));
      significand |= 1ULL << 63;
      break;
    case 1:
      exponent |= 0x7FFF;
      if (rng.chance(40)) significand = 1ULL << 63;
      break;
    case 2:
      exponent &= 0x8000;
      if (rng.chance(60)) significand = rng.chance(50) ? 0 : significand >> 1;
      break;
    case 3:
      exponent = 0x3FFF;
      significand = 1ULL << 63 | rng.below(4) << 62;
      break;
    default:
      if (rng.chance(90)) significand |= 1ULL << 63;
  }
  std::memcpy(at, &significand, 8);
  std::memcpy(at + 8, &exponent, 2);
}

std::uint64_t lane(Random& rng, std::uint64_t kind) {
  switch (kind) {
    case 0:
      return rng.edge();
    case 1:
      return float32(rng) | std::uint64_t{float32(rng)} << 32;
    case 2:
      return float64(rng);
    default:
      return rng.chance(50) ? 0 : rng() & rng();
  }
}

void set_units(Random& rng, Registers& r) {
  for (auto& y : r.ymm) {
    const std::uint64_t kind = rng.below(4);
    for (auto& w : y) w = lane(rng, kind);
  }
  const bool masked = rng.chance(75);
  std::uint16_t control = static_cast<std::uint16_t>(0x40 | (rng() & 0xF00) | 0x3F);
  if (rng.chance(40)) control = 0x37F;
  if (!masked) control &= static_cast<std::uint16_t>(~rng.below(64));
  // Exception flags only where masked: else the very next x87 instruction would fault.
  const auto status =
      static_cast<std::uint16_t>((rng() & 0x7F40 & 0x7F00) | (rng() & 0x3F & control));
  const std::uint8_t tags = rng.chance(50) ? 0xFF : rng.byte();
  std::uint32_t mxcsr = static_cast<std::uint32_t>(rng() & 0xE07F) | 0x1F80;
  if (rng.chance(40)) mxcsr = 0x1F80;
  if (!masked) mxcsr &= ~static_cast<std::uint32_t>(rng() & 0x1F80);
  std::memcpy(r.fx.data(), &control, 2);
  std::memcpy(r.fx.data() + 2, &status, 2);
  r.fx[4] = tags;
  std::memcpy(r.fx.data() + 24, &mxcsr, 4);
  for (std::size_t i = 0; i < 8; ++i) put_float80(rng, r.fx.data() + 32 + 16 * i);
}

// ---- aiming -------------------------------------------------------------------------------------

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
      std::uint64_t w = lane(rng_, kind);
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
      c_.code[d_.insn.raw.disp.offset + k] = u8(value >> 8 * k);
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

std::span<const Exclusion> exclusions() { return kExclusions; }

const ZydisDecodedOperand* DecodedCase::memory() const {
  for (unsigned k = 0; k < insn.operand_count_visible; ++k) {
    if (ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY &&
        ops[k].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT) {
      return &ops[k];
    }
  }
  return nullptr;
}

Generator::Pool::Pool(unsigned bits, const cpu::CpuModel& model)
    : catalogue{bits, model}, decoder{isa::make_decoder(bits, true, model)} {
  for (const Share& share : kShares) {
    for (const std::uint32_t n : catalogue.of_class(share.cls)) {
      if (!excluded(catalogue.entries()[n].mnemonic)) entries[share.cls].push_back(n);
    }
  }
}

Generator::Generator(const cpu::CpuModel& model)
    : model_{model}, wide_{64, model}, narrow_{32, model} {}

std::vector<ZydisMnemonic> Generator::instructions(unsigned bits) const {
  std::vector<ZydisMnemonic> out;
  for (const auto& [cls, numbers] : pool(bits).entries) {
    for (const std::uint32_t n : numbers) {
      out.push_back(pool(bits).catalogue.entries()[n].mnemonic);
    }
  }
  return out;
}

std::optional<DecodedCase> Generator::decode(const Case& c) const {
  DecodedCase d;
  if (!ZYAN_SUCCESS(
          isa::decode(pool(c.bits).decoder, c.code.data(), c.length, d.insn, d.ops.data()))) {
    return std::nullopt;
  }
  const isa::Opcode opcode = isa::opcode_of(d.insn, d.ops.data());
  if (!isa::available(opcode, d.insn, model_)) return std::nullopt;
  d.cls = opcode.cls;
  return d;
}

bool Generator::choose_code(Random& rng, Case& c, DecodedCase& d) const {
  const Pool& from = pool(c.bits);
  std::uint64_t roll = rng.below(100);
  OpcodeClass cls = OpcodeClass::integer;
  for (const Share& share : kShares) {
    cls = share.cls;
    if (roll < share.percent) break;
    roll -= share.percent;
  }
  const auto& numbers = from.entries.at(cls);
  const auto& entry = from.catalogue.entries()[rng.pick(numbers)];
  std::vector<std::uint8_t> bytes;
  Constants constants;
  if (!from.catalogue.append(rng, rng.pick(entry.points), constants, bytes)) return false;
  if (bytes.size() > 15) return false;
  c.length = static_cast<std::uint32_t>(bytes.size());
  std::ranges::copy(bytes, c.code.begin());
  auto decoded = decode(c);
  if (!decoded || !comparable(*decoded)) return false;
  d = *decoded;
  return true;
}

Case Generator::make(Random& rng, unsigned bits) const {
  for (;;) {
    Case c;
    c.bits = bits;
    DecodedCase d;
    if (!choose_code(rng, c, d)) continue;
    // Sometimes across the end of the page.
    c.before.rip =
        rng.chance(5) ? kCode + 0x1000 - 1 - rng.below(10) : kCode + 0x100 + rng.below(0xD00);
    for (std::uint64_t& g : c.before.gpr) g = rng.edge();
    c.before.rflags = 0x202 | (rng() & 0x8D5) | (rng.chance(25) ? 0x400U : 0U);
    set_units(rng, c.before);
    Aim aim{rng, c, d};
    aim.run();
    if (aim.unusable()) continue;
    if (bits == 32) {
      for (std::size_t r = 0; r < 16; ++r) {
        c.before.gpr[r] = r < 8 ? static_cast<std::uint32_t>(c.before.gpr[r]) : 0;
      }
    }
    return c;
  }
}

std::array<std::uint8_t, kPatternBytes> Generator::make_pattern(Random& rng) {
  std::array<std::uint8_t, kPatternBytes> out{};
  for (std::size_t i = 0; i < out.size(); i += 8) {
    const std::uint64_t w = lane(rng, rng.below(4));
    std::memcpy(out.data() + i, &w, 8);
  }
  return out;
}

std::string describe(const Case& c) {
  ZydisDecoder decoder;
  ZydisDecoderInit(&decoder,
                   c.bits == 64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32,
                   c.bits == 64 ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32);
  ZydisFormatter formatter;
  ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
  ZydisDecodedInstruction insn;
  std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> ops;
  std::array<char, 128> line{"?"};
  if (ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, c.code.data(), c.length, &insn, ops.data()))) {
    ZydisFormatterFormatInstruction(&formatter, &insn, ops.data(), insn.operand_count_visible,
                                    line.data(), line.size(), 0, nullptr);
  }
  std::string out = fmt::format("{} ({} bits:", line.data(), c.bits);
  for (std::uint32_t i = 0; i < c.length; ++i) out += fmt::format(" {:02x}", c.code[i]);
  out += fmt::format(")\n  rip={:x} rflags={:x}", c.before.rip, c.before.rflags);
  for (std::size_t i = 0; i < 16; ++i) out += fmt::format(" r{}={:x}", i, c.before.gpr[i]);
  return out;
}

}  // namespace strata::differential
