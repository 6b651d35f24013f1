#include "compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "cpu/vcpu_state.hpp"

namespace strata::differential {
namespace {

namespace rf = cpu::rflags;

constexpr std::uint32_t kBreak = cpu::BP;

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

/// Whether two floats differ by no more than a relative 2^`power` and `slack`.
template <class Float>
bool nearly(Float a, Float b, int power, Float slack = 0) {
  return a == b || std::abs(a - b) <= std::ldexp(std::abs(b), power) + slack;
}

bool nearly32(std::uint64_t a, std::uint64_t b, int power) {
  for (unsigned shift = 0; shift < 64; shift += 32) {
    const auto x = static_cast<std::uint32_t>(a >> shift),
               y = static_cast<std::uint32_t>(b >> shift);
    if (x != y && !nearly(std::bit_cast<float>(x), std::bit_cast<float>(y), power)) return false;
  }
  return true;
}

/// Whether two words differ only in lanes of `width` where `a` has the smallest normal number and
/// `b` zero.
bool flushed(std::uint64_t a, std::uint64_t b, unsigned width) {
  const std::uint64_t ones = width == 64 ? ~0ULL : 0xFFFFFFFF;
  const std::uint64_t smallest = width == 64 ? 1ULL << 52 : 1ULL << 23;
  for (unsigned shift = 0; shift < 64; shift += width) {
    const std::uint64_t x = a >> shift & ones, y = b >> shift & ones;
    const bool zero = y << (65 - width) == 0;
    if (x != y && !(zero && x == (y | smallest))) return false;
  }
  return true;
}

/// True: a lane was let pass as flushed.
bool check_vectors(Differences& out, const Registers& a, const Registers& b, unsigned registers,
                   const Omission& omit) {
  bool any = false;
  for (unsigned i = 0; i < registers; ++i) {
    if ((omit.ymm >> i & 1) != 0) continue;
    for (unsigned w = 0; w < 4; ++w) {
      if (omit.ymm_error != 0 && nearly32(a.ymm[i][w], b.ymm[i][w], omit.ymm_error)) continue;
      if (omit.flushed != 0 && a.ymm[i][w] != b.ymm[i][w] &&
          flushed(a.ymm[i][w], b.ymm[i][w], omit.flushed)) {
        any = true;
        continue;
      }
      out.check(fmt::format("ymm{}[{}]", i, w), a.ymm[i][w], b.ymm[i][w]);
    }
  }
  return any;
}

/// A stack register as the compiler's own 80-bit type.
long double stack_number(const Registers& r, unsigned i) {
  long double v = 0;
  std::memcpy(&v, r.fx.data() + st_at(i), 10);
  return v;
}

/// FCW, FSW and FTW; MXCSR; ST0 to ST7 of ten bytes each. Not the pointers.
void check_x87(Differences& out, const Registers& a, const Registers& b, const Omission& omit) {
  const auto field = [](const Registers& r, std::size_t at, std::size_t bytes) {
    std::uint64_t v = 0;
    std::memcpy(&v, r.fx.data() + at, bytes);
    return v;
  };
  const auto check = [&](std::string_view name, std::size_t at, std::size_t bytes,
                         std::uint64_t left_out) {
    out.check(name, field(a, at, bytes) & ~left_out, field(b, at, bytes) & ~left_out);
  };
  check("fcw", 0, 2, omit.fcw);
  check("fsw", 2, 2, omit.fsw);
  check("ftw", 4, 1, omit.tags ? 0xFF : 0);
  check("mxcsr", 24, 4, omit.mxcsr);
  for (unsigned i = 0; i < 8; ++i) {
    if ((omit.st >> i & 1) != 0) continue;
    if (i < 2 && omit.st_error != 0 &&
        nearly(stack_number(a, i), stack_number(b, i), omit.st_error, omit.st_slack)) {
      continue;
    }
    check(fmt::format("st{} significand", i), st_at(i), 8, 0);
    check(fmt::format("st{} exponent", i), st_at(i) + 8, 2, 0);
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

/// Where the host and the interpreter may differ, and why. Each has been checked with the manual:
/// where the manual is definite, the interpreter does as it says.
struct Deviation {
  std::string_view why;
  bool (*applies)(const Observed& o);
};

std::uint32_t mxcsr_of(const Result& r) {
  std::uint32_t v = 0;
  std::memcpy(&v, r.after.fx.data() + 24, 4);
  return v;
}

constexpr std::array kDeviations = {
    Deviation{"AMD's POPA leaves what it had popped before a fault",
              [](const Observed& o) {
                return o.both_faulted() &&
                       is_one_of(o.mnemonic(), {ZYDIS_MNEMONIC_POPA, ZYDIS_MNEMONIC_POPAD});
              }},
    Deviation{"Intel ignores VEX.W outside 64-bit mode (SDM 2B PEXTRD, PINSRD); AMD's #UD",
              [](const Observed& o) {
                return o.d.insn.raw.vex.W != 0 &&
                       is_one_of(o.mnemonic(), {ZYDIS_MNEMONIC_VPEXTRD, ZYDIS_MNEMONIC_VPINSRD});
              }},
    Deviation{"which byte of a masked store faults, and whether masked bytes do, is the maker's "
              "affair (SDM 2B MASKMOVDQU: implementation dependent)",
              [](const Observed& o) {
                return (o.oracle.vector == cpu::PF || o.oracle.vector == cpu::GP) &&
                       is_one_of(o.mnemonic(),
                                 {ZYDIS_MNEMONIC_MASKMOVDQU, ZYDIS_MNEMONIC_VMASKMOVDQU,
                                  ZYDIS_MNEMONIC_MASKMOVQ});
              }},
    Deviation{"AMD enters the MMX state before a fault of these; the manual lets a fault change "
              "nothing (SDM 3A 6.5)",
              [](const Observed& o) {
                return o.both_faulted() &&
                       is_one_of(o.mnemonic(), {ZYDIS_MNEMONIC_CVTPI2PS, ZYDIS_MNEMONIC_CVTPI2PD,
                                                ZYDIS_MNEMONIC_CVTPS2PI, ZYDIS_MNEMONIC_CVTPD2PI,
                                                ZYDIS_MNEMONIC_CVTTPS2PI, ZYDIS_MNEMONIC_CVTTPD2PI,
                                                ZYDIS_MNEMONIC_MASKMOVQ});
              }},
    Deviation{"AMD checks port permission even where REP has nothing to do (SDM 2B REP: the "
              "instruction is not executed)",
              [](const Observed& o) {
                return o.guest.vector == kBreak && o.oracle.vector == cpu::GP &&
                       o.guest.after.gpr[cpu::RCX] << 32 == 0 &&
                       is_one_of(o.mnemonic(), {ZYDIS_MNEMONIC_INSB, ZYDIS_MNEMONIC_INSW,
                                                ZYDIS_MNEMONIC_INSD, ZYDIS_MNEMONIC_OUTSB,
                                                ZYDIS_MNEMONIC_OUTSW, ZYDIS_MNEMONIC_OUTSD});
              }},
    Deviation{"AMD pushes before it looks at the target; Intel the other way round (SDM 2A CALL)",
              [](const Observed& o) {
                return o.mnemonic() == ZYDIS_MNEMONIC_CALL && o.guest.vector == cpu::GP &&
                       (o.oracle.vector == cpu::PF || o.oracle.vector == cpu::SS_FAULT);
              }},
    Deviation{"AMD checks for writing only where ARPL changes something; the manual does not say",
              [](const Observed& o) {
                return o.mnemonic() == ZYDIS_MNEMONIC_ARPL && o.guest.vector == cpu::PF;
              }},
    Deviation{"MXCSR bit 17 exists on AMD's processors with misaligned SSE and is reserved here",
              [](const Observed& o) {
                return is_one_of(o.mnemonic(), {ZYDIS_MNEMONIC_LDMXCSR, ZYDIS_MNEMONIC_VLDMXCSR});
              }},
    Deviation{"how far a dot product goes before an unmasked exception stops it is the maker's "
              "affair (SDM 2A DPPS)",
              [](const Observed& o) {
                return o.both_faulted() && o.guest.vector == cpu::XM &&
                       is_one_of(o.mnemonic(), {ZYDIS_MNEMONIC_DPPS, ZYDIS_MNEMONIC_DPPD,
                                                ZYDIS_MNEMONIC_VDPPS, ZYDIS_MNEMONIC_VDPPD});
              }},
    // The interpreter's own, described at flags_of_exception() in vector_thunk.cpp.
    Deviation{"PE beside an unmasked underflow whose result would be exact",
              [](const Observed& o) {
                return o.both_faulted() && o.guest.vector == cpu::XM &&
                       (mxcsr_of(o.guest) ^ mxcsr_of(o.oracle)) == 0x20;
              }},
};

}  // namespace

std::uint64_t undefined_flags(const DecodedCase& d) {
  return d.insn.cpu_flags != nullptr ? d.insn.cpu_flags->undefined & rf::ARITHMETIC : 0;
}

std::string_view deviation(const DecodedCase& d, const Result& guest, const Result& oracle) {
  const Observed observed{d, guest, oracle};
  for (const Deviation& known : kDeviations) {
    if (known.applies(observed)) return known.why;
  }
  return {};
}

Omission host_omission(const DecodedCase& d, const Result& guest, const Result& oracle) {
  Omission out;
  // The decimal instructions are the ones whose undefined flags the interpreter does not take from
  // the host: 64-bit code does not have them.
  if (d.insn.meta.category == ZYDIS_CATEGORY_DECIMAL) out.rflags = undefined_flags(d);
  if (guest.vector != kBreak && oracle.vector != kBreak && compares_strings(d)) {
    // Makers differ in the flags that a fault amid REP CMPS and REP SCAS shows (Intel's are the
    // ones from before, SDM 2B REP), and in which operand of CMPS they read first.
    out.rflags = ~0ULL;
    out.exception = true;
  }
  // Elsewhere the host's kernel may have pages.
  if (guest.cr2 >= kAbsent + 0x1000) out.error = ~0U;
  return out;
}

std::string differences(const Case& c, const Result& guest, const Expected& expected) {
  const Result& oracle = expected.result;
  const Omission& omit = expected.omitted;
  Differences out;
  if (omit.everything) return {};
  if (!omit.exception) out.check("vector", guest.vector, oracle.vector);
  const unsigned registers = c.bits == 64 ? 16 : 8;
  const std::uint64_t width = c.bits == 64 ? ~0ULL : 0xFFFFFFFF;
  for (unsigned i = 0; i < registers; ++i) {
    if ((omit.gpr >> i & 1) != 0) continue;
    out.check(fmt::format("r{}", i), guest.after.gpr[i] & width, oracle.after.gpr[i] & width);
  }
  out.check("rip", guest.after.rip, oracle.after.rip);
  const std::uint64_t compared = (rf::ARITHMETIC | rf::DF) & ~omit.rflags;
  out.check("rflags", guest.after.rflags & compared, oracle.after.rflags & compared);
  if (guest.vector == cpu::PF && oracle.vector == cpu::PF && !omit.exception) {
    if (!omit.cr2) out.check("cr2", guest.cr2, oracle.cr2);
    out.check("error code", guest.error & ~omit.error, oracle.error & ~omit.error);
  }
  if (!omit.memory) {
    out.check("memory", guest.changed_hash, oracle.changed_hash);
    out.check("memory from", guest.changed_first, oracle.changed_first);
    out.check("memory to", guest.changed_last, oracle.changed_last);
  }
  Omission left = omit;
  constexpr std::uint32_t kUnderflow = 0x10;
  if (check_vectors(out, guest.after, oracle.after, registers, omit)) left.mxcsr |= kUnderflow;
  check_x87(out, guest.after, oracle.after, left);
  return std::move(out).text();
}

}  // namespace strata::differential
