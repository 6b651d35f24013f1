// IRET, far RET, far CALL and JMP, with and without gates.
#include "system_support.hpp"

namespace strata::interp::test {
namespace {

namespace rf = cpu::rflags;
using M = SystemMachine;
constexpr std::uint64_t kTarget = 0x20000;
constexpr std::uint64_t kNonCanonical = 0x0000800000000000ULL;
const Bytes kIretq{0x48, 0xCF};
const Bytes kIretd{0xCF};
const Bytes kLretq{0x48, 0xCB};
const Bytes kLret{0xCB};

/// Puts values where the stack pointer will be, lowest first.
void put_frame(SystemMachine& m, std::uint64_t at, unsigned slot,
               std::initializer_list<std::uint64_t> values) {
  for (const std::uint64_t v : values) {
    if (slot == 8) m.poke<std::uint64_t>(at, v);
    if (slot == 4) m.poke<std::uint32_t>(at, static_cast<std::uint32_t>(v));
    if (slot == 2) m.poke<std::uint16_t>(at, static_cast<std::uint16_t>(v));
    at += slot;
  }
}
void put_target(SystemMachine& m) { m.write(kTarget, Bytes{0xF4}); }

// ---- IRET in 64-bit mode
// --------------------------------------------------------------------------

TEST(Iret, SameLevelPopsSsAndRspToo) {
  SystemMachine m;
  put_target(m);
  const std::uint64_t flags = rf::FIXED | rf::CF | rf::ZF | rf::DF | rf::AC | rf::ID | rf::IOPL;
  put_frame(m, M::kStack, 8, {kTarget, M::kCode64, flags | rf::RF | rf::VM, 0x7FF00, M::kData0});
  auto s = m.state();
  s.nmi_blocked = true;
  const Ending o = m.go(kIretq, s);
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.rip, kTarget + 1);
  EXPECT_EQ(o.state.gpr[cpu::RSP], 0x7FF00U);
  EXPECT_EQ(o.state.rflags, flags);
  EXPECT_FALSE(o.state.nmi_blocked);
}

TEST(Iret, ToUser64DropsInnerSegments) {
  SystemMachine m;
  put_target(m);
  put_frame(m, M::kStack, 8, {kTarget, M::kUserCode64, 0x202, M::kUserStack, M::kUserData});
  auto s = m.state();
  s.segment[cpu::DS] = M::flat(M::kUserData, 0xC093);
  s.segment[cpu::FS] = M::flat(0x50, 0xC09F);  // conforming code stays
  s.segment[cpu::GS].base = 0x123456789;
  s.segment[cpu::GS].attributes = 1U << 16;
  s.segment[cpu::GS].selector = 2;
  const Ending o = m.go(kIretq, s);
  EXPECT_EQ(o.vector, cpu::GP);  // HLT at CPL 3
  EXPECT_EQ(o.rip, kTarget);
  EXPECT_EQ(o.cs, M::kUserCode64);
  EXPECT_EQ(o.rsp, M::kUserStack);
  EXPECT_EQ(o.ss, M::kUserData);
  EXPECT_EQ(o.rflags & ~rf::RF, 0x202U);
  EXPECT_EQ(o.state.segment[cpu::DS].selector, M::kUserData);
  EXPECT_EQ(o.state.segment[cpu::ES].selector, 0);
  EXPECT_TRUE(o.state.segment[cpu::ES].unusable());
  EXPECT_EQ(o.state.segment[cpu::FS].selector, 0x50);
  EXPECT_EQ(o.state.segment[cpu::GS].base, 0x123456789U);
  EXPECT_EQ(o.state.segment[cpu::GS].selector, 2);
}

TEST(Iret, ToCompatibilityModeAndBack) {
  SystemMachine m;
  m.write(kTarget, Bytes{0xCD, 0x80});
  put_frame(m, M::kStack, 8, {kTarget, M::kUserCode32, 0x202, M::kUserStack, M::kUserData});
  Ending o = m.go(kIretq);
  EXPECT_EQ(o.vector, 0x80);
  EXPECT_EQ(o.rip, kTarget + 2);
  EXPECT_EQ(o.cs, M::kUserCode32);
  EXPECT_EQ(o.rsp, M::kUserStack);
  EXPECT_TRUE(o.state.segment[cpu::CS].long_mode());
}

TEST(Iret, RoundTripThroughAHandlerRestoresEverything) {
  for (const Env env : {Env::long64, Env::compat32, Env::legacy32}) {
    SystemMachine m{env};
    m.write(M::kHandlers + 0x80 * 16, env == Env::legacy32 ? kIretd : kIretq);
    auto s = m.state(3);
    s.rflags |= rf::IF | rf::CF | rf::DF;
    const Ending o = m.go({0xCD, 0x80}, s);
    expect_fault(o, s, cpu::GP, 0U, M::kCode + 2);  // the HLT behind the INT
    for (const auto name : {cpu::ES, cpu::DS, cpu::FS, cpu::GS}) {
      EXPECT_EQ(o.state.segment[name], s.segment[name]);
    }
  }
}

TEST(Iret, NullSsOnlyFor64BitCodeBelowLevel3) {
  SystemMachine m;
  put_target(m);
  put_frame(m, M::kStack, 8, {kTarget, M::kCode64, 2, 0x7FF00, 0});
  Ending o = m.go(kIretq);
  EXPECT_TRUE(o.halted);
  EXPECT_TRUE(o.state.segment[cpu::SS].unusable());
  const auto s = m.state();
  put_frame(m, M::kStack, 8, {kTarget, M::kUserCode64, 2, 0x7FF00, 3});
  expect_fault(m.go(kIretq, s), s, cpu::GP, 0U);
  put_frame(m, M::kStack, 8, {kTarget, M::kCode32, 2, 0x7FF00, 0});
  expect_fault(m.go(kIretq, s), s, cpu::GP, 0U);
}

struct IretFault {
  const char* what;
  std::uint64_t rip, cs, ss;
  int vector;
  std::uint32_t error;
};
class IretFaults : public testing::TestWithParam<IretFault> {};
TEST_P(IretFaults, LeaveNoTrace) {
  const IretFault& f = GetParam();
  SystemMachine m;
  m.descriptor(0x50, desc::make(0, 0xFFFFF, 0x1B, 3, false, 0xA));  // code, not present
  m.descriptor(0x58, desc::make(0, 0xFFFFF, 0x13, 3, false));       // data, not present
  m.descriptor(0x60, desc::make(0, 0xFFFFF, 0x11, 3));              // data, read-only
  m.descriptor(0x68, desc::make(0, 0xFFFFF, 0x1B, 3, true, 0xE));   // L and D
  m.descriptor(0x70, desc::make(0, 0xFFFFF, 0x1F, 3, true, 0xA));   // conforming, DPL 3
  m.descriptor(0x78, desc::make(0, 0xFFF, 0x1B, 3, true, 4));       // 32-bit code of 4 KiB
  put_frame(m, M::kStack, 8, {f.rip, f.cs, 0x202, M::kUserStack, f.ss});
  auto s = m.state();
  s.nmi_blocked = true;
  const Ending o = m.go(kIretq, s);
  expect_fault(o, s, f.vector, f.error);
  for (const auto name : {cpu::ES, cpu::DS, cpu::FS, cpu::GS}) {
    EXPECT_EQ(o.state.segment[name], s.segment[name]);
  }
}
INSTANTIATE_TEST_SUITE_P(
    All, IretFaults,
    testing::Values(IretFault{"null_cs", kTarget, 3, 0x33, cpu::GP, 0},
                    IretFault{"cs_beyond_gdt", kTarget, 0x1003, 0x33, cpu::GP, 0x1000},
                    IretFault{"cs_is_data", kTarget, 0x33, 0x33, cpu::GP, 0x30},
                    IretFault{"cs_dpl_is_not_rpl", kTarget, 0x0B, 0x33, cpu::GP, 0x08},
                    IretFault{"cs_conforming_above_rpl", kTarget, 0x70, 0x10, cpu::GP, 0x70},
                    IretFault{"cs_not_present", kTarget, 0x53, 0x33, cpu::NP, 0x50},
                    IretFault{"cs_l_and_d", kTarget, 0x6B, 0x33, cpu::GP, 0x68},
                    IretFault{"cs_in_missing_ldt", kTarget, 0x0F, 0x33, cpu::GP, 0x0C},
                    IretFault{"rip_not_canonical", kNonCanonical, 0x3B, 0x33, cpu::GP, 0},
                    IretFault{"eip_beyond_limit", 0x1000, 0x7B, 0x33, cpu::GP, 0},
                    IretFault{"ss_rpl", kTarget, 0x3B, 0x30, cpu::GP, 0x30},
                    IretFault{"ss_dpl", kTarget, 0x3B, 0x13, cpu::GP, 0x10},
                    IretFault{"ss_is_code", kTarget, 0x3B, 0x3B, cpu::GP, 0x38},
                    IretFault{"ss_read_only", kTarget, 0x3B, 0x63, cpu::GP, 0x60},
                    IretFault{"ss_not_present", kTarget, 0x3B, 0x5B, cpu::SS_FAULT, 0x58}),
    [](const testing::TestParamInfo<IretFault>& parameter) {
      return std::string{parameter.param.what};
    });

TEST(Iret, NestedTaskIsRefusedInLongMode) {
  SystemMachine m;
  put_frame(m, M::kStack, 8, {kTarget, M::kCode64, 2, 0x7FF00, M::kData0});
  auto s = m.state();
  s.rflags |= rf::NT;
  expect_fault(m.go(kIretq, s), s, cpu::GP, 0U);
}

TEST(Iret, NonCanonicalStack) {
  SystemMachine m;
  m.set_gate(cpu::SS_FAULT, 0xE, 0, true, 1);
  m.set_gate(cpu::PF, 0xE, 0, true, 1);
  auto s = m.state();
  s.gpr[cpu::RSP] = kNonCanonical - 16;
  const Ending o = m.go(kIretq, s);
  // The first two slots are readable as far as canonicality goes, but lie outside memory.
  EXPECT_EQ(o.vector, cpu::PF);
  s.gpr[cpu::RSP] = kNonCanonical;
  expect_fault(m.go(kIretq, s), s, cpu::SS_FAULT, 0U);
}

TEST(Iret, PageFaultHalfWayLeavesTheStackPointer) {
  SystemMachine m;
  m.set_gate(cpu::PF, 0xE, 0, true, 1);
  auto s = m.state();
  s.gpr[cpu::RSP] = 0x81000 - 24;
  m.mmu.page(0x81000).present = false;
  expect_fault(m.go(kIretq, s), s, cpu::PF, 0U);
}

TEST(Iret, FlagsFollowCplAndIopl) {
  const std::uint64_t all = rf::IF | rf::IOPL | rf::NT | rf::DF | rf::AC | rf::ID;
  for (const unsigned cpl : {0U, 3U}) {
    for (unsigned iopl = 0; iopl < 4; ++iopl) {
      SystemMachine m;
      put_target(m);
      auto s = m.state(cpl);
      s.rflags |= std::uint64_t{iopl} << 12;
      put_frame(m, s.gpr[cpu::RSP], 8,
                {kTarget, s.segment[cpu::CS].selector, all | 2, s.gpr[cpu::RSP],
                 s.segment[cpu::SS].selector});
      const Ending o = m.go(kIretq, s);
      const std::uint64_t now = cpl == 0 ? o.state.rflags : o.rflags & ~rf::RF;
      std::uint64_t expected = rf::FIXED | rf::NT | rf::DF | rf::AC | rf::ID;
      expected |= cpl == 0 ? rf::IOPL : std::uint64_t{iopl} << 12;
      if (cpl <= iopl) expected |= rf::IF;
      EXPECT_EQ(now, expected) << cpl << " " << iopl;
    }
  }
}

// ---- IRET in legacy mode
// ----------------------------------------------------------------------------

TEST(IretLegacy, SameLevelPopsThree) {
  SystemMachine m{Env::legacy32};
  put_target(m);
  put_frame(m, M::kStack, 4, {kTarget, M::kCode32, 0x46});
  const Ending o = m.go(kIretd);
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.rip, kTarget + 1);
  EXPECT_EQ(o.state.gpr[cpu::RSP], M::kStack + 12);
  EXPECT_EQ(o.state.rflags, 0x46U);
}

TEST(IretLegacy, OuterLevel) {
  SystemMachine m{Env::legacy32};
  put_target(m);
  put_frame(m, M::kStack, 4, {kTarget, M::kUserCode32, 0x202, M::kUserStack, M::kUserData});
  const Ending o = m.go(kIretd);
  EXPECT_EQ(o.vector, cpu::GP);
  EXPECT_EQ(o.rip, kTarget);
  EXPECT_EQ(o.rsp, M::kUserStack);
  EXPECT_EQ(o.ss, M::kUserData);
  EXPECT_TRUE(o.state.segment[cpu::DS].unusable());
}

TEST(IretLegacy, SixteenBitStackKeepsTheUpperHalfOfEsp) {
  SystemMachine m{Env::legacy32};
  put_target(m);
  m.descriptor(0x50, desc::make(0, 0xFFFF, 0x13, 3, true, 0));
  put_frame(m, M::kStack, 4, {kTarget, M::kUserCode32, 0x202, 0x12349000, 0x53});
  const Ending o = m.go(kIretd);
  EXPECT_EQ(o.rip, kTarget);
  EXPECT_EQ(o.rsp, (M::kStack & 0xFFFF0000) | 0x9000);
}

TEST(IretLegacy, NestedTaskWithoutABackLink) {
  SystemMachine m{Env::legacy32};
  m.poke<std::uint16_t>(M::kTss, 0x30);
  auto s = m.state(3);
  s.rflags |= rf::NT;
  expect_fault(m.go(kIretd, s), s, cpu::TS, 0x30U);
}

TEST(IretLegacy, ToVirtual8086ModeAndOut) {
  SystemMachine m{Env::legacy32};
  // At the linear address, and at the IP as well: the engine takes one for the other until the
  // legacy modes are complete.
  m.write(0x20100, Bytes{0xF4});
  m.write(0x100, Bytes{0xF4});
  put_frame(m, M::kStack, 4,
            {0x100, 0x2000, rf::VM | rf::IF | 2, 0xFFF0, 0x9000, 0x1111, 0x2222, 0x3333, 0x4444});
  // HLT in virtual-8086 mode is refused, at level 0 and with the data segments above SS.
  const Ending o = m.go(kIretd);
  EXPECT_EQ(o.vector, cpu::GP);
  const std::uint64_t sp = o.state.gpr[cpu::RSP];
  EXPECT_EQ(sp, M::kStack0 - 40);
  const std::vector<std::uint32_t> expected{
      0,      0x100,  0x2000, static_cast<std::uint32_t>(rf::VM | rf::RF | rf::IF | 2),
      0xFFF0, 0x9000, 0x1111, 0x2222,
      0x3333, 0x4444};
  for (unsigned i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(m.read<std::uint32_t>(sp + 4 * i), expected[i]) << i;
  }
  EXPECT_EQ(o.state.rflags, rf::FIXED);
  for (const auto name : {cpu::ES, cpu::DS, cpu::FS, cpu::GS}) {
    EXPECT_TRUE(o.state.segment[name].unusable());
  }
}

// ---- far RET
// ----------------------------------------------------------------------------------------

TEST(FarReturn, SameLevelReleasesParameters) {
  SystemMachine m;
  put_target(m);
  put_frame(m, M::kStack, 8, {kTarget, M::kCode64});
  Ending o = m.go({0x48, 0xCA, 0x20, 0x00});
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.rip, kTarget + 1);
  EXPECT_EQ(o.state.gpr[cpu::RSP], M::kStack + 16 + 32);
  put_frame(m, M::kStack, 4, {kTarget, M::kCode64});
  o = m.go(kLret);
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.gpr[cpu::RSP], M::kStack + 8);
}

TEST(FarReturn, OuterLevelReleasesOnBothStacks) {
  SystemMachine m;
  put_target(m);
  put_frame(m, M::kStack, 8, {kTarget, M::kUserCode64, 0, 0, M::kUserStack, M::kUserData});
  const Ending o = m.go({0x48, 0xCA, 0x10, 0x00});
  EXPECT_EQ(o.vector, cpu::GP);
  EXPECT_EQ(o.rip, kTarget);
  EXPECT_EQ(o.rsp, M::kUserStack + 16);
  EXPECT_EQ(o.cs, M::kUserCode64);
  EXPECT_TRUE(o.state.segment[cpu::ES].unusable());
}

TEST(FarReturn, Faults) {
  SystemMachine m;
  const auto user = m.state(3);
  put_frame(m, M::kUserStack, 8, {kTarget, M::kCode64});
  expect_fault(m.go(kLretq, user), user, cpu::GP, 0x08U);  // to an inner level
  put_frame(m, M::kUserStack, 8, {kTarget, 3});
  expect_fault(m.go(kLretq, user), user, cpu::GP, 0U);
  const auto s = m.state();
  put_frame(m, M::kStack, 8, {kTarget, M::kUserCode64, M::kUserStack, M::kData0});
  expect_fault(m.go(kLretq, s), s, cpu::GP, 0x10U);
  put_frame(m, M::kStack, 8, {kNonCanonical, M::kCode64});
  expect_fault(m.go(kLretq, s), s, cpu::GP, 0U);
}

// ---- far JMP and CALL
// -------------------------------------------------------------------------------

const Bytes kJmpMem{0xFF, 0x28};   // jmp far dword [rax]
const Bytes kCallMem{0xFF, 0x18};  // call far dword [rax]
const Bytes kCallMem64{0x48, 0xFF, 0x18};

Ending far_mem(SystemMachine& m, const Bytes& code, std::uint16_t selector, std::uint64_t offset,
               cpu::VcpuState s) {
  const bool wide = code[0] == 0x48;
  if (wide) m.poke<std::uint64_t>(M::kData, offset);
  if (!wide) m.poke<std::uint32_t>(M::kData, static_cast<std::uint32_t>(offset));
  m.poke<std::uint16_t>(M::kData + (wide ? 8 : 4), selector);
  s.gpr[cpu::RAX] = M::kData;
  return m.go(code, s);
}

TEST(FarJump, ToCompatibilityModeAndBackInto64Bit) {
  SystemMachine m;
  // In 32-bit code: jmp far 0x08:0x21000.
  m.write(kTarget, Bytes{0xEA, 0x00, 0x10, 0x02, 0x00, 0x08, 0x00});
  m.write(0x21000, Bytes{0x48, 0x89, 0xC3, 0xF4});  // mov rbx, rax; hlt
  const Ending o = far_mem(m, kJmpMem, M::kCode32, kTarget, m.state());
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.rip, 0x21004U);
  EXPECT_EQ(o.state.gpr[cpu::RBX], M::kData);
  EXPECT_EQ(o.state.segment[cpu::CS].selector, M::kCode64);
  EXPECT_EQ(o.state.gpr[cpu::RSP], M::kStack);
}

TEST(FarJump, Checks) {
  SystemMachine m;
  m.descriptor(0x50, desc::make(0, 0xFFFFF, 0x1B, 0, false, 0xA));
  m.descriptor(0x58, desc::make(0, 0xFFFFF, 0x1B, 0, true, 0xE));
  m.descriptor(0x60, desc::make(0, 0xFFFFF, 0x1F, 3, true, 0xA));  // conforming, DPL 3
  struct Case {
    std::uint16_t selector;
    std::uint64_t offset;
    int vector;
    std::uint32_t error;
  };
  for (const Case c : {Case{0, kTarget, cpu::GP, 0}, Case{0x10, kTarget, cpu::GP, 0x10},
                       Case{0x0B, kTarget, cpu::GP, 0x08}, Case{0x38, kTarget, cpu::GP, 0x38},
                       Case{0x50, kTarget, cpu::NP, 0x50}, Case{0x58, kTarget, cpu::GP, 0x58},
                       Case{0x60, kTarget, cpu::GP, 0x60}, Case{0x40, kTarget, cpu::GP, 0x40},
                       Case{0x1000, kTarget, cpu::GP, 0x1000}}) {
    auto s = m.state();
    s.gpr[cpu::RAX] = M::kData;
    expect_fault(far_mem(m, kJmpMem, c.selector, c.offset, s), s, c.vector, c.error);
  }
  auto s = m.state();
  s.gpr[cpu::RAX] = M::kData;
  expect_fault(far_mem(m, {0x48, 0xFF, 0x28}, M::kCode64, kNonCanonical, s), s, cpu::GP, 0U);
}

TEST(FarJump, ConformingCodeKeepsCpl) {
  SystemMachine m;
  put_target(m);
  m.descriptor(0x60, desc::make(0, 0xFFFFF, 0x1F, 0, true, 0xA));
  const Ending o = far_mem(m, kJmpMem, 0x60, kTarget, m.state(3));
  EXPECT_EQ(o.vector, cpu::GP);
  EXPECT_EQ(o.rip, kTarget);
  EXPECT_EQ(o.cs, 0x63U);
}

TEST(FarCall, PushesByOperandSize) {
  SystemMachine m;
  put_target(m);
  Ending o = far_mem(m, kCallMem, M::kCode64, kTarget, m.state());
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.gpr[cpu::RSP], M::kStack - 8);
  EXPECT_EQ(m.read<std::uint32_t>(M::kStack - 8), M::kCode + 2);
  EXPECT_EQ(m.read<std::uint32_t>(M::kStack - 4), M::kCode64);
  o = far_mem(m, kCallMem64, M::kCode64, kTarget, m.state());
  EXPECT_EQ(o.state.gpr[cpu::RSP], M::kStack - 16);
  EXPECT_EQ(m.read<std::uint64_t>(M::kStack - 16), M::kCode + 3);
  EXPECT_EQ(m.read<std::uint64_t>(M::kStack - 8), M::kCode64);
}

TEST(FarCall, ThroughALongGateToTheInnerLevelAndBack) {
  SystemMachine m;
  m.write(kTarget, kLretq);
  m.descriptor(0x50, desc::gate(M::kCode64, kTarget, 12, 3));
  m.poke<std::uint64_t>(M::kGdt + 0x58, 0);
  const auto s = m.state(3);
  const Ending o = far_mem(m, kCallMem, 0x50, 0xDEAD, s);
  EXPECT_EQ(o.vector, cpu::GP);  // back at CPL 3, on the HLT
  EXPECT_EQ(o.rip, M::kCode + 2);
  EXPECT_EQ(o.rsp, M::kUserStack);
  EXPECT_EQ(o.cs, M::kUserCode64);
  EXPECT_EQ(o.ss, M::kUserData);
  EXPECT_EQ(m.read<std::uint64_t>(M::kStack0 - 8), M::kUserData);
  EXPECT_EQ(m.read<std::uint64_t>(M::kStack0 - 16), M::kUserStack);
}

TEST(FarCall, GateChecks) {
  SystemMachine m;
  m.poke<std::uint64_t>(M::kGdt + 0x58, 0);
  struct Case {
    std::uint64_t gate;
    std::uint16_t selector;
    int vector;
    std::uint32_t error;
  };
  for (const Case c : {Case{desc::gate(M::kCode64, kTarget, 12, 2), 0x50, cpu::GP, 0x50},
                       Case{desc::gate(M::kCode64, kTarget, 12, 3, false), 0x50, cpu::NP, 0x50},
                       Case{desc::gate(0, kTarget, 12, 3), 0x50, cpu::GP, 0},
                       Case{desc::gate(M::kData0, kTarget, 12, 3), 0x50, cpu::GP, 0x10},
                       Case{desc::gate(M::kCode32, kTarget, 12, 3), 0x50, cpu::GP, 0x18},
                       Case{desc::gate(M::kCode64, kTarget, 4, 3), 0x50, cpu::GP, 0x50}}) {
    m.descriptor(0x50, c.gate);
    auto s = m.state(3);
    s.gpr[cpu::RAX] = M::kData;
    expect_fault(far_mem(m, kCallMem, c.selector, 0, s), s, c.vector, c.error);
  }
  // JMP may not raise privilege; the upper half must not look like a descriptor.
  m.descriptor(0x50, desc::gate(M::kCode64, kTarget, 12, 3));
  auto s = m.state(3);
  s.gpr[cpu::RAX] = M::kData;
  expect_fault(far_mem(m, kJmpMem, 0x50, 0, s), s, cpu::GP, 0x08U);
  m.poke<std::uint64_t>(M::kGdt + 0x58, 1ULL << 40);
  expect_fault(far_mem(m, kCallMem, 0x50, 0, s), s, cpu::GP, 0x50U);
}

TEST(FarCall, LegacyGateCopiesParameters) {
  SystemMachine m{Env::legacy32};
  put_target(m);
  m.descriptor(0x50, desc::gate(M::kCode32, kTarget, 12, 3, true, 2));
  put_frame(m, M::kUserStack, 4, {0x11111111, 0x22222222});
  // call far 0x50:0
  const Ending o = m.go({0x9A, 0, 0, 0, 0, 0x50, 0}, 3);
  EXPECT_TRUE(o.halted);
  const std::uint64_t sp = o.state.gpr[cpu::RSP];
  EXPECT_EQ(sp, M::kStack0 - 24);
  const std::vector<std::uint32_t> expected{
      static_cast<std::uint32_t>(M::kCode + 7),  M::kUserCode32, 0x11111111, 0x22222222,
      static_cast<std::uint32_t>(M::kUserStack), M::kUserData};
  for (unsigned i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(m.read<std::uint32_t>(sp + 4 * i), expected[i]) << i;
  }
  EXPECT_EQ(o.state.segment[cpu::CS].selector, M::kCode32);
}

TEST(FarCall, LegacyDirectChecksTheLimit) {
  SystemMachine m{Env::legacy32};
  m.descriptor(0x50, desc::make(0, 0xFFF, 0x1B, 0, true, 4));
  const auto s = m.state();
  expect_fault(m.go({0x9A, 0x00, 0x10, 0, 0, 0x50, 0}, s), s, cpu::GP, 0U);
}

}  // namespace
}  // namespace strata::interp::test
