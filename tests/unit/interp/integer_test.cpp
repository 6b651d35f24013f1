// Integer instructions where the host can not be the oracle: atomicity, MMIO operands, branches to
// nowhere, 16-bit code, segment bases, self-modifying code.
#include <gtest/gtest.h>

#include <thread>

#include "test_support.hpp"

namespace strata::interp::test {
namespace {

constexpr std::uint64_t kData = Machine::kData;

class IntegerTest : public ::testing::Test {
 protected:
  IntegerTest() {
    for (unsigned v = 0; v < 32; ++v) {
      const std::uint64_t stub = kStubs + v * 16;
      m_.poke<std::uint8_t>(stub, 0xF4);
      m_.poke<std::uint64_t>(kIdt + v * 16, (stub & 0xFFFF) | 8ULL << 16 | 1ULL << 32 |
                                                0x8EULL << 40 | (stub >> 16) << 48);
    }
    m_.poke<std::uint64_t>(kGdt + 8, 0x00AF9B000000FFFFULL);
    m_.poke<std::uint64_t>(kTss + 36, kIst);
    s_.gdtr = {kGdt, 0x17};
    s_.idtr = {kIdt, 32 * 16 - 1};
    s_.tr.base = kTss;
  }
  engine::Exit run(std::initializer_list<std::uint8_t> code) {
    const engine::Exit e = m_.run(code, s_);
    after_ = m_.core->state();
    return e;
  }
  /// The exception the last run ended in, -1 for none.
  [[nodiscard]] int vector() const {
    const bool stub = after_.rip >= kStubs && after_.rip < kStubs + 512;
    return stub ? static_cast<int>((after_.rip - kStubs) / 16) : -1;
  }
  /// RIP and RSP as the exception frame has them.
  [[nodiscard]] std::uint64_t frame_rip() const {
    return m_.read<std::uint64_t>(after_.gpr[cpu::RSP] + (has_error() ? 8 : 0));
  }
  [[nodiscard]] std::uint64_t frame_rsp() const {
    return m_.read<std::uint64_t>(after_.gpr[cpu::RSP] + (has_error() ? 32 : 24));
  }
  [[nodiscard]] bool has_error() const { return after_.gpr[cpu::RSP] == kIst - 48; }

  static constexpr std::uint64_t kIdt = 0x30000, kTss = 0x31000, kStubs = 0x32000, kGdt = 0x33000,
                                 kIst = 0x40000;
  Machine m_;
  cpu::VcpuState s_ = Machine::long_mode_state();
  cpu::VcpuState after_{};
};

constexpr std::uint64_t kNowhere = 0x0000'8000'0000'0000ULL;

TEST_F(IntegerTest, IndirectBranchToANonCanonicalAddressFaultsAtTheBranch) {
  s_.gpr[cpu::RAX] = kNowhere;
  run({0x90, 0xFF, 0xE0});  // jmp rax
  EXPECT_EQ(vector(), cpu::GP);
  EXPECT_EQ(frame_rip(), Machine::kCode + 1);
  run({0x90, 0xFF, 0xD0});  // call rax
  EXPECT_EQ(vector(), cpu::GP);
  EXPECT_EQ(frame_rip(), Machine::kCode + 1);
  EXPECT_EQ(frame_rsp(), Machine::kStack);
  run({0x50, 0xC3});  // push rax; ret
  EXPECT_EQ(vector(), cpu::GP);
  EXPECT_EQ(frame_rip(), Machine::kCode + 1);
  EXPECT_EQ(frame_rsp(), Machine::kStack - 8);
}

TEST_F(IntegerTest, OperandSizePrefixDoesNotChangeNearBranches) {
  s_.gpr[cpu::RAX] = Machine::kCode + 0x40;
  m_.poke<std::uint8_t>(Machine::kCode + 0x40, 0xF4);
  run({0x66, 0xFF, 0xE0});
  EXPECT_EQ(after_.rip, Machine::kCode + 0x41);
  run({0x50, 0x66, 0xC3});
  EXPECT_EQ(after_.rip, Machine::kCode + 0x41);
  EXPECT_EQ(after_.gpr[cpu::RSP], Machine::kStack);
}

TEST_F(IntegerTest, SegmentBasesOfFsAndGs) {
  s_.segment[cpu::FS].base = kData;
  s_.segment[cpu::GS].base = kData + 0x100;
  m_.poke<std::uint32_t>(kData + 8, 0x1234);
  m_.poke<std::uint32_t>(kData + 0x110, 0x5678);
  s_.gpr[cpu::RBX] = 0xFFFF'FFFF'0000'0010ULL;
  run({0x64, 0x8B, 0x04, 0x25, 8, 0, 0, 0,    // mov eax, fs:[8]
       0x65, 0x67, 0x8B, 0x0B,                // mov ecx, gs:[ebx]
       0x64, 0x8D, 0x14, 0x25, 8, 0, 0, 0});  // lea edx, fs:[8]
  EXPECT_EQ(after_.gpr[cpu::RAX], 0x1234U);
  EXPECT_EQ(after_.gpr[cpu::RCX], 0x5678U);
  EXPECT_EQ(after_.gpr[cpu::RDX], 8U);
}

TEST_F(IntegerTest, StoreIntoTheNextInstructionTakesEffect) {
  s_.gpr[cpu::RBX] = Machine::kCode;
  run({0xC6, 0x43, 0x05, 0x2A,  // mov byte [rbx + 5], 42
       0xB0, 0x01});            // mov al, 1
  EXPECT_EQ(after_.gpr[cpu::RAX] & 0xFF, 42U);
}

TEST_F(IntegerTest, FlagsOfAnRmwIntoItsOwnBlockSurvive) {
  // add byte [rbx + 3], al turns CMP AL, imm into LAHF behind it (3C -> 9F).
  s_.gpr[cpu::RBX] = Machine::kCode;
  s_.gpr[cpu::RAX] = 0x9F - 0x3C;
  run({0x00, 0x43, 0x03, 0x3C, 0x90});
  EXPECT_EQ(after_.gpr[cpu::RAX] >> 8 & 0xFF, 0x86U);  // SF, PF and the fixed bit
}

/// Instruction bytes and what one execution adds to the counter at [RBX].
struct Increment {
  const char* name;
  std::vector<std::uint8_t> code;
  std::uint64_t added = 0;
};

class AtomicTest : public IntegerTest, public ::testing::WithParamInterface<Increment> {};

TEST_P(AtomicTest, NoUpdateIsLost) {
  constexpr std::uint64_t kTimes = 200'000;
  constexpr std::uint64_t kEnough = 1'000'000;  // updates from outside while the guest ran
  std::vector<std::uint8_t> code = GetParam().code;
  code.insert(code.end(), {0x48, 0xFF, 0xCF});  // dec rdi
  code.insert(code.end(), {0x75, static_cast<std::uint8_t>(0 - code.size() - 2), 0xF4});
  m_.write(Machine::kCode, code);
  s_.gpr[cpu::RBX] = kData;
  s_.gpr[cpu::RDI] = kTimes;
  auto* counter = reinterpret_cast<std::uint64_t*>(m_.mmu.base() + kData);
  std::atomic<bool> done{false};
  std::atomic<std::uint64_t> ours{0};
  std::thread other([&] {
    while (!done.load(std::memory_order_relaxed)) {
      __atomic_fetch_add(counter, 2, __ATOMIC_SEQ_CST);
      ours.fetch_add(1, std::memory_order_relaxed);
    }
  });
  while (ours.load() == 0) std::this_thread::yield();
  // A busy host may run the two one after the other: repeat until they had their chance.
  std::uint64_t rounds = 0;
  do {
    m_.core->set_state(s_);
    EXPECT_EQ(m_.core->run().kind, engine::ExitKind::halt);
    ++rounds;
  } while (ours.load() < kEnough && rounds < 200);
  done = true;
  other.join();
  EXPECT_EQ(m_.read<std::uint64_t>(kData), rounds * kTimes * GetParam().added + ours.load() * 2);
}

// The last two toggle bit 0, which nobody else touches, an even number of times.
INSTANTIATE_TEST_SUITE_P(
    Locked, AtomicTest,
    ::testing::Values(Increment{"add", {0xF0, 0x48, 0x83, 0x03, 0x02}, 2},
                      Increment{"sub", {0xF0, 0x48, 0x83, 0x2B, 0xFE}, 2},
                      Increment{"inc", {0xF0, 0x48, 0xFF, 0x03, 0xF0, 0x48, 0xFF, 0x03}, 2},
                      Increment{"xadd", {0xB8, 2, 0, 0, 0, 0xF0, 0x48, 0x0F, 0xC1, 0x03}, 2},
                      Increment{"cmpxchg",
                                {0x48, 0x8B, 0x03, 0x48, 0x8D, 0x48, 0x02, 0xF0, 0x48, 0x0F, 0xB1,
                                 0x0B, 0x75, 0xF2},
                                2},
                      Increment{"xor", {0xF0, 0x48, 0x83, 0x33, 0x01}, 0},
                      Increment{"btc", {0xF0, 0x48, 0x0F, 0xBA, 0x3B, 0x00}, 0}),
    [](const auto& parameter) { return std::string(parameter.param.name); });

TEST_F(IntegerTest, ReadModifyWriteOfADeviceReadsThenWrites) {
  m_.mmu.page(kData).mmio = true;
  s_.gpr[cpu::RBX] = kData + 4;
  engine::Exit e = run({0x83, 0x03, 0x05});  // add dword [rbx], 5
  ASSERT_EQ(e.kind, engine::ExitKind::mmio_read);
  EXPECT_EQ(e.pa, PA{kData + 4});
  EXPECT_EQ(e.size, 4);
  m_.core->complete(0xFFFFFFFE);
  e = m_.core->run();
  ASSERT_EQ(e.kind, engine::ExitKind::mmio_write);
  EXPECT_EQ(e.data, 3U);
  EXPECT_EQ(m_.core->state().rip, Machine::kCode);  // not retired yet
  EXPECT_EQ(m_.core->run().kind, engine::ExitKind::halt);
  EXPECT_EQ(m_.core->state().rflags & cpu::rflags::CF, cpu::rflags::CF);
}

TEST_F(IntegerTest, SixteenBitCode) {
  // Real-address-like: CS, DS and SS have bases, IP and SP are 16 bits wide.
  s_ = cpu::flat_protected_mode(0xFFF0);
  s_.segment[cpu::CS] = {0x10000, 0xFFFF, 0x1000, 0x009B};
  s_.segment[cpu::DS] = {kData, 0xFFFF, 0x2000, 0x0093};
  s_.segment[cpu::ES] = s_.segment[cpu::DS];
  s_.segment[cpu::SS] = {Machine::kStack, 0xFFFF, 0x3000, 0x0093};
  s_.gpr[cpu::RSP] = 0xABCD0002;
  s_.gpr[cpu::RBX] = 0x7777FFF0;
  s_.gpr[cpu::RSI] = 0x20;
  m_.poke<std::uint16_t>(kData + 0x10, 0xBEEF);  // [bx + si] wraps at 64 KiB
  // At FFF0: mov ax, [bx + si]; push ax; push ax; call +5, which wraps IP to 0005.
  const std::vector<std::uint8_t> code = {0x8B, 0x00, 0x50, 0x50, 0xE8, 0x0E, 0x00};
  m_.write(0x10000 + 0xFFF0, code);
  m_.poke<std::uint8_t>(0x10005, 0xF4);
  m_.core->set_state(s_);
  EXPECT_EQ(m_.core->run().kind, engine::ExitKind::halt);
  after_ = m_.core->state();
  EXPECT_EQ(after_.rip, 6U);
  EXPECT_EQ(after_.gpr[cpu::RAX] & 0xFFFF, 0xBEEFU);
  EXPECT_EQ(after_.gpr[cpu::RSP], 0xABCDFFFCU);  // SP wrapped, the upper half stays
  EXPECT_EQ(m_.read<std::uint16_t>(Machine::kStack), 0xBEEF);
  EXPECT_EQ(m_.read<std::uint16_t>(Machine::kStack + 0xFFFE), 0xBEEF);
  EXPECT_EQ(m_.read<std::uint16_t>(Machine::kStack + 0xFFFC), 0xFFF7);  // the return IP, not a VA
}

TEST_F(IntegerTest, RandomNumbersSetCarryAlone) {
  s_.rflags |= cpu::rflags::ARITHMETIC;
  run({0x48, 0x0F, 0xC7, 0xF0});  // rdrand rax
  const std::uint64_t first = after_.gpr[cpu::RAX];
  EXPECT_EQ(after_.rflags & cpu::rflags::ARITHMETIC, cpu::rflags::CF);
  run({0x48, 0x0F, 0xC7, 0xF0});
  EXPECT_NE(after_.gpr[cpu::RAX], first);
}

}  // namespace
}  // namespace strata::interp::test
