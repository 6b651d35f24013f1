// vCPU state as JSON: every field there and back, and values refused that no vCPU can hold.
#include "vmm/replay/machine_state.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace strata::replay {
namespace {

/// Every byte random where any value is possible. A field that is added to VcpuState is random too,
/// and has to come back.
cpu::VcpuState random_state(std::mt19937_64& rng) {
  static_assert(std::is_trivially_copyable_v<cpu::VcpuState>);
  std::array<std::byte, sizeof(cpu::VcpuState)> raw;
  for (auto& b : raw) b = static_cast<std::byte>(rng() & 1);  // 0 and 1 are bools as well
  cpu::VcpuState s;
  std::memcpy(static_cast<void*>(&s), raw.data(), raw.size());
  for (auto& segment : s.segment) segment.attributes &= 0x1FFFF;
  s.ldtr.attributes = s.tr.attributes = 0x1ABCD;
  for (auto& r : s.gpr) r = rng();
  s.msr.lstar = rng();
  s.vector.mxcsr = 0x9FC0;
  s.vector.xcr0 = 7;
  for (auto& lane : s.vector.ymm) lane.fill(rng());
  s.vector.legacy.fill(std::byte{0x5A});
  // Leftovers of the host's FXSAVE: see machine_state.cpp.
  const std::uint64_t mxcsr = 0x1F80;
  std::memcpy(s.vector.legacy.data() + 24, &mxcsr, sizeof mxcsr);
  std::fill(s.vector.legacy.begin() + 160, s.vector.legacy.end(), std::byte{0});
  return s;
}

TEST(VcpuJson, EveryFieldComesBack) {
  std::mt19937_64 rng{1};
  for (int i = 0; i < 50; ++i) {
    const cpu::VcpuState s = random_state(rng);
    const auto back = load_vcpu(save_vcpu(s));
    ASSERT_TRUE(back) << back.error().message;
    EXPECT_TRUE(*back == s);
  }
}

TEST(VcpuJson, EveryMissingFieldIsNoticed) {
  const nlohmann::json whole = save_vcpu(cpu::VcpuState{});
  for (const auto& [key, value] : whole.items()) {
    nlohmann::json part = whole;
    part.erase(key);
    EXPECT_FALSE(load_vcpu(part)) << key;
    part[key] = "text";
    EXPECT_FALSE(load_vcpu(part)) << key;
    part[key] = -1;
    EXPECT_FALSE(load_vcpu(part)) << key;
  }
}

TEST(VcpuJson, WhatTheHostWouldFaultOnIsRefused) {
  nlohmann::json state = save_vcpu(cpu::VcpuState{});
  state["vector"]["mxcsr"] = 0x10000U;
  EXPECT_FALSE(load_vcpu(state));
  state["vector"]["mxcsr"] = 0xFFFFU;
  EXPECT_TRUE(load_vcpu(state));
  state["vector"]["xcr0"] = 5U;  // AVX without SSE
  EXPECT_FALSE(load_vcpu(state));
  state["vector"]["xcr0"] = 6U;  // no x87
  EXPECT_FALSE(load_vcpu(state));
}

}  // namespace
}  // namespace strata::replay
