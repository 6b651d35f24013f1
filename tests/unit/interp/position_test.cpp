// Positions in the instruction stream: stops at exact counts wherever they fall, between the
// iterations of a REP too, and what the environment reads when the engine calls it.
#include <gtest/gtest.h>

#include <numeric>

#include "test_support.hpp"

namespace strata::interp::test {
namespace {

using engine::ExitKind;
using engine::VcpuPosition;

/// Random numbers and TSC values that are the position they were asked for at.
class PositionSource final : public engine::RandomSource {
 public:
  std::optional<std::uint64_t> random(bool seed, unsigned bytes) noexcept override {
    asked.push_back(core->position());
    kinds.emplace_back(seed, bytes);
    if (empty) return std::nullopt;
    return 0x1122334455667788;
  }
  const Core* core = nullptr;
  bool empty = false;
  std::vector<VcpuPosition> asked;
  std::vector<std::pair<bool, unsigned>> kinds;
};

class PositionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    CoreEnvironment e = m_.core->env;
    m_.core.reset();
    e.random = &random_;
    e.exact_state = true;  // states at positions are compared
    m_.core = make_test_core(e);
    random_.core = m_.core.get();
    s_.gpr[cpu::RBX] = Machine::kData;
  }
  void load(std::initializer_list<std::uint8_t> code) {
    m_.write(Machine::kCode, std::vector<std::uint8_t>{code});
    m_.core->set_state(s_);
    m_.core->set_instructions(0);
  }
  /// Answers port reads with `answer` until something else happens.
  engine::Exit run(std::uint64_t answer = 0) {
    for (;;) {
      engine::Exit e = m_.core->run();
      if (e.kind == ExitKind::port_read) {
        m_.core->complete(answer);
      } else if (e.kind != ExitKind::port_write) {
        return e;
      }
    }
  }

  Machine m_;
  PositionSource random_;
  cpu::VcpuState s_ = Machine::long_mode_state();
};

/// A loop of short blocks with a port access in it: a stop at every count of the run, and the
/// state there is what single steps give.
TEST_F(PositionTest, StopsAtEveryCount) {
  // L: inc rax; mov [rbx], rax; add rdx, rax; in al, 0x10; cmp rcx, 3; je +3; nop; xor rdx, rcx
  // dec rcx; jnz L; hlt
  const std::initializer_list<std::uint8_t> code{
      0x48, 0xFF, 0xC0, 0x48, 0x89, 0x03, 0x48, 0x01, 0xC2, 0xE4, 0x10, 0x48, 0x83, 0xF9,
      0x03, 0x74, 0x01, 0x90, 0x48, 0x31, 0xCA, 0x48, 0xFF, 0xC9, 0x75, 0xE6, 0xF4};
  s_.gpr[cpu::RCX] = 6;
  load(code);
  std::vector<cpu::VcpuState> steps{m_.core->state()};
  for (;;) {
    m_.core->stop_at({steps.size(), 0});
    if (run(5).kind != ExitKind::interrupted) break;
    ASSERT_EQ(m_.core->position(), (VcpuPosition{steps.size(), 0}));
    steps.push_back(m_.core->state());
  }
  const std::uint64_t total = m_.core->position().instructions;
  ASSERT_EQ(total + 1, steps.size());  // HLT retires before it exits
  ASSERT_EQ(total, 6U * 10 - 1 + 1);   // one iteration skips the NOP
  load(code);
  ASSERT_EQ(run(5).kind, ExitKind::halt);
  EXPECT_EQ(m_.core->position().instructions, total);
  for (std::uint64_t at = 1; at < total; ++at) {
    load(code);
    m_.core->stop_at({at, 0});
    ASSERT_EQ(run(5).kind, ExitKind::interrupted) << at;
    EXPECT_EQ(m_.core->position(), (VcpuPosition{at, 0}));
    EXPECT_EQ(m_.core->state(), steps[at]) << at;
    ASSERT_EQ(run(5).kind, ExitKind::halt) << "once only";
    EXPECT_EQ(m_.core->position().instructions, total);
  }
}

TEST_F(PositionTest, StopsBetweenIterationsOfARep) {
  s_.gpr[cpu::RCX] = 0x2000;
  s_.gpr[cpu::RSI] = Machine::kData + 0x123;
  s_.gpr[cpu::RDI] = Machine::kData + 0x10000;
  for (const std::uint64_t left : {0x1FFFULL, 0x1000ULL, 7ULL, 1ULL}) {
    load({0x90, 0xF3, 0xA4, 0x90, 0xF4});  // nop; rep movsb; nop; hlt
    m_.core->stop_at({1, left});
    ASSERT_EQ(run().kind, ExitKind::interrupted);
    EXPECT_EQ(m_.core->position(), (VcpuPosition{1, left}));
    EXPECT_EQ(m_.core->state().gpr[cpu::RCX], left);
    EXPECT_EQ(m_.core->state().rip, Machine::kCode + 1);
    if (left > 5) {
      m_.core->stop_at({1, 5});
      ASSERT_EQ(run().kind, ExitKind::interrupted);
      EXPECT_EQ(m_.core->position(), (VcpuPosition{1, 5}));
    }
    ASSERT_EQ(run().kind, ExitKind::halt);
    EXPECT_EQ(m_.core->position(), (VcpuPosition{4, 0}));
    EXPECT_EQ(m_.core->state().gpr[cpu::RCX], 0U);
  }
}

TEST_F(PositionTest, StopsBetweenIterationsOfARepFromAPort) {
  s_.gpr[cpu::RCX] = 9;
  s_.gpr[cpu::RDX] = 0x10;
  s_.gpr[cpu::RDI] = Machine::kData;
  load({0x90, 0xF3, 0x6C, 0xF4});  // nop; rep insb; hlt
  m_.core->stop_at({1, 4});
  ASSERT_EQ(run(0x5A).kind, ExitKind::interrupted);
  EXPECT_EQ(m_.core->position(), (VcpuPosition{1, 4}));
  EXPECT_EQ(m_.core->state().gpr[cpu::RCX], 4U);
  ASSERT_EQ(run(0x5A).kind, ExitKind::halt);
  EXPECT_EQ(m_.core->position(), (VcpuPosition{3, 0}));
}

/// A request made while an instruction waits for its device is met after that instruction.
TEST_F(PositionTest, AStopInThePastWaitsForTheAnswer) {
  load({0x90, 0xE4, 0x10, 0x90, 0xF4});  // nop; in al, 0x10; nop; hlt
  ASSERT_EQ(m_.core->run().kind, ExitKind::port_read);
  EXPECT_EQ(m_.core->position(), (VcpuPosition{1, 0}));
  m_.core->complete(0x77);
  m_.core->stop_at({1, 0});
  ASSERT_EQ(m_.core->run().kind, ExitKind::interrupted);
  EXPECT_EQ(m_.core->position(), (VcpuPosition{2, 0}));
  EXPECT_EQ(m_.core->state().gpr[cpu::RAX] & 0xFF, 0x77U);
}

/// The stop comes before the events of its boundary, so that whoever stopped can raise one there.
TEST_F(PositionTest, AnInterruptRaisedAtAStopIsTakenThere) {
  load({0x90, 0x90, 0x90, 0x90, 0xF4});
  m_.core->stop_at({2, 0});
  ASSERT_EQ(run().kind, ExitKind::interrupted);
  s_ = m_.core->state();
  EXPECT_EQ(s_.rip, Machine::kCode + 2);
  m_.interrupts.nmi = true;  // no IDT: a triple fault, at this very place
  EXPECT_EQ(run().kind, ExitKind::triple_fault);
  EXPECT_EQ(m_.core->position(), (VcpuPosition{2, 0}));
}

TEST_F(PositionTest, TheEnvironmentSeesTheInstructionThatAsks) {
  if (!m_.model.has(cpu::Feature::rdseed)) GTEST_SKIP() << "no RDSEED on this host, so in no guest";
  // nop; rdrand rax; nop; nop; rdseed cx; rdrand edx; hlt
  load({0x90, 0x48, 0x0F, 0xC7, 0xF0, 0x90, 0x90, 0x66, 0x0F, 0xC7, 0xF9, 0x0F, 0xC7, 0xF2, 0xF4});
  ASSERT_EQ(run().kind, ExitKind::halt);
  EXPECT_EQ(random_.asked, (std::vector<VcpuPosition>{{1, 0}, {4, 0}, {5, 0}}));
  EXPECT_EQ(random_.kinds,
            (std::vector<std::pair<bool, unsigned>>{{false, 8}, {true, 2}, {false, 4}}));
  const cpu::VcpuState after = m_.core->state();
  EXPECT_EQ(after.gpr[cpu::RAX], 0x1122334455667788U);
  EXPECT_EQ(after.gpr[cpu::RCX] & 0xFFFF, 0x7788U);
  EXPECT_EQ(after.gpr[cpu::RDX], 0x55667788U);
  EXPECT_NE(after.rflags & cpu::rflags::CF, 0U);
}

TEST_F(PositionTest, NoRandomNumberIsZeroWithoutCarry) {
  random_.empty = true;
  s_.gpr[cpu::RAX] = ~0ULL;
  s_.rflags |= cpu::rflags::CF;
  load({0x48, 0x0F, 0xC7, 0xF0, 0xF4});
  ASSERT_EQ(run().kind, ExitKind::halt);
  EXPECT_EQ(m_.core->state().gpr[cpu::RAX], 0U);
  EXPECT_EQ(m_.core->state().rflags & cpu::rflags::CF, 0U);
}

/// Faults and their delivery retire nothing; counts go on from where they were set.
TEST_F(PositionTest, CountsGoOnFromALoadedCount) {
  load({0x90, 0x90, 0xF4});
  m_.core->set_instructions(1'000'000'000'000);
  m_.core->stop_at({1'000'000'000'001, 0});
  ASSERT_EQ(run().kind, ExitKind::interrupted);
  EXPECT_EQ(m_.core->position(), (VcpuPosition{1'000'000'000'001, 0}));
  m_.core->stop_at({1'000'000'000'002, 0});
  m_.core->no_stop();
  ASSERT_EQ(run().kind, ExitKind::halt);
  EXPECT_EQ(m_.core->position(), (VcpuPosition{1'000'000'000'003, 0}));
}

}  // namespace
}  // namespace strata::interp::test
