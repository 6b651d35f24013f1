// IN, OUT, INS, OUTS: permission bitmap, exits, repetition.
#include "system_support.hpp"

namespace strata::interp::test {
namespace {

namespace rf = cpu::rflags;
using M = SystemMachine;
using engine::ExitKind;

TEST(Ports, InCompletesInTwoPhases) {
  struct Case {
    Bytes code;
    std::uint8_t size;
    std::uint64_t rax;
  };
  for (const Case& c :
       {Case{{0xEC}, 1, 0xFFFFFFFFFFFFFF44ULL}, Case{{0x66, 0xED}, 2, 0xFFFFFFFFFFFF3344ULL},
        Case{{0xED}, 4, 0x11223344}}) {
    SystemMachine m;
    auto s = m.state();
    s.gpr[cpu::RAX] = ~0ULL;
    s.gpr[cpu::RDX] = 0xFFFF03F8;
    Ending o = m.go(c.code, s);
    EXPECT_EQ(o.exit, ExitKind::port_read);
    EXPECT_EQ(m.last_exit.port, 0x3F8);
    EXPECT_EQ(m.last_exit.size, c.size);
    EXPECT_EQ(o.state.rip, M::kCode);
    m.core->complete(0x5566778811223344);
    o = m.go_on();
    EXPECT_TRUE(o.halted);
    EXPECT_EQ(o.state.gpr[cpu::RAX], c.rax);
  }
}

TEST(Ports, OutCarriesItsData) {
  SystemMachine m;
  auto s = m.state();
  s.gpr[cpu::RAX] = 0x1122334455667788;
  Ending o = m.go({0xE7, 0x92, 0xE6, 0x93}, s);  // out 92h, eax; out 93h, al
  EXPECT_EQ(o.exit, ExitKind::port_write);
  EXPECT_EQ(m.last_exit.port, 0x92);
  EXPECT_EQ(m.last_exit.data, 0x55667788U);
  o = m.go_on();
  EXPECT_EQ(m.last_exit.port, 0x93);
  EXPECT_EQ(m.last_exit.data, 0x88U);
  EXPECT_TRUE(m.go_on().halted);
}

/// SDM 1 19.5.2, for every alignment of an access to the bitmap.
TEST(Ports, BitmapMatrix) {
  for (const Env env : {Env::long64, Env::legacy32}) {
    SystemMachine m{env};
    for (unsigned port = 0x3F0; port < 0x402; ++port) {
      for (unsigned open = 0x3EF; open < 0x405; ++open) {
        for (const unsigned size : {1U, 2U, 4U}) {
          // Ports from `open` to open + 3 are allowed.
          for (unsigned i = 0; i < 0x1000 / 8; ++i) m.poke<std::uint8_t>(M::kTss + 0x68 + i, 0xFF);
          for (unsigned p = open; p < open + 4; ++p) {
            const std::uint64_t at = M::kTss + 0x68 + p / 8;
            m.poke(at, static_cast<std::uint8_t>(m.read<std::uint8_t>(at) & ~(1U << (p & 7))));
          }
          auto s = m.state(3);
          s.gpr[cpu::RDX] = port;
          const Bytes code = size == 1 ? Bytes{0xEC} : size == 2 ? Bytes{0x66, 0xED} : Bytes{0xED};
          const Ending o = m.go(code, s);
          const bool allowed = port >= open && port + size <= open + 4;
          ASSERT_EQ(o.exit == ExitKind::port_read, allowed) << port << " " << open << " " << size;
          if (!allowed) {
            ASSERT_EQ(o.vector, cpu::GP);
            ASSERT_EQ(o.error, 0U);
          }
        }
      }
    }
  }
}

TEST(Ports, BitmapLimits) {
  SystemMachine m;
  for (unsigned i = 0; i < 0x1F00; ++i) m.poke<std::uint8_t>(M::kTss + 0x68 + i, 0);
  auto s = m.state(3);
  s.gpr[cpu::RDX] = 0x80;  // bytes 0x78 and 0x79 of the TSS
  s.tr.limit = 0x79;
  EXPECT_EQ(m.go({0xEC}, s).exit, ExitKind::port_read);
  s.tr.limit = 0x78;
  expect_fault(m.go({0xEC}, s), s, cpu::GP, 0U);
  s.tr.limit = 0x66;  // no room for the map's base
  expect_fault(m.go({0xEC}, s), s, cpu::GP, 0U);
  s.tr.limit = 0x1FFF;
  s.rflags |= rf::IOPL;
  for (unsigned i = 0; i < 0x1F00; ++i) m.poke<std::uint8_t>(M::kTss + 0x68 + i, 0xFF);
  EXPECT_EQ(m.go({0xEC}, s).exit, ExitKind::port_read);  // CPL <= IOPL needs no map
}

TEST(Ports, SixteenBitTssHasNoMap) {
  SystemMachine m{Env::legacy32};
  auto s = m.state(3);
  s.tr.attributes = 0x83;
  for (unsigned i = 0; i < 0x100; ++i) m.poke<std::uint8_t>(M::kTss + 0x68 + i, 0);
  m.poke<std::uint16_t>(M::kTss + 2, 0x7000);
  m.poke<std::uint16_t>(M::kTss + 4, M::kData0);
  EXPECT_EQ(m.go({0xEC}, s).vector, cpu::GP);
}

TEST(Strings, RepInsStoresEachAnswer) {
  SystemMachine m;
  auto s = m.state();
  s.gpr[cpu::RCX] = 3;
  s.gpr[cpu::RDX] = 0x1F0;
  s.gpr[cpu::RDI] = M::kData;
  Ending o = m.go({0xF3, 0x66, 0x6D}, s);
  for (unsigned i = 0; i < 3; ++i) {
    EXPECT_EQ(o.exit, ExitKind::port_read);
    EXPECT_EQ(m.last_exit.size, 2);
    EXPECT_EQ(o.state.gpr[cpu::RCX], 3 - i);
    EXPECT_EQ(o.state.gpr[cpu::RDI], M::kData + 2 * i);
    EXPECT_EQ(o.state.rip, M::kCode);
    m.core->complete(0x1000 + i);
    o = m.go_on();
  }
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.gpr[cpu::RCX], 0U);
  EXPECT_EQ(m.read<std::uint64_t>(M::kData), 0x0000100210011000ULL);
}

TEST(Strings, RepOutsWritesEachElementDownwards) {
  SystemMachine m;
  auto s = m.state();
  s.rflags |= rf::DF;
  s.gpr[cpu::RCX] = 2;
  s.gpr[cpu::RDX] = 0x1F0;
  s.gpr[cpu::RSI] = M::kData + 4;
  m.poke<std::uint64_t>(M::kData, 0x1111111122222222);
  Ending o = m.go({0xF3, 0x6F}, s);
  EXPECT_EQ(o.exit, ExitKind::port_write);
  EXPECT_EQ(m.last_exit.data, 0x11111111U);
  o = m.go_on();
  EXPECT_EQ(m.last_exit.data, 0x22222222U);
  o = m.go_on();
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.gpr[cpu::RSI], M::kData - 4);
  EXPECT_EQ(o.state.gpr[cpu::RCX], 0U);
}

TEST(Strings, WithoutRepOneElement) {
  SystemMachine m;
  auto s = m.state();
  s.gpr[cpu::RCX] = 9;
  s.gpr[cpu::RDI] = M::kData;
  Ending o = m.go({0x6C}, s);
  m.core->complete(0xAB);
  o = m.go_on();
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.gpr[cpu::RCX], 9U);
  EXPECT_EQ(o.state.gpr[cpu::RDI], M::kData + 1);
}

TEST(Strings, ZeroCountDoesNothing) {
  SystemMachine m;
  auto s = m.state(3);  // not even the permission check
  s.gpr[cpu::RDI] = 0x10;
  const Ending o = m.go({0xF3, 0x6C, 0xCD, 0x80}, s);
  EXPECT_EQ(o.vector, 0x80);
  EXPECT_EQ(o.state.gpr[cpu::RDI], 0x10U);
}

TEST(Strings, AddressSize32CountsInEcxAndClearsUpperHalves) {
  SystemMachine m;
  auto s = m.state();
  s.gpr[cpu::RCX] = 0xFFFFFFFF00000001ULL;
  s.gpr[cpu::RDI] = 0xFFFFFFFF00000000ULL | M::kData;
  Ending o = m.go({0x67, 0xF3, 0x6C}, s);
  EXPECT_EQ(o.exit, ExitKind::port_read);
  m.core->complete(0x5A);
  o = m.go_on();
  EXPECT_TRUE(o.halted);
  EXPECT_EQ(o.state.gpr[cpu::RCX], 0U);
  EXPECT_EQ(o.state.gpr[cpu::RDI], M::kData + 1);
  EXPECT_EQ(m.read<std::uint8_t>(M::kData), 0x5A);
}

TEST(Strings, ADestinationThatFaultsIsFoundBeforeThePortIsRead) {
  SystemMachine m;
  m.mmu.page(0x200000).writable = false;
  auto s = m.state();
  s.gpr[cpu::RDI] = 0x200000;
  s.gpr[cpu::RCX] = 4;
  const Ending o = m.go({0xF3, 0x6C}, s);
  expect_fault(o, s, cpu::PF, pf::kWrite | pf::kPresent);
}

TEST(Strings, AFaultHalfWayKeepsTheIterationsDone) {
  SystemMachine m;
  m.mmu.page(0x201000).present = false;
  auto s = m.state();
  s.gpr[cpu::RDI] = 0x200FFF;
  s.gpr[cpu::RCX] = 4;
  m.go({0xF3, 0x6C}, s);
  m.core->complete(0x77);
  const Ending o = m.go_on();
  EXPECT_EQ(o.vector, cpu::PF);
  EXPECT_EQ(o.rip, M::kCode);
  EXPECT_EQ(o.state.gpr[cpu::RCX], 3U);
  EXPECT_EQ(o.state.gpr[cpu::RDI], 0x201000U);
  EXPECT_EQ(m.read<std::uint8_t>(0x200FFF), 0x77);
}

TEST(Strings, InterruptsComeBetweenIterations) {
  SystemMachine m;
  auto s = m.state();
  s.rflags |= rf::IF;
  s.gpr[cpu::RCX] = 3;
  s.gpr[cpu::RDI] = M::kData;
  Ending o = m.go({0xF3, 0x6C}, s);
  m.core->complete(1);
  m.interrupts.vector = 0x40;
  m.core->interrupt();
  o = m.go_on();
  EXPECT_EQ(o.vector, 0x40);
  EXPECT_EQ(o.rip, M::kCode);
  EXPECT_EQ(o.state.gpr[cpu::RCX], 2U);
  EXPECT_EQ(m.read<std::uint8_t>(M::kData), 1);
}

TEST(Strings, InsIntoDeviceMemory) {
  SystemMachine m;
  m.mmu.page(0x200000).mmio = true;
  auto s = m.state();
  s.gpr[cpu::RCX] = 2;
  s.gpr[cpu::RDI] = 0x200010;
  Ending o = m.go({0xF3, 0x6D}, s);
  for (unsigned i = 0; i < 2; ++i) {
    EXPECT_EQ(o.exit, ExitKind::port_read);
    m.core->complete(0x100 + i);
    o = m.go_on();
    EXPECT_EQ(o.exit, ExitKind::mmio_write);
    EXPECT_EQ(m.last_exit.data, 0x100U + i);
    EXPECT_EQ(m.last_exit.pa, PA{0x200010 + 4 * i});
    o = m.go_on();
  }
  EXPECT_TRUE(o.halted);
}

}  // namespace
}  // namespace strata::interp::test
