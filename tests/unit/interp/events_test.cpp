// Delivery through the IDT: gates, stacks, error codes, escalation, restart.
#include "engines/interp/events.hpp"

#include "system_support.hpp"

namespace strata::interp::test {
namespace {

namespace rf = cpu::rflags;
constexpr std::uint32_t gate_error(unsigned vector, bool external) {
  return vector * 8 + 2 + (external ? 1 : 0);
}
const Bytes kUd2{0x0F, 0x0B};
const Bytes kInt80{0xCD, 0x80};

// ---- long mode
// ------------------------------------------------------------------------------------

TEST(LongDelivery, FrameFromTheSameLevelIsAlignedAndHoldsEverything) {
  SystemMachine m;
  auto s = m.state();
  s.gpr[cpu::RSP] = SystemMachine::kStack - 5;
  s.rflags |= rf::IF | rf::NT | rf::CF | rf::AC;
  const Ending o = m.go(kUd2, s);
  EXPECT_EQ(o.vector, cpu::UD);
  EXPECT_EQ(o.rip, Machine::kCode);
  EXPECT_EQ(o.cs, SystemMachine::kCode64);
  EXPECT_EQ(o.rflags, s.rflags | rf::RF);
  EXPECT_EQ(o.rsp, SystemMachine::kStack - 5);
  EXPECT_EQ(o.ss, SystemMachine::kData0);
  EXPECT_EQ(o.state.gpr[cpu::RSP], SystemMachine::kStack - 16 - 40);
  EXPECT_EQ(o.state.segment[cpu::SS], s.segment[cpu::SS]);
  EXPECT_EQ(o.state.rflags, rf::FIXED | rf::CF | rf::AC);
}

TEST(LongDelivery, InnerLevelTakesRsp0AndNullSs) {
  SystemMachine m;
  auto s = m.state(3);
  s.rflags |= rf::IF | rf::TF;
  s.rflags &= ~rf::TF;
  const Ending o = m.go(kUd2, s);
  EXPECT_EQ(o.vector, cpu::UD);
  EXPECT_EQ(o.rsp, SystemMachine::kUserStack);
  EXPECT_EQ(o.ss, SystemMachine::kUserData);
  EXPECT_EQ(o.cs, SystemMachine::kUserCode64);
  EXPECT_EQ(o.state.gpr[cpu::RSP], SystemMachine::kStack0 - 40);
  EXPECT_EQ(o.state.segment[cpu::SS].selector, 0);
  EXPECT_TRUE(o.state.segment[cpu::SS].unusable());
  EXPECT_EQ(o.state.segment[cpu::SS].dpl(), 0U);
  EXPECT_EQ(o.state.segment[cpu::CS].selector, SystemMachine::kCode64);
}

TEST(LongDelivery, CompatibilityModeUserIsInterruptedInto64BitCode) {
  SystemMachine m{Env::compat32};
  const auto s = m.state(3);
  const Ending o = m.go(kUd2, s);
  expect_fault(o, s, cpu::UD, std::nullopt);
  EXPECT_EQ(o.state.gpr[cpu::RSP], SystemMachine::kStack0 - 40);
  EXPECT_TRUE(o.state.segment[cpu::CS].long_mode());
}

TEST(LongDelivery, IstSwitchesStacksWhateverTheLevel) {
  for (const unsigned cpl : {0U, 3U}) {
    SystemMachine m;
    m.set_gate(cpu::UD, 0xE, 0, true, 1);
    const auto s = m.state(cpl);
    const Ending o = m.go(kUd2, s);
    expect_fault(o, s, cpu::UD, std::nullopt);
    EXPECT_EQ(o.state.gpr[cpu::RSP], SystemMachine::kIst1 - 40);
    EXPECT_EQ(o.state.segment[cpu::SS].unusable(), cpl == 3);
  }
}

TEST(LongDelivery, TrapGateLeavesInterruptsOn) {
  SystemMachine m;
  m.set_gate(cpu::UD, 0xF, 0);
  auto s = m.state();
  s.rflags |= rf::IF;
  const Ending o = m.go(kUd2, s);
  EXPECT_EQ(o.vector, cpu::UD);
  EXPECT_NE(o.state.rflags & rf::IF, 0U);
  m.set_gate(cpu::UD, 0xE, 0);
  EXPECT_EQ(m.go(kUd2, s).state.rflags & rf::IF, 0U);
}

TEST(LongDelivery, ConformingHandlerKeepsTheLevel) {
  SystemMachine m;
  m.descriptor(0x50, desc::make(0, 0xFFFFF, 0x1F, 0, true, 0xA));
  m.set_gate(0x80, 0xE, 3, true, 0, std::uint16_t{0x50});
  const auto s = m.state(3);
  const Ending o = m.go(kInt80, s);
  // The handler's HLT runs at CPL 3 and is refused.
  EXPECT_EQ(o.vector, cpu::GP);
  EXPECT_EQ(o.rip, SystemMachine::kHandlers + 0x80 * 16);
  EXPECT_EQ(o.cs, 0x53U);
  EXPECT_EQ(o.rsp, SystemMachine::kUserStack - 40);
}

TEST(LongDelivery, SetsTheAccessedBit) {
  SystemMachine m;
  m.descriptor(0x50, desc::make(0, 0xFFFFF, 0x1A, 0, true, 0xA));
  m.set_gate(cpu::UD, 0xE, 0, true, 0, std::uint16_t{0x50});
  const Ending o = m.go(kUd2);
  EXPECT_EQ(o.vector, cpu::UD);
  EXPECT_EQ(m.descriptor(0x50) >> 40 & 0xF, 0xBU);
  EXPECT_EQ(o.state.segment[cpu::CS].type(), 0xBU);
}

TEST(LongDelivery, SoftwareInterruptReturnsBehindItselfWithoutRf) {
  SystemMachine m;
  const auto s = m.state(3);
  const Ending o = m.go(kInt80, s);
  EXPECT_EQ(o.vector, 0x80);
  EXPECT_EQ(o.rip, Machine::kCode + 2);
  EXPECT_EQ(o.rflags, s.rflags);
}

struct GateFault {
  const char* what;
  unsigned type;
  unsigned dpl;
  bool present;
  std::uint16_t selector;
  int vector;
  std::uint32_t error;
};

class LongGateFaults : public testing::TestWithParam<GateFault> {};
TEST_P(LongGateFaults, SoftwareInterruptFaultsInPlace) {
  const GateFault& f = GetParam();
  SystemMachine m;
  m.descriptor(0x50, desc::make(0, 0xFFFFF, 0x1B, 0, false, 0xA));  // not present
  m.descriptor(0x58, desc::make(0, 0xFFFFF, 0x1B, 0, true, 0xE));   // L and D
  m.set_gate(0x80, f.type, f.dpl, f.present, 0, f.selector);
  const auto s = m.state(3);
  expect_fault(m.go(kInt80, s), s, f.vector, f.error);
}
INSTANTIATE_TEST_SUITE_P(
    All, LongGateFaults,
    testing::Values(GateFault{"16-bit gate", 6, 3, true, 8, cpu::GP, gate_error(0x80, false)},
                    GateFault{"task gate", 5, 3, true, 8, cpu::GP, gate_error(0x80, false)},
                    GateFault{"DPL below CPL", 0xE, 2, true, 8, cpu::GP, gate_error(0x80, false)},
                    GateFault{"not present", 0xE, 3, false, 8, cpu::NP, gate_error(0x80, false)},
                    GateFault{"DPL before P", 0xE, 2, false, 8, cpu::GP, gate_error(0x80, false)},
                    GateFault{"null selector", 0xE, 3, true, 3, cpu::GP, 0},
                    GateFault{"beyond the GDT", 0xE, 3, true, 0x1000, cpu::GP, 0x1000},
                    GateFault{"data segment", 0xE, 3, true, 0x10, cpu::GP, 0x10},
                    GateFault{"32-bit code", 0xE, 3, true, 0x18, cpu::GP, 0x18},
                    GateFault{"L and D", 0xE, 3, true, 0x58, cpu::GP, 0x58},
                    GateFault{"code not present", 0xE, 3, true, 0x50, cpu::NP, 0x50}),
    [](const testing::TestParamInfo<GateFault>& parameter) {
      std::string name = parameter.param.what;
      for (char& c : name) {
        if (c == ' ' || c == '-') c = '_';
      }
      return name;
    });

TEST(LongDelivery, IdtLimitAndCanonicalTargets) {
  SystemMachine m;
  auto s = m.state(3);
  s.idtr.limit = 0x80 * 16 + 14;
  expect_fault(m.go(kInt80, s), s, cpu::GP, gate_error(0x80, false));
  s.idtr.limit = 0x80 * 16 + 15;
  EXPECT_EQ(m.go(kInt80, s).vector, 0x80);
  m.set_gate(0x80, 0xE, 3, true, 0, {}, 0x0000800000000000ULL);
  expect_fault(m.go(kInt80, s), s, cpu::GP, 0U);
}

TEST(LongDelivery, BadInnerStacks) {
  SystemMachine m;
  m.set_gate(cpu::TS, 0xE, 0, true, 1);
  m.set_gate(cpu::SS_FAULT, 0xE, 0, true, 1);
  auto s = m.state(3);
  m.poke<std::uint64_t>(SystemMachine::kTss + 4, 0x0000800000000000ULL);
  expect_fault(m.go(kInt80, s), s, cpu::SS_FAULT, 0U);
  m.set_gate(0x80, 0xE, 3, true, 7);
  s.tr.limit = 36 + 6 * 8 + 6;
  expect_fault(m.go(kInt80, s), s, cpu::TS, 0x40U);
  s.tr.limit += 1;
  m.poke<std::uint64_t>(SystemMachine::kTss + 36 + 6 * 8, 0x60000);
  EXPECT_EQ(m.go(kInt80, s).vector, 0x80);
}

TEST(LongDelivery, Int1PassesForHardwareAndInt3DoesNot) {
  SystemMachine m;
  m.set_gate(cpu::DB, 0xE, 0);
  m.set_gate(cpu::BP, 0xE, 0);
  const auto s = m.state(3);
  EXPECT_EQ(m.go({0xF1}, s).vector, cpu::DB);
  expect_fault(m.go({0xCC}, s), s, cpu::GP, gate_error(3, false));
  m.set_gate(cpu::DB, 0xE, 0, false);
  expect_fault(m.go({0xF1}, s), s, cpu::NP, gate_error(1, true));
}

// ---- legacy protected mode
// -----------------------------------------------------------------------

TEST(LegacyDelivery, SameLevelPushesThree) {
  SystemMachine m{Env::legacy32};
  auto s = m.state();
  s.gpr[cpu::RSP] = SystemMachine::kStack - 3;
  s.rflags |= rf::IF | rf::NT;
  const Ending o = m.go(kUd2, s);
  EXPECT_EQ(o.vector, cpu::UD);
  EXPECT_EQ(o.rip, Machine::kCode);
  EXPECT_EQ(o.cs, SystemMachine::kCode32);
  EXPECT_EQ(o.rflags, s.rflags | rf::RF);
  EXPECT_EQ(o.state.gpr[cpu::RSP], SystemMachine::kStack - 3 - 12);
  EXPECT_EQ(o.state.rflags, rf::FIXED);
}

TEST(LegacyDelivery, InnerLevelLoadsSsAndEspFromTheTss) {
  SystemMachine m{Env::legacy32};
  const auto s = m.state(3);
  const Ending o = m.go(kUd2, s);
  expect_fault(o, s, cpu::UD, std::nullopt);
  EXPECT_EQ(o.state.gpr[cpu::RSP], SystemMachine::kStack0 - 20);
  EXPECT_EQ(o.state.segment[cpu::SS].selector, SystemMachine::kData0);
  EXPECT_EQ(o.state.segment[cpu::SS].dpl(), 0U);
}

TEST(LegacyDelivery, SixteenBitGatePushesWords) {
  SystemMachine m{Env::legacy32};
  m.set_gate(0x80, 7, 3);
  const auto s = m.state(3);
  m.go(kInt80, s);
  const std::uint64_t sp = m.core->state().gpr[cpu::RSP];
  EXPECT_EQ(sp, SystemMachine::kStack0 - 10);
  EXPECT_EQ(m.read<std::uint16_t>(sp), (Machine::kCode + 2) & 0xFFFF);
  EXPECT_EQ(m.read<std::uint16_t>(sp + 2), SystemMachine::kUserCode32);
  EXPECT_EQ(m.read<std::uint16_t>(sp + 4), s.rflags);
  EXPECT_EQ(m.read<std::uint16_t>(sp + 6), SystemMachine::kUserStack & 0xFFFF);
  EXPECT_EQ(m.read<std::uint16_t>(sp + 8), SystemMachine::kUserData);
}

TEST(LegacyDelivery, SixteenBitTss) {
  SystemMachine m{Env::legacy32};
  auto s = m.state(3);
  s.tr.attributes = 0x83;
  m.poke<std::uint16_t>(SystemMachine::kTss + 2, 0x7000);
  m.poke<std::uint16_t>(SystemMachine::kTss + 4, SystemMachine::kData0);
  const Ending o = m.go(kInt80, s);
  EXPECT_EQ(o.vector, 0x80);
  EXPECT_EQ(o.state.gpr[cpu::RSP], 0x7000U - 20);
}

TEST(LegacyDelivery, BadInnerStackSegments) {
  struct Case {
    std::uint16_t ss;
    int vector;
    std::uint32_t error;
  };
  for (const Case c : {Case{0, cpu::TS, 0}, Case{0x11, cpu::TS, 0x10}, Case{0x30, cpu::TS, 0x30},
                       Case{0x18, cpu::TS, 0x18}, Case{0x50, cpu::SS_FAULT, 0x50},
                       Case{0x58, cpu::TS, 0x58}, Case{0x1000, cpu::TS, 0x1000}}) {
    SystemMachine m{Env::legacy32};
    m.descriptor(0x50, desc::make(0, 0xFFFFF, 0x13, 0, false));
    m.descriptor(0x58, desc::make(0, 0xFFFFF, 0x11, 0));  // read-only
    // The fault's own handler must not need the broken stack: conforming code at CPL 3.
    m.descriptor(0x60, desc::make(0, 0xFFFFF, 0x1F, 0));
    m.set_gate(static_cast<unsigned>(c.vector), 0xE, 0, true, 0, std::uint16_t{0x60},
               std::uint64_t{0xA000});
    m.write(0xA000, Bytes{0xF4});
    m.poke<std::uint32_t>(SystemMachine::kTss + 8, c.ss);
    const auto s = m.state(3);
    // HLT at CPL 3 in there faults in turn, and finds no inner stack either: shutdown.
    const Ending o = m.go(kInt80, s);
    EXPECT_EQ(o.exit, engine::ExitKind::triple_fault) << c.ss;
    const std::uint64_t sp = SystemMachine::kUserStack - 16;
    EXPECT_EQ(m.read<std::uint32_t>(sp), c.error) << c.ss;
    EXPECT_EQ(m.read<std::uint32_t>(sp + 4), Machine::kCode) << c.ss;
  }
}

TEST(LegacyDelivery, HandlerBeyondItsSegment) {
  SystemMachine m{Env::legacy32};
  m.descriptor(0x50, desc::make(0, 0x7FFF, 0x1B, 0, true, 4));
  m.set_gate(0x80, 0xE, 3, true, 0, std::uint16_t{0x50}, 0x8000);
  const auto s = m.state(3);
  expect_fault(m.go(kInt80, s), s, cpu::GP, 0U);
}

TEST(LegacyDelivery, StackLimit) {
  SystemMachine m{Env::legacy32};
  auto s = m.state();
  m.descriptor(0x50, desc::make(0, 0xFFFFF, 0x13, 0));
  m.poke<std::uint32_t>(SystemMachine::kTss + 8, 0x50);
  // An inner stack with a limit just below its first push.
  m.descriptor(0x50, desc::make(0, SystemMachine::kStack0 - 2, 0x13, 0, true, 4));
  s = m.state(3);
  m.descriptor(0x60, desc::make(0, 0xFFFFF, 0x1F, 0));
  m.set_gate(cpu::SS_FAULT, 0xE, 0, true, 0, std::uint16_t{0x60}, std::uint64_t{0xA000});
  m.write(0xA000, Bytes{0xF4});
  EXPECT_EQ(m.go(kInt80, s).exit, engine::ExitKind::triple_fault);
  EXPECT_EQ(m.read<std::uint32_t>(SystemMachine::kUserStack - 12), Machine::kCode);
  m.descriptor(0x50, desc::make(0, SystemMachine::kStack0 - 1, 0x13, 0, true, 4));
  EXPECT_EQ(m.go(kInt80, s).vector, 0x80);
}

// ---- real mode
// --------------------------------------------------------------------------------------

TEST(RealDelivery, ThroughTheVectorTable) {
  SystemMachine m;
  cpu::VcpuState s;
  s.cr0 = cpu::cr0::ET;
  s.rip = 0x1000;
  s.idtr = {0, 0x3FF};
  s.segment.fill(cpu::Segment{0, 0xFFFF, 0, 0x93});
  s.gpr[cpu::RSP] = 0xFFF0;
  s.rflags = rf::FIXED | rf::IF | rf::AC | rf::CF;
  m.poke<std::uint32_t>(0x21 * 4, 0x00009000);  // 0000:9000
  m.write(0x9000, Bytes{0xF4});
  m.go({0xCD, 0x21}, s, 0x1000);
  const auto after = m.core->state();
  EXPECT_EQ(after.rip, 0x9001U);
  EXPECT_EQ(after.gpr[cpu::RSP], 0xFFEAU);
  EXPECT_EQ(m.read<std::uint16_t>(0xFFEA), 0x1002U);
  EXPECT_EQ(m.read<std::uint16_t>(0xFFEC), 0U);
  EXPECT_EQ(m.read<std::uint16_t>(0xFFEE), (rf::FIXED | rf::IF | rf::CF) & 0xFFFF);
  EXPECT_EQ(after.rflags, rf::FIXED | rf::CF);
  s.idtr.limit = 0x21 * 4 + 2;
  m.poke<std::uint32_t>(13 * 4, 0x00009100);
  m.write(0x9100, Bytes{0xF4});
  m.go({0xCD, 0x21}, s, 0x1000);
  EXPECT_EQ(m.core->state().rip, 0x9101U);
  EXPECT_EQ(m.read<std::uint16_t>(0xFFEA), 0x1000U);  // no error code
}

// ---- escalation
// -------------------------------------------------------------------------------------

TEST(Escalation, FollowsTable6_5) {
  const std::vector<int> contributory{0, 10, 11, 12, 13};
  const auto is_contributory = [&](int v) {
    return std::find(contributory.begin(), contributory.end(), v) != contributory.end();
  };
  for (int first = 0; first < 20; ++first) {
    for (int second = 0; second < 20; ++second) {
      if (second == 8) continue;
      PendingException x;
      x.valid = true;
      x.vector = static_cast<std::uint8_t>(first);
      Escalation expected = Escalation::deliver_second;
      const bool bad_second = is_contributory(second) || second == 14;
      if (first == 8 && bad_second) expected = Escalation::shutdown;
      if (is_contributory(first) && is_contributory(second)) expected = Escalation::double_fault;
      if (first == 14 && bad_second) expected = Escalation::double_fault;
      EXPECT_EQ(escalate(x, static_cast<std::uint8_t>(second)), expected) << first << " " << second;
      x.external = true;
      EXPECT_EQ(escalate(x, static_cast<std::uint8_t>(second)), Escalation::deliver_second);
    }
  }
}

TEST(Escalation, ContributoryTwiceIsADoubleFaultAndThriceAShutdown) {
  SystemMachine m;
  m.set_gate(cpu::GP, 0xE, 0, false);
  const auto s = m.state(3);
  Ending o = m.go({0xF4}, s);  // HLT at CPL 3: #GP, its gate #NP
  expect_fault(o, s, cpu::DF, 0U);
  EXPECT_EQ(o.rflags & rf::RF, 0U);
  m.set_gate(cpu::DF, 0xE, 0, false);
  o = m.go({0xF4}, s);
  EXPECT_EQ(o.exit, engine::ExitKind::triple_fault);
}

TEST(Escalation, BenignThenContributoryDeliversTheSecondWithExt) {
  SystemMachine m;
  m.set_gate(cpu::UD, 0xE, 0, false);
  const auto s = m.state(3);
  expect_fault(m.go(kUd2, s), s, cpu::NP, gate_error(6, true));
}

TEST(Escalation, PageFaultOnTheInnerStack) {
  SystemMachine m;
  m.set_gate(cpu::PF, 0xE, 0, true, 1);
  m.mmu.page(SystemMachine::kStack0 - 8).present = false;
  const auto s = m.state(3);
  const Ending o = m.go(kUd2, s);
  expect_fault(o, s, cpu::PF, pf::kWrite);  // an implicit supervisor access
  EXPECT_EQ(o.state.cr2, SystemMachine::kStack0 - 8);
}

TEST(Escalation, PageFaultDuringPageFaultIsADoubleFaultWithTheSecondCr2) {
  SystemMachine m;
  m.set_gate(cpu::DF, 0xE, 0, true, 1);
  m.mmu.page(0x200000).present = false;
  m.mmu.page(SystemMachine::kStack0 - 8).present = false;
  const auto s = m.state(3);
  const Ending o = m.go({0xA0, 0, 0, 0x20, 0, 0, 0, 0, 0}, s);  // mov al, [0x200000]
  expect_fault(o, s, cpu::DF, 0U);
  EXPECT_EQ(o.state.cr2, SystemMachine::kStack0 - 8);
}

TEST(Exceptions, PageFaultSetsCr2AndErrorCode) {
  SystemMachine m;
  m.mmu.page(0x200000).present = false;
  const auto s = m.state(3);
  const Ending o = m.go({0xA2, 0x34, 0x02, 0x20, 0, 0, 0, 0, 0}, s);  // mov [0x200234], al
  expect_fault(o, s, cpu::PF, pf::kWrite | pf::kUser);
  EXPECT_EQ(o.state.cr2, 0x200234U);
  EXPECT_NE(o.rflags & rf::RF, 0U);
}

TEST(Exceptions, SingleStepSetsDr6AndClearsTf) {
  SystemMachine m;
  auto s = m.state();
  s.rflags |= rf::TF;
  s.dr[7] |= 1U << 13;
  const Ending o = m.go({0x90, 0x90}, s);
  EXPECT_EQ(o.vector, cpu::DB);
  EXPECT_EQ(o.rip, Machine::kCode + 1);
  EXPECT_EQ(o.rflags, s.rflags);
  EXPECT_EQ(o.state.dr[6], 0xFFFF4FF0U);
  EXPECT_EQ(o.state.dr[7] & 1U << 13, 0U);
  EXPECT_EQ(o.state.rflags & rf::TF, 0U);
}

// ---- interrupts and restart
// -------------------------------------------------------------------------

TEST(Interrupts, DeliveredAtTheBoundaryWithoutRf) {
  SystemMachine m;
  auto s = m.state();
  s.rflags |= rf::IF;
  m.interrupts.vector = 0x40;
  const Ending o = m.go({0x90}, s);
  EXPECT_EQ(o.vector, 0x40);
  EXPECT_EQ(o.rip, Machine::kCode);
  EXPECT_EQ(o.rflags, s.rflags);
}

TEST(Interrupts, AVectorInExceptionRangeIsStillBenignAndHasNoErrorCode) {
  SystemMachine m;
  m.external = true;
  auto s = m.state();
  s.rflags |= rf::IF;
  m.interrupts.vector = cpu::GP;
  const Ending o = m.go({0x90}, s);
  EXPECT_EQ(o.vector, cpu::GP);
  EXPECT_EQ(o.rip, Machine::kCode);
  EXPECT_EQ(o.state.gpr[cpu::RSP], SystemMachine::kStack - 40);
}

TEST(Interrupts, FaultsOnTheWayHaveExtSet) {
  SystemMachine m;
  m.set_gate(0x40, 0xE, 0, true, 0, std::uint16_t{0x10});
  auto s = m.state();
  s.rflags |= rf::IF;
  m.interrupts.vector = 0x40;
  const Ending o = m.go({0x90}, s);
  EXPECT_EQ(o.vector, cpu::GP);
  EXPECT_EQ(o.error, 0x11U);
}

TEST(Interrupts, NmiIsBlockedUntilIret) {
  SystemMachine m;
  m.interrupts.nmi = true;
  const auto s = m.state();
  Ending o = m.go({0x90}, s);
  EXPECT_EQ(o.vector, cpu::NMI);
  EXPECT_TRUE(o.state.nmi_blocked);
  m.write(SystemMachine::kHandlers + 2 * 16, Bytes{0x48, 0xCF});
  m.interrupts.nmi = true;
  o = m.go({0x90}, s);
  EXPECT_TRUE(o.halted);
  EXPECT_FALSE(o.state.nmi_blocked);
}

TEST(Interrupts, StiHoldsThemOffForOneInstruction) {
  SystemMachine m;
  m.interrupts.vector = 0x40;
  const Ending o = m.go({0xFB, 0x90, 0x90}, m.state());
  EXPECT_EQ(o.vector, 0x40);
  EXPECT_EQ(o.rip, Machine::kCode + 2);
}

TEST(Interrupts, AWindowOfOneInstructionIsEnough) {
  SystemMachine m;
  m.interrupts.vector = 0x40;
  const Ending o = m.go({0xFB, 0x90, 0xFA}, m.state());  // STI, NOP, CLI
  EXPECT_EQ(o.vector, 0x40);
  EXPECT_EQ(o.rip, Machine::kCode + 2);
}

TEST(Interrupts, WhatComesWhileStiHoldsThemOffWaitsToo) {
  for (const bool nmi : {true, false}) {
    SystemMachine m;
    bool came = false;
    m.mmu.page(Machine::kData).mmio = true;
    m.mmu.on_translate = [&](VA va) {
      if (va.page_base() != VA{Machine::kData} || std::exchange(came, true)) return;
      if (nmi) m.interrupts.nmi = true;
      if (!nmi) m.interrupts.vector = 0x40;
      m.core->interrupt();
    };
    auto s = m.state();
    s.gpr[cpu::RBX] = Machine::kData;
    Ending o = m.go({0xFB, 0x8A, 0x03, 0x90}, s);  // STI; MOV AL, [RBX]; NOP
    ASSERT_EQ(o.exit, engine::ExitKind::mmio_read);
    m.core->complete(0);
    o = m.go_on();
    EXPECT_EQ(o.vector, nmi ? cpu::NMI : 0x40);
    EXPECT_NE(o.rip, Machine::kCode + 1) << "between STI and the next instruction";
  }
}

TEST(Restart, RetryPausedAndOutOfMemoryDeliverLater) {
  for (const FaultKind kind : {FaultKind::paused, FaultKind::out_of_memory}) {
    SystemMachine m;
    m.mmu.page(SystemMachine::kStack0 - 8).p2m_fault = kind;
    const auto s = m.state(3);
    Ending o = m.go(kUd2, s);
    EXPECT_EQ(o.exit, kind == FaultKind::paused ? engine::ExitKind::paused
                                                : engine::ExitKind::out_of_memory);
    EXPECT_EQ(o.state.rip, Machine::kCode);
    EXPECT_EQ(o.state.gpr[cpu::RSP], SystemMachine::kUserStack);
    EXPECT_EQ(o.state.segment[cpu::SS].selector, SystemMachine::kUserData);
    m.mmu.page(SystemMachine::kStack0 - 8).p2m_fault.reset();
    o = m.go_on();
    expect_fault(o, s, cpu::UD, std::nullopt);
  }
}

TEST(Restart, AnInterruptIsNotLostWhenItsStackIsPaused) {
  SystemMachine m;
  auto s = m.state();
  s.rflags |= rf::IF;
  m.mmu.page(SystemMachine::kStack - 8).p2m_fault = FaultKind::paused;
  m.interrupts.vector = 0x40;
  Ending o = m.go({0x90}, s);
  EXPECT_EQ(o.exit, engine::ExitKind::paused);
  EXPECT_FALSE(m.interrupts.vector.has_value());
  m.mmu.page(SystemMachine::kStack - 8).p2m_fault.reset();
  o = m.go_on();
  EXPECT_EQ(o.vector, 0x40);
  EXPECT_EQ(o.rip, Machine::kCode);
  EXPECT_EQ(o.rflags, s.rflags);
}

// Needs Core::dispatch() to deliver while it replays: `if (!replaying_ || exception.valid)`.
TEST(Restart, AStackInDeviceMemoryIsWrittenExactlyOnce) {
  SystemMachine m;
  m.mmu.page(SystemMachine::kStack0 - 8).mmio = true;
  const auto s = m.state(3);
  Ending o = m.go(kUd2, s);
  std::vector<std::uint64_t> written;
  while (o.exit == engine::ExitKind::mmio_write && written.size() < 20) {
    written.push_back(m.last_exit.data);
    o = m.go_on();
  }
  EXPECT_EQ(written, (std::vector<std::uint64_t>{SystemMachine::kUserData,
                                                 SystemMachine::kUserStack, s.rflags | rf::RF,
                                                 SystemMachine::kUserCode64, Machine::kCode}));
  EXPECT_EQ(o.exit, engine::ExitKind::halt);
  EXPECT_EQ(o.state.rip, SystemMachine::kHandlers + 6 * 16 + 1);
}

TEST(Restart, SoftwareInterruptStartsAgain) {
  SystemMachine m;
  m.mmu.page(SystemMachine::kStack0 - 8).p2m_fault = FaultKind::paused;
  const auto s = m.state(3);
  Ending o = m.go(kInt80, s);
  EXPECT_EQ(o.exit, engine::ExitKind::paused);
  EXPECT_EQ(o.state.rip, Machine::kCode);
  m.mmu.page(SystemMachine::kStack0 - 8).p2m_fault.reset();
  o = m.go_on();
  EXPECT_EQ(o.vector, 0x80);
  EXPECT_EQ(o.rip, Machine::kCode + 2);
}

}  // namespace
}  // namespace strata::interp::test
