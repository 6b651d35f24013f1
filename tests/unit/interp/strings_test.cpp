// REP string instructions that stop in the middle: faults, missing pages, devices, requests to
// pause; and copies whose halves overlap.
#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "test_support.hpp"

namespace strata::interp::test {
namespace {

constexpr std::uint64_t kFrom = Machine::kData;
constexpr std::uint64_t kTo = Machine::kData + 0x10000;

class StringsTest : public ::testing::Test {
 protected:
  engine::Exit run(std::initializer_list<std::uint8_t> code, std::uint64_t count) {
    s_.gpr[cpu::RCX] = count;
    if (s_.gpr[cpu::RSI] == 0) s_.gpr[cpu::RSI] = kFrom;
    if (s_.gpr[cpu::RDI] == 0) s_.gpr[cpu::RDI] = kTo;
    const engine::Exit e = m_.run(code, s_);
    after_ = m_.core->state();
    return e;
  }
  void fill(std::uint64_t va, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; ++i)
      m_.poke(va + i, static_cast<std::uint8_t>(i * 7 + i / 256 + i / 65536 * 31));
  }
  Machine m_;
  cpu::VcpuState s_ = Machine::long_mode_state();
  cpu::VcpuState after_{};
};

TEST_F(StringsTest, StopsAtAPageThatIsAwayAndGoesOnLater) {
  fill(kFrom, 0x3000);
  m_.mmu.page(kTo + 0x1000).p2m_fault = FaultKind::paused;
  s_.gpr[cpu::RDI] = kTo + 8;
  engine::Exit e = run({0xF3, 0xA4}, 0x2800);
  ASSERT_EQ(e.kind, engine::ExitKind::paused);
  EXPECT_EQ(e.pa, PA{kTo + 0x1000});
  EXPECT_EQ(after_.rip, Machine::kCode);
  EXPECT_EQ(after_.gpr[cpu::RCX], 0x2800U - 0xFF8);
  EXPECT_EQ(after_.gpr[cpu::RSI], kFrom + 0xFF8);
  EXPECT_EQ(after_.gpr[cpu::RDI], kTo + 0x1000);
  m_.mmu.page(kTo + 0x1000).p2m_fault.reset();
  EXPECT_EQ(m_.core->run().kind, engine::ExitKind::halt);
  EXPECT_EQ(m_.core->state().gpr[cpu::RCX], 0U);
  EXPECT_EQ(std::memcmp(m_.mmu.base() + kFrom, m_.mmu.base() + kTo + 8, 0x2800), 0);
}

/// SDM 2B REP: flags are those from before the instruction while it has not finished.
TEST_F(StringsTest, AFaultAmidAComparisonShowsTheOldFlags) {
  m_.mmu.page(kFrom + 0x1000).p2m_fault = FaultKind::paused;
  s_.gpr[cpu::RSI] = kFrom + 0xFF0;
  s_.rflags |= cpu::rflags::CF | cpu::rflags::OF;
  ASSERT_EQ(run({0xF3, 0xA6}, 100).kind, engine::ExitKind::paused);  // repe cmpsb
  EXPECT_EQ(after_.gpr[cpu::RCX], 84U);
  EXPECT_EQ(after_.rflags & cpu::rflags::ARITHMETIC, cpu::rflags::CF | cpu::rflags::OF);
}

TEST_F(StringsTest, EachElementOfADeviceIsOneExit) {
  m_.mmu.page(kTo).mmio = true;
  fill(kFrom, 16);
  engine::Exit e = run({0xF3, 0xA5}, 3);  // rep movsd
  for (std::uint64_t i = 0; i < 3; ++i) {
    ASSERT_EQ(e.kind, engine::ExitKind::mmio_write) << i;
    EXPECT_EQ(e.pa, PA{kTo + i * 4});
    EXPECT_EQ(e.data, m_.read<std::uint32_t>(kFrom + i * 4));
    e = m_.core->run();
  }
  EXPECT_EQ(e.kind, engine::ExitKind::halt);
  EXPECT_EQ(m_.core->state().gpr[cpu::RCX], 0U);
}

TEST_F(StringsTest, ReadingADeviceRepeatsNothing) {
  m_.mmu.page(kFrom).mmio = true;
  engine::Exit e = run({0xF3, 0xA4}, 4);  // rep movsb
  for (std::uint64_t i = 0; i < 4; ++i) {
    ASSERT_EQ(e.kind, engine::ExitKind::mmio_read) << i;
    EXPECT_EQ(e.pa, PA{kFrom + i});
    m_.core->complete(0x40 + i);
    e = m_.core->run();
  }
  EXPECT_EQ(e.kind, engine::ExitKind::halt);
  EXPECT_EQ(m_.read<std::uint32_t>(kTo), 0x43424140U);
}

TEST_F(StringsTest, OverlapRepeatsAPattern) {
  for (const std::uint64_t distance : {1, 2, 3, 4, 5, 8, 16, 59, 60, 239}) {
    for (const std::uint8_t opcode : {std::uint8_t{0xA4}, std::uint8_t{0xA5}}) {
      const std::uint64_t size = opcode == 0xA4 ? 1 : 4;
      fill(kFrom, 0x400);
      std::vector<std::uint8_t> expected(0x400);
      std::memcpy(expected.data(), m_.mmu.base() + kFrom, expected.size());
      for (std::uint64_t i = 0; i < 60 * size; i += size) {
        std::memmove(&expected[i + distance], &expected[i], size);
      }
      s_.gpr[cpu::RSI] = kFrom;
      s_.gpr[cpu::RDI] = kFrom + distance;
      run({0xF3, opcode}, 60);
      EXPECT_EQ(std::memcmp(expected.data(), m_.mmu.base() + kFrom, expected.size()), 0)
          << "distance " << distance << ", size " << size;
    }
  }
}

TEST_F(StringsTest, RepeatingOverItsOwnCodeTakesEffect) {
  // rep stosb writes 16 HLTs over what follows it.
  s_.gpr[cpu::RDI] = Machine::kCode + 2;
  s_.gpr[cpu::RAX] = 0xF4;
  run({0xF3, 0xAA, 0xEB, 0xFE, 0xEB, 0xFE}, 16);
  EXPECT_EQ(after_.rip, Machine::kCode + 3);
}

TEST_F(StringsTest, AddressesOf32BitsWrap) {
  // The target's last dword before 4 GiB is no memory: the fault must be there, not beyond.
  s_.gpr[cpu::RSI] = 0xFFFFFFFF00000000ULL | kFrom;
  s_.gpr[cpu::RDI] = kTo;
  fill(kFrom, 64);
  run({0x67, 0xF3, 0xA4}, 0xFFFF000000000010ULL);
  EXPECT_EQ(after_.gpr[cpu::RCX], 0U);
  EXPECT_EQ(after_.gpr[cpu::RSI], kFrom + 16);
  EXPECT_EQ(after_.gpr[cpu::RDI], kTo + 16);
  EXPECT_EQ(std::memcmp(m_.mmu.base() + kFrom, m_.mmu.base() + kTo, 16), 0);
}

TEST_F(StringsTest, AddressesOf16BitsWrapAmidAPage) {
  s_ = cpu::flat_protected_mode(Machine::kCode);
  s_.segment[cpu::CS] = {0, 0xFFFFFFFF, 0x08, 0x009B};  // D = 0
  s_.segment[cpu::DS].base = kFrom + 0x800;
  s_.segment[cpu::ES].base = kTo + 0x20000;
  s_.gpr[cpu::RSI] = 0xAAAAFFF8;
  s_.gpr[cpu::RDI] = 0x55550010;
  fill(kFrom, 0x20000);
  run({0xF3, 0xA4}, 0x77770010);
  EXPECT_EQ(after_.gpr[cpu::RCX], 0x77770000U);
  EXPECT_EQ(after_.gpr[cpu::RSI], 0xAAAA0008U);
  EXPECT_EQ(after_.gpr[cpu::RDI], 0x55550020U);
  const std::byte* const target = m_.mmu.base() + kTo + 0x20010;
  EXPECT_EQ(std::memcmp(target, m_.mmu.base() + kFrom + 0x107F8, 8), 0);
  EXPECT_EQ(std::memcmp(target + 8, m_.mmu.base() + kFrom + 0x800, 8), 0);
}

TEST_F(StringsTest, PausesForAttentionAndFinishesLater) {
  std::uint64_t interruptions = 0;
  for (unsigned attempt = 0; attempt < 200 && interruptions == 0; ++attempt) {
    s_.gpr[cpu::RSI] = 0x120000;
    s_.gpr[cpu::RDI] = 0;
    s_.gpr[cpu::RCX] = 0x200000;
    m_.write(Machine::kCode, std::vector<std::uint8_t>{0xF3, 0xAC, 0xF4});  // rep lodsb; hlt
    m_.core->set_state(s_);
    std::atomic<bool> done{false};
    std::thread kicker([&] {
      while (!done.load(std::memory_order_relaxed)) m_.core->kick();
    });
    engine::Exit e = m_.core->run();
    for (; e.kind == engine::ExitKind::interrupted; e = m_.core->run()) {
      const cpu::VcpuState now = m_.core->state();
      EXPECT_EQ(now.gpr[cpu::RSI] + now.gpr[cpu::RCX], 0x320000U);
      if (now.gpr[cpu::RCX] != 0 && now.gpr[cpu::RCX] != 0x200000) ++interruptions;
    }
    done = true;
    kicker.join();
    EXPECT_EQ(e.kind, engine::ExitKind::halt);
    EXPECT_EQ(m_.core->state().gpr[cpu::RCX], 0U);
  }
  EXPECT_GT(interruptions, 0U);
}

}  // namespace
}  // namespace strata::interp::test
