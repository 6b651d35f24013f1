#include "paging_model.hpp"

namespace strata::conformance {
namespace {

constexpr bool on(std::uint64_t word, unsigned bit) { return (word >> bit & 1) != 0; }

/// Bits `high` down to `low` of `word`, in place, as the manual numbers them.
constexpr std::uint64_t field(std::uint64_t word, unsigned high, unsigned low) {
  std::uint64_t out = 0;
  for (unsigned n = low; n <= high; ++n) out |= word & (std::uint64_t{1} << n);
  return out;
}

class Walk {
 public:
  Walk(const PagingContext& context, VA va, Access access, const EntryReader& read)
      : c_{context}, va_{va.value()}, a_{access}, read_{read} {}

  Prediction run() {
    switch (c_.mode) {
      case PagingMode::off:
        return unpaged();
      case PagingMode::i386:
        return thirty_two_bit();
      case PagingMode::pae:
        return pae();
      default:
        return four_level();
    }
  }

 private:
  Prediction unpaged() {
    out_.allowed = true;
    out_.pa = PA{field(va_, 31, 0)};
    return out_;
  }

  // 4.3: a PDE at CR3[31:12] | VA[31:22] << 2, a PTE at PDE[31:12] | VA[21:12] << 2.
  Prediction thirty_two_bit() {
    const std::uint64_t pde =
        use(PA{field(c_.root.value(), 31, 12) + field(va_, 31, 22) / 0x400000 * 4}, 4);
    if (!on(pde, 0)) return not_present();
    if (c_.pse && on(pde, 7)) {
      // Table 4-4: bits (M-20):13 are address bits (M-1):32, bits 21:(M-19) are reserved, where M
      // is the lesser of 40 and MAXPHYADDR.
      const unsigned m = c_.maxphyaddr < 40 ? c_.maxphyaddr : 40;
      if (field(pde, 21, m - 19) != 0) return reserved();
      const std::uint64_t high = field(pde, 20, 13) / 0x2000 * 0x1'0000'0000;
      return page(field(pde, 31, 22) + high, 22, pde);
    }
    const std::uint64_t pte = use(PA{field(pde, 31, 12) + field(va_, 21, 12) / 0x1000 * 4}, 4);
    if (!on(pte, 0)) return not_present();
    return page(field(pte, 31, 12), 12, pte);
  }

  // 4.4: four PDPTE registers, loaded with CR3; then as in four levels.
  Prediction pae() {
    va_ = field(va_, 31, 0);
    const std::uint64_t pdpte = c_.pdpte.at(va_ / 0x4000'0000);
    if (!on(pdpte, 0)) return not_present();
    // Table 4-8. A load of CR3 refuses them (4.4.1), so only a state from elsewhere can hold them.
    if (field(pdpte, 2, 1) != 0 || field(pdpte, 8, 5) != 0 ||
        field(pdpte, 63, c_.maxphyaddr) != 0) {
      return reserved();
    }
    return directory(field(pdpte, 51, 12));
  }

  // 4.5.4.
  Prediction four_level() {
    const std::uint64_t top =
        use(PA{field(c_.root.value(), 51, 12) + field(va_, 47, 39) / 0x80'0000'0000 * 8}, 8);
    if (!on(top, 0)) return not_present();
    if (on(top, 7) || wide_reserved(top)) return reserved();  // table 4-15: PS must be 0
    const std::uint64_t pdpte =
        use(PA{field(top, 51, 12) + field(va_, 38, 30) / 0x4000'0000 * 8}, 8);
    if (!on(pdpte, 0)) return not_present();
    if (wide_reserved(pdpte)) return reserved();
    if (on(pdpte, 7)) {
      // Table 4-16; without 1-GByte pages PS must be 0.
      if (!c_.huge_pages || field(pdpte, 29, 13) != 0) return reserved();
      return page(field(pdpte, 51, 30), 30, pdpte);
    }
    return directory(field(pdpte, 51, 12));
  }

  Prediction directory(std::uint64_t table) {
    const std::uint64_t pde = use(PA{table + field(va_, 29, 21) / 0x20'0000 * 8}, 8);
    if (!on(pde, 0)) return not_present();
    if (wide_reserved(pde)) return reserved();
    if (on(pde, 7)) {
      if (field(pde, 20, 13) != 0) return reserved();  // tables 4-9 and 4-17
      return page(field(pde, 51, 21), 21, pde);
    }
    const std::uint64_t pte = use(PA{field(pde, 51, 12) + field(va_, 20, 12) / 0x1000 * 8}, 8);
    if (!on(pte, 0)) return not_present();
    if (wide_reserved(pte)) return reserved();
    return page(field(pte, 51, 12), 12, pte);
  }

  /// What entries of 8 bytes reserve whatever they are: addresses beyond MAXPHYADDR, XD without
  /// EFER.NXE, and in PAE all above the address.
  [[nodiscard]] bool wide_reserved(std::uint64_t e) const {
    if (c_.maxphyaddr < 52 && field(e, 51, c_.maxphyaddr) != 0) return true;
    if (c_.mode == PagingMode::pae && field(e, 62, 52) != 0) return true;
    return on(e, 63) && !c_.nxe;
  }

  std::uint64_t use(PA address, unsigned bytes) {
    const std::uint64_t e = read_(address, bytes);
    out_.used.at(out_.entries++) = {address, bytes, e, e};
    every_rw_ = every_rw_ && on(e, 1);
    every_us_ = every_us_ && on(e, 2);
    any_xd_ = any_xd_ || (bytes == 8 && on(e, 63));
    return e;
  }

  // 4.7: P, W/R, U/S, RSVD, I/D, PK.
  Prediction fault(std::uint32_t bits) {
    if (a_.kind == AccessKind::write) bits |= 0x2;
    if (a_.user) bits |= 0x4;
    const bool wide = c_.mode == PagingMode::pae || c_.mode == PagingMode::long4;
    if (a_.kind == AccessKind::execute && (c_.smep || (wide && c_.nxe))) bits |= 0x10;
    out_.code = bits;
    return out_;
  }
  Prediction not_present() { return fault(0); }
  Prediction reserved() { return fault(0x1 | 0x8); }

  /// All entries are there and well-formed: 4.6, then 4.8.
  Prediction page(std::uint64_t base, unsigned shift, std::uint64_t leaf) {
    const bool key = key_forbids(leaf);
    if (key || !rights_allow()) return fault(key ? 0x1 | 0x20 : 0x1);
    out_.allowed = true;
    out_.page_shift = shift;
    out_.pa = PA{base + field(va_, shift - 1, 0)};
    out_.global = c_.pge && on(leaf, 8);
    for (unsigned i = 0; i < out_.entries; ++i) out_.used.at(i).after |= 0x20;
    if (a_.kind == AccessKind::write) out_.used.at(out_.entries - 1).after |= 0x40;
    return out_;
  }

  // 4.6.1, in its own order. "User-mode address": U/S is 1 in every entry.
  [[nodiscard]] bool rights_allow() const {
    const bool xd = any_xd_ && c_.nxe;
    if (!a_.user) {
      switch (a_.kind) {
        case AccessKind::read:
          return !every_us_ || !c_.smap || a_.ac;
        case AccessKind::write:
          if (every_us_ && c_.smap && !a_.ac) return false;
          return !c_.wp || every_rw_;
        default:
          if (every_us_) return !c_.smep && !xd;
          return !xd;
      }
    }
    if (!every_us_) return false;
    switch (a_.kind) {
      case AccessKind::read:
        return true;
      case AccessKind::write:
        return every_rw_;
      default:
        return !xd;
    }
  }

  // 4.6.2: four-level paging, data accesses, user-mode addresses.
  [[nodiscard]] bool key_forbids(std::uint64_t leaf) const {
    if (c_.mode != PagingMode::long4 || !c_.pke || !every_us_) return false;
    if (a_.kind == AccessKind::execute) return false;
    const unsigned key = static_cast<unsigned>(leaf >> 59 & 15);
    const bool access_disable = on(c_.pkru, 2 * key);
    const bool write_disable = on(c_.pkru, 2 * key + 1);
    if (access_disable) return true;
    return write_disable && a_.kind == AccessKind::write && (a_.user || c_.wp);
  }

  const PagingContext& c_;
  std::uint64_t va_;
  Access a_;
  const EntryReader& read_;
  Prediction out_;
  bool every_rw_ = true, every_us_ = true, any_xd_ = false;
};

}  // namespace

Prediction predict(const PagingContext& context, VA va, Access access, const EntryReader& read) {
  return Walk{context, va, access, read}.run();
}

}  // namespace strata::conformance
