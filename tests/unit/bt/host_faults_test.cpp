#include "engines/bt/host_faults.hpp"

#include <gtest/gtest.h>

#include <memory>

#include "engines/bt/code_cache.hpp"

namespace strata::bt {
namespace {

constexpr std::uint64_t kCanonical = 0x7000'0000'1000, kOther = 0x5A5A'0000'0000'0000;
constexpr unsigned kUd = 6, kGp = 13, kPf = 14;

/// Code of three bytes of which the second may fault, between stubs whose addresses say only where
/// they are.
class HostFaults : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(cache_.size(), 0U);
    stubs_.fault = cache_.cursor();
    stubs_.fault_jump = stubs_.fault + 8;
    ASSERT_TRUE(cache_.append(std::array<std::uint8_t, 16>{}));
    cache_.keep({.stale = stubs_.fault, .far = stubs_.fault});
    code_ = cache_.cursor();
    ASSERT_TRUE(cache_.append(std::array<std::uint8_t, 16>{}));
    const auto at = static_cast<std::uint32_t>(code_);
    cache_.add_fault({.begin = at + 1, .end = at + 2, .cold = at + 9});
  }
  struct Place {
    std::uint64_t rip, rsp;
    bool ours;
    friend bool operator==(const Place&, const Place&) = default;
  };
  Place redirect(std::uint64_t rip, std::uint64_t rsp, unsigned vector) {
    const CatchHostFaults faults{cache_, *state_, stubs_};
    Place p{rip, rsp, false};
    p.ours = faults.redirect(p.rip, p.rsp, vector);
    return p;
  }
  [[nodiscard]] std::uint64_t safe_rsp() const {
    return reinterpret_cast<std::uint64_t>(state_.get());
  }

  CodeCache cache_{144U << 10};
  std::unique_ptr<NativeState> state_ = std::make_unique<NativeState>();
  Stubs stubs_;
  std::uint64_t code_ = 0;
};

TEST_F(HostFaults, AnnouncedAccessesGoOnInColdCode) {
  EXPECT_EQ(redirect(code_ + 1, kCanonical, kPf), (Place{code_ + 9, kCanonical, true}));
  EXPECT_EQ(redirect(code_ + 1, ~0ULL, kPf), (Place{code_ + 9, ~0ULL, true}));
}

TEST_F(HostFaults, WhatWasNotAnnouncedIsTheProcesss) {
  EXPECT_FALSE(redirect(code_ + 2, kCanonical, kPf).ours);
  EXPECT_FALSE(redirect(code_ + 2, kCanonical, kGp).ours);
  EXPECT_FALSE(redirect(code_ + 2, kOther, kPf).ours);
  EXPECT_FALSE(redirect(stubs_.fault - 1, kOther, kGp).ours);
}

TEST_F(HostFaults, AnRspThatTheHostMayNotReturnToIsLoadedByTheStub) {
  EXPECT_EQ(redirect(code_ + 1, kOther, kPf), (Place{stubs_.fault, safe_rsp(), true}));
  EXPECT_EQ(state_->fault_rsp, kOther);
  EXPECT_EQ(state_->fault_resume, code_ + 9);
}

TEST_F(HostFaults, AnInterruptThatCouldNotReturnGoesOnWhereItCame) {
  for (const unsigned vector : {kUd, kGp}) {
    EXPECT_EQ(redirect(code_ + 2, kOther, vector), (Place{stubs_.fault, safe_rsp(), true}));
    EXPECT_EQ(state_->fault_rsp, kOther);
    EXPECT_EQ(state_->fault_resume, code_ + 2);
  }
}

TEST_F(HostFaults, TheStubItselfCanBeInterrupted) {
  ASSERT_TRUE(redirect(code_ + 2, kOther, kGp).ours);
  EXPECT_EQ(redirect(stubs_.fault_jump, kOther, kGp), (Place{stubs_.fault, safe_rsp(), true}));
  EXPECT_EQ(state_->fault_resume, code_ + 2);
}

}  // namespace
}  // namespace strata::bt
