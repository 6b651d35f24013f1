// Limits and rights of segments that are not flat, in 16- and 32-bit code (SDM 3A 5.3-5.5), and
// alignment checks.
#include <gtest/gtest.h>

#include "real_mode_support.hpp"

namespace strata::interp::test {
namespace {

namespace rf = cpu::rflags;
constexpr std::uint32_t kData32 = 0xC093, kReadOnly = 0xC091, kExpandDown = 0xC097;

class SegmentLimits : public testing::Test {
 protected:
  SegmentLimits() : m{Env::legacy32}, s{m.state()} {}
  /// A segment of `limit` bytes - 1 at kData.
  static cpu::Segment at_data(std::uint32_t limit, std::uint32_t attributes = kData32) {
    return {Machine::kData, limit, SystemMachine::kData0, attributes};
  }
  SystemMachine m;
  cpu::VcpuState s;
};

TEST_F(SegmentLimits, DataEndsAtTheLimit) {
  s.segment[cpu::DS] = at_data(0xFFF);
  m.poke<std::uint32_t>(Machine::kData + 0xFFC, 0x12345678);
  const auto good = m.go({0xA1, 0xFC, 0x0F, 0x00, 0x00}, s);  // mov eax,[FFC]
  EXPECT_TRUE(good.halted);
  EXPECT_EQ(good.state.gpr[cpu::RAX], 0x12345678U);
  const auto bad = m.go({0xA1, 0xFD, 0x0F, 0x00, 0x00}, s);  // mov eax,[FFD]
  expect_fault(bad, s, cpu::GP, 0);
}

TEST_F(SegmentLimits, StackFaultsAreTheirOwnVector) {
  s.segment[cpu::SS] = at_data(0xFFF);
  s.gpr[cpu::RSP] = 0x800;
  s.gpr[cpu::RBP] = 0x1000;
  const auto o = m.go({0x8B, 0x45, 0x00}, s);  // mov eax,[ebp]
  EXPECT_EQ(o.vector, cpu::SS_FAULT);
  s.gpr[cpu::RBP] = 0xFFC;
  EXPECT_TRUE(m.go({0x8B, 0x45, 0x00}, s).halted);
}

TEST_F(SegmentLimits, PushBeyondAnExpandDownStack) {
  s.segment[cpu::SS] = at_data(0xFFF, kExpandDown);
  s.gpr[cpu::RSP] = 0x1004;
  const auto good = m.go({0x6A, 0x07}, s);  // push 7
  EXPECT_TRUE(good.halted);
  EXPECT_EQ(m.read<std::uint32_t>(Machine::kData + 0x1000), 7U);
  // The frame cannot be pushed either: a double fault, then shutdown.
  s.gpr[cpu::RSP] = 0x1000;
  EXPECT_EQ(m.go({0x6A, 0x07}, s).exit, engine::ExitKind::triple_fault);
}

TEST_F(SegmentLimits, RightsOfTheType) {
  s.segment[cpu::DS] = at_data(0xFFFFFFFF, kReadOnly);
  EXPECT_TRUE(m.go({0xA1, 0, 0, 0, 0}, s).halted);                 // mov eax,[0]
  expect_fault(m.go({0xA3, 0, 0, 0, 0}, s), s, cpu::GP, 0);        // mov [0],eax
  expect_fault(m.go({0x2E, 0xA3, 0, 0, 0, 0}, s), s, cpu::GP, 0);  // mov cs:[0],eax
  s.segment[cpu::CS].attributes &= ~2U;                            // execute-only
  expect_fault(m.go({0x2E, 0xA1, 0, 0, 0, 0}, s), s, cpu::GP, 0);  // mov eax,cs:[0]
}

TEST_F(SegmentLimits, NullSegmentsCannotBeUsed) {
  s.segment[cpu::ES] = cpu::Segment{};
  s.segment[cpu::FS] = cpu::Segment{};
  expect_fault(m.go({0x26, 0xA1, 0, 0, 0, 0}, s), s, cpu::GP, 0);
  expect_fault(m.go({0x64, 0xA1, 0, 0, 0, 0}, s), s, cpu::GP, 0);
  EXPECT_TRUE(m.go({0xA1, 0, 0, 0, 0}, s).halted);
}

TEST_F(SegmentLimits, FsIsCheckedWhereTheRestIsFlat) {
  s.segment[cpu::FS] = at_data(0xF);
  EXPECT_TRUE(m.go({0x64, 0xA1, 0x0C, 0, 0, 0}, s).halted);
  expect_fault(m.go({0x64, 0xA1, 0x0D, 0, 0, 0}, s), s, cpu::GP, 0);
}

TEST_F(SegmentLimits, SegmentLoadInTheMiddleOfABlock) {
  m.descriptor(SystemMachine::kFree, desc::make(Machine::kData, 0xF, 0x13, 0, true, 4));
  // mov eax,50; mov ds,eax; mov ecx,[10]
  const auto o = m.go({0xB8, 0x50, 0, 0, 0, 0x8E, 0xD8, 0x8B, 0x0D, 0x10, 0, 0, 0}, s);
  EXPECT_EQ(o.vector, cpu::GP);
  EXPECT_EQ(o.rip, Machine::kCode + 7);
}

TEST_F(SegmentLimits, BitStringsReachBeyondTheirOperand) {
  s.segment[cpu::DS] = at_data(0xF);
  s.gpr[cpu::RAX] = 127;
  EXPECT_TRUE(m.go({0x0F, 0xA3, 0x05, 0, 0, 0, 0}, s).halted);  // bt [0],eax
  s.gpr[cpu::RAX] = 128;
  expect_fault(m.go({0x0F, 0xA3, 0x05, 0, 0, 0, 0}, s), s, cpu::GP, 0);
}

TEST_F(SegmentLimits, RepeatedStringsStopAtTheLimit) {
  s.segment[cpu::ES] = at_data(0xF);
  s.gpr[cpu::RDI] = 8;
  s.gpr[cpu::RCX] = 100;
  const auto o = m.go({0xF3, 0xAA}, s);  // rep stosb
  EXPECT_EQ(o.vector, cpu::GP);
  EXPECT_EQ(o.rip, Machine::kCode);
  EXPECT_EQ(o.state.gpr[cpu::RDI], 0x10U);
  EXPECT_EQ(o.state.gpr[cpu::RCX], 92U);
}

TEST_F(SegmentLimits, BranchesBeyondCsFaultWhereTheyAre) {
  s.segment[cpu::CS].limit = Machine::kCode + 0xFFF;
  const auto jump = m.go({0xE9, 0x00, 0x10, 0, 0}, s);  // jmp +1000
  expect_fault(jump, s, cpu::GP, 0);
  const auto call = m.go({0xE8, 0x00, 0x10, 0, 0}, s);
  expect_fault(call, s, cpu::GP, 0);
  const auto taken = m.go({0x31, 0xC0, 0x0F, 0x84, 0x00, 0x10, 0, 0}, s);  // xor; jz +1000
  EXPECT_EQ(taken.rip, Machine::kCode + 2);
  EXPECT_TRUE(m.go({0xE9, 0x01, 0, 0, 0, 0xCC}, s).halted);  // jmp +1
}

TEST_F(SegmentLimits, FetchingBeyondCsFaultsAtTheInstruction) {
  s.segment[cpu::CS].limit = Machine::kCode + 2;
  const auto end = m.go({0x40, 0x40, 0x40, 0x90}, s);  // inc eax x3, nop beyond
  EXPECT_EQ(end.vector, cpu::GP);
  EXPECT_EQ(end.rip, Machine::kCode + 3);
  EXPECT_EQ(end.state.gpr[cpu::RAX], 3U);
  const auto cut = m.go({0x40, 0xB8, 1, 0, 0, 0}, s);  // mov eax,1 ends beyond
  EXPECT_EQ(cut.rip, Machine::kCode + 1);
  EXPECT_EQ(cut.state.gpr[cpu::RAX], 1U);
}

TEST_F(SegmentLimits, SameCodeThroughALongerSegment) {
  const Bytes code{0x40, 0x40, 0x40, 0x40};
  EXPECT_TRUE(m.go(code, s).halted);
  s.segment[cpu::CS].limit = Machine::kCode + 100;
  EXPECT_TRUE(m.go(code, s).halted);
  s.segment[cpu::CS].limit = Machine::kCode + 1;
  EXPECT_EQ(m.go(code, s).rip, Machine::kCode + 2);
}

TEST(RealModeLimits, WordsDoNotWrapAroundTheSegment) {
  RealMachine m;
  const auto data = m.go({0xA1, 0xFF, 0xFF});  // mov ax,[FFFF]
  EXPECT_EQ(RealMachine::vector_of(data), cpu::GP);
  EXPECT_EQ(m.word(data, 0), 0);
  auto s = RealMachine::state();
  s.gpr[cpu::RBP] = 0xFFFF;
  EXPECT_EQ(RealMachine::vector_of(m.go({0x8B, 0x46, 0x00}, s)), cpu::SS_FAULT);
  // CS can be written in real mode.
  EXPECT_EQ(m.go({0x2E, 0xC6, 0x06, 0x80, 0x00, 0x42}).rip, 7U);
  EXPECT_EQ(m.read<std::uint8_t>(RealMachine::kCodeBase + 0x80), 0x42);
}

TEST(RealModeLimits, RunningOffTheEndOfCs) {
  RealMachine m;
  m.write(RealMachine::kCodeBase + 0xFFFE, Bytes{0x40, 0x40});
  auto s = RealMachine::state(0xFFFE);
  m.core->set_state(s);
  ASSERT_EQ(m.core->run().kind, engine::ExitKind::halt);
  const auto end = m.core->state();
  EXPECT_EQ(RealMachine::vector_of(end), cpu::GP);
  EXPECT_EQ(end.gpr[cpu::RAX], 2U);
}

TEST(RealModeLimits, NoVexEncodings) {
  RealMachine m;
  auto s = RealMachine::state();
  s.cr4 = cpu::cr4::OSFXSR | cpu::cr4::OSXSAVE;
  s.vector.xcr0 = 7;
  EXPECT_EQ(RealMachine::vector_of(m.go({0xC5, 0xF8, 0x28, 0xC1}, s)), cpu::UD);  // vmovaps
  EXPECT_EQ(RealMachine::vector_of(m.go({0x0F, 0x28, 0xC1}, s)), -1);             // movaps
}

class Alignment : public testing::TestWithParam<Env> {};

TEST_P(Alignment, OfOperandsAndStackAtCpl3) {
  SystemMachine m{GetParam()};
  auto s = m.state(3);
  s.cr0 |= cpu::cr0::AM;
  s.rflags |= rf::AC;
  s.gpr[cpu::RBX] = Machine::kData + 1;
  const Bytes load{0x8B, 0x03, 0x0F, 0x0B};  // mov eax,[rbx]; ud2
  expect_fault(m.go(load, s), s, cpu::AC, 0);
  s.gpr[cpu::RBX] = Machine::kData + 4;
  EXPECT_EQ(m.go(load, s).vector, cpu::UD);
  s.gpr[cpu::RSP] = SystemMachine::kUserStack + 2;
  expect_fault(m.go({0x50, 0x0F, 0x0B}, s), s, cpu::AC, 0);  // push rax
  s.gpr[cpu::RBX] = Machine::kData + 1;
  s.rflags &= ~rf::AC;
  EXPECT_EQ(m.go(load, s).vector, cpu::UD);
  s.rflags |= rf::AC;
  s.cr0 &= ~cpu::cr0::AM;
  EXPECT_EQ(m.go(load, s).vector, cpu::UD);
}

TEST_P(Alignment, IsNotCheckedForTheKernel) {
  SystemMachine m{GetParam()};
  auto s = m.state(0);
  s.cr0 |= cpu::cr0::AM;
  s.rflags |= rf::AC;
  s.gpr[cpu::RBX] = Machine::kData + 1;
  EXPECT_TRUE(m.go({0x8B, 0x03}, s).halted);
}

INSTANTIATE_TEST_SUITE_P(All, Alignment, testing::Values(Env::legacy32, Env::long64));

}  // namespace
}  // namespace strata::interp::test
