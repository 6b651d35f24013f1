#include "compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "cpu/vcpu_state.hpp"

namespace strata::differential {
namespace {

namespace rf = cpu::rflags;

constexpr std::uint32_t kBreak = cpu::BP;

/// Arithmetic flags that an instruction leaves undefined (SDM 2A-2D, the instruction's page). The
/// interpreter runs the host's own instruction where it can, so that the host must agree on these
/// as well, but for the decimal ones, which 64-bit hosts' engines do not have.
std::uint64_t undefined_flags(const DecodedCase& d, OracleKind kind) {
  const bool decimal = d.insn.meta.category == ZYDIS_CATEGORY_DECIMAL;
  if (kind == OracleKind::host && !decimal) return 0;
  std::uint64_t mask = d.insn.cpu_flags != nullptr ? d.insn.cpu_flags->undefined : 0;
  return mask & rf::ARITHMETIC;
}

bool compares_strings(const DecodedCase& d) {
  switch (d.insn.mnemonic) {
    case ZYDIS_MNEMONIC_CMPSB:
    case ZYDIS_MNEMONIC_CMPSW:
    case ZYDIS_MNEMONIC_CMPSD:
    case ZYDIS_MNEMONIC_CMPSQ:
    case ZYDIS_MNEMONIC_SCASB:
    case ZYDIS_MNEMONIC_SCASW:
    case ZYDIS_MNEMONIC_SCASD:
    case ZYDIS_MNEMONIC_SCASQ:
      return d.cls == isa::OpcodeClass::string;
    default:
      return false;
  }
}

class Differences {
 public:
  void check(std::string_view name, std::uint64_t guest, std::uint64_t oracle) {
    if (guest != oracle) out_ += fmt::format("  {}: {:#x}, oracle {:#x}\n", name, guest, oracle);
  }
  [[nodiscard]] std::string text() && { return std::move(out_); }

 private:
  std::string out_;
};

void check_units(Differences& out, const Registers& a, const Registers& b, unsigned registers) {
  for (unsigned i = 0; i < registers; ++i) {
    for (unsigned w = 0; w < 4; ++w) {
      out.check(fmt::format("ymm{}[{}]", i, w), a.ymm[i][w], b.ymm[i][w]);
    }
  }
  // FCW, FSW and FTW; MXCSR; ST0 to ST7 of ten bytes each. Not the pointers.
  const auto field = [](const Registers& r, std::size_t at, std::size_t bytes) {
    std::uint64_t v = 0;
    std::memcpy(&v, r.fx.data() + at, bytes);
    return v;
  };
  out.check("fcw", field(a, 0, 2), field(b, 0, 2));
  out.check("fsw", field(a, 2, 2), field(b, 2, 2));
  out.check("ftw", field(a, 4, 1), field(b, 4, 1));
  out.check("mxcsr", field(a, 24, 4), field(b, 24, 4));
  for (unsigned i = 0; i < 8; ++i) {
    out.check(fmt::format("st{} significand", i), field(a, 32 + 16 * i, 8),
              field(b, 32 + 16 * i, 8));
    out.check(fmt::format("st{} exponent", i), field(a, 40 + 16 * i, 2), field(b, 40 + 16 * i, 2));
  }
}

bool is_one_of(ZydisMnemonic m, std::initializer_list<ZydisMnemonic> list) {
  return std::ranges::find(list, m) != list.end();
}

/// What a known deviation is decided on.
struct Observed {
  const DecodedCase& d;
  const Result& guest;
  const Result& oracle;
  [[nodiscard]] ZydisMnemonic mnemonic() const { return d.insn.mnemonic; }
  [[nodiscard]] bool both_faulted() const {
    return guest.vector == oracle.vector && guest.vector != kBreak;
  }
};

/// Where an oracle and the interpreter may differ, and why. Each has been checked with the manual:
/// where the manual is definite, the interpreter does as it says.
struct Deviation {
  OracleKind oracle;
  std::string_view why;
  bool (*applies)(const Observed& o);
};

std::uint32_t mxcsr_of(const Result& r) {
  std::uint32_t v = 0;
  std::memcpy(&v, r.after.fx.data() + 24, 4);
  return v;
}

constexpr std::array kDeviations = {
    Deviation{OracleKind::host, "AMD's POPA leaves what it had popped before a fault",
              [](const Observed& o) {
                return o.both_faulted() &&
                       is_one_of(o.mnemonic(), {ZYDIS_MNEMONIC_POPA, ZYDIS_MNEMONIC_POPAD});
              }},
    Deviation{OracleKind::host,
              "Intel ignores VEX.W outside 64-bit mode (SDM 2B PEXTRD, PINSRD); AMD's #UD",
              [](const Observed& o) {
                return o.d.insn.raw.vex.W != 0 &&
                       is_one_of(o.mnemonic(), {ZYDIS_MNEMONIC_VPEXTRD, ZYDIS_MNEMONIC_VPINSRD});
              }},
    Deviation{OracleKind::host,
              "which byte of a masked store faults, and whether masked bytes do, is the maker's "
              "affair (SDM 2B MASKMOVDQU: implementation dependent)",
              [](const Observed& o) {
                return o.oracle.vector == cpu::PF &&
                       is_one_of(o.mnemonic(),
                                 {ZYDIS_MNEMONIC_MASKMOVDQU, ZYDIS_MNEMONIC_VMASKMOVDQU,
                                  ZYDIS_MNEMONIC_MASKMOVQ});
              }},
    Deviation{OracleKind::host,
              "AMD enters the MMX state before a fault of these; the manual lets a fault change "
              "nothing (SDM 3A 6.5)",
              [](const Observed& o) {
                return o.both_faulted() &&
                       is_one_of(o.mnemonic(), {ZYDIS_MNEMONIC_CVTPI2PS, ZYDIS_MNEMONIC_CVTPI2PD,
                                                ZYDIS_MNEMONIC_CVTPS2PI, ZYDIS_MNEMONIC_CVTPD2PI,
                                                ZYDIS_MNEMONIC_CVTTPS2PI, ZYDIS_MNEMONIC_CVTTPD2PI,
                                                ZYDIS_MNEMONIC_MASKMOVQ});
              }},
    Deviation{OracleKind::host,
              "AMD checks port permission even where REP has nothing to do (SDM 2B REP: the "
              "instruction is not executed)",
              [](const Observed& o) {
                return o.guest.vector == kBreak && o.oracle.vector == cpu::GP &&
                       o.guest.after.gpr[cpu::RCX] << 32 == 0 &&
                       is_one_of(o.mnemonic(), {ZYDIS_MNEMONIC_INSB, ZYDIS_MNEMONIC_INSW,
                                                ZYDIS_MNEMONIC_INSD, ZYDIS_MNEMONIC_OUTSB,
                                                ZYDIS_MNEMONIC_OUTSW, ZYDIS_MNEMONIC_OUTSD});
              }},
    Deviation{OracleKind::host,
              "AMD pushes before it looks at the target; Intel the other way round (SDM 2A CALL)",
              [](const Observed& o) {
                return o.mnemonic() == ZYDIS_MNEMONIC_CALL && o.guest.vector == cpu::GP &&
                       (o.oracle.vector == cpu::PF || o.oracle.vector == cpu::SS_FAULT);
              }},
    Deviation{OracleKind::host,
              "AMD checks for writing only where ARPL changes something; the manual does not say",
              [](const Observed& o) {
                return o.mnemonic() == ZYDIS_MNEMONIC_ARPL && o.guest.vector == cpu::PF;
              }},
    Deviation{OracleKind::host,
              "MXCSR bit 17 exists on AMD's processors with misaligned SSE and is reserved here",
              [](const Observed& o) {
                return is_one_of(o.mnemonic(), {ZYDIS_MNEMONIC_LDMXCSR, ZYDIS_MNEMONIC_VLDMXCSR});
              }},
    Deviation{OracleKind::host,
              "how far a dot product goes before an unmasked exception stops it is the maker's "
              "affair (SDM 2A DPPS)",
              [](const Observed& o) {
                return o.both_faulted() && o.guest.vector == cpu::XM &&
                       is_one_of(o.mnemonic(), {ZYDIS_MNEMONIC_DPPS, ZYDIS_MNEMONIC_DPPD,
                                                ZYDIS_MNEMONIC_VDPPS, ZYDIS_MNEMONIC_VDPPD});
              }},
    // The interpreter's own, described at flags_of_exception() in vector_thunk.cpp.
    Deviation{OracleKind::host, "PE beside an unmasked underflow whose result would be exact",
              [](const Observed& o) {
                return o.both_faulted() && o.guest.vector == cpu::XM &&
                       (mxcsr_of(o.guest) ^ mxcsr_of(o.oracle)) == 0x20;
              }},
};

}  // namespace

bool can_judge(const DecodedCase& d, OracleKind kind) {
  if (kind == OracleKind::host) return true;
  // QEMU 7.2 aborts over the flags that ADCX and ADOX leave it, and has no x87 or SIMD exceptions.
  return d.cls != isa::OpcodeClass::x87 && d.cls != isa::OpcodeClass::system &&
         !is_one_of(d.insn.mnemonic, {ZYDIS_MNEMONIC_ADCX, ZYDIS_MNEMONIC_ADOX});
}

std::string_view deviation(const DecodedCase& d, const Result& guest, const Result& oracle,
                           OracleKind kind) {
  const Observed observed{d, guest, oracle};
  for (const Deviation& known : kDeviations) {
    if (known.oracle == kind && known.applies(observed)) return known.why;
  }
  return {};
}

std::string differences(const Case& c, const DecodedCase& d, const Result& guest,
                        const Result& oracle, OracleKind kind) {
  Differences out;
  const bool faulted = guest.vector != kBreak && oracle.vector != kBreak;
  // Makers differ in the flags that a fault amid REP CMPS and REP SCAS shows (Intel's are the ones
  // from before, SDM 2B REP), and in which operand of CMPS they read first.
  const bool loose = faulted && compares_strings(d);
  out.check("vector", guest.vector, loose ? guest.vector : oracle.vector);
  const unsigned registers = c.bits == 64 ? 16 : 8;
  const std::uint64_t width = c.bits == 64 ? ~0ULL : 0xFFFFFFFF;
  for (unsigned i = 0; i < registers; ++i) {
    out.check(fmt::format("r{}", i), guest.after.gpr[i] & width, oracle.after.gpr[i] & width);
  }
  out.check("rip", guest.after.rip, oracle.after.rip);
  const std::uint64_t compared = loose ? 0 : (rf::ARITHMETIC | rf::DF) & ~undefined_flags(d, kind);
  out.check("rflags", guest.after.rflags & compared, oracle.after.rflags & compared);
  if (guest.vector == cpu::PF && oracle.vector == cpu::PF && !loose) {
    out.check("cr2", guest.cr2, oracle.cr2);
    // Elsewhere the host's kernel may have pages.
    if (guest.cr2 < kAbsent + 0x1000) out.check("error code", guest.error, oracle.error);
  }
  out.check("memory", guest.changed_hash, oracle.changed_hash);
  out.check("memory from", guest.changed_first, oracle.changed_first);
  out.check("memory to", guest.changed_last, oracle.changed_last);
  check_units(out, guest.after, oracle.after, registers);
  return std::move(out).text();
}

}  // namespace strata::differential
