// Every vector instruction of the model against the host executing the same bytes.
#include <gtest/gtest.h>

#include <set>

#include "vector_compare.hpp"

namespace strata::interp::test {
namespace {

bool host_has_avx() { return __builtin_cpu_supports("avx2") != 0; }

/// Instructions with tests of their own: they save and load whole register files.
bool is_state_image(const Instruction& i) {
  switch (i.insn.meta.isa_set) {
    case ZYDIS_ISA_SET_FXSAVE:
    case ZYDIS_ISA_SET_FXSAVE64:
    case ZYDIS_ISA_SET_XSAVE:
    case ZYDIS_ISA_SET_XSAVEOPT:
    case ZYDIS_ISA_SET_XSAVEC:
      return true;
    default:
      return false;
  }
}

bool is_gather(const Instruction& i) {
  return i.memory() != nullptr && i.memory()->mem.type == ZYDIS_MEMOP_TYPE_VSIB;
}

bool uses_mmx(const Instruction& i) {
  if (i.insn.mnemonic == ZYDIS_MNEMONIC_EMMS) return true;
  for (unsigned k = 0; k < i.insn.operand_count; ++k) {
    if (i.ops[k].type == ZYDIS_OPERAND_TYPE_REGISTER &&
        ZydisRegisterGetClass(i.ops[k].reg.value) == ZYDIS_REGCLASS_MMX) {
      return true;
    }
  }
  // CVTPI2PS and CVTPI2PD from memory, which may or may not change to MMX state.
  return i.insn.mnemonic == ZYDIS_MNEMONIC_CVTPI2PS || i.insn.mnemonic == ZYDIS_MNEMONIC_CVTPI2PD;
}

bool uses_quadword_general(const Instruction& i) {
  for (unsigned k = 0; k < i.insn.operand_count_visible; ++k) {
    const ZydisDecodedOperand& op = i.ops[k];
    if (op.type == ZYDIS_OPERAND_TYPE_REGISTER &&
        ZydisRegisterGetClass(op.reg.value) == ZYDIS_REGCLASS_GPR64) {
      return true;
    }
  }
  // Their memory forms, too.
  switch (i.insn.mnemonic) {
    case ZYDIS_MNEMONIC_VMOVQ:
    case ZYDIS_MNEMONIC_VPINSRQ:
    case ZYDIS_MNEMONIC_VPEXTRQ:
    case ZYDIS_MNEMONIC_VCVTSI2SD:
    case ZYDIS_MNEMONIC_VCVTSI2SS:
      return true;
    default:
      return false;
  }
}

/// Whether the sum of base, index and displacement is the same with 32-bit addresses.
bool fits_32_bit(const Instruction& i, const UnitState& in) {
  const auto value = [&](ZydisRegister reg) -> std::uint64_t {
    if (reg < ZYDIS_REGISTER_RAX || reg > ZYDIS_REGISTER_R15) return 0;
    return in.gpr[static_cast<unsigned>(reg) - ZYDIS_REGISTER_RAX];
  };
  const auto& m = i.memory()->mem;
  return value(m.base) <= 0xFFFFFFFF && value(m.index) <= 0xFFFFFFFF;
}

class VectorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!host_has_avx()) GTEST_SKIP() << "the oracle needs AVX2";
  }

  /// A random instruction at the point, with memory or without; nothing if the point has no such
  /// form.
  std::optional<Instruction> instruction(const OpcodePoint& p, bool memory) {
    for (unsigned attempt = 0; attempt < 20; ++attempt) {
      Instruction i;
      if (!decode(g.bytes_at(p, memory), i)) continue;
      const isa::Opcode opcode = isa::opcode_of(i.insn, i.ops.data());
      if (opcode.cls != isa::OpcodeClass::vector || is_state_image(i) || is_gather(i)) return {};
      if (!isa::available(opcode, i.insn, c.guest.machine.model)) return {};
      return i;
    }
    return {};
  }

  /// Operand memory with interesting values at `va`.
  void fill_memory(std::uint64_t va) {
    for (unsigned i = 0; i < 2; ++i) {
      const auto v = g.vector_value();
      std::memcpy(c.native.data().data() + (va - NativeCpu::kData) + 32 * i, v.data(), 32);
    }
  }

  /// `va`, or below it where the instruction wants alignment and the host does not insist: AMD's
  /// processors let SHA operands lie anywhere, the SDM's class 4 does not.
  static std::uint64_t suitable(const Instruction& i, std::uint64_t va) {
    return i.insn.meta.isa_set == ZYDIS_ISA_SET_SHA ? va & ~15ULL : va;
  }

  /// An address in the operand memory: aligned, unaligned, or across a page boundary.
  std::uint64_t address() {
    const std::uint64_t page = NativeCpu::kData + 4096 * (1 + g.below(2));
    switch (g.below(4)) {
      case 0:
        return page + g.below(4000);
      case 1:
        return page - 1 - g.below(31);
      default:
        return page + 32 * g.below(100);
    }
  }

  /// Base in a register, small indices on both sides of `edge`.
  bool aim_gather(const Instruction& i, std::uint64_t edge, UnitState& in) {
    const auto& m = i.memory()->mem;
    if (!g.aim(i, edge, in)) return false;
    const bool wide = i.insn.opcode == 0x91 || i.insn.opcode == 0x93;
    auto& index = in.ymm[ZydisRegisterGetId(m.index) & 15];
    for (auto& w : index) {
      const std::uint64_t a = g.below(900) - 450;
      const std::uint64_t b = g.below(900) - 450;
      w = wide ? a : (a & 0xFFFFFFFF) | b << 32;
    }
    return true;
  }

  /// AMD's processors change to MMX state before CVTPS2PI and relatives find their fault. A fault
  /// without a trace is what the manuals describe.
  bool changes_to_mmx_early(const Instruction& i, const std::string& difference) const {
    return i.insn.meta.category == ZYDIS_CATEGORY_CONVERT && uses_mmx(i) &&
           difference.starts_with(" fx[") && c.out_native.trap == c.out_guest.trap &&
           difference.find("ymm") == std::string::npos;
  }

  Comparison c;
  Generator g{20240607};
  unsigned failures = 0;

  void expect_same(const std::string& difference, const Instruction& i, const UnitState& in) {
    if (difference.empty() || (c.out_native.trap >= 0 && changes_to_mmx_early(i, difference))) {
      return;
    }
    if (++failures > 20) return;
    ADD_FAILURE() << i.text() << " mxcsr " << std::hex << in.mxcsr << ": native / guest"
                  << difference;
  }
};

TEST_F(VectorTest, EveryOpcodeBetweenRegisters) {
  std::set<ZydisMnemonic> seen;
  unsigned cases = 0;
  for (const OpcodePoint& p : vector_points(c.guest.machine.model)) {
    for (unsigned n = 0; n < 12; ++n) {
      const auto i = instruction(p, false);
      if (!i) continue;
      // MASKMOVDQU writes where RDI points.
      UnitState in = g.state(false);
      if (i->memory() != nullptr && !g.aim(*i, suitable(*i, address()), in)) continue;
      expect_same(c.run(i->bytes, in), *i, in);
      seen.insert(i->insn.mnemonic);
      ++cases;
    }
  }
  RecordProperty("cases", static_cast<int>(cases));
  RecordProperty("mnemonics", static_cast<int>(seen.size()));
  EXPECT_GT(seen.size(), 560U);
}

TEST_F(VectorTest, EveryOpcodeWithMemory) {
  std::set<ZydisMnemonic> seen;
  unsigned cases = 0;
  for (const OpcodePoint& p : vector_points(c.guest.machine.model)) {
    for (unsigned n = 0; n < 12; ++n) {
      const auto i = instruction(p, true);
      UnitState in = g.state(false);
      const std::uint64_t va = address();
      if (!i || i->memory() == nullptr || !g.aim(*i, suitable(*i, va), in)) continue;
      fill_memory(va);
      expect_same(c.run(i->bytes, in), *i, in);
      seen.insert(i->insn.mnemonic);
      ++cases;
    }
  }
  RecordProperty("cases", static_cast<int>(cases));
  RecordProperty("mnemonics", static_cast<int>(seen.size()));
  EXPECT_GT(seen.size(), 560U);
}

/// Whether the instruction obeys MXCSR, so that unmasking exceptions matters.
bool may_raise(const Instruction& i) {
  switch (i.insn.meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_SSE2:
    case ZYDIS_EXCEPTION_CLASS_SSE3:
    case ZYDIS_EXCEPTION_CLASS_AVX2:
    case ZYDIS_EXCEPTION_CLASS_AVX3:
    case ZYDIS_EXCEPTION_CLASS_AVX11:
      return true;
    default:
      return i.insn.meta.category == ZYDIS_CATEGORY_CONVERT;
  }
}

/// Flags that the two sides may disagree on when an unmasked exception was raised. PE says whether
/// the result is exact with an unbounded exponent, which masked operation does not tell. The steps
/// of a dot product stop at the first unmasked exception on a processor.
std::uint32_t uncertain_flags(const Instruction& i, const UnitState& native) {
  if (native.trap != cpu::XM) return 0;
  switch (i.insn.mnemonic) {
    case ZYDIS_MNEMONIC_DPPS:
    case ZYDIS_MNEMONIC_DPPD:
    case ZYDIS_MNEMONIC_VDPPS:
    case ZYDIS_MNEMONIC_VDPPD:
      return 0x3F;
    default:
      return (~native.mxcsr >> 7 & native.mxcsr & 0x18) != 0 ? 0x20 : 0;
  }
}

TEST_F(VectorTest, UnmaskedExceptions) {
  unsigned raised = 0;
  for (const OpcodePoint& p : vector_points(c.guest.machine.model)) {
    for (unsigned n = 0; n < 40; ++n) {
      const bool memory = g.chance(40);
      const auto i = instruction(p, memory);
      if (!i || !may_raise(*i)) break;
      UnitState in = g.state(true);
      const std::uint64_t va = address();
      if (i->memory() != nullptr && !g.aim(*i, suitable(*i, va), in)) continue;
      fill_memory(va);
      std::string difference = c.run(i->bytes, in);
      const std::uint32_t uncertain = uncertain_flags(*i, c.out_native);
      if (((c.out_native.mxcsr ^ c.out_guest.mxcsr) & ~uncertain) == 0) {
        c.out_guest.mxcsr = c.out_native.mxcsr;
        difference = c.differences();
      }
      expect_same(difference, *i, in);
      raised += c.out_native.trap == cpu::XM ? 1U : 0U;
    }
  }
  EXPECT_GT(raised, 1000U);
}

/// The bytes mean the same in 32-bit code if no REX prefix and no absolute address is involved.
TEST_F(VectorTest, CompatibilityMode) {
  c.guest.use_32_bit();
  unsigned cases = 0;
  for (const OpcodePoint& p : vector_points(c.guest.machine.model)) {
    if (p.w && !p.vex) continue;
    for (unsigned n = 0; n < 4; ++n) {
      Instruction i;
      if (!decode(g.bytes_at(p, n % 2 == 0, true), i) || is_state_image(i) || is_gather(i))
        continue;
      const isa::Opcode opcode = isa::opcode_of(i.insn, i.ops.data());
      if (opcode.cls != isa::OpcodeClass::vector) continue;
      if (!isa::available(opcode, i.insn, c.guest.machine.model)) continue;
      // W selects a 64-bit general register or operand only in 64-bit mode.
      if (p.w && uses_quadword_general(i)) continue;
      UnitState in = g.state(false);
      for (auto& r : in.gpr) r &= 0xFFFFFFFF;
      for (unsigned r = 8; r < 16; ++r) in.ymm[r] = {};
      const std::uint64_t va = address();
      if (i.memory() != nullptr && (!g.aim(i, suitable(i, va), in) || !fits_32_bit(i, in)))
        continue;
      fill_memory(va);
      expect_same(c.run(i.bytes, in), i, in);
      ++cases;
    }
  }
  EXPECT_GT(cases, 3000U);
}

/// Outside 64-bit mode W does not make general registers wide (SDM 2A 2.3.5.5 and the
/// instructions' pages): the guest's W1 is the host's W0.
TEST_F(VectorTest, WideGeneralRegistersExistInLongModeOnly) {
  c.guest.use_32_bit();
  const std::vector<std::vector<std::uint8_t>> wide{
      {0xC4, 0xE3, 0xF1, 0x22, 0xC3, 0x01},  // vpinsrq xmm0, xmm1, rbx, 1
      {0xC4, 0xE3, 0xF9, 0x16, 0xC3, 0x01},  // vpextrq rbx, xmm0, 1
      {0xC4, 0xE1, 0xF3, 0x2A, 0xC3},        // vcvtsi2sd xmm0, xmm1, rbx
      {0xC4, 0xE1, 0xFB, 0x2C, 0xD9},        // vcvttsd2si rbx, xmm1
      {0xC4, 0xE1, 0xF9, 0x6E, 0xC3},        // vmovq xmm0, rbx
      {0xC4, 0xE1, 0xF9, 0x7E, 0xC3}};       // vmovq rbx, xmm0
  for (auto code : wide) {
    UnitState in = g.state(false);
    for (auto& r : in.gpr) r &= 0xFFFFFFFF;
    for (unsigned r = 8; r < 16; ++r) in.ymm[r] = {};
    c.out_guest = c.guest.run(code, in);
    code[2] &= 0x7F;
    c.out_native = c.native.run(code, in);
    EXPECT_EQ(c.differences(), "") << unsigned{code[3]};
  }
}

/// A result that can not be stored is not computed either: the page fault wins over #XM.
TEST_F(VectorTest, AddressComesBeforeFloatingPointException) {
  const std::vector<std::uint8_t> code{0xC4, 0xE3, 0x79,
                                       0x1D, 0x03, 0x00};  // vcvtps2ph [rbx], xmm0, 0
  UnitState in;
  in.ymm[0] = {0x7FA000007FA00000, 0, 0, 0};  // signalling NaNs
  in.mxcsr = 0x1F00;
  in.gpr[cpu::RBX] = NativeCpu::kData + 4096;
  EXPECT_EQ(c.run_protected(code, in, NativeCpu::kData + 4096, true), "");
  EXPECT_EQ(c.out_guest.trap, cpu::PF);
  EXPECT_EQ(c.run(code, in), "");
  EXPECT_EQ(c.out_guest.trap, cpu::XM);
}

/// No access where a page refuses it, and no trace of the instruction; where nothing is touched
/// there (masked elements), no fault either.
TEST_F(VectorTest, FaultsLeaveNoTrace) {
  unsigned faults = 0;
  for (const OpcodePoint& p : vector_points(c.guest.machine.model)) {
    for (unsigned n = 0; n < 6; ++n) {
      const auto i = instruction(p, true);
      UnitState in = g.state(g.chance(20));
      const std::uint64_t edge = NativeCpu::kData + 8192;
      const std::uint64_t va = edge - g.below(40);
      if (!i || i->memory() == nullptr || !g.aim(*i, suitable(*i, va), in)) continue;
      fill_memory(edge - 64);
      expect_same(c.run_protected(i->bytes, in, edge, g.chance(50)), *i, in);
      faults += c.out_native.trap == cpu::PF ? 1U : 0U;
    }
  }
  EXPECT_GT(faults, 1000U);
}

/// Gathers, with elements on both sides of a page that may refuse access: what is done when the
/// fault comes shows in the destination and the mask.
TEST_F(VectorTest, Gathers) {
  unsigned partial = 0;
  for (const unsigned opcode : {0x90U, 0x91U, 0x92U, 0x93U}) {
    for (unsigned n = 0; n < 4000; ++n) {
      const OpcodePoint p{true,         1,           2, static_cast<std::uint8_t>(opcode),
                          g.chance(50), g.chance(50)};
      Instruction i;
      if (!decode(g.bytes_at(p, true), i) || !is_gather(i)) continue;
      UnitState in = g.state(false);
      const std::uint64_t edge = NativeCpu::kData + 8192;
      if (!aim_gather(i, edge, in)) continue;
      for (unsigned k = 0; k < 8; ++k) fill_memory(NativeCpu::kData + 4096 + g.below(7000));
      const bool refuse = g.chance(50);
      expect_same(refuse ? c.run_protected(i.bytes, in, edge, false) : c.run(i.bytes, in), i, in);
      partial += c.out_native.trap == cpu::PF ? 1U : 0U;
    }
  }
  EXPECT_GT(partial, 300U);
}

/// MMX registers are x87 registers: random stack positions, tags and pending exceptions.
TEST_F(VectorTest, MmxAliasesTheX87Stack) {
  unsigned cases = 0;
  for (const OpcodePoint& p : vector_points(c.guest.machine.model)) {
    if (p.vex) continue;
    for (unsigned n = 0; n < 10; ++n) {
      const auto i = instruction(p, g.chance(40));
      if (!i || !uses_mmx(*i)) break;
      UnitState in = g.state(g.chance(20));
      for (unsigned at = 32; at < 160; ++at) in.fx[at] = static_cast<std::uint8_t>(g.random());
      in.fx[3] = static_cast<std::uint8_t>(g.below(8) << 3 | (g.random() & 0x47));
      in.fx[4] = static_cast<std::uint8_t>(g.random());
      if (g.chance(10)) {  // a pending invalid operation
        in.fx[0] &= 0xFE;
        in.fx[2] = 0x81;
        in.fx[3] |= 0x80;
      }
      const std::uint64_t va = address();
      if (i->memory() != nullptr && !g.aim(*i, suitable(*i, va), in)) continue;
      fill_memory(va);
      expect_same(c.run(i->bytes, in), *i, in);
      ++cases;
    }
  }
  EXPECT_GT(cases, 500U);
}

}  // namespace
}  // namespace strata::interp::test
