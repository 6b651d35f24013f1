// What INIT and SIPI make of a vCPU (SDM 3A table 9-1, 9.4.2).
#include "cpu/vcpu_state.hpp"

#include <gtest/gtest.h>

namespace strata::cpu {
namespace {

VcpuState busy_vcpu() {
  VcpuState s = flat_protected_mode(0x1234);
  s.cr0 |= cr0::PG | cr0::WP | cr0::CD | cr0::NW;
  s.cr2 = s.cr3 = 0x5000;
  s.cr4 = cr4::PAE;
  s.efer = efer::LME | efer::LMA;
  s.gpr.fill(7);
  s.dr[0] = 99;
  s.dr[7] = 0x401;
  s.halted = s.nmi_blocked = s.interrupt_shadow = true;
  s.msr.lstar = 42;
  s.msr.mtrr_def_type = 0xC06;
  s.vector.xcr0 = 7;
  s.vector.ymm[3][1] = 5;
  return s;
}

TEST(Init, ResetsTheProcessorAndKeepsWhatTheManualSaysItKeeps) {
  const VcpuState before = busy_vcpu();
  const VcpuState s = after_init(before, 0x306C3);
  EXPECT_EQ(s.cr0, cr0::CD | cr0::NW | cr0::ET);
  EXPECT_EQ(s.cr2 | s.cr3 | s.cr4 | s.efer, 0U);
  EXPECT_EQ(s.rip, 0xFFF0U);
  EXPECT_EQ(s.segment[CS].selector, 0xF000);
  EXPECT_EQ(s.segment[CS].base, 0xFFFF0000U);
  EXPECT_EQ(s.gpr[RDX], 0x306C3U);
  EXPECT_EQ(s.gpr[RAX] | s.gpr[RSP] | s.gpr[R15], 0U);
  EXPECT_EQ(s.rflags, rflags::FIXED);
  EXPECT_EQ(s.dr[0], 0U);
  EXPECT_EQ(s.dr[7], 0x400U);
  EXPECT_EQ(s.idtr, (DescriptorTable{0, 0xFFFF}));
  EXPECT_FALSE(s.halted || s.nmi_blocked || s.interrupt_shadow);
  EXPECT_EQ(s.msr, before.msr);
  EXPECT_EQ(s.vector, before.vector);
}

TEST(StartUp, BeginsAtThePageTheVectorNames) {
  VcpuState s = after_init(busy_vcpu(), 0);
  start_up(s, 0x9A);
  EXPECT_EQ(s.segment[CS].selector, 0x9A00);
  EXPECT_EQ(s.segment[CS].base, 0x9A000U);
  EXPECT_EQ(s.rip, 0U);
  EXPECT_EQ(s.cr0 & cr0::PE, 0U);
}

}  // namespace
}  // namespace strata::cpu
