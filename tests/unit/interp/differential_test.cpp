// The interpreter against the host's own processor: random instructions with random operands, every
// register, all six arithmetic flags, memory, and where and why it faulted.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "random_code.hpp"

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

/// The oracle and the interpreter side by side, with the same window of memory.
class Differential : public ::testing::Test {
 protected:
  Differential() {
    for (std::byte& b : pattern_) b = static_cast<std::byte>(rng_());
    oracle_.fill_read_only(pattern_.data());
    std::memcpy(guest_.data() + kWindow, pattern_.data(), kPageSize);
  }

  /// Runs both; a difference is a failure with everything needed to repeat it.
  void compare(std::span<const std::uint8_t> code, std::uint64_t at, const NativeState& before) {
    std::memcpy(oracle_.data(), pattern_.data(), kWindow);
    std::memcpy(guest_.data(), pattern_.data(), kWindow);
    NativeState host = before;
    NativeState guest = before;
    oracle_.run(code, at, host);
    guest_.run(code, at, guest);
    const std::string what = differences(host, guest);
    if (what.empty()) {
      faults_ += host.vector >= 0 ? 1 : 0;
      return;
    }
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

  std::string differences(const NativeState& host, const NativeState& guest) {
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
    for (unsigned i = 0; i < 16; ++i) check("r" + std::to_string(i), host.gpr[i], guest.gpr[i]);
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
  for (std::uint64_t n = 0; n < cases && !HasFailure(); ++n) {
    RandomInstruction i = make_instruction(rng_, guest_.machine.model);
    // Sometimes across the page end.
    const std::uint64_t at = chance(rng_, 5) ? NativeOracle::kCode + kPageSize - 1 - below(rng_, 8)
                                             : NativeOracle::kCode + below(rng_, 0xF00);
    const NativeState before = make_state(rng_, i, at);
    ++seen[i.insn.mnemonic];
    compare(i.bytes, at, before);
  }
  EXPECT_GT(faults_, cases / 50);
  EXPECT_LT(faults_, cases / 2);
  for (const ZydisMnemonic m : kRequired) {
    EXPECT_GE(seen[m], cases / 15'000) << ZydisMnemonicGetString(m);
  }
}

/// Flags that only later instructions read, and faults in the middle of a block.
TEST_F(Differential, Sequences) {
  const std::uint64_t cases = setting("STRATA_FUZZ_CASES", 150'000) / 3;
  const InstructionLimits limits{.sequence = true, .reach = 1000};
  for (std::uint64_t n = 0; n < cases && !HasFailure(); ++n) {
    std::vector<std::uint8_t> code;
    const std::uint64_t length = 2 + below(rng_, 9);
    RandomInstruction last;
    for (std::uint64_t k = 0; k < length; ++k) {
      last = make_instruction(rng_, guest_.machine.model, limits);
      code.insert(code.end(), last.bytes.begin(), last.bytes.end());
    }
    NativeState before;
    for (std::uint64_t& r : before.gpr) r = interesting_value(rng_);
    before.rflags = 2 | (rng_() & 0x8D5);
    // Now and then part of the reach is in the pages that fault.
    before.gpr[15] = chance(rng_, 15) ? NativeOracle::kReadOnly - below(rng_, 1000)
                                      : NativeOracle::kData + 0x2000;
    compare(code, NativeOracle::kCode + below(rng_, 0x100), before);
  }
}

}  // namespace
}  // namespace strata::interp::test
