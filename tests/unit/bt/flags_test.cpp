// Flags that an access leaves nowhere because what comes behind it seldom wants them: whoever does
// gets what the last instruction to write them made.
#include <gtest/gtest.h>

#include <vector>

#include "test_support.hpp"

namespace strata::interp::test {
namespace {

using engine::ExitKind;
using Bytes = std::vector<std::uint8_t>;

/// An instruction that writes all flags, from RAX and RDX or R9 and R10.
struct Writer {
  const char* name;
  Bytes code;
};

const std::vector<Writer>& writers() {
  static const std::vector<Writer> all{
      {"cmp rax, rdx", {0x48, 0x39, 0xD0}},
      {"cmp eax, edx", {0x39, 0xD0}},
      {"cmp ax, dx", {0x66, 0x39, 0xD0}},
      {"cmp al, dl", {0x38, 0xD0}},
      {"cmp ah, dl", {0x38, 0xD4}},
      {"cmp rax, imm8", {0x48, 0x83, 0xF8, 0x80}},
      {"cmp eax, imm32", {0x3D, 0x00, 0x00, 0x00, 0x80}},
      {"cmp r9, rdx", {0x49, 0x39, 0xD1}},
      {"cmp rax, r10", {0x4C, 0x39, 0xD0}},
      {"cmp r9, r10", {0x4D, 0x39, 0xD1}},
      {"cmp r9d, imm8", {0x41, 0x83, 0xF9, 0x01}},
      {"test rax, rdx", {0x48, 0x85, 0xD0}},
      {"test al, imm8", {0xA8, 0x81}},
      {"test r9, r9", {0x4D, 0x85, 0xC9}},
      {"add rax, rdx", {0x48, 0x01, 0xD0}},
      {"add eax, edx", {0x01, 0xD0}},
      {"add al, dl", {0x00, 0xD0}},
      {"add rax, rax", {0x48, 0x01, 0xC0}},
      {"add ax, imm8", {0x66, 0x83, 0xC0, 0x7F}},
      {"add rax, imm32", {0x48, 0x81, 0xC0, 0x00, 0x00, 0x00, 0x80}},
      {"add eax, imm32, without ModRM", {0x05, 0xFF, 0xFF, 0xFF, 0x7F}},
      {"add r9, rdx", {0x49, 0x01, 0xD1}},
      {"add rax, r9", {0x4C, 0x01, 0xC8}},
      {"add r9b, imm8", {0x41, 0x80, 0xC1, 0x80}},
      {"sub rax, rdx", {0x48, 0x29, 0xD0}},
      {"sub eax, imm8", {0x83, 0xE8, 0x01}},
      {"sub al, dl", {0x28, 0xD0}},
      {"sub r9, rdx", {0x49, 0x29, 0xD1}},
      {"sub rax, rax", {0x48, 0x29, 0xC0}},
      {"and rax, rdx", {0x48, 0x21, 0xD0}},
      {"and al, dl", {0x20, 0xD0}},
      {"or ax, dx", {0x66, 0x09, 0xD0}},
      {"or eax, edx", {0x09, 0xD0}},
      {"xor r9, rdx", {0x49, 0x31, 0xD1}},
      {"xor eax, eax", {0x31, 0xC0}},
      {"sbb rax, rdx", {0x48, 0x19, 0xD0}},
      {"neg rax", {0x48, 0xF7, 0xD8}},
      {"shl eax, 3", {0xC1, 0xE0, 0x03}},
  };
  return all;
}

constexpr std::uint64_t kValues[] = {0,      1,           0x7F,        0x80,       0xFFFF,
                                     0x8000, 0x7FFF'FFFF, 0x8000'0000, ~0ULL,      1ULL << 63,
                                     0x0123, 0xFFFF'FF80, ~0ULL >> 1,  0xFFFF'FFFF};

class DerivedFlags : public ::testing::TestWithParam<Writer> {
 protected:
  static constexpr std::uint64_t kMmio = Machine::kData + 16 * kPageSize;

  DerivedFlags() { machine_.mmu.page(kMmio).mmio = true; }

  /// Runs the writer and `rest` with each pair of values, twice. The pages at RSI and RDI are in
  /// the TLB before.
  template <class Check>
  void each(const Bytes& rest, ExitKind exit, Check&& check) {
    constexpr unsigned kPairs = std::size(kValues) * std::size(kValues);
    std::vector<std::uint64_t> wanted;
    load({});
    for (unsigned n = 0; n < kPairs; ++n) wanted.push_back(flags_of(run(n, ExitKind::halt)));
    load(rest);
    for (unsigned n = 0; n < 2 * kPairs; ++n) {
      const cpu::VcpuState s = run(n % kPairs, exit);
      ASSERT_EQ(check(s), wanted[n % kPairs]) << GetParam().name << " pair " << n % kPairs;
    }
  }
  [[nodiscard]] static std::uint64_t flags_of(const cpu::VcpuState& s) {
    return s.rflags & cpu::rflags::ARITHMETIC;
  }

 private:
  void load(const Bytes& rest) {
    Bytes code{0x49, 0x8B, 0x0E, 0x49, 0x8B, 0x0F};  // mov rcx, [r14]; mov rcx, [r15]
    code.insert(code.end(), GetParam().code.begin(), GetParam().code.end());
    code.insert(code.end(), rest.begin(), rest.end());
    code.push_back(0xF4);
    machine_.write(Machine::kCode, code);
  }
  cpu::VcpuState run(unsigned pair, ExitKind exit) {
    cpu::VcpuState s = Machine::long_mode_state();
    s.gpr[cpu::RAX] = s.gpr[cpu::R9] = kValues[pair % std::size(kValues)];
    s.gpr[cpu::RDX] = s.gpr[cpu::R10] = kValues[pair / std::size(kValues)];
    s.gpr[cpu::RSI] = s.gpr[cpu::R14] = Machine::kData;
    s.gpr[cpu::RDI] = s.gpr[cpu::R15] = Machine::kData + 2 * kPageSize;
    s.gpr[cpu::RBX] = kMmio;
    if (pair % 3 == 0) s.rflags |= cpu::rflags::ARITHMETIC;
    machine_.core->set_state(s);
    EXPECT_EQ(machine_.core->run().kind, exit);
    return machine_.core->state();
  }

  Machine machine_;
};

TEST_P(DerivedFlags, AreThereWhenAnAccessLeavesTheGuest) {
  // mov rcx, [rbx]
  each({0x48, 0x8B, 0x0B}, ExitKind::mmio_read, flags_of);
}

TEST_P(DerivedFlags, AreThereBehindAnAccess) {
  // mov rcx, [rsi]
  each({0x48, 0x8B, 0x0E}, ExitKind::halt, flags_of);
}

TEST_P(DerivedFlags, OutliveWhatTheyAreDerivedFrom) {
  // mov rcx, [rsi]; mov rax, [rdi]; mov edx, 5; mov r9, [rsi]; mov rcx, [rbx]
  each({0x48, 0x8B, 0x0E, 0x48, 0x8B, 0x07, 0xBA, 0x05, 0x00, 0x00, 0x00, 0x4C, 0x8B, 0x0E, 0x48,
        0x8B, 0x0B},
       ExitKind::mmio_read, flags_of);
}

TEST_P(DerivedFlags, AreReadInPlace) {
  // mov rcx, [rsi]; setc cl; seto ch; setz dil; sets r12b; setp r13b
  each({0x48, 0x8B, 0x0E, 0x0F, 0x92, 0xC1, 0x0F, 0x90, 0xC5, 0x40, 0x0F,
        0x94, 0xC7, 0x41, 0x0F, 0x98, 0xC4, 0x41, 0x0F, 0x9A, 0xC5},
       ExitKind::halt, [](const cpu::VcpuState& s) {
         const auto byte = [&s](unsigned reg, unsigned shift) {
           return s.gpr[reg] >> shift & 0xFF;
         };
         namespace rf = cpu::rflags;
         return byte(cpu::RCX, 0) * rf::CF | byte(cpu::RCX, 8) * rf::OF |
                byte(cpu::RDI, 0) * rf::ZF | byte(cpu::R12, 0) * rf::SF |
                byte(cpu::R13, 0) * rf::PF | (s.rflags & rf::AF);
       });
}

TEST_P(DerivedFlags, AreThereInFrontOfAPushOverRegistersThatTellThem) {
  // push rax; pop rdx; pop rax (of the stack's next slot); mov rcx, [rbx]
  each({0x50, 0x5A, 0x58, 0x48, 0x8B, 0x0B}, ExitKind::mmio_read, flags_of);
}

INSTANTIATE_TEST_SUITE_P(Writers, DerivedFlags, ::testing::ValuesIn(writers()),
                         [](const auto& test) { return std::to_string(test.index); });

}  // namespace
}  // namespace strata::interp::test
