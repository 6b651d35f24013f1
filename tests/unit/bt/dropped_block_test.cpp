// Blocks that are dropped while several address spaces know of them.
#include <gtest/gtest.h>

#include "test_support.hpp"

namespace strata::interp::test {
namespace {

/// The guest's MOV to CR3 keeps the TLB of both, so that what each knows of a jump stays known.
TEST(DroppedBlock, AcrossAPagesEndIsLeftByEveryAddressSpace) {
  constexpr std::uint64_t kFunction = Machine::kCode + 0x2FFE, kKeep = 1ULL << 63;
  Machine machine;
  // l: mov cr3, rax; call rdi; mov cr3, rbx; call rdi; mov [rdi], dl; call rdi; dec esi; jnz l; hlt
  machine.write(Machine::kCode, std::array<std::uint8_t, 19>{
                                    0x0F, 0x22, 0xD8, 0xFF, 0xD7, 0x0F, 0x22, 0xDB, 0xFF, 0xD7,
                                    0x88, 0x17, 0xFF, 0xD7, 0xFF, 0xCE, 0x75, 0xEE, 0xF4});
  // inc rcx, of which the last byte lies in the next page; ret
  machine.write(kFunction, std::array<std::uint8_t, 4>{0x48, 0xFF, 0xC1, 0xC3});
  cpu::VcpuState s = Machine::long_mode_state();
  s.cr4 |= cpu::cr4::PCIDE;
  s.gpr[cpu::RAX] = s.cr3 | kKeep | 1;
  s.gpr[cpu::RBX] = s.cr3 | kKeep | 2;
  s.gpr[cpu::RDI] = kFunction;
  s.gpr[cpu::RDX] = 0x48;
  s.gpr[cpu::RCX] = 0;
  s.gpr[cpu::RSI] = 5;
  machine.core->set_state(s);
  ASSERT_EQ(machine.core->run().kind, engine::ExitKind::halt);
  EXPECT_EQ(machine.core->state().gpr[cpu::RCX], 15U);
}

}  // namespace
}  // namespace strata::interp::test
