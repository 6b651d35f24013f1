// Runs of instructions: where they end, what becomes of bytes that are no instruction, which flags
// count as live; and the opcode table.
#include <gtest/gtest.h>

#include <algorithm>

#include "engines/interp/lower.hpp"
#include "isa/decode.hpp"
#include "isa/opcodes.hpp"
#include "test_support.hpp"

namespace strata::interp::test {
namespace {

class DecoderTest : public ::testing::Test {
 protected:
  DecodeResult decode(std::vector<std::uint8_t> bytes, std::uint64_t va = 0x1000,
                      DecodeMode mode = {}) {
    steps_.clear();
    bytes_ = std::move(bytes);
    return decode_block(reinterpret_cast<const std::byte*>(bytes_.data()), bytes_.size(), va, mode,
                        model_, steps_);
  }
  /// The exception that running `code` raises, by way of a machine whose exceptions triple-fault.
  static int exception_of(std::initializer_list<std::uint8_t> code) {
    Machine m;
    cpu::VcpuState s = Machine::long_mode_state();
    const std::uint64_t idt = 0x30000;
    const std::uint64_t stubs = 0x32000;
    for (unsigned v = 0; v < 32; ++v) {
      m.poke<std::uint8_t>(stubs + v * 16, 0xF4);
      m.poke<std::uint64_t>(idt + v * 16, ((stubs + v * 16) & 0xFFFF) | 8ULL << 16 | 0x8EULL << 40 |
                                              (stubs >> 16) << 48);
    }
    m.poke<std::uint64_t>(0x33008, 0x00AF9B000000FFFFULL);
    s.gdtr = {0x33000, 0x17};
    s.idtr = {idt, 32 * 16 - 1};
    m.run(code, s);
    const std::uint64_t rip = m.core->state().rip;
    return rip >= stubs && rip < stubs + 512 ? static_cast<int>((rip - stubs) / 16) : -1;
  }

  cpu::CpuModel model_{*cpu::CpuModel::by_name("default")};
  std::vector<std::uint8_t> bytes_;
  std::vector<Uop> steps_;
};

std::vector<std::uint8_t> repeat(std::vector<std::uint8_t> one, unsigned n) {
  std::vector<std::uint8_t> all;
  for (unsigned i = 0; i < n; ++i) all.insert(all.end(), one.begin(), one.end());
  return all;
}

TEST_F(DecoderTest, EndsBehindABranch) {
  const DecodeResult r = decode({0x90, 0xEB, 0x00, 0x90, 0x90});
  EXPECT_EQ(r.instructions, 2U);
  EXPECT_EQ(r.bytes, 3U);
  EXPECT_FALSE(r.needs_next_page);
}

TEST_F(DecoderTest, EndsAtItsLimitAndGoesOnBehind) {
  const DecodeResult r = decode(repeat({0x48, 0xFF, 0xC0}, 60));
  EXPECT_EQ(r.instructions, 32U);
  EXPECT_EQ(r.bytes, 96U);
  EXPECT_EQ(steps_.size(), 34U);  // the fall-through step and its slot
  EXPECT_EQ(steps_[32].offset, 96U);
}

TEST_F(DecoderTest, StopsBeforeAnInstructionThatRunsOffThePage) {
  const DecodeResult r = decode({0x90, 0x90, 0x48, 0x8B}, 0x1FFC);
  EXPECT_EQ(r.instructions, 2U);
  EXPECT_EQ(r.bytes, 2U);
  EXPECT_FALSE(r.needs_next_page);
}

TEST_F(DecoderTest, AsksForTheNextPageForTheFirstInstruction) {
  const DecodeResult r = decode({0x48, 0x8B}, 0x1FFE);
  EXPECT_TRUE(r.needs_next_page);
  EXPECT_EQ(r.instructions, 0U);
  EXPECT_TRUE(steps_.empty());
}

TEST_F(DecoderTest, AnInstructionAcrossPagesIsAlone) {
  const DecodeResult r = decode({0x48, 0x8B, 0x06, 0x90, 0x90, 0x90}, 0x1FFE);
  EXPECT_EQ(r.instructions, 1U);
  EXPECT_EQ(r.bytes, 3U);
}

TEST_F(DecoderTest, SingleModeDecodesOne) {
  DecodeMode mode;
  mode.single = true;
  EXPECT_EQ(decode({0x90, 0x90, 0x90}, 0x1000, mode).instructions, 1U);
}

TEST_F(DecoderTest, OnlyLiveFlagsAreComputed) {
  const auto first_step = [this](std::vector<std::uint8_t> behind) {
    std::vector<std::uint8_t> code = {0x48, 0x01, 0xC8};  // add rax, rcx
    code.insert(code.end(), behind.begin(), behind.end());
    decode(code);
    return steps_.at(0).fn;
  };
  const Handler with_flags = first_step({0xEB, 0x00});
  const Handler without = first_step({0x48, 0x01, 0xD0});  // add rax, rdx: nobody saw the first's
  EXPECT_NE(with_flags, without);
  EXPECT_EQ(first_step({0x48, 0x89, 0xC8, 0x48, 0x29, 0xD0}), without);  // a MOV between
  EXPECT_EQ(first_step({0x48, 0x11, 0xD0}), with_flags);                 // adc reads CF
  EXPECT_EQ(first_step({0x48, 0xFF, 0xC2}), with_flags);                 // inc leaves CF
  EXPECT_EQ(first_step({0xD3, 0xE2}), with_flags);                       // shl edx, cl may be by 0
  EXPECT_EQ(first_step({0x48, 0x8B, 0x06, 0x48, 0x01, 0xD0}), with_flags);  // a load may fault
  EXPECT_EQ(first_step({0x48, 0xF7, 0xF1, 0x48, 0x01, 0xD0}), with_flags);  // div may fault
  EXPECT_EQ(first_step({0x0F, 0x0B}), with_flags);                          // ud2 does
  EXPECT_EQ(first_step({0x48, 0x8D, 0x06, 0x48, 0x01, 0xD0}), without);     // lea does not
}

/// An RMW may hit its own block: the flags it leaves are live whatever follows.
TEST_F(DecoderTest, FlagsBehindAStoreAreLive) {
  decode({0x48, 0x01, 0x06, 0x48, 0x01, 0xD0});
  const Handler store = steps_.at(0).fn;
  decode({0x48, 0x01, 0x06, 0xEB, 0x00});
  EXPECT_EQ(steps_.at(0).fn, store);
}

TEST_F(DecoderTest, RaisesUndefinedOpcode) {
  EXPECT_EQ(exception_of({0x0F, 0x0B}), cpu::UD);                          // ud2
  EXPECT_EQ(exception_of({0x06}), cpu::UD);                                // push es
  EXPECT_EQ(exception_of({0x0F, 0x04}), cpu::UD);                          // nothing
  EXPECT_EQ(exception_of({0xF0, 0x01, 0xC8}), cpu::UD);                    // lock add eax, ecx
  EXPECT_EQ(exception_of({0xF0, 0x8B, 0x06}), cpu::UD);                    // lock mov
  EXPECT_EQ(exception_of({0xF0, 0x39, 0x06}), cpu::UD);                    // lock cmp
  EXPECT_EQ(exception_of({0x62, 0xF1, 0x7C, 0x48, 0x28, 0xC1}), cpu::UD);  // AVX-512
  EXPECT_EQ(exception_of({0x0F, 0x01, 0xC2}), cpu::UD);                    // vmlaunch
}

TEST_F(DecoderTest, TooLongIsAGeneralProtectionFault) {
  EXPECT_EQ(exception_of({0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
                          0x66, 0x66, 0x90}),
            -1);
  EXPECT_EQ(exception_of({0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
                          0x66, 0x66, 0x66, 0x90}),
            cpu::GP);
}

/// All bytes that made it undefined are covered, so that changing them drops the block.
TEST_F(DecoderTest, AnUndefinedInstructionCoversItsBytes) {
  const DecodeResult r = decode({0x90, 0xF0, 0x01, 0xC8, 0x90, 0x90});
  EXPECT_EQ(r.instructions, 2U);
  EXPECT_EQ(r.bytes, 6U);
}

// ---- isa
// ------------------------------------------------------------------------------------------

class OpcodeTest : public ::testing::Test {
 protected:
  isa::Opcode opcode(std::vector<std::uint8_t> bytes, unsigned bits = 64) {
    const ZydisDecoder decoder = isa::make_decoder(bits, true, model_);
    const ZyanStatus status = isa::decode(decoder, bytes.data(), bytes.size(), insn_, ops_.data());
    EXPECT_TRUE(ZYAN_SUCCESS(status));
    return isa::opcode_of(insn_, ops_.data());
  }
  cpu::CpuModel model_{*cpu::CpuModel::by_name("default")};
  ZydisDecodedInstruction insn_{};
  std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> ops_{};
};

TEST_F(OpcodeTest, TellsTwinsApart) {
  using enum isa::OpcodeClass;
  EXPECT_EQ(opcode({0xA5}).cls, string);                          // movsd
  EXPECT_EQ(opcode({0xF2, 0x0F, 0x10, 0xC1}).cls, vector);        // movsd xmm0, xmm1
  EXPECT_EQ(opcode({0xA7}).cls, string);                          // cmpsd
  EXPECT_EQ(opcode({0xF2, 0x0F, 0xC2, 0xC1, 0x00}).cls, vector);  // cmpsd xmm0, xmm1, 0
  EXPECT_EQ(opcode({0x89, 0xC8}).cls, integer);
  EXPECT_EQ(opcode({0x0F, 0x22, 0xD8}).cls, system);  // mov cr3, rax
  EXPECT_EQ(opcode({0x8C, 0xD8}).cls, system);        // mov eax, ds
  EXPECT_EQ(opcode({0x0F, 0xA0}).cls, system);        // push fs
  EXPECT_EQ(opcode({0x50}).cls, integer);             // push rax
  EXPECT_EQ(opcode({0xFF, 0xE0}).cls, branch);        // jmp rax
  EXPECT_EQ(opcode({0xFF, 0x28}).cls, system);        // jmp far [rax]
  EXPECT_EQ(opcode({0xC3}).cls, branch);
  EXPECT_EQ(opcode({0xCB}).cls, system);     // retf
  EXPECT_EQ(opcode({0xD9, 0xE8}).cls, x87);  // fld1
}

TEST_F(OpcodeTest, NamesTheFeature) {
  EXPECT_EQ(opcode({0xF3, 0x0F, 0xB8, 0xC1}).feature, cpu::Feature::popcnt);
  EXPECT_EQ(opcode({0xC4, 0xE2, 0x78, 0xF2, 0xC1}).feature, cpu::Feature::bmi1);
  EXPECT_EQ(opcode({0x0F, 0xC7, 0x0E}).feature, cpu::Feature::cx8);
  EXPECT_EQ(opcode({0x48, 0x0F, 0xC7, 0x0E}).feature, cpu::Feature::cx16);
  EXPECT_EQ(opcode({0xF2, 0x0F, 0x38, 0xF0, 0xC1}).feature, cpu::Feature::sse4_2);
  EXPECT_FALSE(opcode({0x01, 0xC8}).feature.has_value());
}

TEST_F(OpcodeTest, TablesListNothingTwice) {
  std::vector<ZydisISASet> sets;
  for (const isa::SetEntry& e : isa::set_table()) sets.push_back(e.set);
  std::ranges::sort(sets);
  EXPECT_EQ(std::ranges::adjacent_find(sets), sets.end());
  EXPECT_TRUE(std::ranges::is_sorted(isa::mnemonic_table(), {}, &isa::MnemonicEntry::mnemonic));
}

TEST_F(OpcodeTest, DecodesWhatZydisMisreads) {
  EXPECT_EQ(opcode({0xF3, 0x90}).cls, isa::OpcodeClass::integer);
  EXPECT_EQ(insn_.mnemonic, ZYDIS_MNEMONIC_PAUSE);
  opcode({0xF3, 0x41, 0x90});
  EXPECT_EQ(insn_.mnemonic, ZYDIS_MNEMONIC_XCHG);
  EXPECT_EQ(insn_.length, 3);
  opcode({0x67, 0x47, 0x8B, 0x34, 0xB5, 0x78, 0x56, 0x34, 0x12});  // mov r14d, [r14d*4 + disp32]
  EXPECT_EQ(ops_[1].mem.base, ZYDIS_REGISTER_NONE);
  EXPECT_EQ(ops_[1].mem.disp.value, 0x12345678);
}

}  // namespace
}  // namespace strata::interp::test
