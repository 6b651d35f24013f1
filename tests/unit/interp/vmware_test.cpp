// VMware's backdoor and what CPUID says of the APIC.
#include "engines/interp/vmware.hpp"

#include "system_support.hpp"

namespace strata::interp::test {
namespace {

constexpr const char* kWith = "default,+vmware_backdoor";

cpu::VcpuState call(const SystemMachine& m, std::uint64_t command, unsigned cpl) {
  auto s = m.state(cpl);
  s.gpr[cpu::RAX] = vmware::kMagic;
  s.gpr[cpu::RBX] = 0x55;
  s.gpr[cpu::RCX] = command;
  s.gpr[cpu::RDX] = vmware::kPort;
  return s;
}
const Bytes kIn{0xED};  // IN EAX, DX

TEST(Vmware, VersionAtEveryLevel) {
  SystemMachine m{Env::long64, kWith};
  for (const unsigned cpl : {0U, 3U}) {
    const Ending o = m.go(kIn, call(m, vmware::kGetVersion, cpl));
    EXPECT_EQ(o.state.gpr[cpu::RBX], vmware::kMagic) << cpl;
    EXPECT_EQ(o.state.gpr[cpu::RAX], vmware::kVersion) << cpl;
  }
}

TEST(Vmware, UnknownCommandsChangeEaxOnly) {
  SystemMachine m{Env::long64, kWith};
  const Ending o = m.go(kIn, call(m, 0xFFF, 0));
  EXPECT_EQ(o.state.gpr[cpu::RBX], 0x55U);
  EXPECT_EQ(o.state.gpr[cpu::RAX], 0xFFFFFFFFU);
}

TEST(Vmware, OnlyWithTheMagicThePortAndTheModel) {
  SystemMachine m{Env::long64, kWith};
  auto s = call(m, vmware::kGetVersion, 0);
  s.gpr[cpu::RAX] = 1;
  EXPECT_EQ(m.go(kIn, s).exit, engine::ExitKind::port_read);
  s = call(m, vmware::kGetVersion, 0);
  s.gpr[cpu::RDX] = 0x1234;
  EXPECT_EQ(m.go(kIn, s).exit, engine::ExitKind::port_read);
  SystemMachine without;
  EXPECT_EQ(without.go(kIn, call(without, vmware::kGetVersion, 0)).exit,
            engine::ExitKind::port_read);
}

TEST(Vmware, PseudoCounters) {
  SystemMachine m{Env::long64, kWith};
  const Bytes rdpmc{0x0F, 0x33};
  auto s = m.state();
  s.gpr[cpu::RCX] = vmware::kHostTsc;
  m.tsc.now = 0x1'0000'0000;
  const Ending o = m.go(rdpmc, s);
  EXPECT_EQ(o.state.gpr[cpu::RAX], 10U);
  EXPECT_EQ(o.state.gpr[cpu::RDX], 1U);
  s.gpr[cpu::RCX] = vmware::kApparentTime + 1;
  EXPECT_EQ(m.go(rdpmc, s).vector, cpu::GP);
  SystemMachine without;
  s.gpr[cpu::RCX] = vmware::kHostTsc;
  EXPECT_EQ(without.go(rdpmc, s).vector, cpu::GP);
}

TEST(Cpuid, ApicBitFollowsTheApic) {
  SystemMachine m;
  for (const bool enabled : {true, false}) {
    m.interrupts.apic = enabled;
    auto s = m.state();
    s.gpr[cpu::RAX] = 1;
    EXPECT_EQ((m.go({0x0F, 0xA2}, s).state.gpr[cpu::RDX] >> 9 & 1) != 0, enabled);
  }
}

}  // namespace
}  // namespace strata::interp::test
