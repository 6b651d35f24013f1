// Hardware task switches (SDM 3A 7): by JMP, CALL, IRET and through gates, between 32- and 16-bit
// TSSs, and what goes wrong on the way.
#include <gtest/gtest.h>

#include "system_support.hpp"

namespace strata::interp::test {
namespace {

namespace rf = cpu::rflags;

class Tasks : public testing::Test {
 protected:
  static constexpr std::uint64_t kNew = 0x20000, kNewCode = 0x22000, kNewStack = 0x28000;
  static constexpr std::uint16_t kNewSelector = SystemMachine::kFree, kGate = 0x58, kLdt = 0x60;

  Tasks() : m{Env::legacy32}, s{m.state()} {
    m.descriptor(kNewSelector, desc::make(kNew, 0x67, 9, 0, true, 0));
    m.descriptor(kGate, desc::gate(kNewSelector, 0, 5, 0));
    field(0x20, kNewCode);
    field(0x24, rf::FIXED | rf::CF);
    for (unsigned i = 0; i < 8; ++i) field(0x28 + 4 * i, 0x11110000 + i);
    field(0x38, kNewStack);
    for (unsigned i = 0; i < 6; ++i) field(0x48 + 4 * i, SystemMachine::kData0);
    field(0x4C, SystemMachine::kCode32);
    field(0x60, 0);
    m.write(kNewCode, Bytes{0xF4});
    s.gpr[cpu::RBX] = 0xABCD;
  }
  void field(unsigned at, std::uint64_t value) {
    m.poke(kNew + at, static_cast<std::uint32_t>(value));
  }
  [[nodiscard]] std::uint32_t old_field(unsigned at) const {
    return m.read<std::uint32_t>(SystemMachine::kTss + at);
  }
  [[nodiscard]] bool busy(std::uint16_t selector) const {
    return (m.descriptor(selector) >> 41 & 1) != 0;
  }
  void set_busy(std::uint16_t selector) {
    m.descriptor(selector, m.descriptor(selector) | 1ULL << 41);
  }
  static Bytes far(std::uint8_t opcode, std::uint16_t selector) {
    return {opcode, 0, 0, 0, 0, static_cast<std::uint8_t>(selector), 0};
  }

  SystemMachine m;
  cpu::VcpuState s;
};

TEST_F(Tasks, JmpSavesOneTaskAndLoadsTheOther) {
  set_busy(SystemMachine::kTssSelector);
  const auto o = m.go(far(0xEA, kNewSelector), s);
  EXPECT_EQ(o.state.rip, kNewCode + 1);
  EXPECT_EQ(o.state.tr.selector, kNewSelector);
  EXPECT_EQ(o.state.tr.base, kNew);
  EXPECT_EQ(o.state.gpr[cpu::RBX], 0x11110003U);
  EXPECT_EQ(o.state.gpr[cpu::RSP], kNewStack);
  EXPECT_EQ(o.state.rflags, rf::FIXED | rf::CF);
  EXPECT_NE(o.state.cr0 & cpu::cr0::TS, 0U);
  EXPECT_EQ(old_field(0x20), Machine::kCode + 7);
  EXPECT_EQ(old_field(0x34), 0xABCDU);
  EXPECT_EQ(old_field(0x4C) & 0xFFFF, SystemMachine::kCode32);
  EXPECT_TRUE(busy(kNewSelector));
  EXPECT_FALSE(busy(SystemMachine::kTssSelector));
}

TEST_F(Tasks, CallNestsAndIretReturns) {
  set_busy(SystemMachine::kTssSelector);
  m.write(kNewCode, Bytes{0xCF});
  const auto o = m.go(far(0x9A, kNewSelector), s);
  EXPECT_EQ(o.state.rip, Machine::kCode + 8);
  EXPECT_EQ(o.state.gpr[cpu::RBX], 0xABCDU);
  EXPECT_EQ(o.state.tr.selector, SystemMachine::kTssSelector);
  EXPECT_EQ(m.read<std::uint16_t>(kNew), SystemMachine::kTssSelector);  // the link
  EXPECT_EQ(m.read<std::uint32_t>(kNew + 0x24) & rf::NT, 0U);           // gone with the IRET
  EXPECT_EQ(m.read<std::uint32_t>(kNew + 0x20), kNewCode + 1);
  EXPECT_FALSE(busy(kNewSelector));
  EXPECT_TRUE(busy(SystemMachine::kTssSelector));
}

TEST_F(Tasks, GateLeadsToTheTaskAndSetsNt) {
  set_busy(SystemMachine::kTssSelector);
  const auto o = m.go(far(0x9A, kGate), s);
  EXPECT_EQ(o.state.rip, kNewCode + 1);
  EXPECT_EQ(o.state.rflags, rf::FIXED | rf::CF | rf::NT);
  EXPECT_TRUE(busy(SystemMachine::kTssSelector));
}

TEST_F(Tasks, FaultThroughATaskGatePushesItsErrorCode) {
  m.set_gate(cpu::GP, 5, 0, true, 0, kNewSelector, 0);
  s.segment[cpu::DS] = cpu::Segment{};
  const auto o = m.go({0xA1, 0, 0, 0, 0}, s);
  EXPECT_EQ(o.state.rip, kNewCode + 1);
  EXPECT_EQ(o.state.gpr[cpu::RSP], kNewStack - 4);
  EXPECT_EQ(m.read<std::uint32_t>(kNewStack - 4), 0U);
  EXPECT_EQ(old_field(0x20), Machine::kCode);
  EXPECT_NE(old_field(0x24) & rf::RF, 0U);
}

TEST_F(Tasks, SixteenBitTask) {
  m.descriptor(kNewSelector, desc::make(kNew, 0x2B, 1, 0, true, 0));
  m.poke<std::uint16_t>(kNew + 0x0E, 0x2000);
  m.poke<std::uint16_t>(kNew + 0x10, rf::FIXED | rf::ZF);
  for (unsigned i = 0; i < 8; ++i) {
    m.poke(kNew + 0x12 + 2 * i, static_cast<std::uint16_t>(0x100 + i));
  }
  m.descriptor(0x68, desc::make(0x20000, 0xFFFF, 0x1B, 0, true, 0));  // 16-bit code
  for (const unsigned at : {0x22U, 0x26U, 0x28U}) {
    m.poke<std::uint16_t>(kNew + at, SystemMachine::kData0);
  }
  m.poke<std::uint16_t>(kNew + 0x24, 0x68);
  m.poke<std::uint16_t>(kNew + 0x2A, 0);
  const auto o = m.go(far(0xEA, kNewSelector), s);
  EXPECT_EQ(o.state.rip, 0x2001U);
  EXPECT_EQ(o.state.gpr[cpu::RBX] & 0xFFFF, 0x103U);
  EXPECT_EQ(o.state.rflags, rf::FIXED | rf::ZF);
  EXPECT_TRUE(o.state.segment[cpu::FS].unusable());
}

TEST_F(Tasks, RefusedInTheOldTask) {
  const auto refused = [&](std::uint8_t opcode, std::uint16_t selector, int vector) {
    expect_fault(m.go(far(opcode, selector), s), s, vector, selector & 0xFFFCU);
    EXPECT_EQ(m.core->state().tr.selector, SystemMachine::kTssSelector);
  };
  const std::uint64_t good = m.descriptor(kNewSelector);
  m.descriptor(kNewSelector, good & ~(1ULL << 47));
  refused(0xEA, kNewSelector, cpu::NP);
  m.descriptor(kNewSelector, good - 1);  // limit 66
  refused(0x9A, kNewSelector, cpu::TS);
  m.descriptor(kNewSelector, good | 1ULL << 41);
  refused(0xEA, kNewSelector, cpu::GP);  // busy
  m.descriptor(kGate, desc::gate(kNewSelector, 0, 5, 0, false));
  refused(0xEA, kGate, cpu::NP);
}

TEST_F(Tasks, BadSegmentsFaultInTheNewTask) {
  field(0x54, 0xF8);  // DS: an empty descriptor
  const auto o = m.go(far(0xEA, kNewSelector), s);
  EXPECT_EQ(o.vector, cpu::TS);
  EXPECT_EQ(o.error, 0xF8U);
  EXPECT_EQ(o.rip, kNewCode);
  EXPECT_EQ(o.state.tr.selector, kNewSelector);
  field(0x54, SystemMachine::kData0);
  field(0x60, SystemMachine::kData0);  // LDT: no LDT
  m.descriptor(kNewSelector, desc::make(kNew, 0x67, 9, 0, true, 0));
  const auto ldt = m.go(far(0xEA, kNewSelector), s);
  EXPECT_EQ(ldt.vector, cpu::TS);
  EXPECT_EQ(ldt.error, SystemMachine::kData0);
}

TEST_F(Tasks, TrapBitStopsTheNewTaskBeforeItsFirstInstruction) {
  m.poke<std::uint16_t>(kNew + 0x64, 1);
  const auto o = m.go(far(0xEA, kNewSelector), s);
  EXPECT_EQ(o.vector, cpu::DB);
  EXPECT_EQ(o.rip, kNewCode);
  EXPECT_NE(o.state.dr[6] & 1U << 15, 0U);
}

TEST_F(Tasks, ReturnToATaskThatIsNotBusy) {
  s.rflags |= rf::NT;
  m.poke<std::uint16_t>(SystemMachine::kTss, kNewSelector);
  const auto o = m.go({0xCF}, s);
  EXPECT_EQ(o.vector, cpu::TS);
  EXPECT_EQ(o.error, kNewSelector);
  EXPECT_EQ(o.rip, Machine::kCode);
}

TEST_F(Tasks, IntoVirtual8086Mode) {
  field(0x20, 0x10);
  field(0x24, rf::FIXED | rf::VM | rf::IOPL);
  field(0x4C, 0x2200);
  m.write(0x22010, Bytes{0x63, 0xC0});  // arpl: #UD
  const auto o = m.go(far(0xEA, kNewSelector), s);
  EXPECT_EQ(o.vector, -1);  // the new TSS has no level-0 stack: #TS, then a double fault
  field(0x4, SystemMachine::kStack0);
  field(0x8, SystemMachine::kData0);
  m.descriptor(kNewSelector, desc::make(kNew, 0x67, 9, 0, true, 0));
  const auto good = m.go(far(0xEA, kNewSelector), s);
  EXPECT_EQ(good.vector, cpu::UD);
  EXPECT_EQ(good.rip, 0x10U);
  EXPECT_EQ(good.cs, 0x2200U);
}

}  // namespace
}  // namespace strata::interp::test
