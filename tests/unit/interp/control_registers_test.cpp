// Control and debug registers: what may be written when, and what is flushed.
#include "engines/interp/control_registers.hpp"

#include "system_support.hpp"

namespace strata::interp::test {
namespace {

using M = SystemMachine;
using namespace cpu::cr0;
namespace c4 = cpu::cr4;
constexpr std::uint64_t kNonCanonical = 0x0000800000000000ULL;

Bytes mov_to(unsigned cr) {  // mov crN, rbx
  const auto modrm = static_cast<std::uint8_t>(0xC3 | (cr & 7) << 3);
  return cr < 8 ? Bytes{0x0F, 0x22, modrm} : Bytes{0x44, 0x0F, 0x22, modrm};
}
Bytes mov_from(unsigned cr) {  // mov rax, crN
  const auto modrm = static_cast<std::uint8_t>(0xC0 | (cr & 7) << 3);
  return cr < 8 ? Bytes{0x0F, 0x20, modrm} : Bytes{0x44, 0x0F, 0x20, modrm};
}
Ending write_cr(SystemMachine& m, unsigned cr, std::uint64_t value, cpu::VcpuState s) {
  s.gpr[cpu::RBX] = value;
  m.core->set_state(s);  // so that its flushes are not counted
  m.mmu.flushes.clear();
  Bytes code = mov_to(cr);
  code.push_back(0xF4);
  m.write(s.rip, code);
  return m.go_on();
}
bool flushed(const SystemMachine& m, FlushScope scope) {
  return std::any_of(m.mmu.flushes.begin(), m.mmu.flushes.end(),
                     [scope](const auto& f) { return f.scope == scope; });
}
void expect_refused(const Ending& o) {
  EXPECT_EQ(o.vector, cpu::GP);
  EXPECT_EQ(o.error, 0U);
  EXPECT_EQ(o.rip, M::kCode);
}

// ---- CR0
// ------------------------------------------------------------------------------------------

TEST(Cr0, ValidityMatrixIn64BitMode) {
  SystemMachine m;
  const auto s = m.state();
  for (unsigned i = 0; i < 64; ++i) {
    const auto bit = [i](unsigned n, std::uint64_t mask) { return (i >> n & 1) != 0 ? mask : 0; };
    const std::uint64_t value =
        bit(0, PE) | bit(1, PG) | bit(2, NW) | bit(3, CD) | bit(4, 1ULL << 40) | bit(5, WP) | NE;
    const bool valid = (value & PE) != 0 && (value & PG) != 0 &&
                       ((value & NW) == 0 || (value & CD) != 0) && value >> 32 == 0;
    const Ending o = write_cr(m, 0, value, s);
    if (valid) {
      EXPECT_TRUE(o.halted) << value;
      EXPECT_EQ(o.state.cr0, value | ET);
    } else {
      expect_refused(o);
      EXPECT_EQ(o.state.cr0, s.cr0);
    }
  }
}

TEST(Cr0, ReservedBitsAreIgnoredAndEtStays) {
  SystemMachine m;
  const auto s = m.state();
  const Ending o = write_cr(m, 0, (s.cr0 & ~ET) | 1 << 6 | 1 << 17, s);
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.cr0, s.cr0);
  EXPECT_TRUE(m.mmu.flushes.empty());
}

/// 32-bit code with paging off, about to enter IA-32e mode.
cpu::VcpuState before_paging(const SystemMachine& m) {
  cpu::VcpuState s = m.state();
  s.cr4 |= c4::PAE;
  s.efer = cpu::efer::LME | cpu::efer::SCE;
  s.cr3 = 0x7000;
  return s;
}

TEST(Cr0, PagingWithLmeActivatesLongMode) {
  SystemMachine m{Env::legacy32};
  const auto s = before_paging(m);
  const Ending o = write_cr(m, 0, s.cr0 | PG, s);
  EXPECT_EQ(o.state.efer & cpu::efer::LMA, cpu::efer::LMA);
  EXPECT_EQ(m.mmu.context.mode, PagingMode::long4);
  EXPECT_EQ(m.mmu.context.root, PA{0x7000});
  EXPECT_TRUE(flushed(m, FlushScope::all));
  EXPECT_EQ(m.core->decode_mode.bits, 32);
}

TEST(Cr0, PvhSwitchToLongMode) {
  // What a kernel does from the flat 32-bit entry: CR4.PAE, EFER.LME, CR0.PG, far jump.
  SystemMachine m{Env::legacy32};
  auto s = m.state();
  s.gpr[cpu::RBX] = c4::PAE;
  s.gpr[cpu::RCX] = 0xC0000080;
  s.gpr[cpu::RAX] = cpu::efer::LME;
  s.gpr[cpu::RSI] = s.cr0 | PG;
  m.write(0x20000, Bytes{0x48, 0xC7, 0xC0, 0xFF, 0xFF, 0xFF, 0xFF, 0xF4});  // mov rax, -1; hlt
  const Ending o = m.go({0x0F, 0x22, 0xE3,                                  // mov cr4, ebx
                         0x0F, 0x30,                                        // wrmsr
                         0x0F, 0x22, 0xC6,                                  // mov cr0, esi
                         0xEA, 0x00, 0x00, 0x02, 0x00, 0x08, 0},            // jmp 08:20000
                        s);
  EXPECT_EQ(o.state.gpr[cpu::RAX], ~0ULL);
  EXPECT_EQ(m.core->decode_mode.bits, 64);
  EXPECT_EQ(o.state.efer, cpu::efer::LME | cpu::efer::LMA);
}

TEST(Cr0, ActivationChecks) {
  SystemMachine m{Env::legacy32};
  auto s = before_paging(m);
  s.cr4 &= ~c4::PAE;
  expect_refused(write_cr(m, 0, s.cr0 | PG, s));
  s = before_paging(m);
  s.tr.attributes = 0x83;  // a 16-bit TSS
  m.poke<std::uint32_t>(M::kTss + 2, M::kStack0 & 0xFFFF);
  expect_refused(write_cr(m, 0, s.cr0 | PG, s));
  s = before_paging(m);
  s.segment[cpu::CS].attributes = 0xA09B;  // L set while LMA is clear: 16-bit code
  const Ending o = write_cr(m, 0, s.cr0 | PG, s);
  EXPECT_EQ(o.vector, cpu::GP);
}

TEST(Cr0, PagingOff) {
  SystemMachine m;
  expect_refused(write_cr(m, 0, m.state().cr0 & ~PG, m.state()));  // in 64-bit mode
  SystemMachine c{Env::compat32};
  auto s = c.state();
  const Ending o = write_cr(c, 0, s.cr0 & ~PG, s);
  EXPECT_EQ(o.state.efer & cpu::efer::LMA, 0U);
  EXPECT_EQ(c.mmu.context.mode, PagingMode::off);
  EXPECT_TRUE(flushed(c, FlushScope::all));
  s.cr4 |= c4::PCIDE;
  expect_refused(write_cr(c, 0, s.cr0 & ~PG, s));
}

TEST(Cr0, WriteProtectTakesEffectWithoutAFlushOfTheMmu) {
  SystemMachine m;
  const auto s = m.state();
  write_cr(m, 0, s.cr0 & ~WP, s);
  EXPECT_FALSE(m.mmu.context.wp);
  EXPECT_TRUE(m.mmu.flushes.empty());
}

TEST(Cr0, WriteProtectDropsCachedRights) {
  SystemMachine m;
  auto s = m.state();
  s.cr0 &= ~WP;
  s.gpr[cpu::RSI] = M::kData;
  s.gpr[cpu::RBX] = s.cr0 | WP;
  m.core->set_state(s);
  m.write(M::kCode, Bytes{0x89, 0x06, 0x0F, 0x22, 0xC3, 0xE6, 0x80, 0x89, 0x06, 0xF4});
  Ending o = m.go_on();  // mov [rsi], eax; mov cr0, rbx; out
  EXPECT_EQ(o.exit, engine::ExitKind::port_write);
  m.mmu.page(M::kData).writable = false;  // as the walk sees it with WP set
  o = m.go_on();
  EXPECT_EQ(o.vector, cpu::PF);
  EXPECT_EQ(o.rip, M::kCode + 7);
}

TEST(Cr0, LmswSetsPeButNeverClearsIt) {
  SystemMachine m;
  auto s = m.state();
  s.gpr[cpu::RAX] = 0xFFF8;
  Ending o = m.go({0x0F, 0x01, 0xF0}, s);
  EXPECT_EQ(o.state.cr0, (s.cr0 & ~0xEULL) | TS);
  s.gpr[cpu::RAX] = 0x6;
  o = m.go({0x0F, 0x01, 0xF0}, s);
  EXPECT_EQ(o.state.cr0, (s.cr0 & ~0xEULL) | MP | EM);
  SystemMachine real{Env::legacy32};
  auto r = real.state();
  r.cr0 &= ~PE;
  r.gpr[cpu::RAX] = 1;
  EXPECT_EQ(real.go({0x0F, 0x01, 0xF0}, r).state.cr0 & PE, PE);
}

TEST(Cr0, SmswAndClts) {
  SystemMachine m;
  auto s = m.state();
  s.cr0 |= TS;
  s.gpr[cpu::RBX] = ~0ULL;
  s.gpr[cpu::RSI] = M::kData;
  m.poke<std::uint32_t>(M::kData, 0xFFFFFFFF);
  // smsw rax; smsw bx; smsw [rsi]; clts
  const Ending o =
      m.go({0x48, 0x0F, 0x01, 0xE0, 0x66, 0x0F, 0x01, 0xE3, 0x0F, 0x01, 0x26, 0x0F, 0x06}, s);
  EXPECT_EQ(o.state.gpr[cpu::RAX], s.cr0);
  EXPECT_EQ(o.state.gpr[cpu::RBX], (~0ULL << 16) | (s.cr0 & 0xFFFF));
  EXPECT_EQ(m.read<std::uint32_t>(M::kData), 0xFFFF0000U | (s.cr0 & 0xFFFF));
  EXPECT_EQ(o.state.cr0, s.cr0 & ~TS);
}

// ---- CR2, CR3, CR8
// --------------------------------------------------------------------------------

TEST(Cr3, FlushesItsPcidUnlessToldNotTo) {
  SystemMachine m;
  auto s = m.state();
  Ending o = write_cr(m, 3, 0x12018, s);
  EXPECT_EQ(o.state.cr3, 0x12018U);
  EXPECT_EQ(m.mmu.context.root, PA{0x12000});
  EXPECT_EQ(m.mmu.context.pcid, 0);
  ASSERT_EQ(m.mmu.flushes.size(), 1U);
  EXPECT_EQ(m.mmu.flushes[0].scope, FlushScope::pcid);
  EXPECT_EQ(m.mmu.flushes[0].pcid, 0);
  s.cr4 |= c4::PCIDE;
  o = write_cr(m, 3, 0x12018, s);
  EXPECT_EQ(m.mmu.context.pcid, 0x18);
  ASSERT_EQ(m.mmu.flushes.size(), 1U);
  EXPECT_EQ(m.mmu.flushes[0].pcid, 0x18);
  o = write_cr(m, 3, 0x8000000000013019ULL, s);
  EXPECT_EQ(o.state.cr3, 0x13019U);
  EXPECT_EQ(m.core->arch_pcid(), 0x19);
  EXPECT_TRUE(m.mmu.flushes.empty());
}

TEST(Cr3, ReservedBits) {
  SystemMachine m;
  auto s = m.state();
  const std::uint64_t beyond = 1ULL << m.model.maxphyaddr();
  expect_refused(write_cr(m, 3, beyond, s));
  expect_refused(write_cr(m, 3, 1ULL << 63, s));  // no PCIDE
  EXPECT_TRUE(write_cr(m, 3, beyond - 0x1000, s).halted);
  s.cr4 |= c4::PCIDE;
  expect_refused(write_cr(m, 3, 1ULL << 62, s));
}

TEST(Cr3, LoadsPdptesInPaeMode) {
  SystemMachine m{Env::legacy32};
  auto s = m.state();
  s.cr4 |= c4::PAE;
  s.cr0 |= PG;
  for (unsigned i = 0; i < 4; ++i) m.poke<std::uint64_t>(0x7020 + 8 * i, 0x100001 + i * 0x1000);
  Ending o = write_cr(m, 3, 0x7020, s);
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(m.mmu.context.mode, PagingMode::pae);
  EXPECT_EQ(m.mmu.context.pdpte[3], 0x103001U);
  for (const unsigned bit : {1U, 2U, 5U, 6U, 7U, 8U, m.model.maxphyaddr(), 63U}) {
    m.poke<std::uint64_t>(0x7028, 0x101001 | 1ULL << bit);
    expect_refused(write_cr(m, 3, 0x7020, s));
    EXPECT_EQ(m.core->state().cr3, s.cr3);
    m.poke<std::uint64_t>(0x7028, (0x101001 | 1ULL << bit) & ~1ULL);  // absent: anything goes
    EXPECT_TRUE(write_cr(m, 3, 0x7020, s).halted);
  }
  m.mmu.page(0x7000).p2m_fault = FaultKind::paused;
  EXPECT_EQ(write_cr(m, 3, 0x7020, s).exit, engine::ExitKind::paused);
  m.mmu.page(0x7000).p2m_fault.reset();
  o = m.go_on();
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.cr3, 0x7020U);
}

TEST(Cr2AndCr8, KeepTheirValues) {
  SystemMachine m;
  Ending o = write_cr(m, 2, 0xDEADBEEFCAFE0000, m.state());
  EXPECT_EQ(o.state.cr2, 0xDEADBEEFCAFE0000U);
  o = write_cr(m, 8, 9, m.state());
  EXPECT_EQ(m.interrupts.tpr, 9U);
  expect_refused(write_cr(m, 8, 16, m.state()));
  EXPECT_EQ(m.interrupts.tpr, 9U);
  EXPECT_EQ(m.go(mov_from(8)).state.gpr[cpu::RAX], 9U);
  auto s = m.state();
  s.cr2 = 5;
  s.cr3 = 0x6000;
  EXPECT_EQ(m.go(mov_from(2), s).state.gpr[cpu::RAX], 5U);
  EXPECT_EQ(m.go(mov_from(3), s).state.gpr[cpu::RAX], 0x6000U);
  EXPECT_EQ(m.go(mov_from(4), s).state.gpr[cpu::RAX], s.cr4);
  EXPECT_EQ(m.go(mov_from(0), s).state.gpr[cpu::RAX], s.cr0);
  expect_fault(m.go(mov_from(1), s), s, cpu::UD, std::nullopt);
}

// ---- CR4
// ------------------------------------------------------------------------------------------

TEST(Cr4, EveryBitFollowsTheModel) {
  SystemMachine m;
  const auto s = m.state();
  for (unsigned bit = 0; bit < 64; ++bit) {
    const std::uint64_t value = s.cr4 ^ 1ULL << bit;
    const bool known = (value & ~m.model.cr4_mask()) == 0;
    const bool keeps_pae = (value & c4::PAE) != 0;
    const Ending o = write_cr(m, 4, value, s);
    if (known && keeps_pae) {
      EXPECT_TRUE(o.halted) << bit;
      EXPECT_EQ(o.state.cr4, value);
    } else {
      expect_refused(o);
    }
  }
}

TEST(Cr4, PcideNeedsLongModeAndAZeroPcid) {
  SystemMachine m;
  auto s = m.state();
  s.cr3 = 0x12018;
  expect_refused(write_cr(m, 4, s.cr4 | c4::PCIDE, s));
  s.cr3 = 0x12000;
  EXPECT_TRUE(write_cr(m, 4, s.cr4 | c4::PCIDE, s).halted);
  EXPECT_TRUE(m.mmu.context.pcide);
  s.cr4 |= c4::PCIDE;
  s.cr3 = 0x12018;  // stays on whatever the PCID
  EXPECT_TRUE(write_cr(m, 4, s.cr4 | c4::PGE, s).halted);
  SystemMachine l{Env::legacy32};
  auto t = l.state();
  expect_refused(write_cr(l, 4, t.cr4 | c4::PCIDE, t));
}

TEST(Cr4, Flushes) {
  SystemMachine m;
  const auto s = m.state();
  for (const std::uint64_t bit : {c4::PGE, c4::PSE, c4::SMEP}) {
    write_cr(m, 4, s.cr4 ^ bit, s);
    EXPECT_TRUE(flushed(m, FlushScope::all)) << bit;
  }
  for (const std::uint64_t bit : {c4::TSD, c4::OSFXSR, c4::FSGSBASE, c4::UMIP, c4::SMAP}) {
    write_cr(m, 4, s.cr4 ^ bit, s);
    EXPECT_TRUE(m.mmu.flushes.empty()) << bit;
  }
  EXPECT_TRUE(m.mmu.context.smap);
}

// ---- debug registers
// --------------------------------------------------------------------------------

Bytes mov_dr(bool to, unsigned number) {  // mov drN, rbx or mov rax, drN
  const auto modrm = static_cast<std::uint8_t>((to ? 0xC3 : 0xC0) | number << 3);
  return {0x0F, static_cast<std::uint8_t>(to ? 0x23 : 0x21), modrm};
}

TEST(DebugRegisters, FixedBitsAndAliases) {
  SystemMachine m;
  auto s = m.state();
  s.gpr[cpu::RBX] = 0xFFFFFFFF;
  EXPECT_EQ(m.go(mov_dr(true, 6), s).state.dr[6], 0xFFFFEFFFU);
  EXPECT_EQ(m.go(mov_dr(true, 7), s).state.dr[7], 0xFFFF27FFU);
  EXPECT_EQ(m.go(mov_dr(true, 4), s).state.dr[6], 0xFFFFEFFFU);
  EXPECT_EQ(m.go(mov_dr(true, 2), s).state.dr[2], 0xFFFFFFFFU);
  s.gpr[cpu::RBX] = 0;
  EXPECT_EQ(m.go(mov_dr(true, 6), s).state.dr[6], 0xFFFF0FF0U);
  EXPECT_EQ(m.go(mov_dr(true, 7), s).state.dr[7], 0x400U);
  EXPECT_EQ(m.go(mov_dr(false, 5), s).state.gpr[cpu::RAX], 0x400U);
  s.gpr[cpu::RBX] = 1ULL << 32;
  expect_fault(m.go(mov_dr(true, 6), s), s, cpu::GP, 0U);
  expect_fault(m.go(mov_dr(true, 7), s), s, cpu::GP, 0U);
  EXPECT_EQ(m.go(mov_dr(true, 0), s).state.dr[0], 1ULL << 32);
  s.cr4 |= c4::DE;
  expect_fault(m.go(mov_dr(true, 4), s), s, cpu::UD, std::nullopt);
  expect_fault(m.go(mov_dr(false, 5), s), s, cpu::UD, std::nullopt);
}

TEST(DebugRegisters, GeneralDetect) {
  SystemMachine m;
  auto s = m.state();
  s.dr[7] |= 1U << 13;
  const Ending o = m.go(mov_dr(false, 0), s);
  expect_fault(o, s, cpu::DB, std::nullopt);
  EXPECT_EQ(o.state.dr[6], 0xFFFF2FF0U);
  EXPECT_EQ(o.state.dr[7] & 1U << 13, 0U);
}

// ---- INVLPG, INVPCID
// ----------------------------------------------------------------------------------

TEST(Invlpg, ReachesTheMmu) {
  SystemMachine m;
  auto s = m.state();
  s.gpr[cpu::RSI] = 0x123456;
  m.mmu.invalidated_pages.clear();
  EXPECT_TRUE(m.go({0x0F, 0x01, 0x3E}, s).halted);
  EXPECT_EQ(m.mmu.invalidated_pages, std::vector<VA>{VA{0x123456}});
  s.gpr[cpu::RSI] = kNonCanonical;
  EXPECT_TRUE(m.go({0x0F, 0x01, 0x3E}, s).halted);
  EXPECT_EQ(m.mmu.invalidated_pages.size(), 1U);
}

TEST(Invlpg, DropsTheEnginesTranslation) {
  SystemMachine m;
  auto s = m.state();
  s.gpr[cpu::RSI] = M::kData;
  m.core->set_state(s);
  m.write(M::kCode, Bytes{0x8B, 0x06, 0xE6, 0x80, 0x8B, 0x06, 0x0F, 0x01, 0x3E, 0x8B, 0x06, 0xF4});
  m.go_on();  // mov eax, [rsi]; out; ...
  m.mmu.page(M::kData).present = false;
  const Ending o = m.go_on();  // mov eax, [rsi] (cached); invlpg; mov eax, [rsi]
  EXPECT_EQ(o.vector, cpu::PF);
  EXPECT_EQ(o.rip, M::kCode + 9);
}

struct InvpcidCase {
  std::uint64_t type, pcid, va;
  bool pcide;
  bool valid;
};

TEST(Invpcid, Matrix) {
  SystemMachine m;
  for (const InvpcidCase c : {InvpcidCase{0, 5, 0x1000, true, true},
                              {0, 5, kNonCanonical, true, false},
                              {0, 0x1000, 0x1000, true, false},
                              {0, 5, 0x1000, false, false},
                              {0, 0, 0x1000, false, true},
                              {1, 7, kNonCanonical, true, true},
                              {1, 7, 0, false, false},
                              {1, 0, 0, false, true},
                              {1, 0x8000, 0, true, false},
                              {2, 7, kNonCanonical, false, true},
                              {2, 1ULL << 63, 0, true, false},
                              {3, 9, 0, true, true},
                              {4, 0, 0, true, false},
                              {1ULL << 32, 0, 0, true, false}}) {
    auto s = m.state();
    if (c.pcide) s.cr4 |= c4::PCIDE;
    s.gpr[cpu::RSI] = M::kData;
    s.gpr[cpu::RAX] = c.type;
    m.poke(M::kData, c.pcid);
    m.poke(M::kData + 8, c.va);
    m.write(M::kCode, Bytes{0x66, 0x0F, 0x38, 0x82, 0x06, 0xF4});
    m.core->set_state(s);
    m.mmu.flushes.clear();
    const Ending o = m.go_on();
    SCOPED_TRACE(testing::Message() << c.type << " " << c.pcid << " " << c.va << " " << c.pcide);
    if (!c.valid) {
      expect_fault(o, s, cpu::GP, 0U);
      continue;
    }
    EXPECT_TRUE(o.halted);
    constexpr std::array kScopes{FlushScope::address, FlushScope::pcid, FlushScope::all,
                                 FlushScope::all_non_global};
    ASSERT_EQ(m.mmu.flushes.size(), 1U);
    EXPECT_EQ(m.mmu.flushes[0].scope, kScopes[c.type]);
    EXPECT_EQ(m.mmu.flushes[0].pcid, c.pcid);
    EXPECT_EQ(m.mmu.flushes[0].va, VA{c.va});
  }
}

}  // namespace
}  // namespace strata::interp::test
