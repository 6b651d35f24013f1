// Real-address mode (SDM 3A 20.1): CS has a base, IP and SP are 16 bits, interrupts go through the
// vector table, and segment registers keep what protected mode left in them.
#include <gtest/gtest.h>

#include "real_mode_support.hpp"

namespace strata::interp::test {
namespace {

namespace rf = cpu::rflags;

TEST(RealMode, InstructionPointerCountsFromCsBase) {
  RealMachine m;
  // 0: call 4; 3: hlt; 4: pop ax
  const auto s = m.go({0xE8, 0x01, 0x00, 0xF4, 0x58}, RealMachine::state(0x10));
  EXPECT_EQ(s.gpr[cpu::RAX], 0x13U);
  EXPECT_EQ(s.rip, 0x16U);
  EXPECT_EQ(s.segment[cpu::CS].base, RealMachine::kCodeBase);
}

TEST(RealMode, StartsWhereASipiPoints) {
  RealMachine m;
  auto s = RealMachine::state();
  s.segment[cpu::CS] = {0x9A000, 0xFFFF, 0x9A00, 0x9B};
  // mov ax,cs; mov ds,ax; mov word [0x20],0x1234
  const auto end = m.go({0x8C, 0xC8, 0x8E, 0xD8, 0xC7, 0x06, 0x20, 0x00, 0x34, 0x12}, s);
  EXPECT_EQ(m.read<std::uint16_t>(0x9A020), 0x1234);
  EXPECT_EQ(end.rip, 11U);
}

TEST(RealMode, NearBranchesWrapAt64K) {
  RealMachine m;
  const Bytes far_end{0xB3, 0x07, 0xE9, 0x0B, 0x00};  // FFF0: mov bl,7; jmp 0000 (FFF5 + B)
  m.write(RealMachine::kCodeBase + 0xFFF0, far_end);
  m.write(RealMachine::kCodeBase, Bytes{0xB7, 0x09, 0xF4});           // 0000: mov bh,9; hlt
  const auto s = m.go({0xE9, 0xDD, 0xFF}, RealMachine::state(0x10));  // jmp FFF0
  EXPECT_EQ(s.gpr[cpu::RBX], 0x0907U);
  EXPECT_EQ(s.rip, 3U);
}

TEST(RealMode, StackPointerWrapsAt64K) {
  RealMachine m;
  auto s = RealMachine::state();
  s.gpr[cpu::RSP] = 0xABCD0000;
  s.gpr[cpu::RAX] = 0x1122;
  const auto end = m.go({0x50}, s);  // push ax
  EXPECT_EQ(end.gpr[cpu::RSP], 0xABCDFFFEU);
  EXPECT_EQ(m.read<std::uint16_t>(RealMachine::kStackBase + 0xFFFE), 0x1122);
}

TEST(RealMode, SixteenBitAddressesWrap) {
  RealMachine m;
  auto s = RealMachine::state();
  s.gpr[cpu::RBX] = 0xFFF0;
  s.gpr[cpu::RSI] = 0x20;
  m.go({0xC6, 0x40, 0x02, 0x5A}, s);  // mov byte [bx+si+2],5A
  EXPECT_EQ(m.read<std::uint8_t>(RealMachine::kDataBase + 0x12), 0x5A);
}

TEST(RealMode, SegmentLoadsShiftTheSelector) {
  RealMachine m;
  // mov ax,1234; mov es,ax; mov byte es:[5],77; mov word [0],8000; les bx,[-2 -> 0xFFFE]
  const auto s = m.go({0xB8, 0x34, 0x12, 0x8E, 0xC0, 0x26, 0xC6, 0x06, 0x05, 0x00, 0x77});
  EXPECT_EQ(s.segment[cpu::ES].selector, 0x1234);
  EXPECT_EQ(s.segment[cpu::ES].base, 0x12340U);
  EXPECT_EQ(s.segment[cpu::ES].limit, 0xFFFFU);
  EXPECT_EQ(m.read<std::uint8_t>(0x12345), 0x77);
}

TEST(RealMode, IntGoesThroughTheVectorTableAndComesBack) {
  RealMachine m;
  m.poke<std::uint32_t>(0x21 * 4, 0x40000100);                  // 4000:0100
  m.write(0x40100, Bytes{0xB9, 0x55, 0x00, 0x9C, 0x5A, 0xCF});  // mov cx,55; pushf; pop dx; iret
  auto s = RealMachine::state();
  s.rflags |= rf::IF | rf::CF;
  const auto end = m.go({0xCD, 0x21, 0x41}, s);  // int 21; inc cx
  EXPECT_EQ(end.gpr[cpu::RCX], 0x56U);
  EXPECT_EQ(end.gpr[cpu::RDX] & (rf::IF | rf::CF), rf::CF);    // masked inside
  EXPECT_EQ(end.rflags & (rf::IF | rf::CF), rf::IF | rf::CF);  // and back
  EXPECT_EQ(end.rip, 4U);
  EXPECT_EQ(end.gpr[cpu::RSP], 0x1000U);
  EXPECT_EQ(m.read<std::uint16_t>(RealMachine::kStackBase + 0xFFE) & rf::IF, rf::IF);
  EXPECT_EQ(m.read<std::uint16_t>(RealMachine::kStackBase + 0xFFC), RealMachine::kCodeSelector);
  EXPECT_EQ(m.read<std::uint16_t>(RealMachine::kStackBase + 0xFFA), 2);
}

TEST(RealMode, FaultsPushTheirInstructionAndNoErrorCode) {
  RealMachine m;
  auto s = RealMachine::state(0x20);
  const auto end = m.go({0x31, 0xC9, 0xF7, 0xF1}, s);  // xor cx,cx; div cx
  EXPECT_EQ(RealMachine::vector_of(end), cpu::DE);
  EXPECT_EQ(end.gpr[cpu::RSP], 0xFFAU);
  EXPECT_EQ(m.word(end, 0), 0x22);
  EXPECT_EQ(m.word(end, 1), RealMachine::kCodeSelector);
}

TEST(RealMode, ExternalInterruptsPushTheNextInstruction) {
  RealMachine m;
  auto s = RealMachine::state(0x40);
  s.rflags |= rf::IF;
  m.interrupts.vector = 0x30;
  const auto end = m.go({0x90}, s);
  EXPECT_EQ(RealMachine::vector_of(end), 0x30);
  EXPECT_EQ(m.word(end, 0), 0x40);
  EXPECT_EQ(m.word(end, 1), RealMachine::kCodeSelector);
  EXPECT_EQ(m.word(end, 2) & rf::IF, rf::IF);
  EXPECT_EQ(end.rflags & rf::IF, 0U);
}

TEST(RealMode, VectorBeyondTheTableLimitIsAGeneralProtectionFault) {
  RealMachine m;
  auto s = RealMachine::state();
  s.idtr.limit = 0x40 * 4 - 1;
  const auto end = m.go({0xCD, 0x80}, s);
  EXPECT_EQ(RealMachine::vector_of(end), cpu::GP);
  EXPECT_EQ(m.word(end, 0), 0);
}

TEST(RealMode, FarCallsAndReturnsInBothSizes) {
  RealMachine m;
  m.write(0x40010, Bytes{0x43, 0xCB});                                      // inc bx; retf
  m.write(0x40020, Bytes{0x43, 0x66, 0xCB});                                // inc bx; o32 retf
  const auto end = m.go({0x9A, 0x10, 0x00, 0x00, 0x40,                      // call 4000:0010
                         0x66, 0x9A, 0x20, 0x00, 0x00, 0x00, 0x00, 0x40});  // o32 call
  EXPECT_EQ(end.gpr[cpu::RBX], 2U);
  EXPECT_EQ(end.gpr[cpu::RSP], 0x1000U);
  EXPECT_EQ(m.read<std::uint32_t>(RealMachine::kStackBase + 0xFF8), 13U);
  EXPECT_EQ(end.rip, 14U);
}

TEST(RealMode, FarTransferBeyondTheLimitIsRefused) {
  RealMachine m;
  const auto end = m.go({0x66, 0xEA, 0x00, 0x00, 0x01, 0x00, 0x00, 0x40});  // jmp 4000:00010000
  EXPECT_EQ(RealMachine::vector_of(end), cpu::GP);
  EXPECT_EQ(m.word(end, 0), 0);
}

TEST(RealMode, IretOfFourByteSlotsLeavesVmVifVipAlone) {
  RealMachine m;
  m.write(RealMachine::kCodeBase + 0x20, Bytes{0xF4});
  const auto after = m.go({0x66, 0x68, 0x03, 0x00, 0x3E, 0x00,  // push VM VIF VIP AC ID CF
                           0x66, 0x68, 0x00, 0x10, 0x00, 0x00,  // push 1000
                           0x66, 0x68, 0x20, 0x00, 0x00, 0x00,  // push 20
                           0x66, 0xCF});                        // o32 iret
  EXPECT_EQ(after.rip, 0x21U);
  EXPECT_EQ(after.rflags, rf::ID | rf::AC | rf::CF | rf::FIXED);
}

/// Real mode to protected mode and back with FS left 4 GiB long.
TEST(RealMode, ProtectedModeAndBackLeavesCachedLimits) {
  RealMachine m;
  using namespace desc;
  m.poke(RealMachine::kGdt + 8, make(0x10000, 0xFFFFF, 0x1B, 0));           // code, base 10000
  m.poke(RealMachine::kGdt + 16, make(0, 0xFFFFF, 0x13, 0));                // flat data
  m.poke(RealMachine::kGdt + 24, make(0x10000, 0xFFFF, 0x1B, 0, true, 0));  // 16-bit code
  m.poke<std::uint16_t>(0x20000, 0x1F);
  m.poke<std::uint32_t>(0x20002, RealMachine::kGdt);
  const Bytes real16{
      0x66, 0x0F, 0x01, 0x16, 0x00, 0x00,              // 00 o32 lgdt [0]
      0x0F, 0x20, 0xC0,                                // 06 mov eax,cr0
      0x0C, 0x01,                                      // 09 or al,1
      0x0F, 0x22, 0xC0,                                // 0B mov cr0,eax
      0x66, 0xEA, 0x20, 0x00, 0x00, 0x00, 0x08, 0x00,  // 0E jmp 08:20
  };
  const Bytes protected32{
      0x66, 0xB8, 0x10, 0x00,                    // 20 mov ax,10
      0x8E, 0xE0,                                // 24 mov fs,ax
      0xEA, 0x40, 0x00, 0x00, 0x00, 0x18, 0x00,  // 26 jmp 18:40
  };
  const Bytes protected16{
      0x0F, 0x20, 0xC0,              // 40 mov eax,cr0
      0x24, 0xFE,                    // 43 and al,FE
      0x0F, 0x22, 0xC0,              // 45 mov cr0,eax
      0xEA, 0x60, 0x00, 0x00, 0x10,  // 48 jmp 1000:60
  };
  const Bytes real_again{
      0x66, 0xBB, 0x00, 0x00, 0x20, 0x00,  // 60 mov ebx,200000
      0x64, 0x67, 0xC7, 0x03, 0x99, 0x77,  // 66 mov word fs:[ebx],7799
      0xF4,                                // 6C
  };
  m.write(RealMachine::kCodeBase + 0x20, protected32);
  m.write(RealMachine::kCodeBase + 0x40, protected16);
  m.write(RealMachine::kCodeBase + 0x60, real_again);
  const auto end = m.go(real16);
  EXPECT_EQ(end.rip, 0x6DU);
  EXPECT_EQ(end.cr0 & cpu::cr0::PE, 0U);
  EXPECT_EQ(m.read<std::uint16_t>(0x200000), 0x7799);
  EXPECT_EQ(end.segment[cpu::FS].limit, 0xFFFFFFFFU);
  EXPECT_EQ(end.segment[cpu::CS].base, RealMachine::kCodeBase);
}

/// 32-bit code with a CS base: near calls and faults count from it too.
TEST(RealMode, ProtectedModeWithACodeBase) {
  SystemMachine m{Env::legacy32};
  auto s = m.state();
  s.segment[cpu::CS].base = 0x8000;
  s.rip = SystemMachine::kCode - 0x8000;
  const auto o = m.go({0xE8, 0x00, 0x00, 0x00, 0x00, 0x58, 0x0F, 0x0B}, s);  // call +0; pop; ud2
  EXPECT_EQ(o.vector, cpu::UD);
  EXPECT_EQ(o.rip, s.rip + 6);
  EXPECT_EQ(o.state.gpr[cpu::RAX], s.rip + 5);
}

}  // namespace
}  // namespace strata::interp::test
