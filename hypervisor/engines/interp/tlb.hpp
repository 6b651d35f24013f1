// The interpreter's TLB: direct mapped, tagged with the PCID, split by privilege. Its layout is
// fixed here because the inlined fast paths of core.hpp (and later translated code) rely on it.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "engines/interp/low_memory.hpp"
#include "engines/interp/tlb_mirror.hpp"
#include "mmu/address.hpp"
#include "mmu/flush.hpp"
#include "mmu/mmu.hpp"

namespace strata::interp {

/// Accesses of different privilege see different rights, so each has a TLB of its own.
enum TlbMode : std::uint8_t {
  kSupervisor = 0,    ///< CPL < 3, or implicit supervisor access, with SMAP in force
  kUser = 1,          ///< CPL 3
  kSupervisorAc = 2,  ///< CPL < 3 where user pages may be reached (AC set, or no SMAP)
};
inline constexpr std::size_t kTlbModes = 3;
/// Systems that give user mode tables of its own (Linux's page-table isolation) go back and forth
/// between two PCIDs with every system call and use the same addresses under both. Linux tells
/// them by bit 11: such pairs have entries apart.
inline constexpr std::size_t kTlbBanks = 2;
[[nodiscard]] constexpr std::size_t tlb_bank(std::uint16_t pcid) noexcept { return pcid >> 11 & 1; }
/// 64 MiB of reach. Host memory is touched only where entries are used.
inline constexpr std::size_t kTlbEntries = 16384;
/// Bits of a tag's PCID that choose among places in a bank.
inline constexpr std::size_t kTlbPlaces = 4;
/// Where in its bank the entry of a page is. Processes use the same addresses, the kernel's above
/// all: a quarter of the bank apart they do not evict each other's entries.
[[nodiscard]] constexpr std::size_t tlb_index(std::uint64_t va, std::uint16_t pcid) noexcept {
  return (va >> kPageShift ^ std::uint64_t{pcid} * (kTlbEntries / kTlbPlaces)) & (kTlbEntries - 1);
}
inline constexpr std::uint64_t kNoTag = ~0ULL;  // never equal to (page | pcid) of a canonical VA

/// One data translation. A tag is the VA's page base with the PCID in the low 12 bits.
struct TlbEntry {
  std::uint64_t read_tag = kNoTag;
  std::uint64_t write_tag = kNoTag;
  std::uint64_t addend = 0;  ///< host pointer = VA + addend (modulo 2^64)
  /// PA page base; bit 0 global, bits 1-6 guest page shift, bit 7 set while the entry is listed as
  /// filled.
  std::uint64_t pa_and_flags = 0;
};
static_assert(sizeof(TlbEntry) == 32);

/// One instruction-fetch translation.
struct FetchEntry {
  std::uint64_t tag = kNoTag;
  std::uint64_t addend = 0;
  std::uint64_t pa_and_flags = 0;
};
inline constexpr std::size_t kFetchEntries = 256;

/// Which pages code is known by its VA from, so that only a flush of one of those makes such
/// knowledge stale: separate for supervisor and user, whose pages come and go at different rates.
/// Owned by one vCPU thread.
class FetchedPages {
 public:
  /// Grows when anything known of the privilege's code by VA may be stale.
  [[nodiscard]] std::uint64_t generation(bool user) const noexcept {
    return of_[user ? 1 : 0].generation;
  }
  /// All that is known came by global pages, which every address space has (SDM 3A 4.10.2.4).
  [[nodiscard]] bool all_global(bool user) const noexcept { return !of_[user ? 1 : 0].non_global; }
  /// Code at `va` is about to be known; `pa_and_flags` as in FetchEntry.
  void note(bool user, VA va, std::uint64_t pa_and_flags) noexcept;
  void flush_all() noexcept;
  void flush_non_global() noexcept;
  void flush_page(VA va) noexcept;

 private:
  static constexpr unsigned kBits = 12, kRegionShift = 22;
  struct Privilege {
    std::uint64_t generation = 1;
    bool any = false;
    bool non_global = false;
    bool huge = false;                 ///< of a page larger than a region
    std::bitset<1U << kBits> pages;    ///< 4 KiB pages, hashed
    std::bitset<1U << kBits> regions;  ///< 4 MiB regions with large pages, hashed
  };
  static void stale(Privilege& p) noexcept;
  std::array<Privilege, 2> of_{};
};

/// Which guest-physical pages may be held, so that nothing is searched for the others.
class HeldPages {
 public:
  void note(PPN ppn) noexcept { held_.set(bit_of(ppn)); }
  [[nodiscard]] bool may_hold(const PpnRange& range) const noexcept;
  void clear() noexcept { held_.reset(); }

 private:
  static constexpr unsigned kBits = 18;
  [[nodiscard]] static std::size_t bit_of(PPN ppn) noexcept {
    return static_cast<std::size_t>(ppn.value()) & ((std::size_t{1} << kBits) - 1);
  }
  std::bitset<std::size_t{1} << kBits> held_;
};

/// Owned by one vCPU thread; nobody else touches it.
class Tlb {
 public:
  Tlb();
  [[nodiscard]] TlbEntry& slot(TlbMode mode, VA va, std::uint16_t pcid) noexcept {
    return bank(mode, pcid)[tlb_index(va.value(), pcid)];
  }
  /// The entries that slot() chooses from.
  [[nodiscard]] TlbEntry* bank(TlbMode mode, std::uint16_t pcid) noexcept {
    return data_[mode + kTlbModes * tlb_bank(pcid)].data();
  }
  [[nodiscard]] FetchEntry& fetch_slot(bool user, VA va) noexcept {
    return fetch_[user ? 1 : 0][va.value() >> kPageShift & (kFetchEntries - 1)];
  }
  [[nodiscard]] static constexpr std::uint64_t tag(VA va, std::uint16_t pcid) noexcept {
    return (va.value() & ~kPageMask) | pcid;
  }
  [[nodiscard]] static constexpr std::uint64_t pack(const Translation& t) noexcept {
    return t.pa.value() | (t.global ? 1U : 0U) | static_cast<std::uint64_t>(t.page_shift) << 1;
  }

  /// Fills the data entry for `va`; `cache_write` false leaves stores on the slow path.
  void fill(TlbMode mode, VA va, std::uint16_t pcid, const Translation& t, std::byte* page,
            bool cache_write) noexcept;
  void fill_fetch(bool user, VA va, std::uint16_t pcid, const Translation& t,
                  std::byte* page) noexcept;

  /// Drops the data entry of `va`: every access to a watched page goes the slow way.
  void forget(TlbMode mode, VA va, std::uint16_t pcid) noexcept {
    TlbEntry& e = slot(mode, va, pcid);
    e.read_tag = e.write_tag = kNoTag;
  }
  void flush_all() noexcept;
  /// From now on `mirror`, which outlives this, hears of everything that goes. Null: nobody.
  void set_mirror(TlbMirror* mirror) noexcept { mirror_ = mirror; }
  /// Calls f(VA, const TlbEntry&) for the data entries of a mode and an ASID.
  template <class F>
  void for_each(TlbMode mode, std::uint16_t pcid, F&& f) {
    const auto& entries = data_[mode + kTlbModes * tlb_bank(pcid)];
    for (const TlbEntry* e : filled_) {
      if (e < entries.data() || e >= entries.data() + kTlbEntries) continue;
      const std::uint64_t t = e->read_tag != kNoTag ? e->read_tag : e->write_tag;
      if (t != kNoTag && (t & kPageMask) == pcid) f(VA{t & ~kPageMask}, *e);
    }
  }

  /// What stands for a PCID in tags. To flush a PCID is to forget its number and take a new one:
  /// nothing has to be searched. Number 0 is never given out and is for when PCIDs are off.
  /// Nothing: the numbers are used up; flush_all() and restart_asids().
  [[nodiscard]] std::optional<std::uint16_t> asid(std::uint16_t pcid) noexcept;
  void forget_asid(std::uint16_t pcid) noexcept {
    if (mirror_ != nullptr && asids_[pcid] != kNoAsid) mirror_->flush_asid(asids_[pcid], false);
    asids_[pcid] = kNoAsid;
  }
  void restart_asids() noexcept;
  /// Entries of `pcid` (or of every PCID), globals kept when `keep_global`.
  void flush_pcid(std::uint16_t pcid, bool every_pcid, bool keep_global) noexcept;
  /// INVLPG: the page of `va`, whatever its size; of `pcid` or global.
  void flush_page(VA va, std::uint16_t pcid) noexcept;
  /// What is held for the 4 KiB page of `va`, by any PCID. True: a fetch translation was among it.
  bool forget(VA va) noexcept;
  /// Entries that lead to these guest-physical pages.
  void flush_physical(const std::vector<PpnRange>& ranges) noexcept;
  /// Write permission of entries that lead to `ppn`: before its code is cached.
  void revoke_writes(PPN ppn) noexcept;
  void revoke_all_writes() noexcept;
  [[nodiscard]] static constexpr std::size_t bytes() noexcept {
    return sizeof(TlbEntry) * kTlbModes * kTlbBanks * kTlbEntries +
           sizeof(FetchEntry) * 2 * kFetchEntries + (sizeof(Fragments) << kFragmentBits) +
           sizeof(HeldPages);
  }

 private:
  /// The 4 KiB fragments of large pages that may be cached from one aligned 4 MiB of addresses (one
  /// or two large pages), so that INVLPG finds them without looking at every entry.
  struct Fragments {
    std::uint64_t region = kNoTag;  ///< VA >> 22
    bool many = false;              ///< more than fit, or of a second region: look everywhere
    std::uint8_t count = 0;
    std::array<std::uint16_t, 7> page{};  ///< 4 KiB pages within the region
  };
  static constexpr std::uint16_t kNoAsid = 0xFFFF;
  static constexpr unsigned kRegionShift = 22, kFragmentBits = 12;
  [[nodiscard]] Fragments& fragments_of(VA va) noexcept {
    constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ULL;
    return fragments_[(va.value() >> kRegionShift) * kGolden >> (64 - kFragmentBits)];
  }
  void note_size(VA va, unsigned page_shift) noexcept;
  template <class Predicate>
  void drop_if(Predicate&& predicate) noexcept;
  template <class Predicate>
  void drop_at(VA va, Predicate&& predicate) noexcept;

  TlbMirror* mirror_ = nullptr;
  std::vector<std::array<TlbEntry, kTlbEntries>, LowAllocator<std::array<TlbEntry, kTlbEntries>>>
      data_;
  /// Every entry that may hold something, so that a flush costs what there is to flush.
  std::vector<TlbEntry*> filled_;
  HeldPages held_;  ///< by any entry
  std::vector<std::array<FetchEntry, kFetchEntries>> fetch_;
  std::vector<Fragments> fragments_;
  /// The GiB of addresses from which something of a page beyond 4 MiB may be cached.
  std::vector<std::uint64_t> huge_;
  std::vector<std::uint16_t> asids_;                ///< by PCID; kNoAsid
  std::array<std::uint16_t, kTlbBanks> next_asid_;  ///< by bank
};

}  // namespace strata::interp
