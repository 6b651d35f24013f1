// Breakpoints, single step and what goes with them (SDM 3B 18.2, 18.3).
#include <gtest/gtest.h>

#include "system_support.hpp"

namespace strata::interp::test {
namespace {

namespace rf = cpu::rflags;
constexpr std::uint64_t kDr6 = 0xFFFF0FF0, kStep = 1U << 14;

/// DR7 for breakpoint 0: enabled locally, with R/W and LEN fields.
constexpr std::uint64_t dr7(unsigned watch, unsigned length) {
  return 0x401 | watch << 16 | length << 18;
}
constexpr unsigned kCodeWatch = 0, kWriteWatch = 1, kIoWatch = 2, kAccessWatch = 3;

class Debug : public testing::TestWithParam<Env> {
 protected:
  Debug() : m{GetParam()}, s{m.state()} { s.gpr[cpu::RBX] = Machine::kData; }
  void breakpoint(std::uint64_t at, unsigned watch, unsigned length = 0) {
    s.dr[0] = at;
    s.dr[7] = dr7(watch, length);
  }
  void expect_trap(const Ending& o, unsigned behind, std::uint64_t bits) const {
    EXPECT_EQ(o.vector, cpu::DB);
    EXPECT_EQ(o.rip, Machine::kCode + behind);
    EXPECT_EQ(o.state.dr[6], kDr6 | bits);
  }
  SystemMachine m;
  cpu::VcpuState s;
};

const Bytes kNops{0x90, 0x90, 0x90};
const Bytes kStoreByte{0xC6, 0x03, 0x55, 0x90};  // mov byte [rbx],55; nop
const Bytes kLoadByte{0x8A, 0x03, 0x90};         // mov al,[rbx]; nop

TEST_P(Debug, InstructionBreakpointsAreFaults) {
  breakpoint(Machine::kCode + 2, kCodeWatch);
  const auto o = m.go(kNops, s);
  expect_trap(o, 2, 1);
  EXPECT_EQ(o.rflags & rf::RF, 0U);
  EXPECT_NE(o.state.dr[7] & 1, 0U);
}

TEST_P(Debug, ResumeFlagMasksThemOnce) {
  breakpoint(Machine::kCode + 1, kCodeWatch);
  s.rip += 1;
  s.rflags |= rf::RF;
  const auto o = m.go({0x90, 0x90, 0x9C, 0x58}, s);  // nop; nop; pushf; pop rax
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.rflags & rf::RF, 0U);
  // jmp back: RF has gone with the first instruction.
  const auto again = m.go({0x90, 0x90, 0xEB, 0xFD}, s);
  expect_trap(again, 1, 1);
}

TEST_P(Debug, IretTakesRfAlong) {
  breakpoint(Machine::kCode + 1, kCodeWatch);
  const auto o = m.go(kNops, s);
  expect_trap(o, 1, 1);
  // The handler sets RF in the frame and returns.
  const std::uint64_t at = o.state.gpr[cpu::RSP] + (m.is_long() ? 16 : 8);
  m.poke(at, static_cast<std::uint32_t>(o.rflags | rf::RF));
  auto back = o.state;
  back.rip = 0x9000;
  back.halted = false;
  m.write(0x9000, m.is_long() ? Bytes{0x48, 0xCF} : Bytes{0xCF});
  m.core->set_state(back);
  EXPECT_TRUE(m.go_on().halted);
}

TEST_P(Debug, DataBreakpointsAreTraps) {
  breakpoint(Machine::kData, kWriteWatch);
  expect_trap(m.go(kStoreByte, s), 3, 1);
  EXPECT_EQ(m.read<std::uint8_t>(Machine::kData), 0x55);
  EXPECT_TRUE(m.go(kLoadByte, s).halted);
  breakpoint(Machine::kData, kAccessWatch);
  expect_trap(m.go(kLoadByte, s), 2, 1);
  breakpoint(Machine::kData + 4, kAccessWatch, 3);  // four bytes
  EXPECT_TRUE(m.go(kLoadByte, s).halted);
  s.gpr[cpu::RBX] += 7;
  expect_trap(m.go(kLoadByte, s), 2, 1);
}

TEST_P(Debug, DataBreakpointsSeeStringsAndReadModifyWrite) {
  breakpoint(Machine::kData + 5, kWriteWatch);
  s.gpr[cpu::RDI] = Machine::kData;
  s.gpr[cpu::RCX] = 8;
  const auto o = m.go({0xF3, 0xAA}, s);  // rep stosb: a trap behind the iteration
  expect_trap(o, 0, 1);
  EXPECT_EQ(o.state.gpr[cpu::RCX], 2U);
  s.gpr[cpu::RBX] = Machine::kData + 5;
  expect_trap(m.go({0xFE, 0x03, 0x90}, s), 2, 1);  // inc byte [rbx]
}

TEST_P(Debug, AFaultingAccessTrapsNotAtAll) {
  breakpoint(Machine::kData, kWriteWatch);
  m.mmu.page(Machine::kData).writable = false;
  const auto o = m.go(kStoreByte, s);
  EXPECT_EQ(o.vector, cpu::PF);
  EXPECT_EQ(o.state.dr[6], kDr6);
}

TEST_P(Debug, PortBreakpointsNeedCr4De) {
  breakpoint(0x60, kIoWatch);
  const Bytes out{0xE6, 0x60, 0x90};
  const auto run = [&] {
    auto o = m.go(out, s);
    EXPECT_EQ(o.exit, engine::ExitKind::port_write);
    return m.go_on();
  };
  EXPECT_TRUE(run().halted);
  s.cr4 |= cpu::cr4::DE;
  expect_trap(run(), 2, 1);
}

TEST_P(Debug, SingleStepReportsItselfAndClearsTf) {
  s.rflags |= rf::TF;
  const auto o = m.go(kNops, s);
  expect_trap(o, 1, kStep);
  EXPECT_NE(o.rflags & rf::TF, 0U);
  EXPECT_EQ(o.state.rflags & rf::TF, 0U);
}

TEST_P(Debug, SingleStepAndDataBreakpointAreOneException) {
  breakpoint(Machine::kData, kWriteWatch);
  s.rflags |= rf::TF;
  expect_trap(m.go(kStoreByte, s), 3, kStep | 1);
}

TEST_P(Debug, SoftwareInterruptsAreNotStepped) {
  s.rflags |= rf::TF;
  const auto o = m.go({0xCD, 0x40}, s);
  EXPECT_EQ(o.vector, 0x40);
  EXPECT_EQ(o.state.dr[6], kDr6);
}

TEST_P(Debug, MovSsPutsTrapsOff) {
  s.rflags |= rf::TF;
  s.gpr[cpu::RAX] = SystemMachine::kData0;
  expect_trap(m.go({0x8E, 0xD0, 0x90, 0x90}, s), 3, kStep);  // mov ss,eax; nop
  s.rflags &= ~rf::TF;
  m.poke<std::uint16_t>(Machine::kData, SystemMachine::kData0);
  breakpoint(Machine::kData, kAccessWatch);
  expect_trap(m.go({0x8E, 0x13, 0x90, 0x90}, s), 3, 1);  // mov ss,[rbx]; nop
}

TEST_P(Debug, BranchTrapsSkipOtherInstructions) {
  s.rflags |= rf::TF;
  s.msr.debugctl = 2;
  const auto o = m.go({0x90, 0x90, 0xEB, 0x01, 0x90, 0x90}, s);
  expect_trap(o, 5, kStep);
  EXPECT_EQ(o.state.msr.debugctl, 0U);
}

TEST_P(Debug, GeneralDetectIsAFault) {
  s.dr[7] = 0x2400;
  const auto o = m.go({0x0F, 0x21, 0xC0}, s);  // mov rax,dr0
  expect_trap(o, 0, 1U << 13);
  EXPECT_EQ(o.state.dr[7] & 0x2000, 0U);
}

TEST_P(Debug, Int1LeavesDr6Alone) {
  const auto o = m.go({0xF1}, s);
  expect_trap(o, 1, 0);
}

TEST_P(Debug, BreakpointBitsAreReplacedAndTheOthersGather) {
  breakpoint(Machine::kCode, kCodeWatch);
  s.dr[6] = kDr6 | kStep | 2;
  expect_trap(m.go(kNops, s), 0, kStep | 1);
}

TEST_P(Debug, WhatMovSsPutOffIsPartOfTheState) {
  if (m.is_long()) s.gpr[cpu::RAX] = SystemMachine::kData0;
  breakpoint(Machine::kData, kAccessWatch, 1);
  m.poke<std::uint16_t>(Machine::kData, SystemMachine::kData0);
  m.core->stop_at({m.core->position().instructions + 1, 0});
  const auto o = m.go({0x8E, 0x13, 0x90, 0x90}, s);  // mov ss,[rbx]; nop
  ASSERT_EQ(o.exit, engine::ExitKind::interrupted);
  EXPECT_TRUE(o.state.debug_shadow);
  EXPECT_EQ(o.state.pending_debug, 1U);
  m.core->set_state(o.state);
  expect_trap(m.go_on(), 3, 1);
}

/// A state has no place for a trap that waits: run() delivers it before it obeys a kick().
TEST_P(Debug, TrapsComeBeforeAKick) {
  s.rflags |= rf::TF;
  m.core->limit_run(1);
  ASSERT_EQ(m.go(kNops, s).exit, engine::ExitKind::interrupted);
  m.core->limit_run(0);
  m.core->kick();
  const auto kicked = m.go_on();
  ASSERT_EQ(kicked.exit, engine::ExitKind::interrupted);
  m.core->set_state(kicked.state);
  expect_trap(m.go_on(), 1, kStep);
}

TEST_P(Debug, Int1ReportsWhatMovSsPutOff) {
  m.poke<std::uint16_t>(Machine::kData, SystemMachine::kData0);
  breakpoint(Machine::kData, kAccessWatch);
  expect_trap(m.go({0x8E, 0x13, 0xF1}, s), 3, 1);
}

TEST_P(Debug, InterruptsWaitOneInstructionAfterSti) {
  m.interrupts.vector = 0x30;
  m.external = true;
  const auto o = m.go({0xFB, 0x90, 0x90, 0xFA}, s);  // sti; nop; nop; cli
  EXPECT_EQ(o.vector, 0x30);
  EXPECT_EQ(o.rip, Machine::kCode + 2);
}

TEST(DebugSyscall, StepTrapFollowsTheFlagsThatAreLeft) {
  SystemMachine m;
  auto s = m.state(3);
  s.msr.star = std::uint64_t{SystemMachine::kCode64} << 32;
  s.msr.lstar = 0x9000;
  s.msr.sfmask = rf::TF;
  s.rflags |= rf::TF;
  m.write(0x9000, Bytes{0x90, 0xF4});
  const auto masked = m.go({0x0F, 0x05}, s);
  EXPECT_EQ(masked.state.rip, 0x9002U);
  EXPECT_EQ(masked.state.dr[6], kDr6);
  // SYSRET that sets TF traps before the first instruction outside.
  auto back = m.state();
  back.msr.star = std::uint64_t{SystemMachine::kUserCode32} << 48;
  back.gpr[cpu::RCX] = 0x9000;
  back.gpr[cpu::R11] = rf::FIXED | rf::TF;
  const auto o = m.go({0x48, 0x0F, 0x07}, back);
  EXPECT_EQ(o.vector, cpu::DB);
  EXPECT_EQ(o.rip, 0x9000U);
}

INSTANTIATE_TEST_SUITE_P(All, Debug, testing::Values(Env::long64, Env::legacy32));

}  // namespace
}  // namespace strata::interp::test
