// What the SDM says an access does, written down once more and apart from src/machine: tables are
// read with plain loads, and every rule is spelt out as the manual has it (SDM 3A 4.3 to 4.7).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "mmu/mmu.hpp"

namespace strata::shadow::test {

struct ModelEntry {
  PA address{};
  std::uint64_t after = 0;  ///< value with A and D as the access sets them
  unsigned size = 8;
};

struct ModelResult {
  bool permitted = false;
  std::uint32_t code = 0;  ///< of the #PF, if not permitted
  PA pa{};
  unsigned page_shift = kPageShift;
  bool global = false;
  bool readable = false, executable = false;
  bool writable = false;  ///< for the guest's tables alone, D included
  std::vector<ModelEntry> used;
};

/// `load(pa, size)` returns the table entry at `pa`.
template <class Load>
class Model {
 public:
  Model(const PagingContext& c, Load load) : c_{c}, load_{load} {}

  ModelResult run(VA va, Access access) {
    ModelResult r;
    if (c_.mode == PagingMode::off) {
      r.permitted = r.readable = r.writable = r.executable = true;
      r.pa = PA{va.value() & 0xFFFFFFFF};
      return r;
    }
    access_ = access;
    switch (c_.mode) {
      case PagingMode::i386:
        return walk_i386(static_cast<std::uint32_t>(va.value()), r);
      case PagingMode::pae: {
        const auto v = static_cast<std::uint32_t>(va.value());
        const std::uint64_t pdpte = c_.pdpte[v >> 30];
        if ((pdpte & 1) == 0) return fault(r, 0);
        return walk_wide(v, pdpte & 0xFFFFFFFFFF000, 2, r);
      }
      default:
        return walk_wide(va.value(), c_.root.value() & 0xFFFFFFFFFF000, 4, r);
    }
  }

 private:
  [[nodiscard]] bool fetch_reported() const {
    return c_.smep || (c_.nxe && c_.mode != PagingMode::i386);
  }
  ModelResult fault(ModelResult& r, std::uint32_t code) const {
    if (access_.kind == AccessKind::write) code |= 2;
    if (access_.user) code |= 4;
    if (access_.kind == AccessKind::execute && fetch_reported()) code |= 0x10;
    r.code = code;
    r.used.clear();  // nothing is marked by an access that faults
    return r;
  }

  ModelResult walk_i386(std::uint32_t va, ModelResult& r) {
    const PA pde_at{(c_.root.value() & 0xFFFFF000) + (va >> 22) * 4};
    const std::uint64_t pde = load_(pde_at, 4);
    if ((pde & 1) == 0) return fault(r, 0);
    note(r, pde_at, pde, 4);
    if (c_.pse && (pde & 0x80) != 0) {
      // PSE-36: bits 20:13 are address bits 39:32 as far as MAXPHYADDR reaches; 21 is reserved.
      const unsigned reach = c_.maxphyaddr < 40 ? c_.maxphyaddr : 40U;
      for (unsigned bit = 13; bit <= 21; ++bit) {
        if ((pde >> bit & 1) != 0 && bit - 13 + 32 >= reach) return fault(r, 9);
      }
      r.pa = PA{(pde & 0xFFC00000) | (pde >> 13 & 0xFF) << 32 | (va & 0x3FFFFF)};
      r.page_shift = 22;
      return finish(r, pde);
    }
    const PA pte_at{(pde & 0xFFFFF000) + (va >> 12 & 0x3FF) * 4};
    const std::uint64_t pte = load_(pte_at, 4);
    if ((pte & 1) == 0) return fault(r, 0);
    note(r, pte_at, pte, 4);
    r.pa = PA{(pte & 0xFFFFF000) | (va & 0xFFF)};
    return finish(r, pte);
  }

  ModelResult walk_wide(std::uint64_t va, std::uint64_t table, unsigned top, ModelResult& r) {
    for (unsigned level = top;; --level) {
      const unsigned shift = 12 + 9 * (level - 1);
      const PA entry_at{table + (va >> shift & 0x1FF) * 8};
      const std::uint64_t e = load_(entry_at, 8);
      if ((e & 1) == 0) return fault(r, 0);
      note(r, entry_at, e, 8);
      const bool page = level == 1 || (level < 4 && (e & 0x80) != 0);
      bool bad = (e >> 63 != 0) && !c_.nxe;
      for (unsigned bit = c_.maxphyaddr; bit < 52; ++bit) bad = bad || (e >> bit & 1) != 0;
      if (top == 2) bad = bad || (e >> 52 & 0x7FF) != 0;  // PAE: 62:52 too
      if (level == 4 && (e & 0x80) != 0) bad = true;
      if (level == 3 && (e & 0x80) != 0 && !c_.huge_pages) bad = true;
      if (page && level > 1) {
        for (unsigned bit = 13; bit < shift; ++bit) bad = bad || (e >> bit & 1) != 0;
      }
      if (bad) return fault(r, 9);
      if (!page) {
        table = e & 0xFFFFFFFFFF000;
        continue;
      }
      const std::uint64_t inside = (1ULL << shift) - 1;
      r.pa = PA{(e & 0xFFFFFFFFFF000 & ~inside) | (va & inside)};
      r.page_shift = shift;
      return finish(r, e);
    }
  }

  void note(ModelResult& r, PA pa, std::uint64_t e, unsigned size) {
    if (r.used.empty()) user_ = write_ = execute_ = true;
    r.used.push_back({pa, e | 0x20, size});
    user_ = user_ && (e & 4) != 0;
    write_ = write_ && (e & 2) != 0;
    execute_ = execute_ && !(size == 8 && c_.nxe && e >> 63 != 0);
  }

  /// SDM 3A 4.6.1: the rights of this privilege without protection keys.
  [[nodiscard]] bool paging_allows(AccessKind kind) const {
    if (access_.user) {
      if (!user_) return false;
      if (kind == AccessKind::write) return write_;
      return kind == AccessKind::read || execute_;
    }
    switch (kind) {
      case AccessKind::read:
        return !user_ || !c_.smap || access_.ac;
      case AccessKind::write:
        if (user_ && c_.smap && !access_.ac) return false;
        return write_ || !c_.wp;
      case AccessKind::execute:
        return execute_ && !(user_ && c_.smep);
    }
    return false;
  }
  /// SDM 3A 4.6.2.
  [[nodiscard]] bool key_allows(AccessKind kind, std::uint64_t leaf) const {
    if (!c_.pke || c_.mode != PagingMode::long4 || !user_) return true;
    const unsigned key = leaf >> 59 & 0xF;
    const bool access_disable = (c_.pkru >> (2 * key) & 1) != 0;
    const bool write_disable = (c_.pkru >> (2 * key + 1) & 1) != 0;
    if (kind == AccessKind::execute) return true;
    if (access_disable) return false;
    if (kind == AccessKind::write && write_disable) return !access_.user && !c_.wp;
    return true;
  }

  ModelResult finish(ModelResult& r, std::uint64_t leaf) {
    // PK is set whenever the key denies the access, whatever else does (SDM 3A 4.7).
    const bool key_ok = key_allows(access_.kind, leaf);
    if (!key_ok || !paging_allows(access_.kind)) return fault(r, key_ok ? 1 : 0x21);
    r.permitted = true;
    if (access_.kind == AccessKind::write) r.used.back().after |= 0x40;
    r.global = c_.pge && (leaf & 0x100) != 0;
    const auto both = [&](AccessKind kind) {
      return paging_allows(kind) && key_allows(kind, leaf);
    };
    r.readable = both(AccessKind::read);
    r.executable = both(AccessKind::execute);
    r.writable = both(AccessKind::write) && (r.used.back().after & 0x40) != 0;
    return r;
  }

  const PagingContext& c_;
  Load load_;
  Access access_{};
  bool user_ = true, write_ = true, execute_ = true;
};
template <class Load>
Model(const PagingContext&, Load) -> Model<Load>;

}  // namespace strata::shadow::test
