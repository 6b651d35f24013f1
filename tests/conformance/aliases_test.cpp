// Many ways to few pages, rearranged at random: when a page moves or goes, every way to it has to
// be found, however it came to be and whatever was taken away before it.
#include <gtest/gtest.h>

#include <random>

#include "mmu_world.hpp"

namespace strata::conformance {
namespace {

constexpr unsigned kWays = 24, kPages = 5, kRounds = 1500;
constexpr std::uint64_t kFirstPage = 0x80'0000;

/// Long-mode tables with `kWays` addresses, some of which share a page table.
class Aliases : public testing::TestWithParam<std::string_view> {
 protected:
  Aliases() {
    context.mode = PagingMode::long4;
    context.root = world.machine.new_table();
    for (unsigned way = 0; way < kWays; ++way) {
      ways.at(way) =
          VA{0x4000'0000ULL * (1 + way % 3) + (way % 7) * kLargePageSize + way * kPageSize};
      entries.at(way) =
          world.machine.entry_address<machine::Long4Format>(context.root, ways.at(way), 1);
    }
    world.mmu->set_context(0, context);
  }

  /// Stores the entry as a guest would, and flushes it.
  void point(unsigned way, std::uint64_t entry) {
    world.machine.store(entries.at(way), entry);
    world.mmu->invalidate_page(0, ways.at(way));
  }
  void discard(unsigned page) {
    Flush flush{world.machine.domain};
    const PPN ppn = page_of(PA{kFirstPage + page * kPageSize});
    ASSERT_TRUE(world.machine.p2m.discard({ppn, 1}, flush));
    flush.commit();
    world.machine.domain.collect();
  }
  void check(unsigned way, AccessKind kind) {
    const std::uint64_t e = world.machine.load<std::uint64_t>(entries.at(way));
    const PPN ppn = page_of(PA{e & 0xFFFF'F000});
    const auto t = world.mmu->translate(0, ways.at(way), {kind, true, false});
    if ((e & kP) == 0) {
      ASSERT_FALSE(t);
      ASSERT_EQ(t.error().stage, Stage::guest_table);
      return;
    }
    ASSERT_TRUE(t) << "way " << way;
    const P2mEntry now = world.machine.p2m.lookup(ppn).entry;
    const bool zero = now.state() == PageState::zero;
    ASSERT_EQ(page_of(t->page), zero ? world.machine.p2m.zero_frame() : now.mpn()) << "way " << way;
    ASSERT_EQ(t->pa, address_of(ppn)) << "way " << way;
    ASSERT_TRUE(!zero || !t->writable) << "way " << way;
  }

  MmuWorld world{GetParam()};
  PagingContext context;
  std::array<VA, kWays> ways{};
  std::array<PA, kWays> entries{};
};

TEST_P(Aliases, EveryWayToAPageThatGoesIsFound) {
  std::mt19937 random{7};
  const auto below = [&](unsigned n) { return static_cast<unsigned>(random() % n); };
  for (unsigned round = 0; round < kRounds; ++round) {
    const unsigned way = below(kWays);
    switch (below(5)) {
      case 0:
        point(way, below(6) == 0 ? 0 : (kFirstPage + below(kPages) * kPageSize) | kP | kW | kU);
        break;
      case 1:
        discard(below(kPages));
        for (unsigned w = 0; w < kWays; ++w) ASSERT_NO_FATAL_FAILURE(check(w, AccessKind::read));
        break;
      default:
        ASSERT_NO_FATAL_FAILURE(check(way, below(2) == 0 ? AccessKind::read : AccessKind::write));
    }
  }
}

/// A hostile guest uses one page as a table of 4-byte and of 8-byte entries: the accessed flag that
/// the processor sets in the one is bit 37, an address, in the other.
TEST_P(Aliases, AccessedFlagsAreSeenInTablesOfBothWidths) {
  if (GetParam() == kTableless) GTEST_SKIP() << "it knows one width";
  constexpr std::uint64_t kHigh = 0x1'0012'3000, kMoved = kHigh | 1ULL << 37;
  machine::test::TestMachine machine{64, 4200};
  machine::test::must(machine.p2m.add_ram({page_of(PA{0x1'0000'0000}), 512}));
  const auto mmu = make_backend(GetParam(), machine.p2m, machine.frames, machine.domain, true);
  PagingContext wide;
  wide.mode = PagingMode::long4;
  wide.root = machine.new_table();
  const PA entry = machine.map<machine::Long4Format>(wide.root, VA{0x40'3000}, PA{0});
  machine.store<std::uint64_t>(entry, kHigh | kP | kW | kU | kA | kD);
  PagingContext narrow;
  narrow.mode = PagingMode::i386;
  narrow.root = machine.new_table();
  machine.store(narrow.root, static_cast<std::uint32_t>(entry.page_base().value() | kP | kW | kU));
  const auto translate = [&](const PagingContext& c, VA va) {
    mmu->set_context(0, c);
    mmu->invalidate(0, FlushScope::all, 0, VA{});
    return mmu->translate(0, va, {AccessKind::read, false, false});
  };
  const auto before = translate(wide, VA{0x40'3000});
  ASSERT_TRUE(before);
  EXPECT_EQ(before->pa, PA{kHigh});
  // The upper half of the entry, 1, is a present 4-byte entry.
  const VA upper{(entry.page_offset() + 4) / 4 * kPageSize};
  ASSERT_TRUE(translate(narrow, upper));
  EXPECT_EQ(machine.load<std::uint64_t>(entry) >> 37 & 1, 1U);
  const auto after = translate(wide, VA{0x40'3000});
  ASSERT_FALSE(after);
  EXPECT_EQ(after.error().kind, FaultKind::mmio);
  EXPECT_EQ(after.error().pa, PA{kMoved});
}

INSTANTIATE_TEST_SUITE_P(Backends, Aliases, testing::ValuesIn(backends()),
                         [](const auto& instance) { return std::string{instance.param}; });

}  // namespace
}  // namespace strata::conformance
