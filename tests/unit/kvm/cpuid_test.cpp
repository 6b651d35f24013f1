#include "engines/kvm/cpuid.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace strata::kvm {
namespace {

using Entries = std::vector<kvm_cpuid_entry2>;

kvm_cpuid_entry2 entry(std::uint32_t leaf, std::uint32_t index, std::uint32_t eax,
                       std::uint32_t ebx, std::uint32_t ecx, std::uint32_t edx) {
  kvm_cpuid_entry2 e{};
  e.function = leaf;
  e.index = index;
  e.eax = eax;
  e.ebx = ebx;
  e.ecx = ecx;
  e.edx = edx;
  return e;
}

/// A host that can do everything; AVX at 576, PKRU where this host has it.
Entries capable_host() {
  return {entry(1, 0, 0, 0, ~0U, ~0U),         entry(7, 0, 2, ~0U, ~0U, ~0U),
          entry(0xD, 0, 0x2E7, 0, 0, 0),       entry(0xD, 1, 0xF, 99, 99, 99),
          entry(0xD, 2, 256, 576, 0, 0),       entry(0xD, 5, 64, 832, 0, 0),
          entry(0xD, 9, 8, 2432, 0, 0),        entry(0x8000'0001, 0, 0, 0, ~0U, ~0U),
          entry(0x8000'0007, 0, 0, 0, 0, ~0U), entry(0x8000'0008, 0, 0, ~0U, 0, 0)};
}

class KvmCpuid : public testing::Test {
 protected:
  const cpu::CpuModel model = *cpu::CpuModel::by_name("default");
  const cpu::DynamicState state{.apic_id = 3, .cpus = 4};

  static const kvm_cpuid_entry2* find(const Entries& entries, std::uint32_t leaf,
                                      std::uint32_t index = 0) {
    const auto found = std::find_if(entries.begin(), entries.end(), [&](const auto& e) {
      return e.function == leaf && e.index == index;
    });
    return found == entries.end() ? nullptr : &*found;
  }
};

TEST_F(KvmCpuid, OnACapableHostFeaturesAreTheModels) {
  const Entries guest = guest_cpuid(model, state, capable_host());
  for (const std::uint32_t leaf : {0U, 1U, 7U, 0x4000'0001U, 0x8000'0001U, 0x8000'0007U}) {
    const auto* e = find(guest, leaf);
    ASSERT_NE(e, nullptr) << leaf;
    const cpu::CpuidResult wanted = model.cpuid(leaf, 0, state);
    EXPECT_EQ(e->ebx, wanted.ebx) << leaf;
    EXPECT_EQ(e->ecx, wanted.ecx) << leaf;
    EXPECT_EQ(e->edx, wanted.edx) << leaf;
  }
  EXPECT_EQ(find(guest, 1)->ebx >> 24, 3U) << "the APIC id";
}

TEST_F(KvmCpuid, WhatTheHostLacksIsTakenAwayAndWhatTheVmmAnswersStays) {
  Entries poor = capable_host();
  for (auto& e : poor) e.ebx = e.ecx = e.edx = 0;
  const Entries guest = guest_cpuid(model, state, poor);
  EXPECT_EQ(find(guest, 1)->ecx, 1U << 21 | 1U << 24 | 1U << 31);
  EXPECT_EQ(find(guest, 1)->edx & ~(1U << 28), 1U << 9);
  EXPECT_EQ(find(guest, 7)->ebx, 0U);
  EXPECT_EQ(find(guest, 0x8000'0001)->edx, 0U);
  EXPECT_EQ(find(guest, 0x8000'0007)->edx, 0U);
  EXPECT_EQ(find(guest, 0xD), nullptr) << "no XSAVE, no layout";
}

TEST_F(KvmCpuid, TheXsaveLayoutIsTheHosts) {
  const Entries guest = guest_cpuid(model, state, capable_host());
  const auto* all = find(guest, 0xD);
  ASSERT_NE(all, nullptr);
  EXPECT_EQ(all->eax, 0x207U) << "no component that the model has not";
  EXPECT_EQ(all->ecx, 2440U);
  ASSERT_NE(find(guest, 0xD, 9), nullptr);
  EXPECT_EQ(find(guest, 0xD, 9)->ebx, 2432U);
  EXPECT_EQ(find(guest, 0xD, 5), nullptr);
  const XsaveLayout layout = xsave_layout(capable_host());
  EXPECT_EQ(layout.components, 0x207U);
  EXPECT_EQ(layout.pkru_offset, 2432U);
}

TEST_F(KvmCpuid, IndexedLeavesEndWithTheirEmptyOne) {
  const Entries guest = guest_cpuid(model, state, capable_host());
  std::uint32_t last = 0;
  for (const auto& e : guest) {
    if (e.function != 4) continue;
    EXPECT_EQ(e.flags, static_cast<std::uint32_t>(KVM_CPUID_FLAG_SIGNIFCANT_INDEX));
    last = e.index;
  }
  EXPECT_EQ(find(guest, 4, last)->eax & 0x1F, 0U);
  EXPECT_NE(find(guest, 4, last - 1)->eax & 0x1F, 0U);
}

}  // namespace
}  // namespace strata::kvm
