// A VM with a nested backend, and guest page tables written by hand.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>

#include "fakes.hpp"
#include "mmu/mmu.hpp"
#include "nested/nested_mmu.hpp"

namespace strata::nested::test {

// Guest entry bits, spelled out again here so that the tests do not trust formats.hpp.
inline constexpr std::uint64_t kP = 1, kW = 2, kU = 4, kA = 0x20, kD = 0x40, kPS = 0x80, kG = 0x100;
inline constexpr std::uint64_t kNX = 1ULL << 63;
inline constexpr std::uint64_t kAll = kP | kW | kU | kA | kD;

inline constexpr NestedOptions kNoCaches{
    .guest_caches = false, .nested_tlb = false, .nested_caches = false};

/// Guest-physical layout: tables in the first 2 MiB, `kData` and above for what they map.
inline constexpr std::uint64_t kTables = 0x10000;
inline constexpr std::uint64_t kData = 0x800000;

struct Vm {
  explicit Vm(Format format, NestedOptions options = kNoCaches)
      : p2m{domain},
        mmu{(p2m.host_base = machine.window().host(MA{0}),
             make_nested(format, p2m, machine, domain, options))} {
    p2m.set(0, 512 * 16, PageState::private_page);  // 32 MiB
  }

  /// The 8 (or 4) bytes at guest-physical `pa`, at home.
  template <class T = std::uint64_t>
  T& at(std::uint64_t pa) {
    return *reinterpret_cast<T*>(machine.window().host(MA{kHomeBase + pa}));
  }
  template <class T = std::uint64_t>
  T& machine_word(std::uint64_t ma) {
    return *reinterpret_cast<T*>(machine.window().host(MA{ma}));
  }
  std::uint64_t new_table() {
    const std::uint64_t table = next_table_;
    next_table_ += kPageSize;
    return table;
  }

  /// Maps `va` to `pa` in four-level tables by an entry of `level` (1..3) with `bits`; entries
  /// above get `upper`.
  void map_long4(std::uint64_t va, std::uint64_t pa, std::uint64_t bits, unsigned level = 1,
                 std::uint64_t upper = kAll & ~kD) {
    std::uint64_t table = root_or_new();
    for (unsigned l = 4; l > level; --l) {
      std::uint64_t& e = at(entry_of(table, va, l));
      if ((e & kP) == 0) e = new_table() | upper;
      table = e & 0xFFFFFFFFFF000;
    }
    at(entry_of(table, va, level)) = pa | bits | (level > 1 ? kPS : 0);
  }
  /// The PA of the entry of `level` that maps `va`.
  std::uint64_t slot_long4(std::uint64_t va, unsigned level) {
    std::uint64_t table = root;
    for (unsigned l = 4; l > level; --l) table = at(entry_of(table, va, l)) & 0xFFFFFFFFFF000;
    return entry_of(table, va, level);
  }
  static std::uint64_t entry_of(std::uint64_t table, std::uint64_t va, unsigned level) {
    return table + (va >> (12 + 9 * (level - 1)) & 511) * 8;
  }
  void map_i386(std::uint64_t va, std::uint64_t pa, std::uint64_t bits, unsigned level = 1,
                std::uint64_t upper = kAll & ~kD) {
    const std::uint64_t pde = root_or_new() + (va >> 22) * 4;
    if (level == 2) {
      at<std::uint32_t>(pde) = static_cast<std::uint32_t>(pa | bits | kPS);
      return;
    }
    if ((at<std::uint32_t>(pde) & kP) == 0) {
      at<std::uint32_t>(pde) = static_cast<std::uint32_t>(new_table() | upper);
    }
    const std::uint64_t table = at<std::uint32_t>(pde) & 0xFFFFF000U;
    at<std::uint32_t>(table + (va >> 12 & 1023) * 4) = static_cast<std::uint32_t>(pa | bits);
  }
  /// PAE: `pdptes` are what the context's registers must hold.
  void map_pae(std::uint64_t va, std::uint64_t pa, std::uint64_t bits, unsigned level = 1,
               std::uint64_t upper = kAll & ~kD) {
    std::uint64_t& pdpte = pdptes[va >> 30 & 3];
    if ((pdpte & kP) == 0) pdpte = new_table() | kP;
    std::uint64_t& pde = at(entry_of(pdpte & ~0xFFFULL, va, 2));
    if (level == 2) {
      pde = pa | bits | kPS;
      return;
    }
    if ((pde & kP) == 0) pde = new_table() | upper;
    at(entry_of(pde & 0xFFFFFFFFFF000, va, 1)) = pa | bits;
  }

  PagingContext context(PagingMode mode = PagingMode::long4) {
    PagingContext c;
    c.mode = mode;
    c.root = PA{root};
    c.wp = true;
    c.pse = true;
    c.nxe = mode != PagingMode::i386;
    c.pdpte = pdptes;
    return c;
  }
  void use(const PagingContext& c, VcpuId id = 0) { mmu->set_context(id, c); }
  auto load(std::uint64_t va, VcpuId id = 0) { return mmu->translate(id, VA{va}, {}); }
  auto store(std::uint64_t va, VcpuId id = 0) {
    return mmu->translate(id, VA{va}, {AccessKind::write, false, false});
  }
  /// References of a load once violations and A/D updates are out of the way.
  WalkReferences settled(std::uint64_t va) {
    (void)load(va);
    (void)load(va);
    return mmu->last_walk(0);
  }

  /// The nested entry of `level` for `pa`, found by hand from the root: a pointer to the real word.
  std::uint64_t* nested_entry(std::uint64_t pa, unsigned level) {
    std::uint64_t table = mmu->root().value();
    for (unsigned l = 4; l > level; --l) {
      const std::uint64_t e = machine_word(entry_of(table, pa, l));
      if ((e & 7) == 0 || (l < 4 && (e & kPS) != 0)) return nullptr;
      table = e & 0xFFFFFFFFFF000;
    }
    return &machine_word(entry_of(table, pa, level));
  }

  FakeMachine machine;
  FlushDomain domain;
  FakeP2m p2m;
  std::unique_ptr<NestedMmu> mmu;
  std::uint64_t root = 0;
  std::array<std::uint64_t, 4> pdptes{};

 private:
  std::uint64_t root_or_new() {
    if (root == 0) root = new_table();
    return root;
  }
  std::uint64_t next_table_ = kTables;
};

}  // namespace strata::nested::test
