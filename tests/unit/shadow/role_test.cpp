// One guest table read under different rules is several tables to the shadow: what is legal under
// one control register is a reserved bit under another (SDM 3A 4.3 to 4.6). Every test lets one
// vCPU fill the shadow and another, which differs in one field, use the same CR3.

#include <gtest/gtest.h>

#include <cstdint>

#include "shadow_support.hpp"

namespace strata::shadow::test {
namespace {

constexpr std::uint64_t kRoot = 16;
constexpr std::uint64_t kTable = kRoot + 3;
constexpr VA kPage{kPageSize};
constexpr std::uint32_t kReservedFault = pf::kPresent | pf::kReserved;

class Roles : public testing::Test {
 protected:
  Roles() { build_long4(s, kRoot); }
  [[nodiscard]] auto access(VcpuId vcpu, VA va, AccessKind kind = AccessKind::read) const {
    return s.mmu->translate(vcpu, va, {kind, false, false});
  }
  /// vCPU 0 may read `va` under `with`, and vCPU 1 gets `code` under `without`.
  void expect_apart(const PagingContext& with, const PagingContext& without, VA va,
                    std::uint32_t code) const {
    s.mmu->set_context(0, with);
    ASSERT_TRUE(access(0, va));
    // Only now: a vCPU starts on a root that exists already, so this one would be vCPU 0's.
    s.mmu->set_context(1, without);
    const auto t = access(1, va);
    ASSERT_FALSE(t) << "a translation of the other vCPU's";
    EXPECT_EQ(t.error().stage, Stage::guest_table);
    EXPECT_EQ(t.error().error_code, code);
  }
  TestGuest s{TestGuest::patient()};
};

TEST_F(Roles, WithoutNxeBit63IsReserved) {
  s.put(at(kTable, 1), to(100, kPWU | kNX));
  PagingContext without = long4(kRoot);
  without.nxe = false;
  expect_apart(long4(kRoot), without, kPage, kReservedFault);
}

TEST_F(Roles, WithoutHugePagesPsOfAPdpteIsReserved) {
  s.put(at(kRoot + 1, 2), to(0, kPWU | kPS));
  PagingContext without = long4(kRoot);
  without.huge_pages = false;
  expect_apart(long4(kRoot), without, VA{2 * kHugePageSize + kPageSize}, kReservedFault);
}

TEST_F(Roles, BitsFromMaxphyaddrOnAreReserved) {
  s.p2m.high_aliases = true;
  s.put(at(kTable, 1), to((1ULL << 21) + 100, kPWU));  // PA bit 33
  PagingContext without = long4(kRoot);
  without.maxphyaddr = 33;
  expect_apart(long4(kRoot), without, kPage, kReservedFault);
}

TEST_F(Roles, PaeReservesWhatLongModeIgnores) {
  s.put(at(kTable, 1), to(100, kPWU | 1ULL << 52));
  PagingContext pae = long4(kRoot);
  pae.mode = PagingMode::pae;
  pae.pdpte[0] = to(kRoot + 2, kP);
  expect_apart(long4(kRoot), pae, kPage, kReservedFault);
}

TEST_F(Roles, WithoutPseAPdeAlwaysLeadsToATable) {
  PagingContext with = long4(40);
  with.mode = PagingMode::i386;
  with.nxe = false;
  with.pse = true;
  PagingContext without = with;
  without.pse = false;
  // As a table, page 1024 maps nothing.
  s.put<std::uint32_t>(at(40, 0, 4), static_cast<std::uint32_t>(to(1024, kPWU | kPS)));
  expect_apart(with, without, kPage, 0);
}

TEST_F(Roles, WithWpSupervisorStoresNeedTheGuestsLeave) {
  s.put(at(kTable, 1), to(100, kP | kU | kA | kD));
  PagingContext free = long4(kRoot);
  free.wp = false;
  s.mmu->set_context(0, free);
  EXPECT_TRUE(access(0, kPage, AccessKind::write)->writable);
  s.mmu->set_context(1, long4(kRoot));
  const auto t = access(1, kPage, AccessKind::write);
  ASSERT_FALSE(t);
  EXPECT_EQ(t.error().error_code, pf::kPresent | pf::kWrite);
}

/// Controls that the walk of a shadow table applies itself cost no second set of tables.
TEST_F(Roles, OtherControlsShareTables) {
  s.put(at(kTable, 1), to(100, kPWU | kG));
  s.mmu->set_context(0, long4(kRoot));
  ASSERT_TRUE(access(0, kPage));
  PagingContext other = long4(kRoot);
  other.smep = other.smap = other.pke = other.pse = true;
  other.pge = false;
  s.mmu->set_context(1, other);
  const std::uint64_t pages = s.mmu->shadow_stats().pages;
  EXPECT_FALSE(access(1, kPage)) << "SMAP: a user page";
  EXPECT_TRUE(s.mmu->translate(1, kPage, {AccessKind::read, true, false}));
  EXPECT_EQ(s.mmu->shadow_stats().pages, pages);
}

}  // namespace
}  // namespace strata::shadow::test
