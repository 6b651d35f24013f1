// Virtual-8086 mode (SDM 3B 21): entry by IRET, IOPL, interrupts out of it, and VME.
#include <gtest/gtest.h>

#include "system_support.hpp"

namespace strata::interp::test {
namespace {

namespace rf = cpu::rflags;

class Vm86 : public testing::Test {
 protected:
  static constexpr std::uint16_t kSelector = 0x1000;  // kCode
  Vm86() : m{Env::legacy32} {}

  /// In virtual-8086 mode at kSelector:0 with SP 1000 of segment 9000.
  cpu::VcpuState state(unsigned iopl, std::uint64_t flags = 0) const {
    auto s = m.state();
    for (auto& seg : s.segment) seg = {0x20000, 0xFFFF, 0x2000, 0xF3};
    s.segment[cpu::CS] = {Machine::kCode, 0xFFFF, kSelector, 0xF3};
    s.segment[cpu::SS] = {0x90000, 0xFFFF, 0x9000, 0xF3};
    s.gpr[cpu::RSP] = 0x1000;
    s.rip = 0;
    s.rflags = rf::FIXED | rf::VM | iopl << 12 | flags;
    return s;
  }
  /// Ends with ARPL, which is undefined there, so that the state can be seen.
  Ending go(Bytes code, const cpu::VcpuState& s) { return m.go(code + Bytes{0x63, 0xC0}, s); }

  SystemMachine m;
};

TEST_F(Vm86, InterruptsLeaveForLevelZeroAndIretComesBack) {
  auto s = state(3);
  s.gpr[cpu::RBX] = 0x77;
  const auto o = go({0x43}, s);  // inc bx
  EXPECT_EQ(o.vector, cpu::UD);
  EXPECT_EQ(o.rip, 1U);
  EXPECT_EQ(o.cs, kSelector);
  EXPECT_NE(o.rflags & rf::VM, 0U);
  EXPECT_EQ(o.state.gpr[cpu::RBX], 0x78U);
  EXPECT_EQ(o.state.rflags & rf::VM, 0U);
  EXPECT_EQ(o.state.gpr[cpu::RSP], SystemMachine::kStack0 - 36);
  for (const auto name : {cpu::ES, cpu::DS, cpu::FS, cpu::GS}) {
    EXPECT_TRUE(o.state.segment[name].unusable());
  }
  EXPECT_EQ(m.read<std::uint32_t>(SystemMachine::kStack0 - 4), 0x2000U);   // GS
  EXPECT_EQ(m.read<std::uint32_t>(SystemMachine::kStack0 - 20), 0x9000U);  // SS
  EXPECT_EQ(m.read<std::uint32_t>(SystemMachine::kStack0 - 24), 0x1000U);  // ESP
  // Back to the INC with the handler's IRET.
  m.poke<std::uint32_t>(o.state.gpr[cpu::RSP], 0);
  auto back = o.state;
  back.rip = 0x9000;
  back.halted = false;
  m.write(0x9000, Bytes{0xCF});
  m.core->set_state(back);
  const auto again = m.go_on();
  EXPECT_EQ(again.vector, cpu::UD);
  EXPECT_EQ(again.state.gpr[cpu::RBX], 0x79U);
}

TEST_F(Vm86, IoplGuardsTheFlagInstructions) {
  for (const Bytes& code :
       {Bytes{0xFA}, Bytes{0xFB}, Bytes{0x9C}, Bytes{0x9D}, Bytes{0xCF}, Bytes{0xCD, 0x21}}) {
    const auto o = go(code, state(0));
    EXPECT_EQ(o.vector, cpu::GP) << unsigned{code[0]};
    EXPECT_EQ(o.rip, 0U);
  }
  const auto free = go({0xFB, 0x90, 0x9C, 0x58, 0xFA}, state(3));  // sti; nop; pushf; pop ax; cli
  EXPECT_EQ(free.vector, cpu::UD);
  EXPECT_NE(free.state.gpr[cpu::RAX] & rf::IF, 0U);
  EXPECT_EQ(free.rflags & rf::IF, 0U);
}

TEST_F(Vm86, PortsNeedTheBitmapWhateverTheIopl) {
  EXPECT_EQ(go({0xE4, 0x60}, state(3)).vector, cpu::GP);  // in al,60
}

TEST_F(Vm86, LimitsAre64K) {
  EXPECT_EQ(go({0xA1, 0xFF, 0xFF}, state(3)).vector, cpu::GP);  // mov ax,[FFFF]
}

TEST_F(Vm86, VmeMovesTheInterruptFlagToVif) {
  auto s = state(0, rf::IF);
  s.cr4 |= cpu::cr4::VME;
  const auto set = go({0xFB, 0x9C, 0x58}, s);  // sti; pushf; pop ax
  EXPECT_EQ(set.vector, cpu::UD);
  EXPECT_NE(set.rflags & rf::VIF, 0U);
  EXPECT_EQ(set.state.gpr[cpu::RAX] & (rf::IF | rf::IOPL), rf::IF | rf::IOPL);
  const auto clear = go({0xFB, 0xFA, 0x9C, 0x58}, s);  // sti; cli; pushf; pop ax
  EXPECT_EQ(clear.rflags & (rf::VIF | rf::IF), rf::IF);
  EXPECT_EQ(clear.state.gpr[cpu::RAX] & rf::IF, 0U);
  s.rflags |= rf::VIP;
  EXPECT_EQ(go({0xFB}, s).vector, cpu::GP);
  // push IF; popf
  EXPECT_EQ(go({0x68, 0x00, 0x02, 0x9D}, s).rip, 3U);
  s.rflags &= ~rf::VIP;
  const auto popped = go({0x68, 0x01, 0x02, 0x9D}, s);
  EXPECT_EQ(popped.rflags & (rf::VIF | rf::CF | rf::IOPL), rf::VIF | rf::CF);
  EXPECT_EQ(go({0x66, 0x9C}, s).vector, cpu::GP);  // 32-bit PUSHF stays refused
}

TEST_F(Vm86, VmeSendsInterruptsToTheGuestsVectors) {
  constexpr std::uint16_t kMap = 0x88;
  m.poke<std::uint16_t>(SystemMachine::kTss + 102, kMap);
  m.poke<std::uint8_t>(SystemMachine::kTss + kMap - 32 + 4, 0xFF & ~(1U << 1));  // all but 21h
  m.poke<std::uint32_t>(0x21 * 4, kSelector << 16 | 0x40);
  m.write(Machine::kCode + 0x40, Bytes{0x9C, 0x59, 0xCF});  // pushf; pop cx; iret
  auto s = state(0, rf::IF | rf::VIF);
  s.cr4 |= cpu::cr4::VME;
  const auto o = go({0xCD, 0x21}, s);
  EXPECT_EQ(o.vector, cpu::UD);
  EXPECT_EQ(o.rip, 2U);
  EXPECT_EQ(o.state.gpr[cpu::RCX] & rf::IF, 0U);  // VIF was clear in the handler
  EXPECT_NE(o.rflags & rf::VIF, 0U);
  EXPECT_EQ(m.read<std::uint16_t>(0x90FFE) & (rf::IF | rf::IOPL), rf::IF | rf::IOPL);
  EXPECT_EQ(go({0xCD, 0x22}, s).vector, cpu::GP);  // its bit is set
}

TEST_F(Vm86, PviGivesRing3ItsVif) {
  auto s = m.state(3);
  s.cr4 |= cpu::cr4::PVI;
  const auto o = m.go({0xFB, 0x0F, 0x0B}, s);  // sti; ud2
  EXPECT_EQ(o.vector, cpu::UD);
  EXPECT_EQ(o.rflags & (rf::IF | rf::VIF), rf::VIF);
  s.rflags |= rf::VIP;
  EXPECT_EQ(m.go({0xFB, 0x0F, 0x0B}, s).vector, cpu::GP);
}

}  // namespace
}  // namespace strata::interp::test
