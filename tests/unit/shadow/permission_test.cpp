// Every outcome of translate() against the model: first as a miss, then as a hit.

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>

#include "model.hpp"
#include "shadow_support.hpp"

namespace strata::shadow::test {
namespace {

constexpr std::uint64_t kRoot = 16;
constexpr std::array<Access, 9> kAccesses{{
    {AccessKind::read, false, false},
    {AccessKind::read, false, true},
    {AccessKind::read, true, false},
    {AccessKind::write, false, false},
    {AccessKind::write, false, true},
    {AccessKind::write, true, false},
    {AccessKind::execute, false, false},
    {AccessKind::execute, false, true},
    {AccessKind::execute, true, false},
}};

struct Tested {
  const TestGuest& s;
  PagingContext context;
  VA va;

  [[nodiscard]] ModelResult predict(Access access) const {
    const auto load = [&](PA pa, unsigned size) -> std::uint64_t {
      return size == 4 ? s.get<std::uint32_t>(pa) : s.get<std::uint64_t>(pa);
    };
    return Model{context, load}.run(va, access);
  }

  void check(Access access, const char* when) const {
    const ModelResult want = predict(access);
    const auto got = s.mmu->translate(0, va, access);
    const auto say = [&] {
      return std::string{when} + " kind " + std::to_string(static_cast<int>(access.kind)) +
             " user " + std::to_string(access.user) + " ac " + std::to_string(access.ac);
    };
    ASSERT_EQ(got.has_value(), want.permitted) << say();
    if (!want.permitted) {
      ASSERT_EQ(got.error().stage, Stage::guest_table) << say();
      ASSERT_EQ(got.error().error_code, want.code) << say();
      ASSERT_EQ(got.error().va, va) << say();
      return;
    }
    ASSERT_EQ(got->pa, want.pa.page_base()) << say();
    ASSERT_EQ(got->page, TestGuest::home(page_of(want.pa).value())) << say();
    ASSERT_EQ(got->readable, want.readable) << say();
    ASSERT_EQ(got->writable, want.writable) << say();
    ASSERT_EQ(got->executable, want.executable) << say();
    ASSERT_EQ(got->global, want.global) << say();
    ASSERT_EQ(got->page_shift, want.page_shift) << say();
    ASSERT_FALSE(got->traced) << say();
    for (const ModelEntry& e : want.used) {
      const std::uint64_t now =
          e.size == 4 ? s.get<std::uint32_t>(e.address) : s.get<std::uint64_t>(e.address);
      ASSERT_EQ(now, e.after) << say();
    }
  }
};

/// All control-register combinations that matter to `mode`.
template <class Visit>
void for_each_context(PagingContext c, Visit visit) {
  const bool wide = c.mode != PagingMode::i386;
  const bool keys = c.mode == PagingMode::long4;
  for (unsigned bits = 0; bits < 32; ++bits) {
    c.wp = (bits & 1) != 0;
    c.smep = (bits & 2) != 0;
    c.smap = (bits & 4) != 0;
    c.nxe = (bits & 8) != 0;
    c.pke = (bits & 16) != 0;
    if (c.nxe && !wide) continue;
    if (c.pke && !keys) continue;
    for (const std::uint32_t pkru : {0U, 1U << 10, 2U << 10, 0xFFFFF3FFU}) {
      if (!c.pke && pkru != 0 && pkru != 1U << 10) continue;  // PKRU alone does nothing
      c.pkru = pkru;
      visit(c);
    }
  }
}

/// Runs every context and access over the tables as they are. `renew` makes the leaf new again.
template <class Renew>
void check_all(const TestGuest& s, const PagingContext& base, VA va, Renew renew) {
  for_each_context(base, [&](const PagingContext& c) {
    s.mmu->set_context(0, c);
    const Tested tested{s, c, va};
    for (const Access access : kAccesses) {
      renew();
      ASSERT_NO_FATAL_FAILURE(tested.check(access, "miss,"));
      ASSERT_NO_FATAL_FAILURE(tested.check(access, "hit,"));
    }
    // What one access left behind must not widen or narrow another.
    for (const Access access : kAccesses) {
      ASSERT_NO_FATAL_FAILURE(tested.check(access, "warm,"));
    }
  });
}

/// Bits 0-2 of `rights`: W, U, NX.
[[nodiscard]] std::uint64_t rights_bits(unsigned rights) {
  return kP | ((rights & 1) != 0 ? kW : 0) | ((rights & 2) != 0 ? kU : 0) |
         ((rights & 4) != 0 ? kNX : 0);
}

constexpr std::uint64_t kKey5 = 5ULL << 59;

struct Shape {
  const char* name;
  PagingMode mode;
  unsigned leaf_level;
  bool large_shadows;
};

class WidePermissions : public testing::TestWithParam<Shape> {};
class I386Permissions : public testing::TestWithParam<Shape> {};

TEST_P(WidePermissions, EveryCombination) {
  const Shape shape = GetParam();
  ShadowOptions options = TestGuest::patient();
  options.large_pages = shape.large_shadows;
  TestGuest s{options};
  s.p2m.set_run(PPN{1024}, true);
  const bool pae = shape.mode == PagingMode::pae;
  PagingContext base = long4(kRoot);
  base.mode = shape.mode;
  if (pae) base.pdpte[0] = to(kRoot + 2, kP);
  build_long4(s, kRoot);
  const std::uint64_t key = pae ? 0 : kKey5;
  // 1 GiB leaves lie at PA 0, 2 MiB leaves at page 1024, where a P2M run is.
  const VA va{shape.leaf_level == 3 ? 1030 * kPageSize + 5 : 6 * kPageSize + 5};
  for (unsigned upper = 0; upper < 8; ++upper) {
    for (unsigned leaf = 0; leaf < 8; ++leaf) {
      SCOPED_TRACE(std::string{"upper "} + std::to_string(upper) + " leaf " + std::to_string(leaf));
      const PA leaf_at = at(kRoot + 4 - shape.leaf_level, shape.leaf_level == 1 ? 6 : 0);
      const PA upper_at = at(kRoot + 3 - shape.leaf_level);
      const std::uint64_t where = shape.leaf_level == 1 ? 1030 : shape.leaf_level == 2 ? 1024 : 0;
      const std::uint64_t size = shape.leaf_level == 1 ? 0 : kPS;
      const bool upper_is_table = !(pae && shape.leaf_level == 2);
      if (upper_is_table) s.put(upper_at, to(kRoot + 4 - shape.leaf_level, rights_bits(upper)));
      ASSERT_NO_FATAL_FAILURE(check_all(s, base, va, [&] {
        s.put(leaf_at, to(where, rights_bits(leaf) | size | key | ((leaf & 1) != 0 ? kG : 0)));
      }));
    }
  }
  const ShadowStats stats = s.mmu->shadow_stats();
  EXPECT_EQ(stats.large_leaves != 0, shape.leaf_level >= 2 && shape.large_shadows);
}

TEST_P(I386Permissions, EveryCombination) {
  const Shape shape = GetParam();
  ShadowOptions options = TestGuest::patient();
  options.large_pages = shape.large_shadows;
  TestGuest s{options};
  s.p2m.set_run(PPN{1024}, true);
  PagingContext base = long4(kRoot);
  base.mode = PagingMode::i386;
  base.nxe = false;
  const VA va{0xC0000000 + 6 * kPageSize};
  for (const bool pse : {false, true}) {
    base.pse = pse;
    for (unsigned bits = 0; bits < 16; ++bits) {
      SCOPED_TRACE(std::string{"bits "} + std::to_string(bits) + " pse " + std::to_string(pse));
      const auto pde = static_cast<std::uint32_t>(rights_bits(bits & 3));
      const auto pte = static_cast<std::uint32_t>(rights_bits(bits >> 2));
      const PA pde_at = at(kRoot, 768, 4);
      ASSERT_NO_FATAL_FAILURE(check_all(s, base, va, [&] {
        if (shape.leaf_level == 2 && pse) {
          s.put<std::uint32_t>(pde_at, static_cast<std::uint32_t>(to(1024, pde | kPS | kG)));
        } else {
          // Without CR4.PSE the PS bit of a PDE is ignored.
          const std::uint64_t ps = pse ? 0 : kPS;
          s.put<std::uint32_t>(pde_at, static_cast<std::uint32_t>(to(kRoot + 1, pde | ps)));
          s.put<std::uint32_t>(at(kRoot + 1, 6, 4), static_cast<std::uint32_t>(to(1030, pte | kG)));
        }
      }));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, WidePermissions,
    testing::Values(Shape{"Long4Page4K", PagingMode::long4, 1, true},
                    Shape{"Long4Page2M", PagingMode::long4, 2, true},
                    Shape{"Long4Page2MFragmented", PagingMode::long4, 2, false},
                    Shape{"Long4Page1G", PagingMode::long4, 3, true},
                    Shape{"Long4Page1GFragmented", PagingMode::long4, 3, false},
                    Shape{"PaePage4K", PagingMode::pae, 1, true},
                    Shape{"PaePage2M", PagingMode::pae, 2, true},
                    Shape{"PaePage2MFragmented", PagingMode::pae, 2, false}),
    [](const auto& param) { return param.param.name; });
INSTANTIATE_TEST_SUITE_P(Shapes, I386Permissions,
                         testing::Values(Shape{"I386Page4K", PagingMode::i386, 1, true},
                                         Shape{"I386Page4M", PagingMode::i386, 2, true},
                                         Shape{"I386Page4MFragmented", PagingMode::i386, 2, false}),
                         [](const auto& param) { return param.param.name; });

TEST(Permissions, ReservedBitsAtEveryLevel) {
  TestGuest s;
  build_long4(s, kRoot);
  const PagingContext c = long4(kRoot);
  s.mmu->set_context(0, c);
  const Tested tested{s, c, VA{6 * kPageSize}};
  const std::array<PA, 4> entries{at(kRoot + 3, 6), at(kRoot + 2), at(kRoot + 1), at(kRoot)};
  s.put(entries[0], to(1030, kPWU));
  for (unsigned level = 1; level <= 4; ++level) {
    const PA where = entries[level - 1];
    const auto good = s.get<std::uint64_t>(where);
    for (const std::uint64_t bad : {1ULL << 40, 1ULL << 51, level == 4 ? kPS : 1ULL << 45}) {
      ASSERT_NO_FATAL_FAILURE(tested.check({AccessKind::read, true, false}, "good,"));
      s.put(where, good | bad);
      for (const Access access : kAccesses) {
        ASSERT_NO_FATAL_FAILURE(tested.check(access, "reserved,"));
      }
      s.put(where, good);
    }
  }
}

TEST(Permissions, PagingOffIsIdentityWithEveryRight) {
  for (const bool large : {true, false}) {
    ShadowOptions options;
    options.large_pages = large;
    TestGuest s{options};
    s.p2m.set_run(PPN{1024}, true);
    PagingContext c;
    c.smep = c.smap = c.pke = true;  // CR4 bits that mean nothing yet
    c.pkru = ~0U;
    s.mmu->set_context(0, c);
    for (const std::uint64_t ppn : {0ULL, 5ULL, 1030ULL, 2047ULL}) {
      const Tested tested{s, c, VA{ppn * kPageSize + 7}};
      for (int pass = 0; pass < 2; ++pass) {
        for (const Access access : kAccesses) ASSERT_NO_FATAL_FAILURE(tested.check(access, "off,"));
      }
    }
    EXPECT_EQ(s.mmu->shadow_stats().large_leaves, large ? 1U : 0U);
  }
}

TEST(Permissions, AddressesAreTruncatedOutsideLongMode) {
  TestGuest s;
  s.mmu->set_context(0, {});
  const VA high{(1ULL << 32) + 3 * kPageSize};
  for (int pass = 0; pass < 2; ++pass) {
    const auto t = s.read(high);
    ASSERT_TRUE(t);
    EXPECT_EQ(t->pa, at(3));
  }
}

}  // namespace
}  // namespace strata::shadow::test
