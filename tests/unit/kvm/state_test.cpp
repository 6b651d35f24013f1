// VcpuState through KVM's structures and back.
#include "engines/kvm/state.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace strata::kvm {
namespace {

constexpr XsaveLayout kEverything{
    .components = 7 | 1U << 9, .avx_offset = 576, .pkru_offset = 2688};

cpu::VcpuState random_state(std::mt19937_64& random) {
  cpu::VcpuState s;
  for (auto& r : s.gpr) r = random();
  s.rip = random();
  s.rflags = random();
  const auto segment = [&] {
    return cpu::Segment{random(), static_cast<std::uint32_t>(random()),
                        static_cast<std::uint16_t>(random()),
                        static_cast<std::uint32_t>(random() & 0x1'F0FF)};
  };
  for (auto& seg : s.segment) seg = segment();
  s.ldtr = segment();
  s.tr = segment();
  s.gdtr = {random(), static_cast<std::uint16_t>(random())};
  s.idtr = {random(), static_cast<std::uint16_t>(random())};
  s.cr0 = random();
  s.cr2 = random();
  s.cr3 = random();
  s.cr4 = random();
  s.efer = random();
  for (const unsigned i : {0U, 1U, 2U, 3U, 6U, 7U}) s.dr.at(i) = random();
  s.pkru = static_cast<std::uint32_t>(random());
  s.vector.mxcsr = static_cast<std::uint32_t>(random());
  s.vector.xcr0 = random();
  for (auto& y : s.vector.ymm) {
    for (auto& word : y) word = random();
  }
  for (std::size_t i = 0; i < 160; ++i) s.vector.legacy.at(i) = std::byte(random());
  // The image repeats MXCSR and leaves its mask out.
  std::memcpy(s.vector.legacy.data() + 24, &s.vector.mxcsr, 4);
  std::memset(s.vector.legacy.data() + 28, 0, 4);
  return s;
}

TEST(KvmState, EverythingSurvivesTheWayThroughKvmsStructures) {
  std::mt19937_64 random{1};
  for (int i = 0; i < 200; ++i) {
    const cpu::VcpuState before = random_state(random);
    Registers r;
    put_state(before, kEverything, r);
    cpu::VcpuState after;
    get_state(r, kEverything, after);
    ASSERT_EQ(before, after);
  }
}

TEST(KvmState, GeneralRegistersHaveTheirOwnOrder) {
  cpu::VcpuState s;
  s.gpr[cpu::RSP] = 4;
  s.gpr[cpu::RSI] = 6;
  s.gpr[cpu::R15] = 15;
  Registers r;
  put_state(s, kEverything, r);
  EXPECT_EQ(r.general.rsp, 4U);
  EXPECT_EQ(r.general.rsi, 6U);
  EXPECT_EQ(r.general.r15, 15U);
}

TEST(KvmState, SegmentAttributesAreSplitIntoFields) {
  // 64-bit code, DPL 3, accessed: P S DPL L G.
  const kvm_segment k = to_kvm({0x1000, 0xFFFF'FFFF, 0x33, 0xA0FB});
  EXPECT_EQ(k.type, 0xB);
  EXPECT_EQ(k.s, 1);
  EXPECT_EQ(k.dpl, 3);
  EXPECT_EQ(k.present, 1);
  EXPECT_EQ(k.l, 1);
  EXPECT_EQ(k.db, 0);
  EXPECT_EQ(k.g, 1);
  EXPECT_EQ(k.avl, 0);
  EXPECT_EQ(k.unusable, 0);
  EXPECT_EQ(to_kvm(cpu::Segment{}).unusable, 1);
}

TEST(KvmState, AComponentThatXstateBvLeavesOutIsInitial) {
  std::mt19937_64 random{2};
  Registers r;
  put_state(random_state(random), kEverything, r);
  std::memset(r.extended.data() + 128, 0, 8);
  cpu::VcpuState s;
  get_state(r, kEverything, s);
  cpu::VectorState initial;
  initial.mxcsr = s.vector.mxcsr;
  initial.xcr0 = s.vector.xcr0;
  cpu::reset_x87(initial);
  EXPECT_EQ(s.vector, initial);
  EXPECT_EQ(s.pkru, 0U);
}

TEST(KvmState, AHostWithoutAvxGetsNoAvxComponent) {
  std::mt19937_64 random{3};
  Registers r;
  put_state(random_state(random), XsaveLayout{}, r);
  std::uint64_t bv = 0;
  std::memcpy(&bv, r.extended.data() + 128, sizeof bv);
  EXPECT_EQ(bv, 3U);
}

TEST(KvmState, EveryMsrComesBackToItsPlace) {
  std::mt19937_64 random{4};
  cpu::Msrs before;
  for (const MsrField& f : kMsrFields) before.*f.field = random();
  for (auto& m : before.mtrr_fixed) m = random();
  for (auto& m : before.mtrr_variable) m = random();
  cpu::Msrs after;
  const auto list = list_msrs(before);
  for (std::size_t i = 0; i < list.size(); ++i) store_msr(after, i, list.at(i).data);
  EXPECT_EQ(before, after);
}

}  // namespace
}  // namespace strata::kvm
