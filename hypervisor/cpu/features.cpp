#include "cpu/features.hpp"

#include <array>

namespace strata::cpu {
namespace {

using enum CpuidRegister;
using F = Feature;
constexpr auto kHost = Provider::host;
constexpr auto kHostAvx = Provider::host_avx;
constexpr auto kEngine = Provider::engine;
constexpr std::uint32_t kExt1 = 0x80000001;

// Bits from SDM 2A, CPUID, tables 3-10, 3-11 and 3-8; needs from SDM 1 chapters 13 to 15.
constexpr std::array kFeatures{
    FeatureInfo{F::fpu, "fpu", 1, 0, edx, 0},
    FeatureInfo{F::vme, "vme", 1, 0, edx, 1},
    FeatureInfo{F::de, "de", 1, 0, edx, 2},
    FeatureInfo{F::pse, "pse", 1, 0, edx, 3},
    FeatureInfo{F::tsc, "tsc", 1, 0, edx, 4},
    FeatureInfo{F::msr, "msr", 1, 0, edx, 5},
    FeatureInfo{F::pae, "pae", 1, 0, edx, 6},
    FeatureInfo{F::mce, "mce", 1, 0, edx, 7},
    FeatureInfo{F::cx8, "cx8", 1, 0, edx, 8},
    FeatureInfo{F::apic, "apic", 1, 0, edx, 9},
    FeatureInfo{F::sysenter, "sysenter", 1, 0, edx, 11},
    FeatureInfo{F::mtrr, "mtrr", 1, 0, edx, 12},
    FeatureInfo{F::pge, "pge", 1, 0, edx, 13},
    FeatureInfo{F::mca, "mca", 1, 0, edx, 14, kEngine, F::mce},
    FeatureInfo{F::cmov, "cmov", 1, 0, edx, 15},
    FeatureInfo{F::pat, "pat", 1, 0, edx, 16},
    FeatureInfo{F::pse36, "pse36", 1, 0, edx, 17, kEngine, F::pse},
    FeatureInfo{F::clflush, "clflush", 1, 0, edx, 19},
    FeatureInfo{F::mmx, "mmx", 1, 0, edx, 23, kEngine, F::fpu},
    FeatureInfo{F::fxsr, "fxsr", 1, 0, edx, 24, kEngine, F::fpu},
    FeatureInfo{F::sse, "sse", 1, 0, edx, 25, kEngine, F::fxsr},
    FeatureInfo{F::sse2, "sse2", 1, 0, edx, 26, kEngine, F::sse},
    FeatureInfo{F::self_snoop, "self_snoop", 1, 0, edx, 27},
    FeatureInfo{F::htt, "htt", 1, 0, edx, 28},
    FeatureInfo{F::sse3, "sse3", 1, 0, ecx, 0, kHost, F::sse2},
    FeatureInfo{F::pclmulqdq, "pclmulqdq", 1, 0, ecx, 1, kHost, F::sse2},
    FeatureInfo{F::monitor, "monitor", 1, 0, ecx, 3},
    FeatureInfo{F::ssse3, "ssse3", 1, 0, ecx, 9, kHost, F::sse3},
    FeatureInfo{F::fma, "fma", 1, 0, ecx, 12, kHostAvx, F::avx},
    FeatureInfo{F::cx16, "cx16", 1, 0, ecx, 13, kHost, F::cx8},
    FeatureInfo{F::pcid, "pcid", 1, 0, ecx, 17, kEngine, F::lm},
    FeatureInfo{F::sse4_1, "sse4_1", 1, 0, ecx, 19, kHost, F::ssse3},
    FeatureInfo{F::sse4_2, "sse4_2", 1, 0, ecx, 20, kHost, F::sse4_1},
    FeatureInfo{F::x2apic, "x2apic", 1, 0, ecx, 21, kEngine, F::apic},
    FeatureInfo{F::movbe, "movbe", 1, 0, ecx, 22, kHost},
    FeatureInfo{F::popcnt, "popcnt", 1, 0, ecx, 23, kHost},
    FeatureInfo{F::tsc_deadline, "tsc_deadline", 1, 0, ecx, 24, kEngine, F::apic},
    FeatureInfo{F::aes, "aes", 1, 0, ecx, 25, kHost, F::sse2},
    FeatureInfo{F::xsave, "xsave", 1, 0, ecx, 26, kEngine, F::fxsr},
    FeatureInfo{F::avx, "avx", 1, 0, ecx, 28, kHostAvx, F::xsave},
    FeatureInfo{F::f16c, "f16c", 1, 0, ecx, 29, kHostAvx, F::avx},
    FeatureInfo{F::rdrand, "rdrand", 1, 0, ecx, 30, kHost},
    FeatureInfo{F::hypervisor, "hypervisor", 1, 0, ecx, 31},
    FeatureInfo{F::arat, "arat", 6, 0, eax, 2, kEngine, F::apic},
    FeatureInfo{F::fsgsbase, "fsgsbase", 7, 0, ebx, 0, kEngine, F::lm},
    FeatureInfo{F::tsc_adjust, "tsc_adjust", 7, 0, ebx, 1, kEngine, F::tsc},
    FeatureInfo{F::bmi1, "bmi1", 7, 0, ebx, 3, kHost},
    FeatureInfo{F::avx2, "avx2", 7, 0, ebx, 5, kHostAvx, F::avx},
    FeatureInfo{F::smep, "smep", 7, 0, ebx, 7},
    FeatureInfo{F::bmi2, "bmi2", 7, 0, ebx, 8, kHost},
    FeatureInfo{F::erms, "erms", 7, 0, ebx, 9},
    FeatureInfo{F::invpcid, "invpcid", 7, 0, ebx, 10},
    FeatureInfo{F::rdseed, "rdseed", 7, 0, ebx, 18, kHost},
    FeatureInfo{F::adx, "adx", 7, 0, ebx, 19, kHost},
    FeatureInfo{F::smap, "smap", 7, 0, ebx, 20},
    FeatureInfo{F::clflushopt, "clflushopt", 7, 0, ebx, 23, kEngine, F::clflush},
    FeatureInfo{F::clwb, "clwb", 7, 0, ebx, 24, kEngine, F::clflush},
    FeatureInfo{F::sha, "sha", 7, 0, ebx, 29, kHost, F::sse2},
    FeatureInfo{F::umip, "umip", 7, 0, ecx, 2},
    FeatureInfo{F::pku, "pku", 7, 0, ecx, 3, kEngine, F::lm},
    FeatureInfo{F::rdpid, "rdpid", 7, 0, ecx, 22},
    FeatureInfo{F::fsrm, "fsrm", 7, 0, edx, 4},
    FeatureInfo{F::serialize, "serialize", 7, 0, edx, 14},
    FeatureInfo{F::md_clear, "md_clear", 7, 0, edx, 10},
    FeatureInfo{F::spec_ctrl, "spec_ctrl", 7, 0, edx, 26},
    FeatureInfo{F::arch_capabilities, "arch_capabilities", 7, 0, edx, 29},
    FeatureInfo{F::xsaveopt, "xsaveopt", 0xD, 1, eax, 0, kEngine, F::xsave},
    FeatureInfo{F::xsavec, "xsavec", 0xD, 1, eax, 1, kEngine, F::xsave},
    FeatureInfo{F::xgetbv1, "xgetbv1", 0xD, 1, eax, 2, kEngine, F::xsave},
    FeatureInfo{F::lahf, "lahf", kExt1, 0, ecx, 0},
    FeatureInfo{F::lzcnt, "lzcnt", kExt1, 0, ecx, 5, kHost},
    FeatureInfo{F::prefetchw, "prefetchw", kExt1, 0, ecx, 8},
    FeatureInfo{F::syscall, "syscall", kExt1, 0, edx, 11, kEngine, F::lm},
    FeatureInfo{F::nx, "nx", kExt1, 0, edx, 20, kEngine, F::pae},
    FeatureInfo{F::page_1g, "page_1g", kExt1, 0, edx, 26, kEngine, F::lm},
    FeatureInfo{F::rdtscp, "rdtscp", kExt1, 0, edx, 27, kEngine, F::tsc},
    FeatureInfo{F::lm, "lm", kExt1, 0, edx, 29, kEngine, F::pae},
    FeatureInfo{F::invariant_tsc, "invariant_tsc", 0x80000007, 0, edx, 8, kEngine, F::tsc},
};

constexpr bool in_enum_order() {
  for (std::size_t i = 0; i < kFeatures.size(); ++i) {
    if (static_cast<std::size_t>(kFeatures[i].feature) != i) return false;
  }
  return kFeatures.size() == kFeatureCount;
}
static_assert(in_enum_order(), "kFeatures has one entry a Feature, in order");

}  // namespace

std::span<const FeatureInfo> feature_table() noexcept { return kFeatures; }

std::string_view name_of(Feature feature) noexcept {
  return kFeatures[static_cast<std::size_t>(feature)].name;
}

std::optional<Feature> feature_named(std::string_view name) noexcept {
  for (const FeatureInfo& info : kFeatures) {
    if (info.name == name) return info.feature;
  }
  return std::nullopt;
}

}  // namespace strata::cpu
