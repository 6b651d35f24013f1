#include "engines/interp/x87_state.hpp"

#include <algorithm>

namespace strata::interp {
namespace {

struct alignas(16) FxsaveArea {
  std::array<std::byte, 512> bytes{};
};

}  // namespace

void X87Image::set_top(unsigned top) noexcept {
  const unsigned by = (top - this->top()) & 7U;
  const auto first = bytes.begin() + fx::kSt;
  // ST(i) was physical register old + i and is now new + i: what was ST(i + by) becomes ST(i).
  std::rotate(first, first + static_cast<std::ptrdiff_t>(by * fx::kStStride), bytes.end());
  const unsigned fsw = get<std::uint16_t>(fx::kFsw);
  set(fx::kFsw, static_cast<std::uint16_t>((fsw & ~0x3800U) | (top & 7U) << 11));
}

void X87Image::update_summary() noexcept {
  const unsigned fcw = get<std::uint16_t>(fx::kFcw);
  unsigned fsw = get<std::uint16_t>(fx::kFsw) & ~0x8080U;
  if ((fsw & ~fcw & 0x3FU) != 0) fsw |= 0x8080U;
  set(fx::kFsw, static_cast<std::uint16_t>(fsw));
}

X87Image initial_x87() noexcept {
  X87Image image;
  image.set<std::uint16_t>(fx::kFcw, 0x037F);
  return image;
}

void canonicalise_x87(X87Image& image) noexcept {
  const auto fop = static_cast<std::uint16_t>(image.get<std::uint16_t>(fx::kFop) & 0x7FFU);
  const auto fip = image.get<std::uint64_t>(fx::kFip);
  const auto fdp = image.get<std::uint64_t>(fx::kFdp);
  FxsaveArea area;
  std::memcpy(area.bytes.data(), image.bytes.data(), kX87Bytes);
  // FXRSTOR loads MXCSR and XMM0-15 too; the former gets its own value back.
  asm volatile(
      "stmxcsr 24(%0)\n\t"
      "fxrstor64 (%0)\n\t"
      "fxsave64 (%0)\n\t"
      "fninit"
      :
      : "r"(area.bytes.data())
      : "memory", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)", "xmm0",
        "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
        "xmm12", "xmm13", "xmm14", "xmm15");
  std::memcpy(image.bytes.data(), area.bytes.data(), kX87Bytes);
  // Whether FXSAVE writes the pointers without a pending exception depends on the host; the guest
  // sees its own in any case.
  image.set(fx::kFop, fop);
  image.set(fx::kFip, fip);
  image.set(fx::kFdp, fdp);
  image.set<std::uint64_t>(fx::kMxcsr, 0);
}

X87Image get_x87(const Core& core) noexcept {
  X87Image image;
  std::memcpy(image.bytes.data(), core.arch.vector.legacy.data(), kX87Bytes);
  image.set<std::uint64_t>(fx::kMxcsr, 0);
  return image;
}

void set_x87(Core& core, const X87Image& image) noexcept {
  std::byte* legacy = core.arch.vector.legacy.data();
  std::memcpy(legacy, image.bytes.data(), fx::kMxcsr);
  std::memcpy(legacy + fx::kSt, image.bytes.data() + fx::kSt, kX87Bytes - fx::kSt);
}

std::uint64_t xstate_in_use(const Core& core) noexcept {
  namespace xstate = cpu::xstate;
  std::uint64_t xmm = 0;
  std::uint64_t upper = 0;
  for (const VectorRegister& r : core.arch.vector.ymm) {
    xmm |= r[0] | r[1];
    upper |= r[2] | r[3];
  }
  return (get_x87(core) != initial_x87() ? xstate::kX87 : 0) | (xmm != 0 ? xstate::kSse : 0) |
         (upper != 0 ? xstate::kAvx : 0) | (core.arch.pkru != 0 ? xstate::kPkru : 0);
}

}  // namespace strata::interp
