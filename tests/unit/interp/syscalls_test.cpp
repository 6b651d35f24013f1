// SYSCALL, SYSENTER, their returns, SWAPGS.
#include "system_support.hpp"

namespace strata::interp::test {
namespace {

namespace rf = cpu::rflags;
using M = SystemMachine;
constexpr std::uint64_t kEntry = 0x20000;
constexpr std::uint64_t kNonCanonical = 0x0000800000000000ULL;
const Bytes kSyscall{0x0F, 0x05};
const Bytes kSysretq{0x48, 0x0F, 0x07};
const Bytes kSysretl{0x0F, 0x07};

cpu::VcpuState with_msrs(cpu::VcpuState s) {
  s.msr.star = 0x0028000800000000ULL;  // user 28h (+8 SS 30h, +16 CS 38h), kernel 08h
  s.msr.lstar = kEntry;
  s.msr.sfmask = rf::IF | rf::DF | rf::AC;
  s.msr.sysenter_cs = 0x08;
  s.msr.sysenter_esp = 0x7A000;
  s.msr.sysenter_eip = kEntry;
  return s;
}

TEST(Syscall, EntersTheKernel) {
  SystemMachine m;
  m.write(kEntry, Bytes{0xF4});
  auto s = with_msrs(m.state(3));
  s.rflags |= rf::IF | rf::DF | rf::CF | rf::ID;
  const Ending o = m.go(kSyscall, s);
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.rip, kEntry + 1);
  EXPECT_EQ(o.state.gpr[cpu::RCX], M::kCode + 2);
  EXPECT_EQ(o.state.gpr[cpu::R11], s.rflags);
  EXPECT_EQ(o.state.rflags, rf::FIXED | rf::CF | rf::ID);
  EXPECT_EQ(o.state.gpr[cpu::RSP], M::kUserStack);
  EXPECT_EQ(o.state.segment[cpu::CS], (cpu::Segment{0, 0xFFFFFFFF, 0x08, 0xA09B}));
  EXPECT_EQ(o.state.segment[cpu::SS], (cpu::Segment{0, 0xFFFFFFFF, 0x10, 0xC093}));
}

TEST(Syscall, AmdEntersFromCompatibilityMode) {
  SystemMachine m{Env::compat32, "default,vendor=AuthenticAMD"};
  m.write(kEntry, Bytes{0xF4});
  auto s = with_msrs(m.state(3));
  s.msr.cstar = kEntry;
  s.msr.lstar = 0;
  const Ending o = m.go(kSyscall, s);
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.rip, kEntry + 1);
  EXPECT_EQ(o.state.gpr[cpu::RCX], M::kCode + 2);
  EXPECT_EQ(o.state.segment[cpu::CS], (cpu::Segment{0, 0xFFFFFFFF, 0x08, 0xA09B}));
}

TEST(Syscall, RoundTrip) {
  SystemMachine m;
  m.write(kEntry, kSysretq);
  auto s = with_msrs(m.state(3));
  s.rflags |= rf::IF | rf::DF | rf::ZF;
  const Ending o = m.go(kSyscall, s);
  EXPECT_EQ(o.vector, cpu::GP);  // the user's HLT
  EXPECT_EQ(o.rip, M::kCode + 2);
  EXPECT_EQ(o.rflags & ~rf::RF, s.rflags);
  EXPECT_EQ(o.cs, M::kUserCode64);
  EXPECT_EQ(o.ss, M::kUserData);
  EXPECT_EQ(o.rsp, M::kUserStack);
}

TEST(Syscall, UndefinedWithoutSceAndOutside64BitMode) {
  SystemMachine m;
  auto s = with_msrs(m.state(3));
  s.efer &= ~cpu::efer::SCE;
  expect_fault(m.go(kSyscall, s), s, cpu::UD, std::nullopt);
  SystemMachine c{Env::compat32};
  const auto t = with_msrs(c.state(3));
  expect_fault(c.go(kSyscall, t), t, cpu::UD, std::nullopt);
}

TEST(Sysret, ToCompatibilityMode) {
  SystemMachine m;
  m.write(kEntry, Bytes{0xF4});
  auto s = with_msrs(m.state());
  s.gpr[cpu::RCX] = 0xFFFFFFFF00000000ULL | kEntry;
  s.gpr[cpu::R11] = ~0ULL & ~rf::TF;
  const Ending o = m.go(kSysretl, s);
  EXPECT_EQ(o.vector, cpu::GP);
  EXPECT_EQ(o.rip, kEntry);
  EXPECT_EQ(o.cs, M::kUserCode32);
  EXPECT_EQ(o.ss, M::kUserData);
  EXPECT_EQ(o.rflags, (0x3C7FD7 & ~rf::TF) | rf::RF | rf::FIXED);
}

TEST(Sysret, Faults) {
  SystemMachine m;
  auto s = with_msrs(m.state());
  s.gpr[cpu::RCX] = kNonCanonical;
  s.gpr[cpu::R11] = rf::FIXED;
  const Ending o = m.go(kSysretq, s);
  expect_fault(o, s, cpu::GP, 0U);
  EXPECT_EQ(o.cs, M::kCode64);  // still in the kernel: Intel's rule
  const auto user = with_msrs(m.state(3));
  expect_fault(m.go(kSysretq, user), user, cpu::GP, 0U);
  s.efer &= ~cpu::efer::SCE;
  expect_fault(m.go(kSysretq, s), s, cpu::UD, std::nullopt);
}

TEST(Sysenter, FromCompatibilityModeAndBack) {
  for (const Env env : {Env::compat32, Env::legacy32}) {
    SystemMachine m{env};
    auto s = with_msrs(m.state(3));
    const bool wide = env == Env::compat32;
    s.msr.sysenter_cs = wide ? 0x08 : 0x18;
    // The kernel answers with SYSEXIT to ECX:EDX.
    m.write(kEntry, Bytes{0x0F, 0x35});
    s.rflags |= rf::IF | rf::CF;
    s.gpr[cpu::RCX] = M::kUserStack - 64;
    s.gpr[cpu::RDX] = M::kCode + 2;
    const Ending o = m.go({0x0F, 0x34}, s);
    EXPECT_EQ(o.vector, cpu::GP);
    EXPECT_EQ(o.rip, M::kCode + 2);
    EXPECT_EQ(o.rsp, M::kUserStack - 64);
    EXPECT_EQ(o.cs, (wide ? 0x18U : 0x28U) | 3U);
    EXPECT_EQ(o.ss, (wide ? 0x20U : 0x30U) | 3U);
    EXPECT_EQ(o.rflags & ~rf::RF, s.rflags & ~rf::IF);  // SYSENTER cleared it
  }
}

TEST(Sysenter, LoadsTheKernelsStackAndSegments) {
  SystemMachine m;
  m.write(kEntry, Bytes{0xF4});
  auto s = with_msrs(m.state(3));
  s.rflags |= rf::IF;
  const Ending o = m.go({0x0F, 0x34}, s);
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.gpr[cpu::RSP], 0x7A000U);
  EXPECT_EQ(o.state.segment[cpu::CS], (cpu::Segment{0, 0xFFFFFFFF, 0x08, 0xA09B}));
  EXPECT_EQ(o.state.segment[cpu::SS], (cpu::Segment{0, 0xFFFFFFFF, 0x10, 0xC093}));
  EXPECT_EQ(o.state.rflags & rf::IF, 0U);
}

TEST(Sysexit, To64BitModeAndFaults) {
  SystemMachine m;
  auto s = with_msrs(m.state());
  s.gpr[cpu::RCX] = M::kUserStack;
  s.gpr[cpu::RDX] = kEntry;
  m.write(kEntry, Bytes{0xF4});
  const Ending o = m.go({0x48, 0x0F, 0x35}, s);
  EXPECT_EQ(o.rip, kEntry);
  EXPECT_EQ(o.cs, 0x2BU);
  EXPECT_EQ(o.ss, 0x33U);
  s.gpr[cpu::RDX] = kNonCanonical;
  expect_fault(m.go({0x48, 0x0F, 0x35}, s), s, cpu::GP, 0U);
  s.gpr[cpu::RDX] = kEntry;
  s.gpr[cpu::RCX] = kNonCanonical;
  expect_fault(m.go({0x48, 0x0F, 0x35}, s), s, cpu::GP, 0U);
  s.msr.sysenter_cs = 3;
  expect_fault(m.go({0x0F, 0x35}, s), s, cpu::GP, 0U);
  expect_fault(m.go({0x0F, 0x34}, s), s, cpu::GP, 0U);
  const auto user = with_msrs(m.state(3));
  expect_fault(m.go({0x0F, 0x35}, user), user, cpu::GP, 0U);
}

TEST(Swapgs, SwapsAndTakesEffectAtOnce) {
  SystemMachine m;
  auto s = m.state();
  s.segment[cpu::GS].base = 0x1111;
  s.msr.kernel_gs_base = M::kData;
  m.poke<std::uint64_t>(M::kData + 8, 0xCAFE);
  // swapgs; mov rax, gs:[8]
  const Ending o = m.go({0x0F, 0x01, 0xF8, 0x65, 0x48, 0x8B, 0x04, 0x25, 8, 0, 0, 0}, s);
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.gpr[cpu::RAX], 0xCAFEU);
  EXPECT_EQ(o.state.segment[cpu::GS].base, M::kData);
  EXPECT_EQ(o.state.msr.kernel_gs_base, 0x1111U);
  const auto user = m.state(3);
  expect_fault(m.go({0x0F, 0x01, 0xF8}, user), user, cpu::GP, 0U);
}

}  // namespace
}  // namespace strata::interp::test
