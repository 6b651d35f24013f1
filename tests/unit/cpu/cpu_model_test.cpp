// CPUID's answers: consistent with each other, with what the engine may use, and with the host.
#include "cpu/cpu_model.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "cpu/features.hpp"
#include "cpu/vcpu_state.hpp"
#include "fake_host.hpp"

namespace strata::cpu::test {
namespace {

using ::testing::Contains;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

CpuModel model_on(const HostCpu& host, std::string_view name = "default",
                  std::uint32_t tsc_khz = 2'600'000, std::uint32_t apic_khz = 1'000'000) {
  auto model = CpuModel::by_name(name, {.tsc_khz = tsc_khz, .apic_khz = apic_khz, .host = &host});
  EXPECT_TRUE(model) << model.error().message;
  return std::move(model).value();
}

CpuModel full(std::string_view name = "default") {
  static const FakeHost host = FakeHost::everything();
  return model_on(host, name);
}

std::string text_of(std::initializer_list<std::uint32_t> words) {
  std::string out;
  for (const std::uint32_t w : words) {
    char bytes[4];
    std::memcpy(bytes, &w, 4);
    out.append(bytes, 4);
  }
  return out;
}

TEST(Models, BuiltIn) {
  EXPECT_THAT(CpuModel::names(), UnorderedElementsAre("default", "mitigation-free"));
  for (const auto name : CpuModel::names()) EXPECT_EQ(full(name).name(), name);
}

TEST(Models, Identity) {
  const CpuModel model = full();
  const CpuidResult leaf0 = model.cpuid(0, 0, {});
  EXPECT_EQ(text_of({leaf0.ebx, leaf0.edx, leaf0.ecx}), "GenuineIntel");
  EXPECT_EQ(leaf0.eax, 0x1FU);
  EXPECT_EQ(model.cpuid(1, 0, {}).eax, 0x000406F1U);  // family 6 model 4Fh stepping 1
  std::string brand;
  for (std::uint32_t leaf = 0x80000002; leaf <= 0x80000004; ++leaf) {
    const CpuidResult r = model.cpuid(leaf, 0, {});
    brand += text_of({r.eax, r.ebx, r.ecx, r.edx});
  }
  EXPECT_STREQ(brand.c_str(), "Strata Virtual Processor");
}

/// The list in Linux's cpu_vuln_whitelist has family 6 model 28 as NO_SPECULATION.
TEST(Models, MitigationFree) {
  EXPECT_EQ(full("mitigation-free").cpuid(1, 0, {}).eax, 0x000106CAU);
  const CpuModel model = full("mitigation-free");
  for (const FeatureInfo& info : feature_table()) {
    EXPECT_EQ(model.has(info.feature), full().has(info.feature)) << info.name;
  }
}

TEST(Features, EveryOneIsWhereTheTableSays) {
  for (const auto name : CpuModel::names()) {
    const CpuModel model = full(name);
    for (const FeatureInfo& info : feature_table()) {
      const std::uint32_t value = select(model.cpuid(info.leaf, info.subleaf, {}), info.reg);
      EXPECT_EQ((value >> info.bit & 1) != 0, model.has(info.feature)) << info.name;
    }
  }
}

/// A few positions by hand, against mistakes in the table itself (SDM 2A, CPUID).
TEST(Features, KnownPositions) {
  const CpuModel model = full();
  const CpuidResult one = model.cpuid(1, 0, {});
  EXPECT_EQ(one.ecx & (1U << 31 | 1U << 24 | 1U << 21 | 1U << 17 | 1U << 13), 0x81222000U);
  EXPECT_EQ(one.ecx & (1U << 27), 0U) << "OSXSAVE without CR4.OSXSAVE";
  EXPECT_EQ(one.edx & 0x07808860, 0x07808860U);
  const CpuidResult seven = model.cpuid(7, 0, {});
  EXPECT_EQ(seven.ebx & 0x00140780U & ~(1U << 9), 0x00140580U & ~(1U << 9));
  EXPECT_EQ(seven.ecx, 1U << 2 | 1U << 3) << "UMIP and PKU, nothing else";
  EXPECT_EQ(seven.edx, 1U << 4 | 1U << 14) << "FSRM and SERIALIZE, nothing else";
  EXPECT_EQ(model.cpuid(6, 0, {}).eax, 4U);
  EXPECT_EQ(model.cpuid(0xD, 1, {}).eax, 7U);
  EXPECT_EQ(model.cpuid(0x80000001, 0, {}).edx, 0x2C100800U);
  EXPECT_EQ(model.cpuid(0x80000007, 0, {}).edx, 0x100U);
}

TEST(Features, NoAvx512AndNoCounters) {
  const CpuModel model = full();
  EXPECT_EQ(model.cpuid(7, 0, {}).ebx & (1U << 16 | 1U << 17 | 0xC0000000U), 0U);
  EXPECT_EQ(model.cpuid(7, 1, {}), CpuidResult{});
  EXPECT_EQ(model.cpuid(0xA, 0, {}), CpuidResult{});
  EXPECT_EQ(model.cpuid(0x14, 0, {}), CpuidResult{});
  EXPECT_EQ(model.cpuid(5, 0, {}), CpuidResult{});
}

TEST(Host, OffersEverything) { EXPECT_THAT(full().masked(), IsEmpty()); }

TEST(Host, LacksEverything) {
  const FakeHost host = FakeHost::nothing();
  const CpuModel model = model_on(host);
  for (const FeatureInfo& info : feature_table()) {
    if (info.provider != Provider::engine) {
      EXPECT_FALSE(model.has(info.feature)) << info.name;
    }
  }
  // Emulated whatever the host has.
  for (const Feature f :
       {Feature::pku, Feature::pcid, Feature::invpcid, Feature::smap, Feature::smep, Feature::umip,
        Feature::x2apic, Feature::tsc_deadline, Feature::serialize, Feature::rdtscp,
        Feature::fsgsbase, Feature::nx, Feature::page_1g, Feature::xsave, Feature::sse2}) {
    EXPECT_TRUE(model.has(f)) << name_of(f);
  }
  EXPECT_EQ(model.xcr0_mask(), xstate::kX87 | xstate::kSse | xstate::kPkru);
  EXPECT_THAT(model.masked(), Contains(Feature::rdrand));
}

TEST(Host, MasksExactlyWhatIsMissing) {
  FakeHost host = FakeHost::everything();
  host.with(1, 0, {0, 0, ~(1U << 30 | 1U << 22), ~0U});
  EXPECT_THAT(model_on(host).masked(), UnorderedElementsAre(Feature::rdrand, Feature::movbe));
}

TEST(Host, NeedsFollow) {
  FakeHost host = FakeHost::everything();
  host.with(1, 0, {0, 0, ~(1U << 9), ~0U});  // no SSSE3
  EXPECT_THAT(model_on(host).masked(),
              UnorderedElementsAre(Feature::ssse3, Feature::sse4_1, Feature::sse4_2));
}

TEST(Host, AvxNeedsTheOperatingSystem) {
  for (const std::uint64_t xcr0 : {1ULL, 3ULL, 5ULL}) {
    FakeHost host = FakeHost::everything();
    host.with_xcr0(xcr0);
    const CpuModel model = model_on(host);
    EXPECT_THAT(model.masked(),
                UnorderedElementsAre(Feature::avx, Feature::avx2, Feature::fma, Feature::f16c));
    EXPECT_EQ(model.xcr0_mask() & xstate::kAvx, 0U);
  }
}

TEST(Host, RealOne) {
  const auto model = CpuModel::by_name("default");
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_TRUE(model->has(Feature::lm));
  // The compiler's own view of the same processor.
  EXPECT_EQ(model->has(Feature::sse4_2), __builtin_cpu_supports("sse4.2") != 0);
  EXPECT_EQ(model->has(Feature::avx2), __builtin_cpu_supports("avx2") != 0);
}

TEST(Xsave, StandardSizes) {
  const CpuModel model = full();
  EXPECT_EQ(model.cpuid(0xD, 0, {.xcr0 = 1}), (CpuidResult{0x207, 576, 2696, 0}));
  EXPECT_EQ(model.cpuid(0xD, 0, {.xcr0 = 3}).ebx, 576U);
  EXPECT_EQ(model.cpuid(0xD, 0, {.xcr0 = 7}).ebx, 832U);
  EXPECT_EQ(model.cpuid(0xD, 0, {.xcr0 = 0x203}).ebx, 2696U);
  EXPECT_EQ(model.cpuid(0xD, 0, {.xcr0 = 0x207}).ebx, 2696U);
}

TEST(Xsave, CompactedSizes) {
  const CpuModel model = full();
  EXPECT_EQ(model.cpuid(0xD, 1, {.xcr0 = 3}).ebx, 576U);
  EXPECT_EQ(model.cpuid(0xD, 1, {.xcr0 = 7}).ebx, 832U);
  EXPECT_EQ(model.cpuid(0xD, 1, {.xcr0 = 0x203}).ebx, 584U);
  EXPECT_EQ(model.cpuid(0xD, 1, {.xcr0 = 0x207}).ebx, 840U);
  EXPECT_EQ(model.cpuid(0xD, 1, {.xcr0 = 0x207}).ecx, 0U) << "no supervisor components";
}

TEST(Xsave, Components) {
  const CpuModel model = full();
  EXPECT_EQ(model.cpuid(0xD, 2, {}), (CpuidResult{256, 576, 0, 0}));
  EXPECT_EQ(model.cpuid(0xD, 9, {}), (CpuidResult{8, 2688, 0, 0}));
  for (const std::uint32_t absent : {3U, 4U, 5U, 6U, 7U, 8U, 10U, 63U, 64U, 0xFFFFFFFFU}) {
    EXPECT_EQ(model.cpuid(0xD, absent, {}), CpuidResult{}) << absent;
  }
  // Every component lies in the area that leaf D.0 announces, and none overlaps another.
  std::uint32_t end = 0;
  for (unsigned i = 0; i < 64; ++i) {
    const XstateComponent c = model.xstate_component(i);
    EXPECT_EQ(c.bytes != 0, (model.xcr0_mask() >> i & 1) != 0) << i;
    if (c.bytes == 0) continue;
    EXPECT_GE(c.offset, end);
    end = c.offset + c.bytes;
  }
  EXPECT_EQ(end, model.xsave_bytes(model.xcr0_mask()));
}

TEST(Xsave, PkruWhereTheHostHasIt) {
  FakeHost host = FakeHost::everything();
  host.with(0xD, 9, {8, 2432, 0, 0});  // as AMD's processors do
  const CpuModel model = model_on(host);
  EXPECT_EQ(model.cpuid(0xD, 9, {}).ebx, 2432U);
  EXPECT_EQ(model.cpuid(0xD, 0, {.xcr0 = 0x207}).ebx, 2440U);
  host.with(0xD, 9, {8, 100, 0, 0});  // inside the legacy area: nonsense, not taken over
  EXPECT_EQ(model_on(host).cpuid(0xD, 9, {}).ebx, 2688U);
}

TEST(Dynamic, OsxsaveAndOspke) {
  const CpuModel model = full();
  EXPECT_EQ(model.cpuid(1, 0, {.osxsave = true}).ecx >> 27 & 1, 1U);
  EXPECT_EQ(model.cpuid(7, 0, {.pke = true}).ecx >> 4 & 1, 1U);
  EXPECT_EQ(model.cpuid(7, 0, {}).ecx >> 4 & 1, 0U);
}

TEST(Topology, LeavesAgree) {
  const CpuModel model = full();
  for (const unsigned cpus : {1U, 2U, 3U, 4U, 5U, 8U, 33U, 64U}) {
    unsigned bits = 0;
    while (1U << bits < cpus) ++bits;
    for (std::uint32_t id = 0; id < cpus; ++id) {
      const DynamicState s{.apic_id = id, .cpus = cpus};
      EXPECT_EQ(model.cpuid(1, 0, s).ebx >> 24, id);
      EXPECT_EQ(model.cpuid(1, 0, s).ebx >> 16 & 0xFF, 1U << bits);
      EXPECT_EQ(model.cpuid(1, 0, s).edx >> 28 & 1, cpus > 1 ? 1U : 0U);
      for (const std::uint32_t leaf : {0xBU, 0x1FU}) {
        EXPECT_EQ(model.cpuid(leaf, 0, s), (CpuidResult{0, 1, 0x100, id}));
        EXPECT_EQ(model.cpuid(leaf, 1, s), (CpuidResult{bits, cpus, 0x201, id}));
        EXPECT_EQ(model.cpuid(leaf, 2, s), (CpuidResult{0, 0, 2, id}));
      }
      EXPECT_EQ(model.cpuid(4, 0, s).eax >> 26, (1U << bits) - 1);
      EXPECT_EQ(model.cpuid(4, 0, s).eax >> 14 & 0xFFF, 0U) << "L1 belongs to one";
      EXPECT_EQ(model.cpuid(4, 3, s).eax >> 14 & 0xFFF, (1U << bits) - 1) << "L3 to all";
    }
  }
  // Nonsense from the caller must not be undefined.
  EXPECT_EQ(model.cpuid(0xB, 1, {.cpus = 0}).eax, 0U);
}

TEST(Caches, SizesComeOut) {
  const CpuModel model = full();
  constexpr std::uint32_t kBytes[] = {32 << 10, 32 << 10, 256 << 10, 16 << 20};
  constexpr std::uint32_t kTypes[] = {1, 2, 3, 3};
  for (std::uint32_t i = 0; i < 4; ++i) {
    const CpuidResult r = model.cpuid(4, i, {});
    EXPECT_EQ(r.eax & 0x1F, kTypes[i]);
    EXPECT_EQ(
        ((r.ebx >> 22) + 1) * ((r.ebx >> 12 & 0x3FF) + 1) * ((r.ebx & 0xFFF) + 1) * (r.ecx + 1),
        kBytes[i]);
  }
  EXPECT_EQ(model.cpuid(4, 4, {}), CpuidResult{});
  EXPECT_EQ(model.cpuid(0x80000006, 0, {}).ecx, 256U << 16 | 6U << 12 | 64);
}

/// As Linux computes it: kHz of the crystal times EBX in 32 bits, divided by EAX.
TEST(Frequency, Leaf15) {
  const FakeHost host = FakeHost::everything();
  for (const std::uint32_t tsc_khz : {1'000'000U, 2'445'406U, 2'600'000U, 2'999'998U, 5'123'457U}) {
    for (const std::uint32_t apic_khz : {1'000'000U, 25'000U, 24'000U}) {
      const CpuModel model = model_on(host, "default", tsc_khz, apic_khz);
      const CpuidResult r = model.cpuid(0x15, 0, {});
      ASSERT_NE(r.eax, 0U);
      EXPECT_EQ(r.ecx, apic_khz * 1000);
      ASSERT_LE(std::uint64_t{r.ecx / 1000} * r.ebx, 0xFFFFFFFFU);
      const double khz = double(r.ecx) / 1000 * r.ebx / r.eax;
      EXPECT_NEAR(khz, tsc_khz, tsc_khz * 1e-6);
      EXPECT_EQ(model.cpuid(0x16, 0, {}).eax, (tsc_khz + 500) / 1000);
      EXPECT_EQ(model.cpuid(0x40000010, 0, {}), (CpuidResult{tsc_khz, apic_khz, 0, 0}));
    }
  }
  const CpuModel unknown = model_on(host, "default", 0);
  for (const std::uint32_t leaf : {0x15U, 0x16U, 0x40000010U}) {
    EXPECT_EQ(unknown.cpuid(leaf, 0, {}), CpuidResult{});
  }
  EXPECT_EQ(model_on(host, "default", 2'000'000, 0).cpuid(0x15, 0, {}), CpuidResult{});
}

TEST(Paravirtual, KvmSignatureAndFeatures) {
  const CpuModel model = full();
  const CpuidResult base = model.cpuid(0x40000000, 0, {});
  EXPECT_EQ(text_of({base.ebx, base.ecx, base.edx}), (std::string{"KVMKVMKVM\0\0\0", 12}));
  EXPECT_EQ(base.eax, 0x40000010U);
  EXPECT_EQ(model.cpuid(0x40000001, 0, {}).eax, 1U << 0 | 1U << 1 | 1U << 3 | 1U << 24);
  EXPECT_EQ(model.cpuid(0x40000005, 0, {}), CpuidResult{});
  EXPECT_EQ(model.cpuid(0x400000FF, 0, {}), CpuidResult{});
}

TEST(Leaves, BeyondTheLastAnswerAsTheLastBasicOne) {
  const CpuModel model = full();
  const DynamicState s{.apic_id = 3, .cpus = 4};
  for (const std::uint32_t leaf : {0x20U, 0x3FFFFFFFU, 0x40000100U, 0x80000009U, 0xFFFFFFFFU}) {
    EXPECT_EQ(model.cpuid(leaf, 1, s), model.cpuid(0x1F, 1, s)) << leaf;
  }
}

TEST(Leaves, AddressSizes) {
  const CpuModel model = full();
  EXPECT_EQ(model.cpuid(0x80000008, 0, {}).eax, 48U << 8 | 40U);
  EXPECT_EQ(model.maxphyaddr(), 40U);
  EXPECT_EQ(model.cpuid(0x80000000, 0, {}).eax, 0x80000008U);
}

TEST(Masks, FollowTheFeatures) {
  const CpuModel model = full();
  EXPECT_EQ(model.cr4_mask() & (cr4::LA57 | cr4::VME | cr4::PVI), 0U);
  constexpr std::uint64_t kAll = cr4::TSD | cr4::DE | cr4::PSE | cr4::PAE | cr4::MCE | cr4::PGE |
                                 cr4::PCE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::UMIP |
                                 cr4::FSGSBASE | cr4::PCIDE | cr4::OSXSAVE | cr4::SMEP | cr4::SMAP |
                                 cr4::PKE;
  EXPECT_EQ(model.cr4_mask(), kAll);
  EXPECT_EQ(model.efer_mask(), efer::SCE | efer::LME | efer::LMA | efer::NXE);
  EXPECT_EQ(model.xcr0_mask(), 0x207U);
}

}  // namespace
}  // namespace strata::cpu::test
