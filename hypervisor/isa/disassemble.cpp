#include "isa/disassemble.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "isa/decode.hpp"

namespace strata::isa {
namespace {

std::string line_of(std::span<const std::byte> bytes, std::uint64_t address,
                    std::string_view text) {
  std::string line = fmt::format("  {:016x} ", address);
  for (const std::byte b : bytes) line += fmt::format(" {:02x}", static_cast<unsigned>(b));
  return line + fmt::format("{:{}}{}\n", "", bytes.size() < 10 ? 32 - 3 * bytes.size() : 2, text);
}

}  // namespace

unsigned code_bits(const cpu::VcpuState& state) noexcept {
  const cpu::Segment& code = state.segment[cpu::CS];
  if ((state.efer & cpu::efer::LMA) != 0 && code.long_mode()) return 64;
  const bool protected_mode =
      (state.cr0 & cpu::cr0::PE) != 0 && (state.rflags & cpu::rflags::VM) == 0;
  return protected_mode && code.big() ? 32 : 16;
}

std::string disassemble(std::span<const std::byte> bytes, unsigned bits, std::uint64_t address,
                        unsigned count, const cpu::CpuModel& model) {
  const ZydisDecoder decoder = make_decoder(bits, bits != 16, model);
  ZydisFormatter formatter;
  ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
  std::string text;
  for (; count > 0 && !bytes.empty(); --count) {
    ZydisDecodedInstruction insn;
    std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> operands;
    if (!ZYAN_SUCCESS(decode(decoder, bytes.data(), bytes.size(), insn, operands.data()))) {
      return text + line_of(bytes.first(std::min(bytes.size(), kMaxInstructionBytes)), address,
                            "(no instruction)");
    }
    std::array<char, 128> line{};
    ZydisFormatterFormatInstruction(&formatter, &insn, operands.data(), insn.operand_count_visible,
                                    line.data(), line.size(), address, nullptr);
    text += line_of(bytes.first(insn.length), address, line.data());
    bytes = bytes.subspan(insn.length);
    address += insn.length;
  }
  return text;
}

}  // namespace strata::isa
