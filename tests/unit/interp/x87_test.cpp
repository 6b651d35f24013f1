// x87 instructions against the host: single ones over the whole opcode space, and sequences whose
// exceptions show at the next waiting instruction.
#include <gtest/gtest.h>

#include "vector_compare.hpp"

namespace strata::interp::test {
namespace {

using Bytes = std::vector<std::uint8_t>;

class X87Test : public ::testing::Test {
 protected:
  void SetUp() override {
    if (__builtin_cpu_supports("avx2") == 0) GTEST_SKIP() << "the oracle needs AVX2";
  }

  static std::uint8_t u8(std::uint64_t v) { return static_cast<std::uint8_t>(v); }

  /// A register as programs and as hostile images have them.
  void random_register(std::uint8_t* at) {
    std::uint64_t mantissa = g.random();
    auto exponent = static_cast<std::uint16_t>(g.random());
    switch (g.below(8)) {
      case 0:
        mantissa = 0, exponent &= 0x8000;
        break;  // zero
      case 1:
        mantissa = 1ULL << 63, exponent |= 0x7FFF;
        break;  // infinity
      case 2:
        exponent |= 0x7FFF;
        break;  // NaN or invalid
      case 3:
        mantissa >>= 1 + g.below(60), exponent &= 0x8000;
        break;  // denormal
      case 4:
        break;  // maybe unnormal
      case 5:
        mantissa |= 1ULL << 63, exponent = u16(0x3FFF + g.below(70) - 3);  // an integer's size
        break;
      case 6:
        mantissa = (1ULL << 63) >> g.below(2), exponent = 0x3FFF;
        break;  // 1.0
      default:
        mantissa |= 1ULL << 63, exponent = u16(0x3FFF + g.below(4000) - 2000);
        break;
    }
    std::memcpy(at, &mantissa, 8);
    std::memcpy(at + 8, &exponent, 2);
  }
  static std::uint16_t u16(std::uint64_t v) { return static_cast<std::uint16_t>(v); }

  UnitState x87_state() {
    UnitState s = g.state(false);
    s.mxcsr = 0x1F80;
    auto fcw = u16((g.random() & 0xF3F) | 0x40);
    if (g.chance(60)) fcw |= 0x3F;
    auto fsw = u16(g.random() & 0x7F7F);
    if (g.chance(90)) fsw = u16(fsw & (0xFFC0U | fcw));  // nothing pending
    if ((fsw & ~fcw & 0x3F) != 0) fsw |= 0x8080;
    std::memcpy(s.fx.data(), &fcw, 2);
    std::memcpy(s.fx.data() + 2, &fsw, 2);
    s.fx[4] = g.chance(50) ? 0xFF : u8(g.random());
    for (unsigned r = 0; r < 8; ++r) random_register(&s.fx[32 + 16 * r]);
    return s;
  }

  /// Operand of any size: an 80-bit number, integers, floats.
  void fill_operand(std::uint64_t va) {
    std::uint8_t* at = c.native.data().data() + (va - NativeCpu::kData);
    const auto v = g.vector_value();
    std::memcpy(at, v.data(), 32);
    if (g.chance(50)) random_register(at);
    if (g.chance(10)) {
      for (unsigned i = 0; i < 10; ++i) at[i] = u8(g.below(10) << 4 | g.below(10));  // BCD
    }
  }

  bool is_x87(const Instruction& i) const {
    return isa::opcode_of(i.insn, i.ops.data()).cls == isa::OpcodeClass::x87;
  }
  static bool is_environment(const Instruction& i) {
    return i.memory() != nullptr && i.memory()->size > 80;
  }

  void expect_same(const std::string& difference, const Bytes& code, const UnitState& in) {
    if (difference.empty()) return;
    if (++failures > 20) return;
    std::ostringstream s;
    for (const std::uint8_t b : code) s << std::hex << unsigned{b} << ' ';
    ADD_FAILURE() << s.str() << "fcw " << std::hex << unsigned{in.fx[1]} << ' '
                  << unsigned{in.fx[0]} << " fsw " << unsigned{in.fx[3]} << ' '
                  << unsigned{in.fx[2]} << " ftw " << unsigned{in.fx[4]} << ": native / guest"
                  << difference;
  }

  Comparison c;
  Generator g{8087};
  unsigned failures = 0;
};

TEST_F(X87Test, EveryRegisterForm) {
  unsigned cases = 0;
  for (unsigned opcode = 0xD8; opcode <= 0xDF; ++opcode) {
    for (unsigned modrm = 0xC0; modrm <= 0xFF; ++modrm) {
      const Bytes code{u8(opcode), u8(modrm)};
      Instruction i;
      if (!decode(code, i) || !is_x87(i)) continue;
      for (unsigned n = 0; n < 20; ++n) {
        const UnitState in = x87_state();
        expect_same(c.run(code, in), code, in);
        ++cases;
      }
    }
  }
  EXPECT_GT(cases, 7000U);
}

TEST_F(X87Test, EveryMemoryForm) {
  unsigned cases = 0;
  for (unsigned opcode = 0xD8; opcode <= 0xDF; ++opcode) {
    for (unsigned reg = 0; reg < 8; ++reg) {
      for (unsigned n = 0; n < 60; ++n) {
        const Bytes code{u8(opcode), u8(reg << 3 | 3)};  // [rbx]
        Instruction i;
        if (!decode(code, i) || !is_x87(i) || is_environment(i)) continue;
        UnitState in = x87_state();
        in.gpr[cpu::RBX] = NativeCpu::kData + 8192 - (g.chance(30) ? g.below(12) : 64);
        fill_operand(in.gpr[cpu::RBX]);
        expect_same(g.chance(20) ? c.run_protected(code, in, NativeCpu::kData + 8192, g.chance(50))
                                 : c.run(code, in),
                    code, in);
        ++cases;
      }
    }
  }
  EXPECT_GT(cases, 3000U);
}

/// Deferred exceptions, stack movement, control words that change on the way.
TEST_F(X87Test, Sequences) {
  unsigned trapped = 0;
  for (unsigned n = 0; n < 4000; ++n) {
    UnitState in = x87_state();
    in.gpr[cpu::RBX] = NativeCpu::kData + 256;
    for (unsigned k = 0; k < 8; ++k) fill_operand(NativeCpu::kData + 256 + 32 * k);
    Bytes code;
    for (unsigned length = 2 + static_cast<unsigned>(g.below(6)); length > 0;) {
      Bytes one{u8(0xD8 + g.below(8)), u8(g.random())};
      if (one[1] < 0xC0) {
        one[1] = u8(0x40 | (one[1] & 0x38) | 3);  // [rbx + disp8]
        one.push_back(u8(g.below(3) * 32));
      }
      if (g.chance(5)) one = {0x9B};
      Instruction i;
      if (!decode(one, i) || !is_x87(i) || is_environment(i)) continue;
      code.insert(code.end(), one.begin(), one.end());
      --length;
    }
    expect_same(c.run(code, in), code, in);
    trapped += c.out_native.trap == cpu::MF ? 1U : 0U;
  }
  EXPECT_GT(trapped, 300U);
}

/// FNSTENV, FLDENV, FNSAVE and FRSTOR in the 16- and 32-bit protected-mode formats.
TEST_F(X87Test, Environments) {
  for (unsigned n = 0; n < 2000; ++n) {
    UnitState in = x87_state();
    const std::uint64_t va = NativeCpu::kData + 8192 - (g.chance(30) ? g.below(120) : 128);
    in.gpr[cpu::RBX] = va;
    for (auto& b : c.native.data().subspan(va - NativeCpu::kData, 120)) b = u8(g.random());
    Bytes code;
    if (g.chance(50)) code.push_back(0x66);
    const std::uint64_t which = g.below(4);
    code.push_back(which < 2 ? 0xD9 : 0xDD);
    code.push_back(which % 2 == 0 ? 0x33 : 0x23);  // store /6, load /4 of [rbx]
    // The pointers the host kept are of no interest: make both sides zero.
    for (unsigned at = 6; at < 24; ++at) in.fx[at] = 0;
    expect_same(c.run(code, in), code, in);
  }
}

/// What a context switch of a 32-bit kernel does: save, use, restore.
TEST_F(X87Test, SaveAndRestoreKeepEverything) {
  for (unsigned n = 0; n < 200; ++n) {
    UnitState in = x87_state();
    in.fx[2] &= 0x40;
    in.fx[3] &= 0x7F;
    in.gpr[cpu::RBX] = NativeCpu::kData + 512;
    in.gpr[cpu::RCX] = NativeCpu::kData + 1024;
    // fnsave [rbx]; fld1; fldpi; frstor [rbx]; fnsave [rcx]
    const UnitState out =
        c.guest.run(Bytes{0xDD, 0x33, 0xD9, 0xE8, 0xD9, 0xEB, 0xDD, 0x23, 0xDD, 0x31}, in);
    EXPECT_EQ(out.trap, -1);
    EXPECT_EQ(0, std::memcmp(c.guest.data().data() + 512, c.guest.data().data() + 1024, 108));
  }
}

/// FIP, FDP and FOP name the last non-control instruction, and selectors do not exist.
TEST_F(X87Test, PointersAreTheGuests) {
#ifdef STRATA_TEST_TRANSLATOR
  GTEST_SKIP() << "translated x87 code keeps no instruction and operand pointers";
#endif
  UnitState in;
  in.gpr[cpu::RBX] = NativeCpu::kData;
  // fld qword [rbx+16]; fnstcw [rbx]; fninit would clear it; fxsave64 [rbx+512]
  const Bytes code{0x90, 0xDD, 0x43, 0x10, 0xD9, 0x3B, 0x48, 0x0F, 0xAE, 0x83, 0, 2, 0, 0};
  const UnitState out = c.guest.run(code, in);
  ASSERT_EQ(out.trap, -1);
  const auto word = [&](std::uint64_t at) {
    return c.guest.machine.read<std::uint64_t>(NativeCpu::kData + 512 + at);
  };
  EXPECT_EQ(word(0) >> 48, 0x543U);  // DD 43
  EXPECT_EQ(word(8), Machine::kCode + 1);
  EXPECT_EQ(word(16), NativeCpu::kData + 16);
}

TEST_F(X87Test, RealModeEnvironmentHoldsLinearAddresses) {
  // fld qword [bx+0]; fnstenv [bx+16] in the 16-bit real-mode format (SDM 1 figure 8-12).
  cpu::VcpuState s;
  s.cr0 = cpu::cr0::ET | cpu::cr0::NE;
  cpu::reset_x87(s.vector);
  s.segment[cpu::CS] = {0, 0xFFFF, 0, 0x9B};
  s.segment[cpu::SS] = s.segment[cpu::DS] = {0x20000, 0xFFFF, 0x2000, 0x93};
  s.rip = 0x9350;
  s.gpr[cpu::RBX] = 0x800;
  auto& m = c.guest.machine;
  const Bytes code{0xDD, 0x07, 0xD9, 0x77, 0x10, 0xF4};
  m.write(0x9350, code);
  m.core->set_state(s);
  ASSERT_EQ(m.core->run().kind, engine::ExitKind::halt);
  std::array<std::uint16_t, 7> f;
  for (unsigned i = 0; i < 7; ++i) f[i] = m.read<std::uint16_t>(0x20810 + 2 * i);
  EXPECT_EQ(f[0], 0x37F);
  EXPECT_EQ(f[1] >> 11 & 7, 7);
  EXPECT_EQ(f[2] >> 14, 1);  // R7 holds zero, the others are empty
  EXPECT_EQ(f[2] & 0x3FFF, 0x3FFF);
  EXPECT_EQ(f[3], 0x9350);  // the selector is not kept, so the offset is all
  EXPECT_EQ(f[4] & 0x7FF, 0x507);
  EXPECT_EQ(f[5], 0x800);
}

}  // namespace
}  // namespace strata::interp::test
