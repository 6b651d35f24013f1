// Violations on the way through the guest's tables, and what can happen while one is filled.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "table_fixture.hpp"

namespace strata::nested::test {
namespace {

class Violations : public TableFixture {};
INSTANTIATE_TEST_SUITE_P(Formats, Violations, kFormats, kFormatName);

TEST_P(Violations, GuestTableAccessesDirtyThePageThatHoldsThem) {
  Vm vm{GetParam()};
  vm.map_long4(0x1000, kData, kAll);
  vm.use(vm.context());
  ASSERT_TRUE(vm.load(0x1000));
  EXPECT_NE(*vm.nested_entry(vm.root, 1) & dirty(), 0U);
  EXPECT_NE(*vm.nested_entry(vm.slot_long4(0x1000, 1), 1) & dirty(), 0U);
  EXPECT_EQ(*vm.nested_entry(kData, 1) & dirty(), 0U) << "data was only read";
}

TEST_P(Violations, GuestAccessedBitsCostOneWriteEachAndNoFurtherWalk) {
  Vm vm{GetParam()};
  vm.map_long4(0x1000, kData, kAll);
  vm.map_long4(0x2000, kData, kP | kW | kU);
  vm.use(vm.context());
  ASSERT_TRUE(vm.load(0x1000));
  ASSERT_TRUE(vm.load(0x2000));
  EXPECT_EQ(vm.mmu->last_walk(0).ad_writes, 1U);
  EXPECT_EQ(vm.mmu->last_walk(0).total(), 24U);
  EXPECT_EQ(vm.at(vm.slot_long4(0x2000, 1)), kData | kP | kW | kU | kA);
  EXPECT_FALSE(vm.load(0x2000)->writable);
  ASSERT_TRUE(vm.store(0x2000));
  EXPECT_EQ(vm.at(vm.slot_long4(0x2000, 1)), kData | kAll);
}

TEST_P(Violations, GuestTablesNowhereReadAsOnes) {
  Vm vm{GetParam()};
  // A root in absent memory: all ones has reserved bits set.
  vm.root = kGuestBytes;
  vm.use(vm.context());
  const auto r = vm.load(0x1000);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().stage, Stage::guest_table);
  EXPECT_EQ(r.error().error_code, pf::kPresent | pf::kReserved);
  // i386 has no reserved bits in a PDE: 0xFFFFFFFF leads to another table of ones, which maps the
  // last page of 4 GiB, and nothing is there.
  vm.use(vm.context(PagingMode::i386));
  const auto narrow = vm.load(0x1234);
  ASSERT_FALSE(narrow);
  PagingContext c = vm.context(PagingMode::i386);
  c.pse = false;
  vm.use(c);
  const auto mmio = vm.load(0x1234);
  ASSERT_FALSE(mmio);
  EXPECT_EQ(mmio.error().kind, FaultKind::mmio);
  EXPECT_EQ(mmio.error().pa.value(), 0xFFFFF234U);
  EXPECT_EQ(vm.mmu->last_walk(0).guest, 2U);
}

TEST_P(Violations, GuestTablesBeyondFourLevelsDoNotWrapAround) {
  Vm vm{GetParam()};
  vm.map_long4(0x1000, kData, kAll);
  vm.map_long4(0x2000, (1ULL << 48) + kData, kAll);
  PagingContext c = vm.context();
  c.maxphyaddr = 52;
  vm.use(c);
  ASSERT_TRUE(vm.load(0x1000));
  const auto r = vm.load(0x2000);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, FaultKind::mmio);
  EXPECT_EQ(r.error().pa.value(), (1ULL << 48) + kData);
  c.root = PA{c.root.value() + (1ULL << 50)};
  vm.use(c);
  EXPECT_EQ(vm.load(0x1000).error().kind, FaultKind::page_fault);
}

TEST_P(Violations, GuestTablesInRomWorkAndKeepTheirBits) {
  Vm vm{GetParam()};
  vm.map_long4(0x1000, kData, kP | kW | kU, 1, kP | kW | kU);
  const std::uint64_t leaf = vm.slot_long4(0x1000, 1);
  vm.p2m.set(leaf >> 12, 1, PageState::rom);
  vm.use(vm.context());
  EXPECT_TRUE(vm.load(0x1000));
  EXPECT_TRUE(vm.store(0x1000));
  EXPECT_EQ(vm.at(leaf), kData | kP | kW | kU);
  EXPECT_EQ(vm.at(vm.slot_long4(0x1000, 2)) & kA, kA) << "tables in RAM do get theirs";
}

TEST_P(Violations, GuestTablesInZeroPagesCostNoFrame) {
  Vm vm{GetParam()};
  vm.root = 0x300000;
  vm.p2m.set(0x300, 1, PageState::zero);
  vm.use(vm.context());
  const auto r = vm.load(0x1000);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().error_code, 0U);
  EXPECT_EQ(vm.p2m.lookup(PPN{0x300}).entry.state(), PageState::zero);
}

TEST_P(Violations, SharedGuestTableIsUnsharedForItsAccessedBit) {
  Vm vm{GetParam()};
  vm.map_long4(0x1000, kData, kP | kW | kU);
  const std::uint64_t leaf = vm.slot_long4(0x1000, 1);
  // The contents lie elsewhere; home holds garbage.
  std::memcpy(&vm.machine_word((kElsewhere << 12)), &vm.at(leaf & ~kPageMask), kPageSize);
  std::memset(&vm.at(leaf & ~kPageMask), 0x55, kPageSize);
  vm.p2m.set_entry(leaf >> 12, P2mEntry::make(PageState::shared, kElsewhere));
  vm.use(vm.context());
  ASSERT_TRUE(vm.load(0x1000));
  EXPECT_EQ(vm.p2m.lookup(PPN{leaf >> 12}).entry.state(), PageState::private_page);
  EXPECT_EQ(vm.at(leaf), kData | kP | kW | kU | kA);
  EXPECT_EQ(vm.machine_word((kElsewhere << 12) + (leaf & kPageMask)), kData | kP | kW | kU)
      << "the shared frame is not ours to write";
}

TEST_P(Violations, AccessedBitOfALoggedTableIsAnnounced) {
  Vm vm{GetParam()};
  vm.map_long4(0x1000, kData, kP | kW | kU);
  const std::uint64_t leaf = vm.slot_long4(0x1000, 1);
  Flush flush{vm.domain};
  vm.p2m.log({PPN{leaf >> 12}, 1}, flush);
  flush.commit();
  vm.use(vm.context());
  ASSERT_TRUE(vm.load(0x1000));
  EXPECT_THAT(vm.p2m.dirty, testing::ElementsAre(leaf >> 12));
}

// What other threads do between the P2M's answer to a violation and the installation.

TEST_P(Violations, APageThatBecameBusyIsNotInstalled) {
  auto vm = flat();
  Flush flush{vm->domain};
  vm->p2m.after_resolve = [&](PPN ppn) { vm->p2m.make_busy(ppn, flush); };
  const auto r = vm->load(0x6000);
  flush.commit();
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, FaultKind::retry);
  EXPECT_EQ(vm->mmu->nested_stats().tables, 1U);
}

TEST_P(Violations, APageThatWasSharedAgainIsUnsharedAgain) {
  auto vm = flat();
  vm->p2m.set_entry(6, P2mEntry::make(PageState::shared, kElsewhere));
  Flush flush{vm->domain};
  vm->p2m.after_resolve = [&](PPN ppn) {
    vm->p2m.change(ppn, P2mEntry::make(PageState::shared, kElsewhere), flush);
  };
  const auto r = vm->store(0x6000);
  flush.commit();
  ASSERT_TRUE(r);
  EXPECT_EQ(r->page.value(), kHomeBase + 0x6000);
  EXPECT_TRUE(r->writable);
}

TEST_P(Violations, TheSecondToFillKeepsTheBitsOfTheFirst) {
  auto vm = flat();
  vm->use(vm->context(PagingMode::off), 1);
  vm->p2m.after_resolve = [&](PPN) { ASSERT_TRUE(vm->store(0x6000, 1)); };
  ASSERT_TRUE(vm->load(0x6000, 0));
  EXPECT_NE(*vm->nested_entry(0x6000, 1) & dirty(), 0U) << "vCPU 1 may have cached it as dirty";
}

TEST_P(Violations, ATableThatMovesDuringTheWalkGetsItsAccessedBitInTheNewPlace) {
  Vm vm{GetParam()};
  vm.map_long4(0x1000, kData, kAll, 1, kP | kW | kU);
  const std::uint64_t pde = vm.slot_long4(0x1000, 2);
  vm.use(vm.context());
  Flush flush{vm.domain};
  // The page directory is read, then the page table meets a violation, and meanwhile the page
  // directory is shared with another page of equal contents.
  const auto share = [&](PPN) {
    std::memcpy(&vm.machine_word(kElsewhere << kPageShift), &vm.at(pde & ~kPageMask), kPageSize);
    vm.p2m.change(page_of(PA{pde}), P2mEntry::make(PageState::shared, kElsewhere), flush);
  };
  const auto wait_for_table = [&](auto& self) -> void {
    vm.p2m.after_resolve = [&](PPN ppn) {
      if (ppn == page_of(PA{vm.slot_long4(0x1000, 1)})) {
        share(ppn);
      } else {
        self(self);
      }
    };
  };
  wait_for_table(wait_for_table);
  ASSERT_TRUE(vm.load(0x1000));
  flush.commit();
  EXPECT_EQ(vm.p2m.lookup(page_of(PA{pde})).entry.state(), PageState::private_page)
      << "the shared frame must be left before the bit is set";
  EXPECT_NE(vm.at(pde) & kA, 0U);
  EXPECT_EQ(vm.machine_word((kElsewhere << kPageShift) + (pde & kPageMask)) & kA, 0U);
}

TEST_P(Violations, APageFoundElsewhereIsForgottenEverywhere) {
  Vm vm{GetParam(), NestedOptions{}};
  vm.p2m.set(6, 1, PageState::zero);
  for (VcpuId id = 0; id < 2; ++id) {
    vm.use(vm.context(PagingMode::off), id);
    ASSERT_TRUE(vm.load(0x6000, id));
  }
  // A P2M that forgets to say so: the next violation still puts it right for all.
  vm.p2m.set(6, 1, PageState::private_page);
  ASSERT_TRUE(vm.store(0x6000, 0));
  EXPECT_EQ(vm.load(0x6000, 1)->page.value(), kHomeBase + 0x6000);
}

TEST_P(Violations, LinearAddressesHave32BitsOutsideOfLongMode) {
  Vm vm{GetParam()};
  vm.map_i386(0xC0001000, kData, kAll);
  vm.use(vm.context(PagingMode::i386));
  EXPECT_EQ(vm.load(0x1C0001000)->pa.value(), kData);
  vm.use(vm.context(PagingMode::off));
  EXPECT_EQ(vm.load(0x100006000)->pa.value(), 0x6000U);
}

TEST_P(Violations, GlobalNeedsPge) {
  Vm vm{GetParam()};
  vm.map_long4(0x1000, kData, kAll | kG);
  vm.map_long4(0x2000, kData, kAll);
  vm.map_long4(0x40000000, kData, kAll, 2);
  PagingContext c = vm.context();
  vm.use(c);
  EXPECT_FALSE(vm.load(0x1000)->global);
  c.pge = true;
  vm.use(c);
  EXPECT_TRUE(vm.load(0x1000)->global);
  EXPECT_FALSE(vm.load(0x2000)->global);
  EXPECT_EQ(vm.load(0x1000)->page_shift, kPageShift);
  EXPECT_EQ(vm.load(0x40000000)->page_shift, kLargePageShift);
}

TEST_P(Violations, FaultsOnGuestTablesNameTheEntry) {
  Vm vm{GetParam()};
  vm.map_long4(0x1000, kData, kAll);
  const std::uint64_t entry = vm.slot_long4(0x1000, 2);
  struct {
    PageState state;
    FaultKind kind;
  } const cases[] = {{PageState::swapped, FaultKind::paused},
                     {PageState::compressed, FaultKind::paused},
                     {PageState::poisoned, FaultKind::poisoned}};
  vm.use(vm.context());
  for (const auto& c : cases) {
    Flush flush{vm.domain};
    vm.p2m.change(PPN{entry >> 12}, P2mEntry::make(c.state, 3), flush);
    flush.commit();
    const auto r = vm.load(0x1234);
    ASSERT_FALSE(r);
    EXPECT_EQ(r.error().stage, Stage::p2m);
    EXPECT_EQ(r.error().kind, c.kind);
    EXPECT_EQ(r.error().pa.value(), entry);
    EXPECT_EQ(r.error().va.value(), 0x1234U);
  }
  Flush flush{vm.domain};
  const auto busy = P2mEntry::make(PageState::private_page, 1).with_busy(true);
  vm.p2m.change(PPN{entry >> 12}, busy, flush);
  flush.commit();
  EXPECT_EQ(vm.load(0x1234).error().kind, FaultKind::retry);
}

TEST_P(Violations, P2mOutOfMemoryIsPassedOn) {
  auto vm = flat();
  vm->p2m.set(6, 1, PageState::zero);
  vm->p2m.refuse_memory = true;
  const auto r = vm->store(0x6010);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, FaultKind::out_of_memory);
  EXPECT_EQ(r.error().pa.value(), 0x6010U);
}

}  // namespace
}  // namespace strata::nested::test
