// RDMSR, WRMSR, the time-stamp counter.
#include "engines/interp/msrs.hpp"

#include "system_support.hpp"

namespace strata::interp::test {
namespace {

using M = SystemMachine;
constexpr std::uint64_t kNonCanonical = 0x0000800000000000ULL;
constexpr std::uint64_t kKernelAddress = 0xFFFF800000001000ULL;

Ending wrmsr(SystemMachine& m, std::uint32_t msr, std::uint64_t value, cpu::VcpuState s) {
  s.gpr[cpu::RCX] = msr;
  s.gpr[cpu::RAX] = 0xFFFFFFFF00000000ULL | (value & 0xFFFFFFFF);
  s.gpr[cpu::RDX] = 0xFFFFFFFF00000000ULL | value >> 32;
  return m.go({0x0F, 0x30}, s);
}
Ending wrmsr(SystemMachine& m, std::uint32_t msr, std::uint64_t value) {
  return wrmsr(m, msr, value, m.state());
}
/// `s` may be the state in which an earlier run halted.
std::uint64_t rdmsr(SystemMachine& m, std::uint32_t msr, cpu::VcpuState s) {
  s.rip = M::kCode;
  s.halted = false;
  s.gpr[cpu::RCX] = msr;
  s.gpr[cpu::RAX] = s.gpr[cpu::RDX] = ~0ULL;
  const Ending o = m.go({0x0F, 0x32}, s);
  EXPECT_TRUE(o.halted) << msr;
  EXPECT_EQ((o.state.gpr[cpu::RAX] | o.state.gpr[cpu::RDX]) >> 32, 0U);
  return o.state.gpr[cpu::RDX] << 32 | o.state.gpr[cpu::RAX];
}
bool refused(const Ending& o) { return o.vector == cpu::GP && o.error == 0U; }

TEST(Msr, StorageRoundTrips) {
  SystemMachine m;
  for (const std::uint32_t msr : {0x175U, 0x176U, 0xC0000081U, 0xC0000082U, 0xC0000083U,
                                  0xC0000100U, 0xC0000101U, 0xC0000102U, 0x3BU, 0x174U}) {
    const Ending o = wrmsr(m, msr, kKernelAddress);
    EXPECT_TRUE(o.halted) << msr;
    EXPECT_EQ(rdmsr(m, msr, o.state), kKernelAddress) << std::hex << msr;
  }
}

TEST(Msr, EachLandsInItsOwnRegister) {
  SystemMachine m;
  const auto after = [&](std::uint32_t msr) { return wrmsr(m, msr, 0x1234).state; };
  EXPECT_EQ(after(0x174).msr.sysenter_cs, 0x1234U);
  EXPECT_EQ(after(0x175).msr.sysenter_esp, 0x1234U);
  EXPECT_EQ(after(0x176).msr.sysenter_eip, 0x1234U);
  EXPECT_EQ(after(0xC0000081).msr.star, 0x1234U);
  EXPECT_EQ(after(0xC0000082).msr.lstar, 0x1234U);
  EXPECT_EQ(after(0xC0000083).msr.cstar, 0x1234U);
  EXPECT_EQ(after(0xC0000084).msr.sfmask, 0x1234U);
  EXPECT_EQ(after(0xC0000100).segment[cpu::FS].base, 0x1234U);
  EXPECT_EQ(after(0xC0000101).segment[cpu::GS].base, 0x1234U);
  EXPECT_EQ(after(0xC0000102).msr.kernel_gs_base, 0x1234U);
  EXPECT_EQ(after(0xC0000103).msr.tsc_aux, 0x1234U);
}

TEST(Msr, CanonicalAddressesOnly) {
  SystemMachine m;
  for (const std::uint32_t msr :
       {0x175U, 0x176U, 0xC0000082U, 0xC0000083U, 0xC0000100U, 0xC0000101U, 0xC0000102U}) {
    EXPECT_TRUE(refused(wrmsr(m, msr, kNonCanonical))) << std::hex << msr;
  }
}

TEST(Msr, ReservedBits) {
  SystemMachine m;
  EXPECT_TRUE(refused(wrmsr(m, 0xC0000103, 1ULL << 32)));
  EXPECT_TRUE(refused(wrmsr(m, 0xC0000084, 1ULL << 32)));
  EXPECT_TRUE(refused(wrmsr(m, 0x1A0, 1ULL << 35)));
  EXPECT_TRUE(refused(wrmsr(m, 0x1D9, 1ULL << 6)));
  EXPECT_TRUE(wrmsr(m, 0x1D9, 3).halted);
}

TEST(Msr, FsAndGsBasesTakeEffect) {
  SystemMachine m;
  m.poke<std::uint64_t>(M::kData + 8, 0xFEED);
  auto s = m.state();
  s.gpr[cpu::RCX] = 0xC0000101;
  s.gpr[cpu::RAX] = M::kData;
  // wrmsr; mov rbx, gs:[8]
  const Ending o = m.go({0x0F, 0x30, 0x65, 0x48, 0x8B, 0x1C, 0x25, 8, 0, 0, 0}, s);
  EXPECT_EQ(o.state.gpr[cpu::RBX], 0xFEEDU);
}

TEST(Msr, EferChecks) {
  SystemMachine m;
  const auto s = m.state();
  using namespace cpu::efer;
  EXPECT_TRUE(refused(wrmsr(m, 0xC0000080, s.efer & ~LME)));  // while paging
  EXPECT_TRUE(refused(wrmsr(m, 0xC0000080, s.efer | 1ULL << 1)));
  EXPECT_TRUE(refused(wrmsr(m, 0xC0000080, s.efer | 1ULL << 63)));
  EXPECT_EQ(wrmsr(m, 0xC0000080, s.efer & ~LMA).state.efer, s.efer);  // LMA is read-only
  EXPECT_EQ(wrmsr(m, 0xC0000080, s.efer & ~SCE).state.efer, s.efer & ~SCE);
  EXPECT_TRUE(m.mmu.context.nxe);
  EXPECT_EQ(wrmsr(m, 0xC0000080, s.efer & ~NXE).state.efer, s.efer & ~NXE);
  EXPECT_FALSE(m.mmu.context.nxe);
  SystemMachine l{Env::legacy32};
  auto t = l.state();
  EXPECT_EQ(wrmsr(l, 0xC0000080, LME | LMA, t).state.efer, LME);
}

TEST(Msr, PatTypes) {
  SystemMachine m;
  for (unsigned type = 0; type < 256; ++type) {
    for (const unsigned index : {0U, 7U}) {
      const std::uint64_t value = static_cast<std::uint64_t>(type) << (8 * index);
      const bool valid = type == 0 || type == 1 || (type >= 4 && type <= 7);
      const Ending o = wrmsr(m, 0x277, value);
      EXPECT_EQ(o.halted, valid) << type;
      if (!valid) {
        EXPECT_TRUE(refused(o));
      }
    }
  }
}

TEST(Msr, Mtrrs) {
  SystemMachine m;
  EXPECT_EQ(rdmsr(m, 0xFE, m.state()), 0x508U);
  EXPECT_TRUE(refused(wrmsr(m, 0xFE, 0x508)));
  EXPECT_TRUE(wrmsr(m, 0x2FF, 0xC06).halted);
  EXPECT_EQ(rdmsr(m, 0x2FF, m.core->state()), 0xC06U);
  EXPECT_TRUE(refused(wrmsr(m, 0x2FF, 0xC02)));
  EXPECT_TRUE(refused(wrmsr(m, 0x2FF, 0x1C06)));
  const std::uint64_t top = 1ULL << m.model.maxphyaddr();
  EXPECT_TRUE(wrmsr(m, 0x200, 0xC0000000 | 6).halted);
  EXPECT_TRUE(refused(wrmsr(m, 0x200, 0xC0000000 | 3)));
  EXPECT_TRUE(refused(wrmsr(m, 0x200, 0xC0000106)));
  EXPECT_TRUE(refused(wrmsr(m, 0x200, top)));
  EXPECT_TRUE(wrmsr(m, 0x20F, (top - 0x1000) | 0x800).halted);
  EXPECT_TRUE(refused(wrmsr(m, 0x20F, 0x400)));
  EXPECT_EQ(wrmsr(m, 0x20F, 0x800).state.msr.mtrr_variable[15], 0x800U);
  const std::array<std::uint32_t, 11> fixed{0x250, 0x258, 0x259, 0x268, 0x269, 0x26A,
                                            0x26B, 0x26C, 0x26D, 0x26E, 0x26F};
  for (unsigned i = 0; i < fixed.size(); ++i) {
    EXPECT_EQ(wrmsr(m, fixed[i], 0x0606060606060600 + i % 2).state.msr.mtrr_fixed[i],
              0x0606060606060600U + i % 2);
    EXPECT_TRUE(refused(wrmsr(m, fixed[i], 7ULL << 56)));
  }
  // Neighbours are nobody's.
  for (const std::uint32_t msr : {0x210U, 0x251U, 0x257U, 0x25AU, 0x267U, 0x270U}) {
    EXPECT_EQ(wrmsr(m, msr, 0).exit, engine::ExitKind::msr_write) << std::hex << msr;
  }
}

TEST(Msr, TimeStampCounter) {
  SystemMachine m;
  const auto s = m.state();
  m.tsc.now = 5000;
  EXPECT_EQ(rdmsr(m, 0x10, s), 5010U);
  auto adjusted = s;
  adjusted.msr.tsc_adjust = 1'000'000;
  EXPECT_EQ(rdmsr(m, 0x10, adjusted), 1'005'020U);
  const Ending o = wrmsr(m, 0x10, 77'000);
  EXPECT_EQ(o.state.msr.tsc_adjust, 77'000U - 5030U);
  EXPECT_EQ(rdmsr(m, 0x10, m.core->state()), 77'000U + 10U);
}

TEST(Msr, ReadOnlyAndModelDependent) {
  SystemMachine m;
  EXPECT_EQ(rdmsr(m, 0x8B, m.state()), m.model.microcode_revision());
  EXPECT_TRUE(wrmsr(m, 0x8B, 0).halted);
  EXPECT_TRUE(refused(wrmsr(m, 0xCE, 0)));
  EXPECT_EQ(rdmsr(m, 0xCE, m.state()), std::uint64_t{m.model.tsc_khz() / 100'000} << 8);
  const bool spec = m.model.has(cpu::Feature::spec_ctrl);
  EXPECT_EQ(wrmsr(m, 0x48, 1).exit, spec ? engine::ExitKind::halt : engine::ExitKind::msr_write);
  EXPECT_EQ(refused(wrmsr(m, 0x48, 8)), spec);
  EXPECT_EQ(refused(wrmsr(m, 0x49, 2)), spec);
  const bool capabilities = m.model.has(cpu::Feature::arch_capabilities);
  EXPECT_EQ(refused(wrmsr(m, 0x10A, 0)), capabilities);
}

TEST(Msr, MiscEnableKeepsItsReadOnlyBits) {
  SystemMachine m;
  auto s = m.state();
  s.msr.misc_enable = 1 | 1 << 11;
  EXPECT_EQ(wrmsr(m, 0x1A0, 1 << 12, s).state.msr.misc_enable, 1U << 11);
}

TEST(Msr, XdDisableHidesNx) {
  SystemMachine m;
  auto s = wrmsr(m, 0x1A0, 1ULL << 34).state;
  s.rip = M::kCode;
  s.halted = false;
  for (const bool disabled : {true, false}) {
    s.gpr[cpu::RAX] = 0x80000001;
    const Ending o = m.go({0x0F, 0xA2}, s);
    EXPECT_EQ((o.state.gpr[cpu::RDX] >> 20 & 1) == 0, disabled);
    s.msr.misc_enable = 0;
  }
}

TEST(Msr, MachineCheckBanksStayEmpty) {
  SystemMachine m;
  const std::uint64_t banks = rdmsr(m, 0x179, m.state()) & 0xFF;
  ASSERT_EQ(banks, 4U);
  EXPECT_TRUE(refused(wrmsr(m, 0x179, 0)));
  EXPECT_TRUE(refused(wrmsr(m, 0x17A, 8)));
  EXPECT_EQ(wrmsr(m, 0x17A, 7).state.msr.mcg_status, 7U);
  EXPECT_TRUE(refused(wrmsr(m, 0x17B, 1)));
  const auto last = static_cast<std::uint32_t>(0x400 + 4 * (banks - 1));
  for (const std::uint32_t ctl : {0x400U, last}) {
    EXPECT_TRUE(refused(wrmsr(m, ctl, 1)));
    EXPECT_TRUE(refused(wrmsr(m, ctl + 1, 1)));
    EXPECT_TRUE(wrmsr(m, ctl + 1, 0).halted);
    for (const std::uint32_t msr : {ctl, ctl + 2, ctl + 3}) {
      EXPECT_EQ(rdmsr(m, msr, wrmsr(m, msr, ~0ULL).state), ~0ULL) << std::hex << msr;
    }
  }
  EXPECT_EQ(wrmsr(m, last + 4, 0).exit, engine::ExitKind::msr_write) << "no such bank";
  SystemMachine none{Env::long64, "default,-mca"};
  EXPECT_EQ(wrmsr(none, 0x179, 0).exit, engine::ExitKind::msr_write);
}

TEST(Msr, AmdHasItsFirstCounters) {
  SystemMachine amd{Env::long64, "default,vendor=AuthenticAMD"};
  for (std::uint32_t msr = 0xC0010000; msr < 0xC0010008; ++msr) {
    EXPECT_EQ(rdmsr(amd, msr, wrmsr(amd, msr, msr).state), msr);
    EXPECT_TRUE(refused(wrmsr(amd, msr, 1ULL << 48)));
  }
  SystemMachine intel;
  EXPECT_EQ(wrmsr(intel, 0xC0010000, 0).exit, engine::ExitKind::msr_write);
}

TEST(Msr, OthersGoToTheVmm) {
  SystemMachine m;
  auto s = m.state();
  s.gpr[cpu::RCX] = 0x1B;
  Ending o = m.go({0x0F, 0x32}, s);
  EXPECT_EQ(o.exit, engine::ExitKind::msr_read);
  EXPECT_EQ(m.last_exit.msr, 0x1BU);
  EXPECT_EQ(o.state.rip, M::kCode);
  m.core->complete(0x11223344FEE00900);
  o = m.go_on();
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.gpr[cpu::RAX], 0xFEE00900U);
  EXPECT_EQ(o.state.gpr[cpu::RDX], 0x11223344U);

  o = wrmsr(m, 0x6E0, 0x123456789A);
  EXPECT_EQ(o.exit, engine::ExitKind::msr_write);
  EXPECT_EQ(m.last_exit.data, 0x123456789AU);
  EXPECT_TRUE(m.go_on().halted);

  m.go({0x0F, 0x32}, s);
  m.core->fail();
  expect_fault(m.go_on(), s, cpu::GP, 0U);

  o = wrmsr(m, 0x4B564D00, 1);
  EXPECT_EQ(o.exit, engine::ExitKind::msr_write);
  m.core->fail();
  EXPECT_TRUE(refused(m.go_on()));
}

TEST(Tsc, RdtscAndItsFriends) {
  SystemMachine m;
  auto s = m.state(3);
  s.msr.tsc_adjust = 1ULL << 40;
  s.msr.tsc_aux = 0x87654321;
  s.gpr[cpu::RAX] = s.gpr[cpu::RCX] = s.gpr[cpu::RDX] = ~0ULL;
  m.tsc.now = 90;
  Ending o = m.go({0x0F, 0x31, 0xCD, 0x80}, s);
  EXPECT_EQ(o.state.gpr[cpu::RAX], 100U);
  EXPECT_EQ(o.state.gpr[cpu::RDX], 1U << 8);
  o = m.go({0x0F, 0x01, 0xF9, 0xCD, 0x80}, s);  // rdtscp
  EXPECT_EQ(o.state.gpr[cpu::RAX], 110U);
  EXPECT_EQ(o.state.gpr[cpu::RCX], 0x87654321U);
  if (m.model.has(cpu::Feature::rdpid)) {
    o = m.go({0xF3, 0x0F, 0xC7, 0xF8, 0xCD, 0x80}, s);  // rdpid rax
    EXPECT_EQ(o.state.gpr[cpu::RAX], 0x87654321U);
  }
  s.cr4 |= cpu::cr4::TSD;
  expect_fault(m.go({0x0F, 0x31}, s), s, cpu::GP, 0U);
  expect_fault(m.go({0x0F, 0x01, 0xF9}, s), s, cpu::GP, 0U);
  auto kernel = m.state();
  kernel.cr4 |= cpu::cr4::TSD;
  EXPECT_TRUE(m.go({0x0F, 0x31}, kernel).halted);
}

}  // namespace
}  // namespace strata::interp::test
