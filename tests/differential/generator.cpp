#include "generator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "case_aim.hpp"
#include "case_values.hpp"
#include "cpu/vcpu_state.hpp"
#include "interp/host_stack.hpp"
#include "isa/decode.hpp"

namespace strata::differential {
namespace {

using fuzz::Random;
using isa::OpcodeClass;

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
    if (!aim_case(rng, c, d)) continue;
    if (bits == 32) {
      for (std::size_t r = 0; r < 16; ++r) {
        c.before.gpr[r] = r < 8 ? static_cast<std::uint32_t>(c.before.gpr[r]) : 0;
      }
    }
    c.before.gpr[cpu::RSP] = interp::test::usable_rsp(c.before.gpr[cpu::RSP]);
    return c;
  }
}

std::array<std::uint8_t, kPatternBytes> Generator::make_pattern(Random& rng) {
  std::array<std::uint8_t, kPatternBytes> out{};
  for (std::size_t i = 0; i < out.size(); i += 8) {
    const std::uint64_t w = random_lane(rng, rng.below(4));
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
