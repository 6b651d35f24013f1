#include "vmm/hypercalls.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "devices/local_apic.hpp"
#include "devices/manual_clock.hpp"

namespace strata::vmm {
namespace {

constexpr auto kNoSuchCall = static_cast<std::uint64_t>(-1000);

class Hypercalls : public ::testing::Test {
 protected:
  void SetUp() override {
    for (std::uint32_t id = 0; id < 3; ++id) {
      apics.push_back(std::make_unique<devices::LocalApic>(devices::LocalApic::Config{id, id == 0},
                                                           bus, clock, clock));
      apics[id]->enter_virtual_wire_mode();
    }
    state.segment[cpu::CS].attributes = 0xA09B;
    state.segment[cpu::SS].attributes = 0xC093;
    state.cr0 = cpu::cr0::PE;
    state.efer = cpu::efer::LMA;
  }
  std::uint64_t call(std::uint64_t number, std::uint64_t a0 = 0, std::uint64_t a1 = 0,
                     std::uint64_t a2 = 0, std::uint64_t a3 = 0) {
    state.gpr[cpu::RAX] = number;
    state.gpr[cpu::RBX] = a0;
    state.gpr[cpu::RCX] = a1;
    state.gpr[cpu::RDX] = a2;
    state.gpr[cpu::RSI] = a3;
    return answer_hypercall(state, bus);
  }

  devices::ApicBus bus;
  devices::ManualClock clock;
  std::vector<std::unique_ptr<devices::LocalApic>> apics;
  cpu::VcpuState state;
};

TEST_F(Hypercalls, UnknownOnes) {
  EXPECT_EQ(call(~0ULL), kNoSuchCall);
  EXPECT_EQ(call(1), 0U);
}

TEST_F(Hypercalls, UserModeMayNot) {
  state.segment[cpu::SS].attributes |= 3U << 5;
  EXPECT_EQ(call(1), static_cast<std::uint64_t>(-1));
}

TEST_F(Hypercalls, SendIpiReachesTheBitmap) {
  EXPECT_EQ(call(10, 0b110, 0, 0, 0x50), 2U);
  EXPECT_FALSE(apics[0]->pending());
  EXPECT_EQ(apics[1]->acknowledge(), 0x50);
  EXPECT_EQ(apics[2]->acknowledge(), 0x50);
  EXPECT_EQ(call(10, 1, 0, 1, 4U << 8), 1U);
  EXPECT_TRUE(apics[1]->nmi_pending());
}

TEST_F(Hypercalls, SendIpiBeyondEveryApic) {
  EXPECT_EQ(call(10, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0), 0U);
  EXPECT_EQ(call(10, 1, 0, 0, 5U << 8), static_cast<std::uint64_t>(-22)) << "INIT";
}

TEST_F(Hypercalls, NarrowWordsOutsideLongMode) {
  state.segment[cpu::CS].attributes = 0xC09B;
  EXPECT_EQ(call(10, 0b10 | 1ULL << 40, 0, 0, 0x50), 1U);
  EXPECT_EQ(apics[1]->acknowledge(), 0x50);
}

}  // namespace
}  // namespace strata::vmm
