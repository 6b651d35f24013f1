// Segment registers: every kind of descriptor against a model of the manual's tables, and the
// instructions that move selectors and bases.
#include "engines/interp/segments.hpp"

#include "system_support.hpp"

namespace strata::interp::test {
namespace {

using M = SystemMachine;
constexpr std::uint16_t kSlot = 0x50;
constexpr std::uint64_t kNonCanonical = 0x0000800000000000ULL;

struct Expected {
  int vector = -1;
  std::uint32_t error = 0;
};

/// SDM 2B, MOV: the checks of a load of ES, DS, FS or GS.
Expected model_data(unsigned type_s, unsigned dpl, bool present, unsigned rpl, unsigned cpl) {
  const bool ordinary = (type_s & 0x10) != 0;
  const bool code = (type_s & 8) != 0;
  const bool readable = (type_s & 2) != 0;
  const bool conforming = code && (type_s & 4) != 0;
  if (!ordinary || (code && !readable)) return {cpu::GP, kSlot};
  if (!conforming && (rpl > dpl || cpl > dpl)) return {cpu::GP, kSlot};
  if (!present) return {cpu::NP, kSlot};
  return {};
}

/// ... and of SS.
Expected model_stack(unsigned type_s, unsigned dpl, bool present, unsigned rpl, unsigned cpl) {
  const bool writable_data = (type_s & 0x1A) == 0x12;
  if (!writable_data || rpl != cpl || dpl != cpl) return {cpu::GP, kSlot};
  if (!present) return {cpu::SS_FAULT, kSlot};
  return {};
}

class SegmentMatrix : public testing::TestWithParam<Env> {};

TEST_P(SegmentMatrix, MovFollowsTheModel) {
  SystemMachine m{GetParam()};
  unsigned loads = 0;
  for (const unsigned name : {cpu::ES, cpu::SS, cpu::DS, cpu::FS, cpu::GS}) {
    for (unsigned type_s = 0; type_s < 32; ++type_s) {
      for (unsigned combination = 0; combination < 4 * 4 * 2 * 4; ++combination) {
        const unsigned dpl = combination & 3;
        const unsigned rpl = combination >> 2 & 3;
        const bool present = (combination >> 4 & 1) != 0;
        const unsigned cpl = combination >> 5;
        // The INT below pushes on the stack that was loaded.
        const std::uint32_t base = name == cpu::SS ? 0 : 0x12340000;
        const bool down = name == cpu::SS && (type_s & 0xC) == 4;
        m.descriptor(kSlot, desc::make(base, down ? 0 : 0xFFFFF, type_s, dpl, present));
        auto s = m.state(cpl);
        s.gpr[cpu::RBX] = kSlot | rpl;
        // mov sreg, bx; mov ecx, 1; int 0x80
        const auto modrm = static_cast<std::uint8_t>(0xC3 | name << 3);
        const Ending o = m.go({0x8E, modrm, 0xB9, 1, 0, 0, 0, 0xCD, 0x80}, s);
        const Expected e = name == cpu::SS ? model_stack(type_s, dpl, present, rpl, cpl)
                                           : model_data(type_s, dpl, present, rpl, cpl);
        SCOPED_TRACE(testing::Message()
                     << "segment " << name << " type " << type_s << " dpl " << dpl << " rpl " << rpl
                     << " P " << present << " cpl " << cpl);
        if (e.vector >= 0) {
          ASSERT_EQ(o.vector, e.vector);
          ASSERT_EQ(o.error, e.error);
          ASSERT_EQ(o.rip, M::kCode);
          ASSERT_EQ(m.descriptor(kSlot) >> 40 & 1, type_s & 1);
        } else {
          ++loads;
          ASSERT_EQ(o.vector, 0x80);
          ASSERT_EQ(o.state.gpr[cpu::RCX], 1U);
          ASSERT_EQ(m.descriptor(kSlot) >> 40 & 1, 1U);
          if (name != cpu::SS) {
            const cpu::Segment& seg = o.state.segment[name];
            ASSERT_EQ(seg.selector, kSlot | rpl);
            ASSERT_EQ(seg.base, base);
            ASSERT_EQ(seg.limit, 0xFFFFFFFFU);
            ASSERT_EQ(seg.attributes, 0xC000U | 0x80U | dpl << 5 | type_s | 1U);
          } else if (cpl != 0) {
            ASSERT_EQ(o.ss, kSlot | rpl);
          }
        }
      }
    }
  }
  EXPECT_GT(loads, 500U);
}
INSTANTIATE_TEST_SUITE_P(All, SegmentMatrix,
                         testing::Values(Env::long64, Env::compat32, Env::legacy32));

TEST(Segments, NullSelectors) {
  for (const Env env : {Env::long64, Env::compat32, Env::legacy32}) {
    for (unsigned cpl = 0; cpl < 4; ++cpl) {
      for (unsigned rpl = 0; rpl < 4; ++rpl) {
        SystemMachine m{env};
        auto s = m.state(cpl);
        s.gpr[cpu::RBX] = rpl;
        s.segment[cpu::FS].base = 0x1000;
        Ending o = m.go({0x8E, 0xE3, 0xCD, 0x80}, s);  // mov fs, bx
        EXPECT_EQ(o.vector, 0x80);
        EXPECT_TRUE(o.state.segment[cpu::FS].unusable());
        EXPECT_EQ(o.state.segment[cpu::FS].base, 0U);
        EXPECT_EQ(o.state.segment[cpu::FS].selector, rpl);
        o = m.go({0x8E, 0xD3, 0xCD, 0x80}, s);  // mov ss, bx
        if (env == Env::long64 && cpl != 3 && rpl == cpl) {
          EXPECT_EQ(o.vector, 0x80) << cpl << rpl;
          EXPECT_EQ(o.ss, rpl);
        } else {
          expect_fault(o, s, cpu::GP, 0U);
        }
      }
    }
  }
}

TEST(Segments, BeyondTheTableAndWithoutAnLdt) {
  SystemMachine m;
  auto s = m.state();
  for (const unsigned selector : {0xF8U, 0x100U, 0x54U}) {
    s.gdtr.limit = selector == 0xF8 ? 0xFE : 0xFF;
    s.gpr[cpu::RBX] = selector;
    expect_fault(m.go({0x8E, 0xDB}, s), s, cpu::GP, selector & 0xFFFCU);
  }
}

TEST(Segments, ThroughTheLdt) {
  SystemMachine m;
  m.poke(M::kLdt + 8, desc::make(0x4000, 0xFFF, 0x13, 3));
  auto s = m.state();
  s.ldtr = {M::kLdt, 15, 0x70, 0x82};
  s.gpr[cpu::RBX] = 0x0F;
  Ending o = m.go({0x8E, 0xDB}, s);
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.segment[cpu::DS].base, 0x4000U);
  s.ldtr.limit = 14;
  expect_fault(m.go({0x8E, 0xDB}, s), s, cpu::GP, 0x0CU);
}

TEST(Segments, BasesAreUsedInLegacyModeAndIgnoredIn64Bit) {
  for (const Env env : {Env::long64, Env::legacy32}) {
    SystemMachine m{env};
    m.descriptor(kSlot, desc::make(0x1000, 0xFFFFF, 0x13, 0));
    m.poke<std::uint32_t>(M::kData, 0xAAAA);
    m.poke<std::uint32_t>(M::kData + 0x1000, 0xBBBB);
    auto s = m.state();
    s.gpr[cpu::RBX] = kSlot;
    s.gpr[cpu::RSI] = M::kData;
    Ending o = m.go({0x8E, 0xDB, 0x8B, 0x06}, s);  // mov ds, bx; mov eax, [rsi]
    EXPECT_EQ(o.state.gpr[cpu::RAX], env == Env::long64 ? 0xAAAAU : 0xBBBBU);
    o = m.go({0x8E, 0xEB, 0x65, 0x8B, 0x06}, s);  // mov gs, bx; mov eax, gs:[rsi]
    EXPECT_EQ(o.state.gpr[cpu::RAX], 0xBBBBU);
  }
}

TEST(Segments, MovSsHoldsInterruptsOff) {
  SystemMachine m;
  auto s = m.state();
  s.gpr[cpu::RBX] = M::kData0;
  s.rflags |= cpu::rflags::IF;
  // The first instruction may be interrupted before it runs: raise the interrupt in between by
  // single-stepping the run loop through a port exit.
  Ending o = m.go({0xE6, 0x80, 0x8E, 0xD3, 0x90, 0x90, 0x90}, s);  // out; mov ss, bx; nop...
  EXPECT_EQ(o.exit, engine::ExitKind::port_write);
  m.interrupts.vector = 0x40;
  o = m.go_on();
  EXPECT_EQ(o.vector, 0x40);
  EXPECT_NE(o.rip, M::kCode + 4);  // not between MOV SS and the next instruction
}

TEST(Segments, PushAndPop) {
  SystemMachine m;
  auto s = m.state();
  s.segment[cpu::GS].selector = 0x33;
  Ending o = m.go({0x0F, 0xA8, 0x0F, 0xA1}, s);  // push gs; pop fs
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.gpr[cpu::RSP], M::kStack);
  EXPECT_EQ(o.state.segment[cpu::FS].selector, 0x33);
  EXPECT_EQ(m.read<std::uint64_t>(M::kStack - 8), 0x33U);
  m.poke<std::uint64_t>(M::kStack, 0x18);
  m.descriptor(0x18, desc::make(0, 0xFFFFF, 0x18, 0));
  expect_fault(m.go({0x0F, 0xA1}, s), s, cpu::GP, 0x18U);
  m.poke<std::uint16_t>(M::kStack, 0x10);
  o = m.go({0x66, 0x0F, 0xA1}, s);
  EXPECT_EQ(o.state.gpr[cpu::RSP], M::kStack + 2);
  EXPECT_EQ(o.state.segment[cpu::FS].selector, 0x10);
}

TEST(Segments, MovFromSegmentZeroExtends) {
  SystemMachine m;
  auto s = m.state();
  s.gpr[cpu::RAX] = s.gpr[cpu::RBX] = s.gpr[cpu::RCX] = ~0ULL;
  s.gpr[cpu::RSI] = M::kData;
  m.poke<std::uint32_t>(M::kData, 0xFFFFFFFF);
  // mov eax, ds; mov rbx, ds; mov cx, ds; mov [rsi], ds
  const Ending o = m.go({0x8C, 0xD8, 0x48, 0x8C, 0xDB, 0x66, 0x8C, 0xD9, 0x8C, 0x1E}, s);
  EXPECT_EQ(o.state.gpr[cpu::RAX], 0x10U);
  EXPECT_EQ(o.state.gpr[cpu::RBX], 0x10U);
  EXPECT_EQ(o.state.gpr[cpu::RCX], 0xFFFFFFFFFFFF0010U);
  EXPECT_EQ(m.read<std::uint32_t>(M::kData), 0xFFFF0010U);
}

TEST(Segments, MovToCsIsUndefined) {
  SystemMachine m;
  const auto s = m.state();
  expect_fault(m.go({0x8E, 0xC8}, s), s, cpu::UD, std::nullopt);
}

TEST(Segments, FarPointerLoadsCommitBothOrNeither) {
  SystemMachine m;
  m.poke<std::uint32_t>(M::kData, 0x12345678);
  m.poke<std::uint16_t>(M::kData + 4, 0x33);
  auto s = m.state();
  s.gpr[cpu::RSI] = M::kData;
  s.gpr[cpu::RAX] = ~0ULL;
  Ending o = m.go({0x0F, 0xB4, 0x06}, s);  // lfs eax, [rsi]
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.gpr[cpu::RAX], 0x12345678U);
  EXPECT_EQ(o.state.segment[cpu::FS].selector, 0x33);
  m.poke<std::uint16_t>(M::kData + 4, 0xF8);
  expect_fault(m.go({0x0F, 0xB4, 0x06}, s), s, cpu::GP, 0xF8U);
  m.poke<std::uint64_t>(M::kData, 0x1122334455667788);
  m.poke<std::uint16_t>(M::kData + 8, M::kData0);
  o = m.go({0x48, 0x0F, 0xB2, 0x26}, s);  // lss rsp, [rsi]
  EXPECT_EQ(o.state.gpr[cpu::RSP], 0x1122334455667788U);
}

TEST(Bases, ReadAndWrite) {
  SystemMachine m;
  auto s = m.state(3);
  s.cr4 |= cpu::cr4::FSGSBASE;
  s.gpr[cpu::RAX] = 0x00007FFF12345678;
  // wrfsbase rax; wrgsbase eax; rdfsbase rbx; rdgsbase rcx; rdfsbase edx
  const Bytes code{0xF3, 0x48, 0x0F, 0xAE, 0xD0, 0xF3, 0x0F, 0xAE, 0xD8, 0xF3, 0x48, 0x0F,
                   0xAE, 0xC3, 0xF3, 0x48, 0x0F, 0xAE, 0xC9, 0xF3, 0x0F, 0xAE, 0xC2};
  const Ending o = m.go(code, s);
  EXPECT_EQ(o.vector, cpu::GP);
  EXPECT_EQ(o.state.gpr[cpu::RBX], 0x00007FFF12345678U);
  EXPECT_EQ(o.state.gpr[cpu::RCX], 0x12345678U);
  EXPECT_EQ(o.state.gpr[cpu::RDX], 0x12345678U);
  s.gpr[cpu::RAX] = kNonCanonical;
  expect_fault(m.go({0xF3, 0x48, 0x0F, 0xAE, 0xD0}, s), s, cpu::GP, 0U);
  s.cr4 &= ~cpu::cr4::FSGSBASE;
  expect_fault(m.go({0xF3, 0x48, 0x0F, 0xAE, 0xC0}, s), s, cpu::UD, std::nullopt);
}

TEST(Limits, ExpandUpAndDown) {
  cpu::Segment s{0, 0xFFF, 0, 0x93};
  EXPECT_TRUE(within_limit(s, 0xFFC, 4));
  EXPECT_FALSE(within_limit(s, 0xFFD, 4));
  s.attributes = 0x97;  // expand-down, 16-bit
  EXPECT_FALSE(within_limit(s, 0xFFF, 1));
  EXPECT_TRUE(within_limit(s, 0x1000, 1));
  EXPECT_TRUE(within_limit(s, 0xFFFC, 4));
  EXPECT_FALSE(within_limit(s, 0xFFFD, 4));
  s.attributes |= 1U << 14;
  EXPECT_TRUE(within_limit(s, 0xFFFD, 4));
}

}  // namespace
}  // namespace strata::interp::test
