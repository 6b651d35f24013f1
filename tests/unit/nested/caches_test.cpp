// The walker's caches: what they remember, what each flush takes, and that nobody can tell.
#include "nested/caches.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "guest_builder.hpp"
#include "machine/formats.hpp"

namespace strata::nested::test {
namespace {

using machine::Long4Format;

// ---- the containers ----

TEST(SetAssociative, AFullSetLosesItsOldest) {
  SetAssociative<int, 4, 2> cache;
  // Keys 1, 5, 9 share a set.
  cache.put(1, 10);
  cache.put(5, 50);
  cache.put(5, 51);  // replaces, takes no way
  ASSERT_NE(cache.find(1), nullptr);
  EXPECT_EQ(*cache.find(5), 51);
  cache.put(9, 90);
  EXPECT_EQ(cache.find(1), nullptr);
  EXPECT_EQ(*cache.find(5), 51);
  EXPECT_EQ(*cache.find(9), 90);
  EXPECT_EQ(cache.size(), 2U);
  cache.drop(5);
  EXPECT_EQ(cache.find(5), nullptr);
  cache.clear();
  EXPECT_EQ(cache.size(), 0U);
}

TEST(SetAssociative, HoldsAsMuchAsItSays) {
  SetAssociative<int, 4, 2> cache;
  for (std::uint64_t k = 0; k < 8; ++k) cache.put(k, static_cast<int>(k));
  EXPECT_EQ(cache.size(), (SetAssociative<int, 4, 2>::kEntries));
}

machine::WalkResult four_level_walk() {
  machine::WalkResult r;
  r.leaf_level = 1;
  for (unsigned level = 1; level <= 4; ++level) {
    r.steps[level].entry = (0x1000ULL * level) | 7;
    r.steps[level].rights.write = level > 2;
  }
  return r;
}

TEST(PagingStructureCacheTest, FindsTheLowestTable) {
  PagingStructureCache cache;
  EXPECT_FALSE(cache.find<Long4Format>(0x40201000, 3));
  cache.fill<Long4Format>(0x40201000, 3, four_level_walk(), 4);
  const auto low = cache.find<Long4Format>(0x40202000, 3);
  ASSERT_TRUE(low);
  EXPECT_EQ(low->level, 1U);
  EXPECT_EQ(low->table, 0x2000U);
  EXPECT_FALSE(low->rights.write) << "rights gathered down to there";
  const auto middle = cache.find<Long4Format>(0x40401000, 3);
  ASSERT_TRUE(middle);
  EXPECT_EQ(middle->level, 2U);
  EXPECT_EQ(middle->table, 0x3000U);
  const auto high = cache.find<Long4Format>(0x80000000, 3);
  ASSERT_TRUE(high);
  EXPECT_EQ(high->level, 3U);
  EXPECT_EQ(high->table, 0x4000U);
  EXPECT_FALSE(cache.find<Long4Format>(1ULL << 39, 3));
  EXPECT_FALSE(cache.find<Long4Format>(0x40201000, 4)) << "another PCID";
}

TEST(PagingStructureCacheTest, DropsByTagAndByAddress) {
  PagingStructureCache cache;
  cache.fill<Long4Format>(0x40201000, 3, four_level_walk(), 4);
  cache.fill<Long4Format>(0x40201000, 4, four_level_walk(), 4);
  cache.fill<Long4Format>(0xC0000000, 4, four_level_walk(), 4);
  EXPECT_EQ(cache.size(), 3U + 5U);
  cache.drop<Long4Format>(0x40201000, 4);
  EXPECT_FALSE(cache.find<Long4Format>(0x40201000, 4)) << "the shared PML4E entry goes as well";
  EXPECT_EQ(cache.find<Long4Format>(0xC0000000, 4)->level, 1U);
  cache.drop_tag(4);
  EXPECT_FALSE(cache.find<Long4Format>(0xC0000000, 4));
  EXPECT_TRUE(cache.find<Long4Format>(0x40201000, 3));
  cache.clear();
  EXPECT_EQ(cache.size(), 0U);
}

TEST(NestedTlbTest, DropsSmallAndLargeRanges) {
  for (const std::uint64_t count : {4ULL, 100000ULL}) {
    NestedTlb tlb;
    for (std::uint64_t p = 10; p < 20; ++p)
      tlb.put(PPN{p}, {MA{p << 12}, true, false, true, false});
    tlb.drop({PPN{12}, count});
    for (std::uint64_t p = 10; p < 20; ++p) {
      EXPECT_EQ(tlb.find(PPN{p}) == nullptr, p >= 12 && p < 12 + count) << p;
    }
  }
}

// ---- what the guest's flushes do ----

class GuestCaches : public testing::Test {
 protected:
  static NestedOptions options() {
    NestedOptions o = kNoCaches;
    o.guest_caches = true;
    return o;
  }
  GuestCaches() {
    vm.map_long4(kVa, kData, kAll);
    // The same tables under two PCIDs, warm in both.
    for (const std::uint16_t pcid : {std::uint16_t{1}, std::uint16_t{2}}) {
      use(pcid);
      (void)vm.load(kVa);
      (void)vm.load(kVa);
    }
  }
  void use(std::uint16_t pcid) {
    PagingContext c = vm.context();
    c.pcide = true;
    c.pcid = pcid;
    vm.use(c);
  }
  std::uint64_t guest_references(std::uint16_t pcid) {
    use(pcid);
    EXPECT_TRUE(vm.load(kVa));
    return vm.mmu->last_walk(0).guest;
  }
  static constexpr std::uint64_t kVa = 0x40201000;
  Vm vm{Format::ept, options()};
};

TEST_F(GuestCaches, SwitchingPcidFlushesNothing) {
  EXPECT_EQ(guest_references(1), 1U);
  EXPECT_EQ(guest_references(2), 1U);
}
TEST_F(GuestCaches, InvlpgTakesTheWholePcidWhateverTheAddress) {
  use(1);
  vm.mmu->invalidate_page(0, VA{0x7FFF00000000});
  EXPECT_EQ(guest_references(2), 1U);
  EXPECT_EQ(guest_references(1), 4U);
}
TEST_F(GuestCaches, ScopesOfTheOtherFlushes) {
  vm.mmu->invalidate(0, FlushScope::pcid, 1, VA{});
  EXPECT_EQ(guest_references(2), 1U);
  EXPECT_EQ(guest_references(1), 4U);
  vm.mmu->invalidate(0, FlushScope::address, 2, VA{kVa});
  EXPECT_EQ(guest_references(1), 1U);
  EXPECT_EQ(guest_references(2), 4U);
  for (const FlushScope scope : {FlushScope::all, FlushScope::all_non_global}) {
    vm.mmu->invalidate(0, scope, 0, VA{});
    EXPECT_EQ(guest_references(1), 4U);
    EXPECT_EQ(guest_references(2), 4U);
  }
  EXPECT_EQ(vm.mmu->stats().invalidations, 4U);
}
TEST_F(GuestCaches, OtherVcpusKeepTheirs) {
  PagingContext c = vm.context();
  c.pcide = true;
  c.pcid = 1;
  vm.use(c, 1);
  (void)vm.load(kVa, 1);
  vm.mmu->invalidate(0, FlushScope::all, 0, VA{});
  ASSERT_TRUE(vm.load(kVa, 1));
  EXPECT_EQ(vm.mmu->last_walk(1).guest, 1U);
}
TEST_F(GuestCaches, RulesOfTheTablesChange) {
  use(1);
  PagingContext c = vm.context();
  c.pcide = true;
  c.pcid = 1;
  c.wp = !c.wp;
  c.smep = c.smap = c.pke = c.pge = true;
  c.pkru = 0;
  vm.use(c);
  EXPECT_TRUE(vm.mmu->translate(0, VA{kVa}, {AccessKind::read, true, false}));
  EXPECT_EQ(vm.mmu->last_walk(0).guest, 1U) << "checked per access, not remembered";
  c.nxe = false;
  vm.use(c);
  EXPECT_TRUE(vm.mmu->translate(0, VA{kVa}, {AccessKind::read, true, false}));
  EXPECT_EQ(vm.mmu->last_walk(0).guest, 4U) << "NX was gathered under other rules";
}
TEST_F(GuestCaches, StaleEntriesAreUsedUntilFlushed) {
  use(1);
  // Another page table for the region, without a flush: the processor may use either.
  const std::uint64_t other = vm.new_table();
  vm.at(Vm::entry_of(other, kVa, 1)) = (kData + 0x5000) | kAll;
  vm.at(vm.slot_long4(kVa, 2)) = other | kAll;
  EXPECT_EQ(vm.load(kVa)->pa.value(), kData);
  vm.mmu->invalidate_page(0, VA{kVa});
  EXPECT_EQ(vm.load(kVa)->pa.value(), kData + 0x5000);
}
TEST_F(GuestCaches, AFaultIsNeverDeliveredFromAStaleEntry) {
  use(1);
  std::uint64_t& pde = vm.at(vm.slot_long4(kVa, 2));
  pde &= ~kW;
  vm.mmu->invalidate_page(0, VA{kVa});
  ASSERT_TRUE(vm.load(kVa));
  EXPECT_FALSE(vm.store(kVa));
  ASSERT_TRUE(vm.load(kVa));  // remembers the read-only PDE
  pde |= kW;                  // adding rights needs no flush (SDM 3A 4.10.4.3)
  EXPECT_TRUE(vm.store(kVa));
  EXPECT_TRUE(vm.load(kVa)->writable) << "and the stale entry is gone";
}

TEST_F(GuestCaches, APageFaultDropsWhatItWasFoundWith) {
  use(1);
  // The PDE goes without a flush. What the processor remembers of it may serve until a fault.
  vm.at(vm.slot_long4(kVa, 2)) = 0;
  EXPECT_TRUE(vm.load(kVa));
  EXPECT_FALSE(vm.load(kVa + kPageSize)) << "its PTE is not present";
  EXPECT_FALSE(vm.load(kVa)) << "SDM 3A 4.10.4.1";
}

TEST(PaeCaches, LoadingOtherPdptesForgets) {
  NestedOptions options = kNoCaches;
  options.guest_caches = true;
  Vm vm{Format::npt, options};
  vm.map_pae(0x1000, kData, kAll);
  PagingContext c = vm.context(PagingMode::pae);
  vm.use(c);
  ASSERT_TRUE(vm.load(0x1000));
  ASSERT_TRUE(vm.load(0x1000));
  EXPECT_EQ(vm.mmu->last_walk(0).guest, 1U);
  const std::uint64_t pd = vm.new_table();
  const std::uint64_t pt = vm.new_table();
  vm.at(pd) = pt | kAll;
  vm.at(pt + 8) = (kData + 0x3000) | kAll;
  c.pdpte[0] = pd | kP;
  vm.use(c);
  EXPECT_EQ(vm.load(0x1000)->pa.value(), kData + 0x3000);
  c.pdpte[0] = pd;
  vm.use(c);
  const auto r = vm.load(0x1000);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().error_code, 0U);
}

// ---- what P2M changes do ----

TEST(NestedCaches, P2mChangesReachEveryVcpu) {
  Vm vm{Format::ept, NestedOptions{}};
  for (VcpuId id = 0; id < 3; ++id) {
    vm.use(vm.context(PagingMode::off), id);
    ASSERT_TRUE(vm.load(0x6000, id));
    ASSERT_TRUE(vm.load(0x6000, id));
    EXPECT_EQ(vm.mmu->last_walk(id).nested, 0U);
  }
  Flush flush{vm.domain};
  vm.p2m.change(PPN{6}, P2mEntry::make(PageState::shared, kElsewhere), flush);
  flush.commit();
  for (VcpuId id = 0; id < 3; ++id) {
    EXPECT_EQ(vm.load(0x6000, id)->page.value(), kElsewhere << kPageShift);
  }
}

TEST(NestedCaches, AnUpgradeNeedsNoFlush) {
  Vm vm{Format::ept, NestedOptions{}};
  for (VcpuId id = 0; id < 2; ++id) vm.use(vm.context(PagingMode::off), id);
  Flush flush{vm.domain};
  vm.p2m.log({PPN{6}, 1}, flush);
  flush.commit();
  ASSERT_TRUE(vm.load(0x6000, 0));
  ASSERT_TRUE(vm.load(0x6000, 1));
  ASSERT_TRUE(vm.store(0x6000, 0));
  const std::uint64_t before = vm.mmu->stats().backend_misses;
  EXPECT_TRUE(vm.store(0x6000, 1)) << "vCPU 1 remembers a read-only page";
  EXPECT_EQ(vm.mmu->stats().backend_misses, before);
}

TEST(NestedCaches, FreedTablesAreForgotten) {
  NestedOptions options = kNoCaches;
  options.nested_caches = true;
  Vm vm{Format::ept, options};
  vm.use(vm.context(PagingMode::off));
  ASSERT_TRUE(vm.load(0x6000));
  ASSERT_TRUE(vm.load(0x6000));
  EXPECT_EQ(vm.mmu->last_walk(0).nested, 1U);
  Flush flush{vm.domain};
  vm.p2m.tell({PPN{6}, 1}, flush);
  flush.commit();
  EXPECT_EQ(vm.machine.nested_tables(), 1U);
  EXPECT_EQ(vm.load(0x6000)->page.value(), kHomeBase + 0x6000);
  EXPECT_EQ(vm.mmu->last_walk(0).nested, 1U + 4U);
}

// ---- nobody can tell ----

/// Two VMs live through the same random history, one without caches. Everything the guest can see
/// must agree: results, faults, and the accessed and dirty bits in its tables.
class Twins {
 public:
  Twins(Format format, PagingMode mode, NestedOptions options, unsigned seed)
      : plain_{format, kNoCaches},
        cached_{format, options},
        cached_options_{options},
        mode_{mode},
        random_{seed} {
    for (Vm* vm : {&plain_, &cached_}) {
      vm->p2m.set(kData >> 12, 4 * 512, PageState::private_page, kLargePageShift);
      vm->p2m.set((kData >> 12) + 512, 256, PageState::zero);
      for (auto& space : spaces_) {
        vm->root = 0;
        vm->pdptes = {};
        for (std::uint64_t i = 0; i < kPagesMapped; ++i) build(*vm, i);
        space = vm->context(mode);
      }
    }
    for (std::size_t i = 0; i < spaces_.size(); ++i) {
      if (mode == PagingMode::long4) {
        spaces_[i].pcide = true;
        spaces_[i].pcid = static_cast<std::uint16_t>(i + 1);
      }
    }
    go_to(0);
  }

  void step() {
    switch (pick(16)) {
      case 0:
        go_to(pick(spaces_.size()));
        break;
      case 1:
        toggle_control();
        break;
      case 2:
      case 3:
        change_guest_entry();
        break;
      case 4:
        change_p2m();
        break;
      case 5:
        join();
        break;
      default:
        translate();
    }
  }
  void compare_memory() {
    ASSERT_EQ(std::memcmp(&plain_.at(kTables), &cached_.at(kTables), 0x80000), 0);
  }
  [[nodiscard]] std::uint64_t hits() const { return cached_.mmu->stats().cache_hits; }

 private:
  static constexpr std::uint64_t kPagesMapped = 24;

  std::uint64_t pick(std::uint64_t n) { return random_() % n; }
  /// Some share all tables, some only upper ones; all within 32 bits.
  static std::uint64_t va_of(std::uint64_t i) {
    return 0x40000000ULL * (i % 3) + 0x400000ULL * (i / 3 % 3) + 0x1000 * (i / 9);
  }
  void build(Vm& vm, std::uint64_t i) const {
    const std::uint64_t pa = kData + i * 37 * kPageSize;
    if (mode_ == PagingMode::long4) vm.map_long4(va_of(i), pa, kP | kW | kU, 1, kP | kW | kU);
    if (mode_ == PagingMode::pae) vm.map_pae(va_of(i), pa, kP | kW | kU, 1, kP | kW | kU);
    if (mode_ == PagingMode::i386) vm.map_i386(va_of(i), pa, kP | kW | kU, 1, kP | kW | kU);
  }
  void go_to(std::size_t space) {
    current_ = space;
    apply();
    // Without PCIDs a CR3 load flushes.
    if (mode_ != PagingMode::long4) flush(FlushScope::pcid, 0);
  }
  void apply() {
    plain_.use(spaces_[current_]);
    cached_.use(spaces_[current_]);
  }
  void toggle_control() {
    bool* const flags[] = {&spaces_[current_].wp, &spaces_[current_].smep, &spaces_[current_].smap,
                           &spaces_[current_].nxe};
    bool& flag = *flags[pick(mode_ == PagingMode::i386 ? 3 : 4)];
    flag = !flag;
    apply();
  }
  void flush(FlushScope scope, std::uint16_t pcid) {
    for (Vm* vm : {&plain_, &cached_}) vm->mmu->invalidate(0, scope, pcid, VA{0x123000});
  }
  /// One entry of any level of the current space gets other bits, and the guest flushes as it must:
  /// leaves are not in these caches, and what was not present is in no cache.
  void change_guest_entry() {
    const std::uint64_t va = va_of(pick(kPagesMapped));
    const unsigned levels = mode_ == PagingMode::long4 ? 4 : 2;
    const auto level = static_cast<unsigned>(1 + pick(levels));
    static constexpr std::uint64_t kFlips[] = {kP, kW, kU, kA, kD, kNX};
    const std::uint64_t bit = kFlips[pick(mode_ == PagingMode::i386 ? 5 : 6)];
    const std::uint64_t pa = slot(va, level);
    if (pa == 0) return;
    for (Vm* vm : {&plain_, &cached_}) {
      if (mode_ == PagingMode::i386) {
        vm->at<std::uint32_t>(pa) ^= static_cast<std::uint32_t>(bit);
      } else {
        vm->at(pa) ^= bit;
      }
    }
    const bool appeared = bit == kP && (plain_.at<std::uint32_t>(pa) & kP) != 0;
    if (level == 1 || appeared) return;
    static constexpr FlushScope kScopes[] = {FlushScope::address, FlushScope::pcid,
                                             FlushScope::all_non_global, FlushScope::all};
    const std::uint64_t how = pick(5);
    if (how == 4) {
      for (Vm* vm : {&plain_, &cached_}) vm->mmu->invalidate_page(0, VA{va});
    } else {
      flush(kScopes[how], spaces_[current_].pcid);
    }
  }
  /// Where the entry of `level` lies, by the address bits alone (present or not); 0: nowhere.
  std::uint64_t slot(std::uint64_t va, unsigned level) {
    const PagingContext& c = spaces_[current_];
    if (mode_ == PagingMode::i386) {
      const std::uint64_t pde = c.root.value() + (va >> 22) * 4;
      if (level == 2) return pde;
      return (plain_.at<std::uint32_t>(pde) & 0xFFFFF000U) + (va >> 12 & 1023) * 4;
    }
    std::uint64_t table = mode_ == PagingMode::pae ? c.pdpte[va >> 30] : c.root.value();
    table &= 0xFFFFFFFFFF000;
    for (unsigned l = mode_ == PagingMode::pae ? 2 : 4; l > level; --l) {
      table = plain_.at(Vm::entry_of(table, va, l)) & 0xFFFFFFFFFF000;
    }
    return Vm::entry_of(table, va, level);
  }
  void change_p2m() {
    const PPN ppn{(kData >> 12) + pick(kPagesMapped) * 37};
    const std::uint64_t home = FakeP2m::home(ppn).value();
    const P2mEntry choices[] = {P2mEntry::make(PageState::private_page, home),
                                P2mEntry::make(PageState::private_page, home).with_logged(true),
                                P2mEntry::make(PageState::shared, kElsewhere + pick(4)),
                                P2mEntry::make(PageState::zero),
                                P2mEntry::make(PageState::rom, home),
                                P2mEntry::make(PageState::mmio),
                                P2mEntry::make(PageState::swapped, 3)};
    const P2mEntry wanted = choices[pick(std::size(choices))];
    for (Vm* vm : {&plain_, &cached_}) {
      Flush flush{vm->domain};
      vm->p2m.change(ppn, wanted, flush);
      flush.commit();
    }
  }
  void join() {
    const std::uint64_t first = (kData >> 12) + 512 * (1 + pick(3));
    const bool run = pick(2) != 0;
    for (Vm* vm : {&plain_, &cached_}) {
      Flush flush{vm->domain};
      if (run) {
        vm->p2m.tell({PPN{first}, 512}, flush);
        vm->p2m.set(first, 512, PageState::private_page, kLargePageShift);
      }
      vm->mmu->join({PPN{kData >> 12}, 4 * 512}, flush);
      flush.commit();
    }
  }
  void translate() {
    const std::uint64_t va = va_of(pick(kPagesMapped + 3)) + pick(kPageSize);
    const Access access{static_cast<AccessKind>(pick(3)), pick(2) != 0, pick(2) != 0};
    const auto a = plain_.mmu->translate(0, VA{va}, access);
    const auto b = cached_.mmu->translate(0, VA{va}, access);
    ASSERT_EQ(a.has_value(), b.has_value());
    if (a) {
      ASSERT_EQ(a->page, b->page);
      ASSERT_EQ(a->pa, b->pa);
      ASSERT_EQ(std::tie(a->readable, a->executable, a->global, a->traced),
                std::tie(b->readable, b->executable, b->global, b->traced));
      // A nested TLB entry may have missed that D was set through another page of the same large
      // leaf. That costs a walk at the next store, which the guest can not see.
      const bool may_lag = cached_options_.nested_tlb && access.kind != AccessKind::write;
      ASSERT_TRUE(a->writable == b->writable || (may_lag && a->writable));
      ASSERT_EQ(a->page_shift, b->page_shift);
    } else {
      const Fault &x = a.error(), &y = b.error();
      ASSERT_EQ(std::tie(x.stage, x.kind, x.error_code, x.va, x.pa),
                std::tie(y.stage, y.kind, y.error_code, y.va, y.pa));
    }
  }

  Vm plain_;
  Vm cached_;
  NestedOptions cached_options_;
  PagingMode mode_;
  std::array<PagingContext, 3> spaces_{};
  std::size_t current_ = 0;
  std::mt19937 random_;
};

class SameForTheGuest : public testing::TestWithParam<std::tuple<Format, PagingMode, unsigned>> {};

TEST_P(SameForTheGuest, WithAndWithoutCaches) {
  const auto& [format, mode, switches] = GetParam();
  NestedOptions options;
  options.guest_caches = (switches & 1) != 0;
  options.nested_tlb = (switches & 2) != 0;
  options.nested_caches = (switches & 4) != 0;
  for (unsigned seed = 0; seed < 4; ++seed) {
    SCOPED_TRACE(seed);
    Twins twins{format, mode, options, seed};
    for (int i = 0; i < 6000; ++i) {
      twins.step();
      if (HasFatalFailure()) return;
    }
    twins.compare_memory();
    EXPECT_GT(twins.hits(), 100U);
  }
}

std::string twins_name(const testing::TestParamInfo<SameForTheGuest::ParamType>& p) {
  static const char* const modes[] = {"off", "i386", "pae", "long4"};
  return std::string{std::get<0>(p.param) == Format::ept ? "ept_" : "npt_"} +
         modes[static_cast<int>(std::get<1>(p.param))] + "_caches" +
         std::to_string(std::get<2>(p.param));
}
INSTANTIATE_TEST_SUITE_P(Random, SameForTheGuest,
                         testing::Combine(testing::Values(Format::ept, Format::npt),
                                          testing::Values(PagingMode::i386, PagingMode::pae,
                                                          PagingMode::long4),
                                          testing::Values(1U, 2U, 4U, 7U)),
                         twins_name);

}  // namespace
}  // namespace strata::nested::test
