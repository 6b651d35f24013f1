// PUSHF, POPF, CLI, STI, HLT, descriptor tables, LAR and friends, CPUID, hypercalls.
#include "system_support.hpp"

namespace strata::interp::test {
namespace {

namespace rf = cpu::rflags;
using M = SystemMachine;
constexpr std::uint64_t kNonCanonical = 0x0000800000000000ULL;
const Bytes kInt80{0xCD, 0x80};

// ---- flags
// ----------------------------------------------------------------------------------------

/// SDM 2B, POPF: what one bit becomes.
std::uint64_t popf_model(std::uint64_t old, std::uint64_t image, unsigned cpl, unsigned size) {
  const unsigned iopl = old >> 12 & 3;
  std::uint64_t writable = 0x4DD5 & ~rf::IOPL;  // CF PF AF ZF SF TF DF OF NT
  if (cpl <= iopl) writable |= rf::IF;
  if (cpl == 0) writable |= rf::IOPL;
  if (size > 2) writable |= rf::AC | rf::ID;
  return (old & ~writable) | (image & writable) | rf::FIXED;
}

TEST(Flags, PopfMatrix) {
  for (const Env env : {Env::long64, Env::legacy32}) {
    SystemMachine m{env};
    for (unsigned cpl = 0; cpl < 4; ++cpl) {
      for (unsigned iopl = 0; iopl < 4; ++iopl) {
        for (const std::uint64_t image : {~rf::TF, std::uint64_t{0}, rf::IF, rf::NT | rf::CF}) {
          for (const bool narrow : {false, true}) {
            auto s = m.state(cpl);
            s.rflags |= std::uint64_t{iopl} << 12 | (image == 0 ? rf::IF | rf::AC : 0);
            const std::uint64_t at = s.gpr[cpu::RSP];
            m.poke<std::uint64_t>(at, image);
            const Bytes popf = narrow ? Bytes{0x66, 0x9D} : Bytes{0x9D};
            const unsigned size = narrow ? 2 : m.is_long() ? 8 : 4;
            const Ending o = m.go(popf + kInt80, s);
            EXPECT_EQ(o.vector, 0x80);
            EXPECT_EQ(o.rflags, popf_model(s.rflags, image, cpl, size))
                << cpl << " " << iopl << " " << image << " " << narrow;
            if (cpl != 0) {
              EXPECT_EQ(o.rsp, at + size);
            }
          }
        }
      }
    }
  }
}

TEST(Flags, PushfHidesRfAndVm) {
  SystemMachine m;
  auto s = m.state();
  s.rflags |= rf::RF | rf::IF | rf::CF | rf::ID | rf::NT;
  const Ending o = m.go({0x9C}, s);
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(m.read<std::uint64_t>(M::kStack - 8), rf::FIXED | rf::IF | rf::CF | rf::ID | rf::NT);
  EXPECT_EQ(o.state.gpr[cpu::RSP], M::kStack - 8);
  m.go({0x66, 0x9C}, s);
  EXPECT_EQ(m.core->state().gpr[cpu::RSP], M::kStack - 2);
}

TEST(Flags, CliAndStiFollowIopl) {
  for (unsigned cpl = 0; cpl < 4; ++cpl) {
    for (unsigned iopl = 0; iopl < 4; ++iopl) {
      SystemMachine m;
      auto s = m.state(cpl);
      s.rflags |= std::uint64_t{iopl} << 12;
      Ending o = m.go(Bytes{0xFB} + kInt80, s);
      if (cpl <= iopl) {
        EXPECT_EQ(o.vector, 0x80);
        EXPECT_NE(o.rflags & rf::IF, 0U);
      } else {
        expect_fault(o, s, cpu::GP, 0U);
      }
      s.rflags |= rf::IF;
      o = m.go(Bytes{0xFA} + kInt80, s);
      if (cpl <= iopl) {
        EXPECT_EQ(o.vector, 0x80);
        EXPECT_EQ(o.rflags & rf::IF, 0U);
      } else {
        expect_fault(o, s, cpu::GP, 0U);
      }
    }
  }
}

TEST(Flags, PopfThatSetsIfLetsAnInterruptIn) {
  SystemMachine m;
  auto s = m.state();
  m.poke<std::uint64_t>(M::kStack, rf::IF | rf::FIXED);
  m.interrupts.vector = 0x40;
  const Ending o = m.go({0x9D, 0x90, 0x90}, s);
  EXPECT_EQ(o.vector, 0x40);
  EXPECT_EQ(o.rip, M::kCode + 1);
}

TEST(Flags, StiHltWakesUp) {
  SystemMachine m;
  m.interrupts.vector = 0x40;
  const Ending o = m.go(Bytes{0xFB, 0xF4}, m.state());
  EXPECT_EQ(o.vector, 0x40);
  EXPECT_EQ(o.rip, M::kCode + 2);  // behind HLT, not behind STI
}

TEST(Flags, ClacAndStac) {
  SystemMachine m;
  auto s = m.state();
  Ending o = m.go({0x0F, 0x01, 0xCB}, s);
  EXPECT_TRUE(o.halted);
  EXPECT_NE(o.state.rflags & rf::AC, 0U);
  s.rflags |= rf::AC;
  o = m.go({0x0F, 0x01, 0xCA}, s);
  EXPECT_EQ(o.state.rflags & rf::AC, 0U);
  const auto user = m.state(3);
  expect_fault(m.go({0x0F, 0x01, 0xCB}, user), user, cpu::UD, std::nullopt);
}

TEST(Flags, AcChoosesTheTlbUnderSmap) {
  SystemMachine m;
  auto s = m.state();
  s.cr4 |= cpu::cr4::SMAP;
  m.go({0x0F, 0x01, 0xCB}, s);
  EXPECT_EQ(m.core->data_mode, kSupervisorAc);
  m.go({0x0F, 0x01, 0xCA}, s);
  EXPECT_EQ(m.core->data_mode, kSupervisor);
  m.go({0x90}, m.state());
  EXPECT_EQ(m.core->data_mode, kSupervisorAc);  // no SMAP
}

// ---- privilege
// ------------------------------------------------------------------------------------

TEST(Privilege, Level3IsRefused) {
  SystemMachine m;
  auto s = m.state(3);
  s.gpr[cpu::RSI] = M::kData;
  const std::vector<Bytes> privileged{
      {0xF4},                          // hlt
      {0x0F, 0x06},                    // clts
      {0x0F, 0x08},                    // invd
      {0x0F, 0x09},                    // wbinvd
      {0x0F, 0x01, 0x16},              // lgdt [rsi]
      {0x0F, 0x01, 0x1E},              // lidt [rsi]
      {0x0F, 0x00, 0xD0},              // lldt ax
      {0x0F, 0x00, 0xD8},              // ltr ax
      {0x0F, 0x01, 0x3E},              // invlpg [rsi]
      {0x0F, 0x01, 0xF0},              // lmsw ax
      {0x0F, 0x20, 0xC0},              // mov rax, cr0
      {0x0F, 0x22, 0xC0},              // mov cr0, rax
      {0x44, 0x0F, 0x20, 0xC0},        // mov rax, cr8
      {0x0F, 0x21, 0xC0},              // mov rax, dr0
      {0x0F, 0x32},                    // rdmsr
      {0x0F, 0x30},                    // wrmsr
      {0x0F, 0x33},                    // rdpmc
      {0xFA},                          // cli
      {0xFB},                          // sti
      {0x66, 0x0F, 0x38, 0x82, 0x06},  // invpcid rax, [rsi]
  };
  for (const Bytes& code : privileged) {
    SCOPED_TRACE(testing::PrintToString(code));
    expect_fault(m.go(code, s), s, cpu::GP, 0U);
  }
}

TEST(Privilege, Umip) {
  SystemMachine m;
  for (const Bytes& code : {Bytes{0x0F, 0x01, 0x06}, Bytes{0x0F, 0x01, 0x0E},  // sgdt, sidt [rsi]
                            Bytes{0x0F, 0x00, 0xC0}, Bytes{0x0F, 0x00, 0xC8},  // sldt, str eax
                            Bytes{0x0F, 0x01, 0xE0}}) {                        // smsw eax
    auto s = m.state(3);
    s.gpr[cpu::RSI] = M::kData;
    EXPECT_EQ(m.go(code + kInt80, s).vector, 0x80);
    s.cr4 |= cpu::cr4::UMIP;
    expect_fault(m.go(code, s), s, cpu::GP, 0U);
    auto kernel = m.state();
    kernel.gpr[cpu::RSI] = M::kData;
    kernel.cr4 |= cpu::cr4::UMIP;
    EXPECT_TRUE(m.go(code, kernel).halted);
  }
}

TEST(Privilege, RealModeHasNoDescriptorInstructions) {
  SystemMachine m{Env::legacy32};
  auto s = m.state();
  s.cr0 &= ~cpu::cr0::PE;
  s.idtr = {0x1000, 0x3FF};
  m.poke<std::uint32_t>(0x1000 + 6 * 4, 0x9000);
  m.write(0x9000, Bytes{0xF4});
  for (const std::uint8_t modrm : Bytes{0xC0, 0xC8, 0xD0, 0xD8, 0xE0, 0xE8}) {
    m.go({0x0F, 0x00, modrm}, s);
    EXPECT_EQ(m.core->state().rip, 0x9001U) << int{modrm};
  }
  for (const std::uint8_t opcode : Bytes{0x02, 0x03}) {
    m.go({0x0F, opcode, 0xC1}, s);
    EXPECT_EQ(m.core->state().rip, 0x9001U);
  }
}

// ---- descriptor tables
// ----------------------------------------------------------------------------

TEST(Tables, LoadAndStoreIn64BitMode) {
  SystemMachine m;
  m.poke<std::uint16_t>(M::kData, 0xFF);
  m.poke<std::uint64_t>(M::kData + 2, 0xFFFF800000002000ULL);
  auto s = m.state();
  s.gpr[cpu::RSI] = M::kData;
  s.gpr[cpu::RDI] = M::kData + 0x100;
  Ending o = m.go({0x0F, 0x01, 0x16, 0x0F, 0x01, 0x07}, s);  // lgdt [rsi]; sgdt [rdi]
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.gdtr, (cpu::DescriptorTable{0xFFFF800000002000ULL, 0xFF}));
  EXPECT_EQ(m.read<std::uint16_t>(M::kData + 0x100), 0xFFU);
  EXPECT_EQ(m.read<std::uint64_t>(M::kData + 0x102), 0xFFFF800000002000ULL);
  o = m.go({0x0F, 0x01, 0x1E, 0x0F, 0x01, 0x0F}, s);  // lidt, sidt
  EXPECT_EQ(o.state.idtr, (cpu::DescriptorTable{0xFFFF800000002000ULL, 0xFF}));
  m.poke<std::uint64_t>(M::kData + 2, kNonCanonical);
  expect_fault(m.go({0x0F, 0x01, 0x16}, s), s, cpu::GP, 0U);
  EXPECT_EQ(m.core->state().gdtr.base, M::kGdt);
}

TEST(Tables, SixteenBitOperandsLoad24BitBases) {
  SystemMachine m{Env::legacy32};
  m.poke<std::uint16_t>(M::kData, 0x7F);
  m.poke<std::uint32_t>(M::kData + 2, 0xAB123456);
  auto s = m.state();
  s.gpr[cpu::RSI] = M::kData;
  EXPECT_EQ(m.go({0x66, 0x0F, 0x01, 0x16}, s).state.gdtr.base, 0x123456U);
  EXPECT_EQ(m.go({0x0F, 0x01, 0x16}, s).state.gdtr.base, 0xAB123456U);
}

TEST(Tables, LtrMarksTheTssBusy) {
  for (const Env env : {Env::long64, Env::legacy32}) {
    SystemMachine m{env};
    m.descriptor(0x50, desc::make(0x12345678, 0x67, 9, 0, true, 0));
    m.poke<std::uint64_t>(M::kGdt + 0x58, 0xFFFF8000ULL);
    auto s = m.state();
    s.gpr[cpu::RAX] = 0x50;
    const Ending o = m.go({0x0F, 0x00, 0xD8}, s);
    EXPECT_TRUE(o.halted);
    EXPECT_EQ(m.descriptor(0x50) >> 40 & 0xF, 11U);
    const std::uint64_t base = env == Env::long64 ? 0xFFFF800012345678ULL : 0x12345678U;
    EXPECT_EQ(o.state.tr, (cpu::Segment{base, 0x67, 0x50, 0x8B}));
    expect_fault(m.go({0x0F, 0x00, 0xD8}, s), s, cpu::GP, 0x50U);  // busy now
  }
}

TEST(Tables, LtrAndLldtFaults) {
  SystemMachine m;
  struct Case {
    std::uint64_t low, high;
    bool task;
    unsigned selector;
    int vector;
    std::uint32_t error;
  };
  const std::uint64_t tss = desc::make(0, 0x67, 9, 0, true, 0);
  const std::uint64_t ldt = desc::make(0, 0xF, 2, 0, true, 0);
  for (const Case c :
       {Case{tss, 0, true, 0, cpu::GP, 0}, Case{tss, 0, true, 0x54, cpu::GP, 0x54},
        Case{ldt, 0, true, 0x50, cpu::GP, 0x50},
        Case{desc::make(0, 0x67, 1, 0, true, 0), 0, true, 0x50, cpu::GP, 0x50},
        Case{desc::make(0, 0x67, 9, 0, false, 0), 0, true, 0x50, cpu::NP, 0x50},
        Case{tss, 1ULL << 40, true, 0x50, cpu::GP, 0x50},
        Case{tss, 0x00008000, true, 0x50, cpu::GP, 0x50}, Case{tss, 0, true, 0xF8, cpu::GP, 0xF8},
        Case{ldt, 0, false, 0x54, cpu::GP, 0x54}, Case{tss, 0, false, 0x50, cpu::GP, 0x50},
        Case{desc::make(0, 0xF, 2, 0, false, 0), 0, false, 0x50, cpu::NP, 0x50},
        Case{ldt, 0x00008000, false, 0x50, cpu::GP, 0x50}}) {
    m.descriptor(0x50, c.low);
    m.poke(M::kGdt + 0x58, c.high);
    if (c.selector == 0xF8) m.descriptor(0xF8, c.low);
    auto s = m.state();
    s.gpr[cpu::RAX] = c.selector;
    const auto modrm = static_cast<std::uint8_t>(c.task ? 0xD8 : 0xD0);
    expect_fault(m.go({0x0F, 0x00, modrm}, s), s, c.vector, c.error);
  }
}

TEST(Tables, LldtAndSldt) {
  SystemMachine m;
  m.descriptor(0x50, desc::make(M::kLdt, 0xF, 2, 0, true, 0));
  m.poke<std::uint64_t>(M::kGdt + 0x58, 0);
  auto s = m.state();
  s.gpr[cpu::RAX] = 0x50;
  s.gpr[cpu::RBX] = s.gpr[cpu::RCX] = ~0ULL;
  // lldt ax; sldt ebx; sldt cx
  Ending o = m.go({0x0F, 0x00, 0xD0, 0x0F, 0x00, 0xC3, 0x66, 0x0F, 0x00, 0xC1}, s);
  EXPECT_EQ(o.state.ldtr, (cpu::Segment{M::kLdt, 0xF, 0x50, 0x82}));
  EXPECT_EQ(o.state.gpr[cpu::RBX], 0x50U);
  EXPECT_EQ(o.state.gpr[cpu::RCX], 0xFFFFFFFFFFFF0050U);
  s.gpr[cpu::RAX] = 3;
  o = m.go({0x0F, 0x00, 0xD0}, s);
  EXPECT_TRUE(o.halted);
  EXPECT_TRUE(o.state.ldtr.unusable());
}

// ---- LAR, LSL, VERR, VERW, ARPL
// -------------------------------------------------------------------

struct Seen {
  bool lar, lsl, verr, verw;
};
Seen model(unsigned type_s, unsigned dpl, unsigned rpl, unsigned cpl, bool long_mode) {
  const bool ordinary = (type_s & 0x10) != 0;
  const bool code = ordinary && (type_s & 8) != 0;
  const bool conforming = code && (type_s & 4) != 0;
  const bool privilege = conforming || (cpl <= dpl && rpl <= dpl);
  const auto among = [&](std::initializer_list<unsigned> types) {
    return std::find(types.begin(), types.end(), type_s) != types.end();
  };
  Seen seen{};
  seen.lar = privilege &&
             (ordinary || (long_mode ? among({2, 9, 11, 12}) : among({1, 2, 3, 4, 5, 9, 11, 12})));
  seen.lsl = privilege && (ordinary || (long_mode ? among({2, 9, 11}) : among({1, 2, 3, 9, 11})));
  seen.verr = privilege && ordinary && (!code || (type_s & 2) != 0);
  seen.verw = privilege && ordinary && !code && (type_s & 2) != 0;
  return seen;
}

TEST(Inspection, MatrixAgainstTheManual) {
  for (const Env env : {Env::long64, Env::legacy32}) {
    SystemMachine m{env};
    for (unsigned i = 0; i < 32 * 4 * 4 * 2; ++i) {
      const unsigned type_s = i & 31;
      const unsigned dpl = i >> 5 & 3;
      const unsigned rpl = i >> 7 & 3;
      const unsigned cpl = (i >> 9 & 1) * 3;
      m.descriptor(0x50, desc::make(0, 0x12345, type_s, dpl, true, 0xC));
      auto s = m.state(cpl);
      s.gpr[cpu::RCX] = 0x50 | rpl;
      const Seen seen = model(type_s, dpl, rpl, cpl, env == Env::long64);
      const auto zf = [](const Ending& o) { return (o.rflags & rf::ZF) != 0; };
      SCOPED_TRACE(testing::Message() << type_s << " " << dpl << " " << rpl << " " << cpl);
      Ending o = m.go(Bytes{0x0F, 0x02, 0xC1} + kInt80, s);  // lar eax, ecx
      ASSERT_EQ(zf(o), seen.lar);
      const auto second = static_cast<std::uint32_t>(m.descriptor(0x50) >> 32);
      ASSERT_EQ(o.state.gpr[cpu::RAX], seen.lar ? second & 0x00F0FF00 : 0U);
      o = m.go(Bytes{0x0F, 0x03, 0xC1} + kInt80, s);  // lsl eax, ecx
      ASSERT_EQ(zf(o), seen.lsl);
      ASSERT_EQ(o.state.gpr[cpu::RAX], seen.lsl ? 0x12345FFFU : 0U);
      ASSERT_EQ(zf(m.go(Bytes{0x0F, 0x00, 0xE1} + kInt80, s)), seen.verr);
      ASSERT_EQ(zf(m.go(Bytes{0x0F, 0x00, 0xE9} + kInt80, s)), seen.verw);
    }
  }
}

TEST(Inspection, NullAndOutOfRangeClearZfAndKeepTheDestination) {
  SystemMachine m;
  for (const std::uint64_t selector : {0x0ULL, 0x3ULL, 0x1000ULL}) {
    auto s = m.state();
    s.rflags |= rf::ZF;
    s.gpr[cpu::RCX] = selector;
    s.gpr[cpu::RAX] = 0x5555;
    const Ending o = m.go({0x0F, 0x02, 0xC1}, s);
    EXPECT_EQ(o.state.rflags & rf::ZF, 0U);
    EXPECT_EQ(o.state.gpr[cpu::RAX], 0x5555U);
  }
}

TEST(Inspection, ArplAdjustsRpl) {
  SystemMachine m{Env::legacy32};
  auto s = m.state();
  s.gpr[cpu::RAX] = 0x12340050;
  s.gpr[cpu::RCX] = 0x33;
  Ending o = m.go({0x63, 0xC8}, s);  // arpl ax, cx
  EXPECT_EQ(o.state.gpr[cpu::RAX], 0x12340053U);
  EXPECT_NE(o.state.rflags & rf::ZF, 0U);
  s.gpr[cpu::RCX] = 0x30;
  s.gpr[cpu::RSI] = M::kData;
  m.poke<std::uint32_t>(M::kData, 0xAAAA0051);
  o = m.go({0x63, 0x0E}, s);  // arpl [esi], cx
  EXPECT_EQ(m.read<std::uint32_t>(M::kData), 0xAAAA0051U);
  EXPECT_EQ(o.state.rflags & rf::ZF, 0U);
  s.gpr[cpu::RCX] = 0x32;
  o = m.go({0x63, 0x0E}, s);
  EXPECT_EQ(m.read<std::uint32_t>(M::kData), 0xAAAA0052U);
}

// ---- the rest
// ---------------------------------------------------------------------------------------

TEST(Processor, CpuidFollowsTheModelAndTheControlRegisters) {
  SystemMachine m;
  for (const bool enabled : {false, true}) {
    auto s = m.state(3);
    s.cr4 = enabled ? s.cr4 | cpu::cr4::OSXSAVE : s.cr4 & ~cpu::cr4::OSXSAVE;
    s.gpr[cpu::RAX] = 0xFFFFFFFF00000001ULL;
    const Ending o = m.go(Bytes{0x0F, 0xA2} + kInt80, s);
    cpu::DynamicState d;
    d.osxsave = enabled;
    d.xcr0 = s.vector.xcr0;
    const cpu::CpuidResult r = m.model.cpuid(1, 0, d);
    EXPECT_EQ(o.state.gpr[cpu::RAX], r.eax);
    EXPECT_EQ(o.state.gpr[cpu::RBX], r.ebx);
    EXPECT_EQ(o.state.gpr[cpu::RCX], r.ecx);
    EXPECT_EQ(o.state.gpr[cpu::RDX], r.edx);
    EXPECT_EQ(o.state.gpr[cpu::RCX] >> 27 & 1, enabled ? 1U : 0U);
  }
}

TEST(Processor, HypercallAnswersInRax) {
  SystemMachine m;
  for (const std::uint8_t last : Bytes{0xC1, 0xD9}) {  // vmcall, vmmcall
    auto s = m.state();
    s.gpr[cpu::RAX] = 7;
    Ending o = m.go({0x0F, 0x01, last}, s);
    EXPECT_EQ(o.exit, engine::ExitKind::hypercall);
    EXPECT_EQ(o.state.rip, M::kCode);
    m.core->complete(0x1122334455667788);
    o = m.go_on();
    EXPECT_TRUE(o.halted);
    EXPECT_EQ(o.state.gpr[cpu::RAX], 0x1122334455667788U);
  }
}

TEST(Processor, HaltStaysUntilAnInterrupt) {
  SystemMachine m;
  auto s = m.state();
  s.rflags |= rf::IF;
  Ending o = m.go(Bytes{}, s);
  EXPECT_TRUE(o.halted);
  EXPECT_TRUE(o.state.halted);
  o = m.go_on();
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.rip, M::kCode + 1);
  m.interrupts.vector = 0x40;
  o = m.go_on();
  EXPECT_EQ(o.vector, 0x40);
  EXPECT_EQ(o.rip, M::kCode + 1);
}

TEST(State, RoundTripsThroughTheCore) {
  SystemMachine m;
  auto s = m.state(3);
  for (unsigned i = 0; i < 16; ++i) s.gpr[i] = i * 0x0101010101010101ULL;
  s.rflags = rf::FIXED | rf::CF | rf::ZF | rf::OF | rf::DF | rf::IF | rf::ID;
  s.msr.lstar = 0x1234;
  s.dr[3] = 77;
  m.core->set_state(s);
  EXPECT_EQ(m.core->state(), s);
  EXPECT_EQ(m.core->cpl, 3);
  EXPECT_EQ(m.core->data_mode, kUser);
}

}  // namespace
}  // namespace strata::interp::test
