// The interpreter against the host's own processor: random instructions with random operands, every
// register, all six arithmetic flags, memory, and where and why it faulted.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "host_stack.hpp"
#include "random_code.hpp"
#include "signal_frame.hpp"

namespace strata::interp::test {
namespace {

constexpr std::size_t kWindow = NativeOracle::kWritable * kPageSize;
constexpr std::uint64_t kCompared = cpu::rflags::ARITHMETIC | cpu::rflags::DF;

/// STRATA_FUZZ_SEED and STRATA_FUZZ_CASES make longer runs of the same test.
std::uint64_t setting(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 0) : otherwise;
}

std::string hex(std::span<const std::uint8_t> bytes) {
  std::string out;
  char buffer[4];
  for (const std::uint8_t b : bytes) {
    std::snprintf(buffer, sizeof buffer, "%02x ", b);
    out += buffer;
  }
  return out;
}

std::string text_of(std::span<const std::uint8_t> bytes) {
  ZydisDecoder decoder;
  ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  ZydisFormatter formatter;
  ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
  std::string out = hex(bytes) + ":";
  std::size_t at = 0;
  ZydisDecodedInstruction insn;
  ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
  while (at < bytes.size() && ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes.data() + at,
                                                                  bytes.size() - at, &insn, ops))) {
    char line[128];
    ZydisFormatterFormatInstruction(&formatter, &insn, ops, insn.operand_count_visible, line,
                                    sizeof line, 0, nullptr);
    out += std::string(" ") + line + ";";
    at += insn.length;
  }
  return out;
}

bool compares_strings(const ZydisDecodedInstruction& insn) {
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_CMPSB:
    case ZYDIS_MNEMONIC_CMPSW:
    case ZYDIS_MNEMONIC_CMPSD:
    case ZYDIS_MNEMONIC_CMPSQ:
    case ZYDIS_MNEMONIC_SCASB:
    case ZYDIS_MNEMONIC_SCASW:
    case ZYDIS_MNEMONIC_SCASD:
    case ZYDIS_MNEMONIC_SCASQ:
      return true;
    default:
      return false;
  }
}

/// The oracle and the interpreter side by side, with the same window of memory.
class Differential : public ::testing::Test {
 protected:
  Differential() {
    for (std::byte& b : pattern_) b = static_cast<std::byte>(rng_());
    oracle_.fill_read_only(pattern_.data());
    std::memcpy(guest_.data() + kWindow, pattern_.data(), kPageSize);
  }

  /// Runs both; a difference is a failure with everything needed to repeat it.
  void compare(std::span<const std::uint8_t> code, std::uint64_t at, const NativeState& before,
               const RandomInstruction* single = nullptr, unsigned bits = 64) {
    std::memcpy(oracle_.data(), pattern_.data(), kWindow);
    std::memcpy(guest_.data(), pattern_.data(), kWindow);
    NativeState host = before;
    NativeState guest = before;
    oracle_.run(code, at, host, bits);
    guest_.run(code, at, guest, bits);
    // Makers differ in the flags that a fault amid REP CMPS and REP SCAS shows (Intel's are the
    // ones from before, SDM 2B REP), and in which operand of CMPS they read first.
    // AMD's POPA leaves what it popped before a fault.
    if (single != nullptr && host.vector >= 0 && single->insn.opcode == 0x61) {
      EXPECT_EQ(guest.vector, host.vector);
      EXPECT_EQ(guest.gpr, before.gpr);
      return;
    }
    const bool comparing = single != nullptr && compares_strings(single->insn);
    if (comparing && host.vector >= 0 && guest.vector >= 0) {
      EXPECT_EQ(guest.rflags & kCompared, before.rflags & kCompared) << text_of(code);
      guest.rflags = host.rflags;
      guest.cr2 = host.cr2;
      guest.vector = host.vector;
    }
    if (single != nullptr && bits == 32 && single->insn.meta.category == ZYDIS_CATEGORY_DECIMAL) {
      // No host instruction is run for these: the undefined flags are nobody's.
      const std::uint64_t undefined = single->insn.cpu_flags->undefined & kCompared;
      host.rflags &= ~undefined;
      guest.rflags &= ~undefined;
    }
    const std::string what = differences(host, guest, bits);
    if (what.empty()) {
      faults_ += host.vector >= 0 ? 1 : 0;
      return;
    }
    ++failures_;
    ADD_FAILURE() << text_of(code) << "\nbefore:" << dump(before) << "\ndiffers:" << what;
  }

  static std::string dump(const NativeState& s) {
    std::string out;
    char buffer[40];
    for (unsigned i = 0; i < 16; ++i) {
      std::snprintf(buffer, sizeof buffer, " r%u=%llx", i,
                    static_cast<unsigned long long>(s.gpr[i]));
      out += buffer;
    }
    std::snprintf(buffer, sizeof buffer, " fl=%llx", static_cast<unsigned long long>(s.rflags));
    return out + buffer;
  }

  std::string differences(const NativeState& host, const NativeState& guest, unsigned bits) {
    std::string out;
    const auto check = [&out](const std::string& name, std::uint64_t h, std::uint64_t g) {
      if (h == g) return;
      char buffer[80];
      std::snprintf(buffer, sizeof buffer, " host=%llx guest=%llx",
                    static_cast<unsigned long long>(h), static_cast<unsigned long long>(g));
      out += "\n  " + name + buffer;
    };
    check("vector", static_cast<std::uint64_t>(host.vector),
          static_cast<std::uint64_t>(guest.vector));
    const unsigned registers = bits == 64 ? 16 : 8;
    for (unsigned i = 0; i < registers; ++i)
      check("r" + std::to_string(i), host.gpr[i], guest.gpr[i]);
    check("rflags", host.rflags & kCompared, guest.rflags & kCompared);
    check("rip", host.rip, guest.rip);
    if (host.vector == 14 && guest.vector == 14) {
      check("cr2", host.cr2, guest.cr2);
      check("error.W", host.error & 2, guest.error & 2);
    }
    if (std::memcmp(oracle_.data(), guest_.data(), kWindow) != 0) {
      for (std::size_t i = 0; i < kWindow; ++i) {
        if (oracle_.data()[i] != guest_.data()[i]) {
          check("memory+" + std::to_string(i), static_cast<std::uint64_t>(oracle_.data()[i]),
                static_cast<std::uint64_t>(guest_.data()[i]));
          break;
        }
      }
    }
    return out;
  }

  Random rng_{setting("STRATA_FUZZ_SEED", 20240607)};
  std::array<std::byte, kWindow> pattern_{};
  NativeOracle oracle_;
  Guest guest_;
  std::uint64_t faults_ = 0;
  unsigned failures_ = 0;
};

/// Instructions that the random ones must have included, several times each.
constexpr std::array kRequired = {
    ZYDIS_MNEMONIC_MOV,        ZYDIS_MNEMONIC_MOVZX,   ZYDIS_MNEMONIC_MOVSX,
    ZYDIS_MNEMONIC_MOVSXD,     ZYDIS_MNEMONIC_LEA,     ZYDIS_MNEMONIC_XCHG,
    ZYDIS_MNEMONIC_XADD,       ZYDIS_MNEMONIC_CMPXCHG, ZYDIS_MNEMONIC_CMPXCHG8B,
    ZYDIS_MNEMONIC_CMPXCHG16B, ZYDIS_MNEMONIC_BSWAP,   ZYDIS_MNEMONIC_MOVBE,
    ZYDIS_MNEMONIC_MOVNTI,     ZYDIS_MNEMONIC_PUSH,    ZYDIS_MNEMONIC_POP,
    ZYDIS_MNEMONIC_LEAVE,      ZYDIS_MNEMONIC_ENTER,   ZYDIS_MNEMONIC_ADD,
    ZYDIS_MNEMONIC_OR,         ZYDIS_MNEMONIC_ADC,     ZYDIS_MNEMONIC_SBB,
    ZYDIS_MNEMONIC_AND,        ZYDIS_MNEMONIC_SUB,     ZYDIS_MNEMONIC_XOR,
    ZYDIS_MNEMONIC_CMP,        ZYDIS_MNEMONIC_TEST,    ZYDIS_MNEMONIC_INC,
    ZYDIS_MNEMONIC_DEC,        ZYDIS_MNEMONIC_NEG,     ZYDIS_MNEMONIC_NOT,
    ZYDIS_MNEMONIC_MUL,        ZYDIS_MNEMONIC_IMUL,    ZYDIS_MNEMONIC_DIV,
    ZYDIS_MNEMONIC_IDIV,       ZYDIS_MNEMONIC_CWDE,    ZYDIS_MNEMONIC_CDQE,
    ZYDIS_MNEMONIC_CDQ,        ZYDIS_MNEMONIC_CQO,     ZYDIS_MNEMONIC_SHL,
    ZYDIS_MNEMONIC_SHR,        ZYDIS_MNEMONIC_SAR,     ZYDIS_MNEMONIC_ROL,
    ZYDIS_MNEMONIC_ROR,        ZYDIS_MNEMONIC_RCL,     ZYDIS_MNEMONIC_RCR,
    ZYDIS_MNEMONIC_SHLD,       ZYDIS_MNEMONIC_SHRD,    ZYDIS_MNEMONIC_BT,
    ZYDIS_MNEMONIC_BTS,        ZYDIS_MNEMONIC_BTR,     ZYDIS_MNEMONIC_BTC,
    ZYDIS_MNEMONIC_BSF,        ZYDIS_MNEMONIC_BSR,     ZYDIS_MNEMONIC_TZCNT,
    ZYDIS_MNEMONIC_LZCNT,      ZYDIS_MNEMONIC_POPCNT,  ZYDIS_MNEMONIC_ANDN,
    ZYDIS_MNEMONIC_BEXTR,      ZYDIS_MNEMONIC_BLSI,    ZYDIS_MNEMONIC_BLSMSK,
    ZYDIS_MNEMONIC_BLSR,       ZYDIS_MNEMONIC_BZHI,    ZYDIS_MNEMONIC_PDEP,
    ZYDIS_MNEMONIC_PEXT,       ZYDIS_MNEMONIC_MULX,    ZYDIS_MNEMONIC_RORX,
    ZYDIS_MNEMONIC_SARX,       ZYDIS_MNEMONIC_SHLX,    ZYDIS_MNEMONIC_SHRX,
    ZYDIS_MNEMONIC_ADCX,       ZYDIS_MNEMONIC_ADOX,    ZYDIS_MNEMONIC_CRC32,
    ZYDIS_MNEMONIC_SETZ,       ZYDIS_MNEMONIC_CMOVL,   ZYDIS_MNEMONIC_LAHF,
    ZYDIS_MNEMONIC_SAHF,       ZYDIS_MNEMONIC_CLC,     ZYDIS_MNEMONIC_STC,
    ZYDIS_MNEMONIC_CMC,        ZYDIS_MNEMONIC_CLD,     ZYDIS_MNEMONIC_STD,
    ZYDIS_MNEMONIC_XLAT,       ZYDIS_MNEMONIC_NOP,     ZYDIS_MNEMONIC_PREFETCHW,
    ZYDIS_MNEMONIC_MFENCE,     ZYDIS_MNEMONIC_CLFLUSH, ZYDIS_MNEMONIC_MOVSB,
    ZYDIS_MNEMONIC_MOVSQ,      ZYDIS_MNEMONIC_STOSB,   ZYDIS_MNEMONIC_STOSD,
    ZYDIS_MNEMONIC_LODSB,      ZYDIS_MNEMONIC_LODSD,   ZYDIS_MNEMONIC_CMPSB,
    ZYDIS_MNEMONIC_CMPSD,      ZYDIS_MNEMONIC_SCASB,   ZYDIS_MNEMONIC_SCASD,
    ZYDIS_MNEMONIC_UD2};

TEST_F(Differential, SingleInstructions) {
  const std::uint64_t cases = setting("STRATA_FUZZ_CASES", 150'000);
  std::map<ZydisMnemonic, unsigned> seen;
  for (std::uint64_t n = 0; n < cases && failures_ < 12; ++n) {
    RandomInstruction i = make_instruction(rng_, guest_.machine.model);
    // Sometimes across the page end.
    const std::uint64_t at = chance(rng_, 5) ? NativeOracle::kCode + kPageSize - 1 - below(rng_, 8)
                                             : NativeOracle::kCode + below(rng_, 0xF00);
    const NativeState before = make_state(rng_, i, at);
    ++seen[i.insn.mnemonic];
    compare(i.bytes, at, before, &i);
  }
  EXPECT_GT(faults_, cases / 50);
  EXPECT_LT(faults_, cases / 2);
  for (const ZydisMnemonic m : kRequired) {
    EXPECT_GE(seen[m], cases / 15'000) << ZydisMnemonicGetString(m);
  }
}

/// Operands that are each other's address, source or destination, which random ones rarely are.
TEST_F(Differential, AwkwardOperands) {
  const std::vector<std::vector<std::uint8_t>> instructions = {
      {0x8F, 0x04, 0x24},              // pop [rsp]
      {0x8F, 0x44, 0x24, 0x18},        // pop [rsp + 24]
      {0x66, 0x8F, 0x44, 0x24, 0x18},  // pop word [rsp + 24]
      {0x8F, 0x44, 0x64, 0x10},        // pop [rsp + 16], SIB without index
      {0xFF, 0x34, 0x24},              // push [rsp]
      {0xFF, 0x74, 0x24, 0x08},        // push [rsp + 8]
      {0x54},
      {0x5C},
      {0x66, 0x54},
      {0x66, 0x5C},              // push rsp, pop rsp
      {0x48, 0x87, 0x24, 0x24},  // xchg [rsp], rsp
      {0x48, 0x87, 0x1B},        // xchg [rbx], rbx
      {0x48, 0x0F, 0xC1, 0x1B},  // xadd [rbx], rbx
      {0x48, 0x0F, 0xC1, 0xDB},  // xadd rbx, rbx
      {0x0F, 0xC0, 0xFB},        // xadd bl, bh
      {0x0F, 0xB1, 0x08},        // cmpxchg [rax], ecx
      {0x0F, 0xB1, 0xC8},        // cmpxchg eax, ecx
      {0x0F, 0xB1, 0xC0},        // cmpxchg eax, eax
      {0x48, 0x0F, 0xB1, 0xC1},  // cmpxchg rcx, rax
      {0x0F, 0xC7, 0x0B},
      {0x0F, 0xC7, 0x0A},  // cmpxchg8b [rbx], [rdx]
      {0x48, 0x8B, 0x1B},  // mov rbx, [rbx]
      {0x8A, 0x3B},
      {0x88, 0x3B},                    // mov bh, [rbx]; mov [rbx], bh
      {0xC4, 0xE2, 0xFB, 0xF6, 0xC3},  // mulx rax, rax, rbx
      {0xC4, 0xE2, 0xEB, 0xF6, 0xCA},  // mulx rcx, rdx, rdx
      {0x48, 0xF7, 0xE2},
      {0x48, 0xF7, 0xE8},  // mul rdx, imul rax
      {0x48, 0xF7, 0xF2},
      {0x48, 0xF7, 0xF8},  // div rdx, idiv rax
      {0xF6, 0xF4},
      {0xF6, 0xE4},  // div ah, mul ah
      {0x48, 0x0F, 0xBC, 0xC0},
      {0x0F, 0xBD, 0xC3},        // bsf rax, rax; bsr eax, ebx
      {0x48, 0x0F, 0x44, 0x1B},  // cmovz rbx, [rbx]
      {0xD3, 0xE1},
      {0xD2, 0xE1},
      {0xD2, 0xE5},              // shl ecx, cl; shl cl, cl; shl ch, cl
      {0x48, 0x0F, 0xA5, 0xC9},  // shld rcx, rcx, cl
      {0x48, 0x0F, 0xAB, 0x1B},  // bts [rbx], rbx
      {0xC9},
      {0xC8, 0x10, 0x00, 0x05},
      {0xC8, 0x10, 0x00, 0x01},
      {0xC8, 0x10, 0x00, 0x00},
      {0x66, 0xC8, 0x10, 0x00, 0x03},
      {0x66, 0xC9},
      {0xF3, 0xA4},
      {0xF3, 0xA5},
      {0xF3, 0x48, 0xAB},
      {0xF3, 0xA6},
      {0xF2, 0xAE},
      {0xF3, 0xAC},
      {0x67, 0xF3, 0xA4},
      {0xF3, 0x66, 0xA7},
      {0xF2, 0xA4},
      {0xD7},
      {0x67, 0xD7}};
  for (const auto& bytes : instructions) {
    for (unsigned n = 0; n < 500 && failures_ < 12; ++n) {
      RandomInstruction i = make_instruction(bytes, guest_.machine.model);
      NativeState before = make_state(rng_, i, NativeOracle::kCode);
      compare(i.bytes, NativeOracle::kCode, before, &i);
    }
  }
}

/// Quotients that just fit and just do not, in every width.
TEST_F(Differential, DivisionEdges) {
  std::vector<std::uint64_t> edges = {0, 1, 2, 3, ~0ULL, ~0ULL - 1};
  for (const unsigned bits : {7U, 8U, 15U, 16U, 31U, 32U, 63U}) {
    edges.insert(edges.end(), {(1ULL << bits) - 1, 1ULL << bits, (1ULL << bits) + 1,
                               0 - (1ULL << bits), ~(1ULL << bits)});
  }
  const std::vector<std::vector<std::uint8_t>> instructions = {
      {0xF6, 0xF1}, {0xF6, 0xF9}, {0x66, 0xF7, 0xF1}, {0x66, 0xF7, 0xF9},
      {0xF7, 0xF1}, {0xF7, 0xF9}, {0x48, 0xF7, 0xF1}, {0x48, 0xF7, 0xF9}};
  for (const std::uint64_t high : edges) {
    for (const std::uint64_t low : edges) {
      for (unsigned n = 0; n < 12 && failures_ < 12; ++n) {
        NativeState before;
        before.gpr[cpu::RAX] = low;
        before.gpr[cpu::RDX] = chance(rng_, 60) ? (low >> 63 != 0 ? ~0ULL : 0) : high;
        before.gpr[cpu::RCX] = chance(rng_, 30) ? ~0ULL : edges[below(rng_, edges.size())];
        before.rflags = 2 | (rng_() & 0x8D5);
        compare(instructions[below(rng_, instructions.size())], NativeOracle::kCode, before);
      }
    }
  }
}

/// 32-bit code: other default sizes, the instructions that 64-bit mode lost, wrapping addresses.
TEST_F(Differential, SingleInstructions32) {
  if (!has_user32()) GTEST_SKIP() << "this host executes no 32-bit code";
  const std::uint64_t cases = setting("STRATA_FUZZ_CASES", 150'000) / 2;
  const InstructionLimits limits{.bits = 32};
  std::map<ZydisMnemonic, unsigned> seen;
  for (std::uint64_t n = 0; n < cases && failures_ < 12; ++n) {
    RandomInstruction i = make_instruction(rng_, guest_.machine.model, limits);
    const std::uint64_t at = NativeOracle::kCode + below(rng_, 0xF00);
    const NativeState before = make_state(rng_, i, at, 32);
    ++seen[i.insn.mnemonic];
    compare(i.bytes, at, before, &i, 32);
  }
  for (const ZydisMnemonic m :
       {ZYDIS_MNEMONIC_AAA, ZYDIS_MNEMONIC_AAS, ZYDIS_MNEMONIC_AAD, ZYDIS_MNEMONIC_AAM,
        ZYDIS_MNEMONIC_DAA, ZYDIS_MNEMONIC_DAS, ZYDIS_MNEMONIC_BOUND, ZYDIS_MNEMONIC_PUSHAD,
        ZYDIS_MNEMONIC_POPAD, ZYDIS_MNEMONIC_PUSHA, ZYDIS_MNEMONIC_SALC, ZYDIS_MNEMONIC_INC}) {
    EXPECT_GE(seen[m], cases / 15'000) << ZydisMnemonicGetString(m);
  }
}

/// Taken or not, near and far within the code, with return addresses on the stack.
TEST_F(Differential, Branches) {
  constexpr std::array<std::uint8_t, 6> kSkipped = {0x41, 0xBF, 1, 2, 3, 4};  // mov r15d, imm32
  const std::vector<std::vector<std::uint8_t>> branches = {
      {0xE2, 6},
      {0xE1, 6},
      {0xE0, 6},
      {0xE3, 6},
      {0x67, 0xE3, 6},
      {0x67, 0xE2, 6},  // LOOP, JRCXZ
      {0xEB, 6},
      {0xE9, 6, 0, 0, 0},
      {0xE8, 6, 0, 0, 0},
      {0xFF, 0xE0},
      {0xFF, 0xD0},  // JMP RAX, CALL RAX
      {0x50, 0xC3},
      {0x50, 0xC2, 0x18, 0x00},  // PUSH RAX; RET
      {0x50, 0xFF, 0x24, 0x24},
      {0x50, 0xFF, 0x14, 0x24}};  // JMP [RSP], CALL [RSP]
  for (unsigned n = 0; n < 20'000 && failures_ < 12; ++n) {
    std::vector<std::uint8_t> code;
    const std::uint64_t pick = below(rng_, branches.size() + 32);
    if (pick < branches.size()) {
      code = branches[pick];
    } else if (pick < branches.size() + 16) {
      code = {static_cast<std::uint8_t>(0x70 + pick - branches.size()), 6};
    } else {
      code = {0x0F, static_cast<std::uint8_t>(0x70 + pick - branches.size()), 6, 0, 0, 0};
    }
    code.insert(code.end(), kSkipped.begin(), kSkipped.end());
    const std::uint64_t at = NativeOracle::kCode + below(rng_, 2) * 0xFF0 + below(rng_, 0x20);
    NativeState before;
    for (std::uint64_t& r : before.gpr) r = interesting_value(rng_);
    before.gpr[cpu::RSP] = usable_rsp(before.gpr[cpu::RSP]);
    before.rflags = 2 | (rng_() & 0x8D5);
    before.gpr[cpu::RAX] = at + code.size();
    before.gpr[cpu::RCX] = chance(rng_, 60) ? below(rng_, 3) : interesting_value(rng_);
    before.gpr[cpu::RSP] = chance(rng_, 90) ? NativeOracle::kData + 0x800 + below(rng_, 0x2000)
                                            : NativeOracle::kReadOnly + below(rng_, 0x2000);
    compare(code, at, before);
  }
}

/// Flags that only later instructions read, and faults in the middle of a block.
TEST_F(Differential, Sequences) {
  const std::uint64_t cases = setting("STRATA_FUZZ_CASES", 150'000) / 3;
  const InstructionLimits limits{.sequence = true, .reach = 1000};
  for (std::uint64_t n = 0; n < cases && failures_ < 12; ++n) {
    std::vector<std::uint8_t> code;
    const std::uint64_t length = 2 + below(rng_, 9);
    RandomInstruction last;
    for (std::uint64_t k = 0; k < length; ++k) {
      last = make_instruction(rng_, guest_.machine.model, limits);
      code.insert(code.end(), last.bytes.begin(), last.bytes.end());
    }
    NativeState before;
    for (std::uint64_t& r : before.gpr) r = interesting_value(rng_);
    before.gpr[cpu::RSP] = usable_rsp(before.gpr[cpu::RSP]);
    before.rflags = 2 | (rng_() & 0x8D5);
    // Now and then part of the reach is in the pages that fault.
    before.gpr[15] = chance(rng_, 15) ? NativeOracle::kReadOnly - below(rng_, 1000)
                                      : NativeOracle::kData + 0x2000;
    compare(code, NativeOracle::kCode + below(rng_, 0x100), before);
  }
}

}  // namespace
}  // namespace strata::interp::test
