#include "engines/interp/x87_env.hpp"

#include <algorithm>

#include "engines/interp/x87_state.hpp"

namespace strata::interp {
namespace {

/// The four layouts (SDM 1 figures 8-9 to 8-12). Real-address mode and virtual-8086 mode store
/// linear addresses in pieces, protected mode offset and selector.
struct Layout {
  bool wide = false;       ///< 32-bit operand size: seven doublewords, else seven words
  bool addresses = false;  ///< real-address or virtual-8086 mode
  [[nodiscard]] unsigned bytes() const noexcept { return wide ? 28 : 14; }
};

inline constexpr std::uint8_t kWideOperand = 1;
inline constexpr unsigned kRegisterBytes = 80;
inline constexpr unsigned kMaxBytes = 28 + kRegisterBytes;
using Memory = std::array<std::byte, kMaxBytes>;

Layout layout_of(const Core& core, const Uop* u) noexcept {
  const bool real =
      (core.arch.cr0 & cpu::cr0::PE) == 0 || (core.rflags_other & cpu::rflags::VM) != 0;
  return {(u->aux & kWideOperand) != 0, real};
}

/// One register's tag: 0 valid, 1 zero, 2 special (SDM 1 8.1.7).
unsigned tag_of(std::uint64_t mantissa, std::uint16_t sign_exponent) noexcept {
  const unsigned exponent = sign_exponent & 0x7FFFU;
  if (exponent == 0) return mantissa == 0 ? 1 : 2;
  if (exponent == 0x7FFF) return 2;
  return mantissa >> 63 != 0 ? 0 : 2;
}

/// FXSAVE keeps one bit a physical register; the tags are found again from the contents
/// (SDM 1 10.5.1.2).
std::uint16_t full_tags(const X87Image& image) noexcept {
  const unsigned present = image.get<std::uint8_t>(fx::kFtw);
  unsigned tags = 0;
  for (unsigned physical = 0; physical < 8; ++physical) {
    unsigned tag = 3;
    if ((present >> physical & 1) != 0) {
      const std::size_t at = fx::kSt + fx::kStStride * ((physical - image.top()) & 7U);
      tag = tag_of(image.get<std::uint64_t>(at), image.get<std::uint16_t>(at + 8));
    }
    tags |= tag << (2 * physical);
  }
  return static_cast<std::uint16_t>(tags);
}

std::uint8_t abridged_tags(std::uint16_t tags) noexcept {
  unsigned present = 0;
  for (unsigned i = 0; i < 8; ++i) present |= ((tags >> (2 * i) & 3U) != 3 ? 1U : 0U) << i;
  return static_cast<std::uint8_t>(present);
}

/// The environment's seven fields, by position.
using Fields = std::array<std::uint32_t, 7>;
enum FieldName : std::uint8_t { kControl, kStatus, kTags, kIp, kIpHigh, kData, kDataHigh };

Fields fields_of(const X87Image& image, const Layout& layout) noexcept {
  const auto ip = static_cast<std::uint32_t>(image.get<std::uint64_t>(fx::kFip));
  const auto data = static_cast<std::uint32_t>(image.get<std::uint64_t>(fx::kFdp));
  const std::uint32_t opcode = image.get<std::uint16_t>(fx::kFop) & 0x7FFU;
  Fields f{};
  // What lies above the 16-bit fields of the 32-bit layouts is written as ones.
  f[kControl] = 0xFFFF0000U | image.get<std::uint16_t>(fx::kFcw);
  f[kStatus] = 0xFFFF0000U | image.get<std::uint16_t>(fx::kFsw);
  f[kTags] = 0xFFFF0000U | full_tags(image);
  if (!layout.addresses) {
    // Selectors are not kept (CPUID.7:EBX[13]).
    f[kIp] = ip;
    f[kIpHigh] = layout.wide ? opcode << 16 : 0;
    f[kData] = data;
    f[kDataHigh] = 0xFFFF0000U;
  } else if (layout.wide) {
    f[kIp] = 0xFFFF0000U | (ip & 0xFFFFU);
    f[kIpHigh] = (ip >> 16) << 12 | opcode;
    f[kData] = 0xFFFF0000U | (data & 0xFFFFU);
    f[kDataHigh] = (data >> 16) << 12;
  } else {
    f[kIp] = ip;
    f[kIpHigh] = (ip >> 4 & 0xF000U) | opcode;
    f[kData] = data;
    f[kDataHigh] = data >> 4 & 0xF000U;
  }
  return f;
}

void write_fields(const Fields& f, const Layout& layout, Memory& out) noexcept {
  for (std::size_t i = 0; i < f.size(); ++i) {
    const std::size_t size = layout.wide ? 4 : 2;
    std::memcpy(out.data() + i * size, &f[i], size);
  }
}

Fields read_fields(const Layout& layout, const Memory& in) noexcept {
  Fields f{};
  for (std::size_t i = 0; i < f.size(); ++i) {
    const std::size_t size = layout.wide ? 4 : 2;
    std::memcpy(&f[i], in.data() + i * size, size);
  }
  return f;
}

/// Loads everything but the data registers, which stay in their physical places.
void apply_fields(X87Image& image, const Fields& f, const Layout& layout) noexcept {
  image.set_top(f[kStatus] >> 11 & 7U);
  image.set(fx::kFcw, canonical_fcw(static_cast<std::uint16_t>(f[kControl])));
  image.set(fx::kFsw, static_cast<std::uint16_t>(f[kStatus]));
  image.set(fx::kFtw, abridged_tags(static_cast<std::uint16_t>(f[kTags])));
  std::uint64_t ip = f[kIp];
  std::uint64_t data = f[kData];
  std::uint32_t opcode = 0;
  if (!layout.addresses) {
    opcode = layout.wide ? f[kIpHigh] >> 16 & 0x7FFU : 0;
  } else if (layout.wide) {
    ip = (ip & 0xFFFFU) | (f[kIpHigh] >> 12 & 0xFFFFU) << 16;
    data = (data & 0xFFFFU) | (f[kDataHigh] >> 12 & 0xFFFFU) << 16;
    opcode = f[kIpHigh] & 0x7FFU;
  } else {
    ip |= (f[kIpHigh] & 0xF000U) << 4;
    data |= (f[kDataHigh] & 0xF000U) << 4;
    opcode = f[kIpHigh] & 0x7FFU;
  }
  image.set(fx::kFip, ip);
  image.set(fx::kFdp, data);
  image.set(fx::kFop, static_cast<std::uint16_t>(opcode));
  image.update_summary();
}

const Uop* fnstenv(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::x87>(core); why != 0) return core.fault(u, why);
  const Layout layout = layout_of(core, u);
  X87Image image = get_x87(core);
  Memory memory;
  write_fields(fields_of(image, layout), layout, memory);
  if (!core.store_bytes(core.ea(u), memory.data(), layout.bytes())) return refuse(core, u);
  // All exceptions are masked afterwards (SDM 2A, FSTENV).
  image.set(fx::kFcw, static_cast<std::uint16_t>(image.get<std::uint16_t>(fx::kFcw) | 0x3FU));
  image.update_summary();
  set_x87(core, image);
  return u + 1;
}

const Uop* fldenv(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::x87_waiting>(core); why != 0) return core.fault(u, why);
  const Layout layout = layout_of(core, u);
  Memory memory;
  if (!core.load_bytes(core.ea(u), memory.data(), layout.bytes())) return refuse(core, u);
  X87Image image = get_x87(core);
  apply_fields(image, read_fields(layout, memory), layout);
  set_x87(core, image);
  return u + 1;
}

const Uop* fnsave(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::x87>(core); why != 0) return core.fault(u, why);
  const Layout layout = layout_of(core, u);
  X87Image image = get_x87(core);
  Memory memory;
  write_fields(fields_of(image, layout), layout, memory);
  for (std::size_t i = 0; i < 8; ++i) {
    std::memcpy(memory.data() + layout.bytes() + 10 * i,
                image.bytes.data() + fx::kSt + fx::kStStride * i, 10);
  }
  const unsigned size = layout.bytes() + kRegisterBytes;
  if (!core.store_bytes(core.ea(u), memory.data(), size)) return refuse(core, u);
  // And then as FNINIT.
  image.set_top(0);
  const X87Image initial = initial_x87();
  std::copy_n(initial.bytes.begin(), fx::kSt, image.bytes.begin());
  set_x87(core, image);
  return u + 1;
}

const Uop* frstor(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::x87_waiting>(core); why != 0) return core.fault(u, why);
  const Layout layout = layout_of(core, u);
  Memory memory;
  const unsigned size = layout.bytes() + kRegisterBytes;
  if (!core.load_bytes(core.ea(u), memory.data(), size)) return refuse(core, u);
  X87Image image = get_x87(core);
  apply_fields(image, read_fields(layout, memory), layout);
  for (std::size_t i = 0; i < 8; ++i) {
    std::memcpy(image.bytes.data() + fx::kSt + fx::kStStride * i,
                memory.data() + layout.bytes() + 10 * i, 10);
  }
  set_x87(core, image);
  return u + 1;
}

}  // namespace

bool lower_x87_environment(Lowering& l) {
  Handler fn = nullptr;
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_FNSTENV:
      fn = fnstenv;
      break;
    case ZYDIS_MNEMONIC_FLDENV:
      fn = fldenv;
      break;
    case ZYDIS_MNEMONIC_FNSAVE:
      fn = fnsave;
      break;
    case ZYDIS_MNEMONIC_FRSTOR:
      fn = frstor;
      break;
    default:
      return false;
  }
  Uop u = l.step(fn);
  // REX.W does not change the format: 32-bit unless 66h says 16-bit.
  u.aux = l.insn.operand_width == 16 ? 0 : kWideOperand;
  l.emit(u);
  return true;
}

}  // namespace strata::interp
