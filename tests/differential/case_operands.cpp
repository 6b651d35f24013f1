#include "case_operands.hpp"

#include <fmt/format.h>

#include <cstring>

namespace strata::differential {

std::uint64_t CaseOperands::address(const ZydisDecodedOperand& o) const {
  const auto part = [&](ZydisRegister r) -> std::uint64_t {
    if (r == ZYDIS_REGISTER_NONE) return 0;
    if (r == ZYDIS_REGISTER_RIP || r == ZYDIS_REGISTER_EIP) return c_.before.rip + c_.length;
    return register_value(r).lane<std::uint64_t>(0);
  };
  const std::uint64_t at = part(o.mem.base) + part(o.mem.index) * o.mem.scale +
                           static_cast<std::uint64_t>(o.mem.disp.value);
  return d_.insn.address_width == 64 ? at : static_cast<std::uint32_t>(at);
}

OperandBytes CaseOperands::register_value(ZydisRegister r) const {
  OperandBytes out;
  const auto id = static_cast<unsigned>(ZydisRegisterGetId(r) & 15);
  switch (ZydisRegisterGetClass(r)) {
    case ZYDIS_REGCLASS_XMM:
    case ZYDIS_REGCLASS_YMM:
      std::memcpy(out.bytes.data(), c_.before.ymm[id].data(),
                  ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_XMM ? 16 : 32);
      break;
    case ZYDIS_REGCLASS_MMX:
      // MMX registers are the physical ones (SDM 1 9.5), the image is in stack order.
      std::memcpy(out.bytes.data(), c_.before.fx.data() + st_at((id - top_of(c_.before)) & 7), 8);
      break;
    case ZYDIS_REGCLASS_X87:
      std::memcpy(out.bytes.data(), c_.before.fx.data() + st_at(id & 7), 10);
      break;
    case ZYDIS_REGCLASS_GPR8:
      // AH to BH have the numbers of RSP to RDI among the bytes.
      if (r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH) {
        out.bytes[0] = static_cast<std::uint8_t>(c_.before.gpr[id & 3] >> 8);
        break;
      }
      [[fallthrough]];
    default:
      std::memcpy(
          out.bytes.data(),
          &c_.before.gpr[static_cast<unsigned>(ZydisRegisterGetId(
                             ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r))) &
                         15],
          ZydisRegisterGetWidth(ZYDIS_MACHINE_MODE_LONG_64, r) / 8);
  }
  return out;
}

std::optional<OperandBytes> CaseOperands::value(const ZydisDecodedOperand& o) const {
  if (o.type == ZYDIS_OPERAND_TYPE_REGISTER) return register_value(o.reg.value);
  if (o.type != ZYDIS_OPERAND_TYPE_MEMORY || o.mem.type != ZYDIS_MEMOP_TYPE_MEM) return {};
  const std::uint64_t at = address(o);
  const std::uint64_t size = o.size / 8U;
  if (at < kData || at + size > kData + kPatternBytes || size > 32) return {};
  OperandBytes out;
  for (std::uint64_t i = 0; i < size; ++i) {
    const std::uint64_t patch = at + i - c_.patch_at;
    out.bytes[i] = patch < c_.patch.size() ? c_.patch[patch] : pattern_[at + i - kData];
  }
  return out;
}

std::vector<OperandBytes> CaseOperands::sources() const {
  std::vector<OperandBytes> out;
  for (unsigned k = 0; k < d_.insn.operand_count_visible; ++k) {
    const ZydisDecodedOperand& o = d_.ops[k];
    if ((o.actions & ZYDIS_OPERAND_ACTION_MASK_READ) == 0) continue;
    if (o.type == ZYDIS_OPERAND_TYPE_IMMEDIATE) continue;
    const auto v = value(o);
    if (!v) return {};
    out.push_back(*v);
  }
  return out;
}

std::string CaseOperands::describe() const {
  const auto& fx = c_.before.fx;
  std::string out = fmt::format("  mxcsr={:02x}{:02x} fcw={:02x}{:02x} fsw={:02x}{:02x} ftw={:02x}",
                                fx[25], fx[24], fx[1], fx[0], fx[3], fx[2], fx[4]);
  for (unsigned k = 0; k < d_.insn.operand_count_visible; ++k) {
    const ZydisDecodedOperand& o = d_.ops[k];
    const bool indices = o.type == ZYDIS_OPERAND_TYPE_MEMORY && o.mem.type == ZYDIS_MEMOP_TYPE_VSIB;
    const auto v = indices ? std::optional{register_value(o.mem.index)}
                   : o.type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? std::nullopt
                                                            : value(o);
    if (!v) continue;
    out += fmt::format("\n  operand {}:", k + 1);
    const bool stack = o.type == ZYDIS_OPERAND_TYPE_REGISTER &&
                       ZydisRegisterGetClass(o.reg.value) == ZYDIS_REGCLASS_X87;
    const unsigned bytes = stack ? 10 : 32;
    for (unsigned i = bytes; i-- > 0;) {
      out += fmt::format("{}{:02x}", (i + 1) % 8 == 0 ? " " : "", v->bytes[i]);
    }
  }
  out += "\n ";
  for (unsigned i = 0; i < 2; ++i) {
    std::uint64_t significand = 0;
    std::memcpy(&significand, fx.data() + st_at(i), 8);
    out += fmt::format(" st{}={:02x}{:02x}:{:016x}", i, fx[st_at(i) + 9], fx[st_at(i) + 8],
                       significand);
  }
  return out + "\n";
}

}  // namespace strata::differential
