// Vector and x87 state between the guest's registers in memory and the host's.
#include <algorithm>
#include <array>
#include <cstring>

#include "cpu/cpu_model.hpp"
#include "engines/bt/translator.hpp"

namespace strata::bt {

namespace {

constexpr std::uint32_t kMxcsrMasks = 0x1F80;
constexpr std::uint16_t kFcwMasks = 0x3F;
constexpr std::size_t kXmmWords = 2;
/// Control and status, tags and registers of an FXSAVE image; between them lie FOP, FIP and FDP,
/// which would tell of the code cache (SDM 1 table 10-2).
constexpr std::size_t kHeadBytes = 6, kRegistersAt = 32, kRegistersEnd = 160, kMxcsrAt = 24;

struct alignas(16) FxImage {
  std::array<std::byte, 512> bytes{};
};

}  // namespace

void Translator::unload() noexcept {
  state_->simd_live = kSimdInMemory;  // the stub has saved them
  if (state_->x87_live == 0) return;
  state_->x87_live = 0;
  FxImage image;
  asm volatile("fxsave64 %0\n\tfninit" : "=m"(image));
  auto& legacy = core_.arch.vector.legacy;
  std::copy_n(image.bytes.begin(), kHeadBytes, legacy.begin());
  std::copy(image.bytes.begin() + kRegistersAt, image.bytes.begin() + kRegistersEnd,
            legacy.begin() + kRegistersAt);
}

std::uint64_t Translator::load_simd(const Site& site, std::uint64_t level) {
  const cpu::VcpuState& s = core_.arch;
  constexpr std::uint64_t kSseAndAvx = 6;
  // SDM 3A 2.5, 13.1; SDM 2A 2.4: whoever would be refused is left to the interpreter, which knows
  // how, and so is who wants to hear of exceptions.
  const bool sse = (s.cr0 & (cpu::cr0::EM | cpu::cr0::TS)) == 0 &&
                   (s.cr4 & cpu::cr4::OSFXSR) != 0 && (s.vector.mxcsr & kMxcsrMasks) == kMxcsrMasks;
  const bool avx =
      sse && (s.cr4 & cpu::cr4::OSXSAVE) != 0 && (s.vector.xcr0 & kSseAndAvx) == kSseAndAvx;
  const SimdLevel allowed = avx ? kSimdAvx : sse ? kSimdSse : kSimdInMemory;
  if (allowed < level) return interpret(site);
  state_->simd_live = allowed;
  const auto& ymm = s.vector.ymm;
  state_->upper_halves = std::any_of(ymm.begin(), ymm.end(), [](const auto& r) {
    return std::any_of(r.begin() + kXmmWords, r.end(), [](std::uint64_t w) { return w != 0; });
  });
  return site.resume;
}

std::uint64_t Translator::load_x87(const Site& site) {
  const cpu::VcpuState& s = core_.arch;
  FxImage image;
  std::copy_n(s.vector.legacy.begin(), kHeadBytes, image.bytes.begin());
  std::copy(s.vector.legacy.begin() + kRegistersAt, s.vector.legacy.begin() + kRegistersEnd,
            image.bytes.begin() + kRegistersAt);
  std::memcpy(image.bytes.data() + kMxcsrAt, &state_->host_mxcsr, sizeof state_->host_mxcsr);
  std::uint16_t fcw = 0;
  std::memcpy(&fcw, image.bytes.data(), sizeof fcw);
  if ((s.cr0 & (cpu::cr0::EM | cpu::cr0::TS)) != 0 || (fcw & kFcwMasks) != kFcwMasks) {
    return interpret(site);
  }
  asm volatile("fxrstor64 %0"
               :
               : "m"(image)
               : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                 "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
  state_->x87_live = 1;
  return site.resume;
}

}  // namespace strata::bt
