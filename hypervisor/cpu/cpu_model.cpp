#include "cpu/cpu_model.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "cpu/features.hpp"
#include "cpu/vcpu_state.hpp"

namespace strata::cpu {
namespace {

constexpr std::uint32_t kMaxBasic = 0x1F;
constexpr std::uint32_t kHypervisorBase = 0x40000000;
constexpr std::uint32_t kMaxHypervisor = 0x40000010;
constexpr std::uint32_t kMaxExtended = 0x80000008;
constexpr std::uint32_t kLegacyXsaveBytes = 576;  // 512 legacy + 64 header (SDM 1 13.4)
constexpr std::uint32_t kAvxBytes = 256;
constexpr std::uint32_t kPkruBytes = 8;

std::uint32_t word(std::string_view text, std::size_t at) {
  std::uint32_t value = 0;
  if (at < text.size()) {
    std::memcpy(&value, text.data() + at, std::min<std::size_t>(4, text.size() - at));
  }
  return value;
}

/// APIC-id bits that number `cpus` cores.
unsigned id_bits(unsigned cpus) {
  return static_cast<unsigned>(std::bit_width(std::clamp(cpus, 1U, 1U << 16) - 1U));
}

struct Fraction {
  std::uint64_t numerator = 0, denominator = 1;
};

/// The best approximation of a/b with a numerator of at most `limit`, by continued fractions.
Fraction approximate(std::uint64_t a, std::uint64_t b, std::uint64_t limit) {
  Fraction previous{0, 1};
  Fraction current{1, 0};
  while (b != 0) {
    const std::uint64_t quotient = a / b;
    const Fraction next{quotient * current.numerator + previous.numerator,
                        quotient * current.denominator + previous.denominator};
    if (next.numerator > limit) break;
    previous = std::exchange(current, next);
    a = std::exchange(b, a % b);
  }
  return current;
}

}  // namespace

std::uint32_t CpuModel::feature_bits(std::uint32_t leaf, std::uint32_t subleaf,
                                     unsigned reg) const noexcept {
  std::uint32_t bits = 0;
  for (const FeatureInfo& info : feature_table()) {
    if (info.leaf == leaf && info.subleaf == subleaf && static_cast<unsigned>(info.reg) == reg &&
        has(info.feature)) {
      bits |= 1U << info.bit;
    }
  }
  return bits;
}

std::uint64_t CpuModel::cr4_mask() const noexcept {
  std::uint64_t mask = 0;
  const auto allow = [&](Feature f, std::uint64_t bit) { mask |= has(f) ? bit : 0; };
  allow(Feature::vme, cr4::VME | cr4::PVI);
  allow(Feature::tsc, cr4::TSD);
  allow(Feature::de, cr4::DE);
  allow(Feature::pse, cr4::PSE);
  allow(Feature::pae, cr4::PAE);
  allow(Feature::pge, cr4::PGE);
  // CR4.MCE and CR4.PCE exist on every processor that has the register's name for them; software
  // sets them without asking, and without machine checks and counters they do nothing.
  mask |= cr4::MCE | cr4::PCE;
  allow(Feature::fxsr, cr4::OSFXSR);
  allow(Feature::sse, cr4::OSXMMEXCPT);
  allow(Feature::umip, cr4::UMIP);
  allow(Feature::fsgsbase, cr4::FSGSBASE);
  allow(Feature::pcid, cr4::PCIDE);
  allow(Feature::xsave, cr4::OSXSAVE);
  allow(Feature::smep, cr4::SMEP);
  allow(Feature::smap, cr4::SMAP);
  allow(Feature::pku, cr4::PKE);
  return mask;
}

std::uint64_t CpuModel::efer_mask() const noexcept {
  std::uint64_t mask = 0;
  if (has(Feature::syscall)) mask |= efer::SCE;
  if (has(Feature::lm)) mask |= efer::LME | efer::LMA;
  if (has(Feature::nx)) mask |= efer::NXE;
  return mask;
}

std::uint64_t CpuModel::xcr0_mask() const noexcept {
  if (!has(Feature::xsave)) return 0;
  std::uint64_t mask = xstate::kX87 | xstate::kSse;
  if (has(Feature::avx)) mask |= xstate::kAvx;
  if (has(Feature::pku)) mask |= xstate::kPkru;
  return mask;
}

XstateComponent CpuModel::xstate_component(unsigned index) const noexcept {
  if (index >= 64 || (xcr0_mask() >> index & 1) == 0) return {};
  switch (1ULL << index) {
    case xstate::kX87:
      return {0, 160};
    case xstate::kSse:
      return {160, 256};
    case xstate::kAvx:
      return {kLegacyXsaveBytes, kAvxBytes};
    default:
      return {pkru_offset_, kPkruBytes};
  }
}

std::uint32_t CpuModel::xsave_bytes(std::uint64_t mask) const noexcept {
  std::uint32_t end = kLegacyXsaveBytes;
  for (unsigned i = 2; i < 64; ++i) {
    if ((mask >> i & 1) == 0) continue;
    const XstateComponent c = xstate_component(i);
    end = std::max(end, c.offset + c.bytes);
  }
  return end;
}

std::uint32_t CpuModel::xsavec_bytes(std::uint64_t mask) const noexcept {
  // None of the components asks for 64-byte alignment (CPUID.D.n:ECX[1]), so they follow each
  // other directly (SDM 1 13.4.3).
  std::uint32_t end = kLegacyXsaveBytes;
  for (unsigned i = 2; i < 64; ++i) {
    if ((mask >> i & 1) != 0) end += xstate_component(i).bytes;
  }
  return end;
}

CpuidResult CpuModel::cpuid(std::uint32_t leaf, std::uint32_t subleaf,
                            const DynamicState& state) const noexcept {
  if (leaf <= kMaxBasic) return basic(leaf, subleaf, state);
  if (leaf >= kHypervisorBase && leaf < kHypervisorBase + 0x100 && has(Feature::hypervisor)) {
    return paravirtual(leaf);
  }
  if (leaf >= 0x80000000 && leaf <= kMaxExtended) return extended(leaf, state);
  return basic(kMaxBasic, subleaf, state);
}

CpuidResult CpuModel::basic(std::uint32_t leaf, std::uint32_t subleaf,
                            const DynamicState& state) const noexcept {
  switch (leaf) {
    case 0x0:
      return {kMaxBasic, word(vendor_, 0), word(vendor_, 8), word(vendor_, 4)};
    case 0x1:
      return leaf1(state);
    case 0x2:
      return {0x0000FF01, 0, 0, 0};  // one descriptor, FFh: the caches are in leaf 4
    case 0x4:
      return leaf4(subleaf, state.cpus);
    case 0x6:
      return {feature_bits(6, 0, 0), 0, 0, 0};
    case 0x7:
      return leaf7(subleaf, state);
    case 0xB:
    case 0x1F:
      return topology(subleaf, state);
    case 0xD:
      return leaf_d(subleaf, state);
    case 0x15:
    case 0x16:
      return frequency(leaf);
    default:
      return {};  // no MONITOR, PMU (Ah), RDT, SGX, processor trace (14h), ...
  }
}

CpuidResult CpuModel::leaf1(const DynamicState& state) const noexcept {
  const unsigned family = std::min(family_, 15U);
  const unsigned extended_family = family_ - family;
  CpuidResult r;
  r.eax =
      stepping_ | (model_ & 0xF) << 4 | family << 8 | (model_ >> 4) << 16 | extended_family << 20;
  const std::uint32_t clflush_words = has(Feature::clflush) ? 64 / 8 : 0;
  const std::uint32_t logical = std::min(1U << id_bits(state.cpus), 255U);
  r.ebx = clflush_words << 8 | logical << 16 | (state.apic_id & 0xFF) << 24;
  r.ecx = feature_bits(1, 0, 2);
  if (has(Feature::xsave) && state.osxsave) r.ecx |= 1U << 27;
  r.edx = feature_bits(1, 0, 3);
  if (!state.apic) r.edx &= ~(1U << 9);
  if (state.cpus > 1) r.edx |= 1U << 28;  // HTT: the count in EBX is meant
  return r;
}

CpuidResult CpuModel::leaf4(std::uint32_t subleaf, unsigned cpus) const noexcept {
  if (subleaf >= caches_.size()) return {};
  const Cache& c = caches_[subleaf];
  const std::uint32_t ids = (1U << id_bits(cpus)) - 1;
  CpuidResult r;
  constexpr std::uint32_t kSelfInitialising = 1U << 8;
  r.eax = c.type | c.level << 5 | kSelfInitialising | (c.shared ? ids : 0) << 14 |
          std::min(ids, 63U) << 26;
  r.ebx = (c.line - 1) | (c.ways - 1) << 22;
  r.ecx = c.sets - 1;
  return r;
}

CpuidResult CpuModel::leaf7(std::uint32_t subleaf, const DynamicState& s) const noexcept {
  if (subleaf != 0) return {};
  CpuidResult r{0, feature_bits(7, 0, 1), feature_bits(7, 0, 2), feature_bits(7, 0, 3)};
  if (has(Feature::pku) && s.pke) r.ecx |= 1U << 4;  // OSPKE
  return r;
}

CpuidResult CpuModel::topology(std::uint32_t subleaf, const DynamicState& s) const noexcept {
  // One thread a core, all cores in one package: level 0 SMT, level 1 core, then invalid.
  CpuidResult r;
  r.ecx = subleaf & 0xFF;
  r.edx = s.apic_id;
  if (subleaf == 0) {
    r.ebx = 1;
    r.ecx |= 1U << 8;
  } else if (subleaf == 1) {
    r.eax = id_bits(s.cpus);
    r.ebx = s.cpus;
    r.ecx |= 2U << 8;
  }
  return r;
}

CpuidResult CpuModel::leaf_d(std::uint32_t subleaf, const DynamicState& s) const noexcept {
  if (!has(Feature::xsave)) return {};
  const std::uint64_t all = xcr0_mask();
  if (subleaf == 0) {
    return {static_cast<std::uint32_t>(all), xsave_bytes(s.xcr0 & all), xsave_bytes(all),
            static_cast<std::uint32_t>(all >> 32)};
  }
  if (subleaf == 1) {
    // EBX: the area for XCR0 | IA32_XSS in the format of XSAVEC; IA32_XSS does not exist.
    return {feature_bits(0xD, 1, 0), has(Feature::xsavec) ? xsavec_bytes(s.xcr0 & all) : 0, 0, 0};
  }
  const XstateComponent c = xstate_component(subleaf);
  return {c.bytes, c.bytes != 0 ? c.offset : 0, 0, 0};
}

CpuidResult CpuModel::frequency(std::uint32_t leaf) const noexcept {
  if (tsc_khz_ == 0) return {};
  if (leaf == 0x16) {
    const std::uint32_t mhz = std::min<std::uint32_t>((tsc_khz_ + 500) / 1000, 0xFFFF);
    return {mhz, mhz, 100, 0};
  }
  // 15h: TSC = crystal x EBX / EAX, where the crystal also drives the local APIC timer (SDM 3B
  // 19.7.3). Linux multiplies kHz x EBX in 32 bits, so EBX must stay small; the best fraction that
  // does is off by less than one in a million.
  if (apic_khz_ == 0 || apic_khz_ > 4'000'000) return {};
  const Fraction ratio = approximate(tsc_khz_, apic_khz_, 0xFFFFFFFFU / apic_khz_);
  if (ratio.denominator == 0 || ratio.numerator == 0) return {};
  return {static_cast<std::uint32_t>(ratio.denominator),
          static_cast<std::uint32_t>(ratio.numerator), apic_khz_ * 1000, 0};
}

CpuidResult CpuModel::paravirtual(std::uint32_t leaf) const noexcept {
  switch (leaf) {
    case kHypervisorBase: {
      // Linux finds its paravirtual clock behind this signature (virt/kvm/x86/cpuid.rst).
      constexpr std::string_view kSignature = "KVMKVMKVM";
      return {kMaxHypervisor, word(kSignature, 0), word(kSignature, 4), word(kSignature, 8)};
    }
    case kHypervisorBase + 1:
      return {kvm_features_, 0, 0, 0};
    case kMaxHypervisor:
      // Frequencies in kHz, a convention VMware began: TSC, then the local APIC timer's input.
      return tsc_khz_ != 0 ? CpuidResult{tsc_khz_, apic_khz_, 0, 0} : CpuidResult{};
    default:
      return {};
  }
}

CpuidResult CpuModel::extended(std::uint32_t leaf, const DynamicState& s) const noexcept {
  constexpr std::uint32_t kNx = 1U << 20;
  switch (leaf) {
    case 0x80000000:
      return {kMaxExtended, 0, 0, 0};
    case 0x80000001:
      return {0, 0, feature_bits(leaf, 0, 2), feature_bits(leaf, 0, 3) & (s.nx ? ~0U : ~kNx)};
    case 0x80000002:
    case 0x80000003:
    case 0x80000004: {
      const std::size_t at = (leaf - 0x80000002) * 16;
      return {word(brand_, at), word(brand_, at + 4), word(brand_, at + 8), word(brand_, at + 12)};
    }
    case 0x80000006: {
      CpuidResult r;
      for (const Cache& c : caches_) {
        if (c.level != 2) continue;
        const std::uint32_t kib = c.ways * c.line * c.sets / 1024;
        constexpr std::uint32_t kEightWays = 6;  // associativity code (SDM 2A)
        r.ecx = c.line | (c.ways == 8 ? kEightWays : 0xF) << 12 | kib << 16;
      }
      return r;
    }
    case 0x80000007:
      return {0, 0, 0, feature_bits(leaf, 0, 3)};
    case 0x80000008: {
      const std::uint32_t linear = has(Feature::lm) ? 48 : 32;
      return {physical_bits_ | linear << 8, 0, 0, 0};
    }
    default:
      return {};
  }
}

}  // namespace strata::cpu
