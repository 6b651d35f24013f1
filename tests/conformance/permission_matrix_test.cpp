// The permission matrix, all of it: every combination of rights in the leaf, one restriction at
// each level above, every setting of the controls and every kind of access, on every backend, and
// after each the guest's own entries bit by bit.
#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "mmu_world.hpp"

namespace strata::conformance {
namespace {

/// The example walks long mode without keys and checks no reserved bits (its header says so).
bool understands(std::string_view backend, const Layout& l) {
  return backend != kTableless || l.mode == PagingMode::long4;
}

struct Case {
  std::string_view backend;
  Layout layout;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.backend << "_" << c.layout.name;
}
/// Backend x layout, as far as `wanted` says.
template <class Wanted>
std::vector<Case> cases(Wanted wanted) {
  std::vector<Case> all;
  for (const std::string_view backend : backends()) {
    for (const Layout& l : kLayouts) {
      if (understands(backend, l) && wanted(backend, l)) all.push_back({backend, l});
    }
  }
  return all;
}
std::string name_of(const testing::TestParamInfo<Case>& info) {
  return testing::PrintToString(info.param);
}

class Matrix : public testing::TestWithParam<Case> {
 protected:
  Matrix() { world.use(layout); }
  [[nodiscard]] bool full() const { return world.name != kTableless; }

  /// Every setting of what the paging unit checks; NXE apart, which changes what entries mean.
  [[nodiscard]] std::vector<PagingContext> controls(bool nxe) const {
    std::vector<PagingContext> all;
    // Key 5 denied all access, denied stores, both, neither; key 0 the other way round; off.
    const bool keys = layout.mode == PagingMode::long4 && full();
    const std::vector<std::uint32_t> pkrus =
        keys ? std::vector<std::uint32_t>{0, 0x400, 0x800, 0xC01, 2} : std::vector{0U};
    for (unsigned bits = 0; bits < (keys ? 16U : 8U); ++bits) {
      for (const std::uint32_t pkru : pkrus) {
        PagingContext c = world.context;
        c.wp = (bits & 1) != 0;
        c.smep = (bits & 2) != 0;
        c.smap = (bits & 4) != 0;
        c.pke = (bits & 8) != 0;
        c.nxe = nxe;
        c.pge = (bits & 3) == 0;
        c.pkru = pkru;
        all.push_back(c);
      }
    }
    return all;
  }

  [[nodiscard]] std::vector<std::uint64_t> leaves() const {
    std::vector<std::uint64_t> all;
    for (const std::uint64_t w : {kW, std::uint64_t{0}}) {
      for (const std::uint64_t u : {kU, std::uint64_t{0}}) {
        for (const std::uint64_t nx : {std::uint64_t{0}, kNx}) {
          for (const std::uint64_t key : {std::uint64_t{0}, key_bits(5)}) {
            if (nx != 0 && !layout.wide()) continue;
            if (key != 0 && layout.mode != PagingMode::long4) continue;
            all.push_back((world.open.at(layout.leaf) & ~(kW | kU)) | w | u | nx | key);
          }
        }
      }
    }
    return all;
  }

  /// The state of the path: the leaf, and one other level that differs from `open`.
  struct State {
    std::uint64_t leaf = 0;
    unsigned level = 0;  ///< 0: none
    std::uint64_t entry = 0;
  };
  [[nodiscard]] std::vector<State> states() const {
    std::vector<State> all;
    for (const std::uint64_t leaf : leaves()) {
      all.push_back({leaf, 0, 0});
      for (unsigned level = layout.leaf + 1; level <= layout.top(); ++level) {
        const std::uint64_t open = world.open.at(level);
        all.push_back({leaf, level, open & ~kW});
        all.push_back({leaf, level, open & ~kU});
        if (layout.wide()) all.push_back({leaf, level, open | kNx});
      }
    }
    all.push_back({world.open.at(layout.leaf) & ~kP, 0, 0});
    for (unsigned level = layout.leaf + 1; level <= layout.top(); ++level) {
      all.push_back({world.open.at(layout.leaf), level, world.open.at(level) & ~kP});
    }
    return all;
  }

  /// Stores the state's entries where they differ, A and D as `marks` says, and flushes.
  void load(const State& s, unsigned marks) {
    for (unsigned level = layout.top(); level >= layout.leaf; --level) {
      std::uint64_t e = level == layout.leaf ? s.leaf : world.open.at(level);
      if (level == s.level) e = s.entry;
      if ((marks >> level & 1) != 0) e |= kA;
      if (level == layout.leaf && (marks & 1) != 0) e |= kD | kG;
      if (world.entry(world.address.at(level), layout.bytes()) != e) world.put(level, e);
    }
    world.flush();
  }

  MmuWorld world{GetParam().backend};
  Layout layout = GetParam().layout;
};

class ReservedBits : public Matrix {};
class PageSizeExtension : public Matrix {};
class LargePages : public Matrix {};
class DirectoryPointers : public Matrix {};

TEST_P(Matrix, EveryRightUnderEveryControl) {
  unsigned step = 0;
  for (const bool nxe : {true, false}) {
    if (!nxe && !full()) continue;
    const auto all_controls = controls(nxe);
    for (const State& state : states()) {
      for (const PagingContext& c : all_controls) {
        // A and D as the last steps left them, except for every third setting: fresh ones.
        if (step % 3 == 0 || &c == &all_controls.front()) load(state, step * 7);
        world.set(c);
        for (std::size_t i = 0; i < kAccesses.size(); ++i) {
          const std::string wrong = world.judge(kAccesses.at((i + step) % kAccesses.size()));
          ASSERT_EQ(wrong, "");
        }
        ++step;
      }
    }
  }
}

/// Which bits are reserved depends on mode, level, page size, MAXPHYADDR and NXE; each bit alone.
TEST_P(ReservedBits, EachAlone) {
  for (const unsigned maxphyaddr : {36U, 40U, 46U, 52U}) {
    for (const bool nxe : {false, true}) {
      for (const bool huge : {false, true}) {
        PagingContext c = world.context;
        c.nxe = nxe;
        c.huge_pages = huge;
        c.maxphyaddr = static_cast<std::uint8_t>(maxphyaddr);
        c.wp = true;
        world.set(c);
        for (unsigned level = layout.leaf; level <= layout.top(); ++level) {
          for (unsigned bit = 7; bit < layout.bytes() * 8; ++bit) {
            // Address bits of a table entry lead to other tables: nothing to predict about them
            // beyond that they are not reserved, which the leaf shows.
            const bool address = bit >= 12 && bit < maxphyaddr && level != layout.leaf;
            if (address) continue;
            world.put(level, world.open.at(level) ^ (std::uint64_t{1} << bit));
            world.flush();
            for (const Access& access : kAccesses) ASSERT_EQ(world.judge(access), "") << bit;
            world.put(level, world.open.at(level));
          }
        }
      }
    }
  }
}

/// With CR4.PSE clear a directory entry's PS bit means nothing (SDM 3A table 4-5); with it set, two
/// tables become one page.
TEST_P(PageSizeExtension, DecidesWhatPsMeans) {
  for (const bool pse : {false, true, false, true}) {
    PagingContext c = world.context;
    c.pse = pse;
    world.put(2, world.open.at(2) | kPs);
    world.set(c);
    world.flush();
    for (const Access& access : kAccesses) ASSERT_EQ(world.judge(access), "") << pse;
  }
}

/// A page becomes larger, then small again: no answer from the table that is no longer used.
TEST_P(LargePages, SplitAndJoinedAreFollowed) {
  const unsigned large = layout.leaf + 1;
  const unsigned shift = world.leaf_shift() + (layout.wide() ? 9 : 10);
  const std::uint64_t base = MmuWorld::kPage & ~((std::uint64_t{1} << shift) - 1);
  for (const std::uint64_t rights : {kP | kW | kU, kP | kU, kP | kW, kP | kG | kW}) {
    PagingContext c = world.context;
    c.wp = c.pge = true;
    world.set(c);
    world.put(large, base | rights | kPs);
    world.flush();
    for (const Access& access : kAccesses) ASSERT_EQ(world.judge(access), "") << "joined";
    world.put(large, world.open.at(large));
    world.put(layout.leaf, world.open.at(layout.leaf) & ~(kA | kD));
    world.flush();
    for (const Access& access : kAccesses) ASSERT_EQ(world.judge(access), "") << "split";
  }
}

/// SDM 3A 4.4.1: PDPTEs carry P and an address, no rights; an absent one is a fault of its own.
TEST_P(DirectoryPointers, CarryNoRights) {
  PagingContext c = world.context;
  c.wp = true;
  for (const std::uint64_t pdpte : {c.pdpte.at(2), c.pdpte.at(2) & ~kP, std::uint64_t{0}}) {
    c.pdpte.at(2) = pdpte;
    world.set(c);
    world.flush();
    for (const Access& access : kAccesses) ASSERT_EQ(world.judge(access), "") << pdpte;
  }
}

/// Table 4-8: bits 2:1, 8:5 and those above the physical address; the other low ones mean nothing.
TEST_P(DirectoryPointers, ReservedBits) {
  PagingContext c = world.context;
  const std::uint64_t good = c.pdpte.at(2);
  for (unsigned bit = 1; bit < 64; ++bit) {
    if (bit >= 12 && bit < c.maxphyaddr) continue;  // the address
    c.pdpte.at(2) = good | std::uint64_t{1} << bit;
    world.set(c);
    world.flush();
    for (const Access& access : kAccesses) ASSERT_EQ(world.judge(access), "") << bit;
  }
}

/// A look-up that nobody asked for finds what was accessed before, and leaves no trace: not even of
/// pages whose accessed bits the guest has taken back (SDM 3A 4.8).
TEST_P(Matrix, SpeculativeLookUpsSetNoAccessedBits) {
  const Access unasked{AccessKind::read, true, false, true};
  for (unsigned cleared = layout.top(); cleared >= layout.leaf; --cleared) {
    for (unsigned level = layout.top(); level >= layout.leaf; --level) {
      world.put(level, world.open.at(level) | kA);
    }
    world.put(cleared, world.open.at(cleared));
    world.set(world.context);
    world.flush();
    const auto refused = world.mmu->translate(0, world.va, unasked);
    ASSERT_FALSE(refused) << cleared;
    EXPECT_EQ(refused.error().kind, FaultKind::page_fault);
    EXPECT_EQ(world.entry(world.address.at(cleared), layout.bytes()), world.open.at(cleared));
    ASSERT_EQ(world.judge({AccessKind::read, true, false}), "") << "somebody asks";
    const auto found = world.mmu->translate(0, world.va, unasked);
    ASSERT_TRUE(found) << cleared;
    EXPECT_EQ(found->pa.page_offset(), 0U);
    EXPECT_EQ(world.entry(world.address.at(layout.leaf), layout.bytes()) & kD, 0U);
  }
}

bool always(std::string_view, const Layout&) { return true; }
bool checks_reserved(std::string_view backend, const Layout&) { return backend != kTableless; }
bool is_i386_small(std::string_view, const Layout& l) {
  return l.mode == PagingMode::i386 && l.leaf == 1;
}
bool has_larger(std::string_view, const Layout& l) {
  if (l.mode == PagingMode::i386 && !l.pse) return false;
  return l.leaf + 1 <= 3 && l.leaf + 1 <= l.top();
}
bool is_pae(std::string_view, const Layout& l) { return l.mode == PagingMode::pae; }

INSTANTIATE_TEST_SUITE_P(All, Matrix, testing::ValuesIn(cases(always)), name_of);
INSTANTIATE_TEST_SUITE_P(All, ReservedBits, testing::ValuesIn(cases(checks_reserved)), name_of);
INSTANTIATE_TEST_SUITE_P(All, PageSizeExtension, testing::ValuesIn(cases(is_i386_small)), name_of);
INSTANTIATE_TEST_SUITE_P(All, LargePages, testing::ValuesIn(cases(has_larger)), name_of);
INSTANTIATE_TEST_SUITE_P(All, DirectoryPointers, testing::ValuesIn(cases(is_pae)), name_of);

}  // namespace
}  // namespace strata::conformance
