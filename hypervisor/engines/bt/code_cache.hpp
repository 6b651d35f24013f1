// Translated blocks of one vCPU, keyed by physical address and mode, in executable memory of
// bounded size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "engines/bt/code_unit.hpp"

namespace strata::bt {

/// A jump to another page that may be linked for one VA and context at a time: what is to be filled
/// in, as distances from its beginning. Emitter::go_far() makes it.
struct FarJump {
  static constexpr std::uint64_t kPageVa = 2, kContext = 26;  ///< operands of MOV
  static constexpr std::uint64_t kJump = 64;                  ///< to the target
  static constexpr std::uint64_t kMiss = 90;                  ///< taken elsewhere, or otherwise
};
/// What it is linked for.
struct FarLink {
  /// Neither a page's VA nor a context.
  static constexpr std::uint64_t kNever = 1;
  std::uint64_t page_va = kNever;
  std::uint64_t context = kNever;
  std::uint64_t target = 0;
  std::uint64_t miss = 0;  ///< what finds the way where the link is not for
};

/// Where code leads that is not linked.
struct UnlinkedTargets {
  std::uint64_t stale = 0;  ///< from blocks once they are dropped, with their entry in R10
  std::uint64_t far = 0;    ///< from a FarJump
};

/// Used by one vCPU thread. The same pages are mapped twice, executable and writable, and never
/// both at one address.
///
/// Its memory is divided into units that are filled one after the other, round and round: the unit
/// whose turn it is goes as a whole, with everything known of its blocks, and nothing of the other
/// units leads into it any more. What has been translated lately stays.
class CodeCache {
 public:
  static constexpr std::size_t kMaxUnits = 8;

  /// `budget` is for code and tables, all together. No memory (size() 0) if the host refuses it, or
  /// has none left below 2 GiB, or if the budget does not even hold one unit.
  explicit CodeCache(std::size_t budget);
  CodeCache(const CodeCache&) = delete;
  CodeCache& operator=(const CodeCache&) = delete;
  ~CodeCache();

  /// Of the code.
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// Where the next code goes.
  [[nodiscard]] std::uint64_t cursor() const noexcept { return unit().next(); }
  /// Makes sure that a block finds room at cursor(). Returns what had to go for it, which host code
  /// outside of the cache must not jump to any more.
  [[nodiscard]] CodeRange make_room() noexcept;
  /// Copies code to cursor(). False: it is longer than any block may be.
  [[nodiscard]] bool append(std::span<const std::uint8_t> code) noexcept;
  /// Keeps everything appended so far for good: stubs, these among them.
  void keep(const UnlinkedTargets& unlinked) noexcept;

  /// Makes the jump whose 32-bit distance lies at `field`, and which leads behind itself until
  /// then, go to `target`: as long as there is code.
  void link(std::uint64_t field, std::uint64_t target);
  /// Fills in a FarJump that begins at `at`: as long as there is code, or until the next time.
  void link_far(std::uint64_t at, const FarLink& link);

  [[nodiscard]] const TranslatedBlock* find(PA pa, std::uint32_t key) const noexcept;
  /// The same for an instruction that goes on in `second`.
  [[nodiscard]] const TranslatedBlock* find_crossing(PA pa, std::uint32_t key,
                                                     PPN second) const noexcept;
  const TranslatedBlock* insert(const TranslatedBlock& block);
  /// Drops the blocks that overlap the bytes: each one's first instructions become
  /// "go to the stale stub with the block's entry in R10". Returns how many.
  std::size_t drop(PA pa, std::uint64_t length) noexcept;
  /// Of a dropped block: where in its page it began.
  [[nodiscard]] std::uint16_t dropped_offset(std::uint32_t entry) const noexcept {
    return static_cast<std::uint16_t>(units_[unit_of(entry)].block_with(entry).pa.page_offset());
  }
  /// A dropped block goes straight to `target` from now on, as long as there is code.
  void redirect(std::uint32_t entry, std::uint64_t target);
  [[nodiscard]] bool has_code(PPN ppn) const noexcept;
  /// Drops everything.
  void flush() noexcept;
  /// Grows with everything that goes, by drop() too.
  [[nodiscard]] std::uint64_t changes() const noexcept { return changes_; }
  /// Grows whenever code that was there may be gone for good, and other code be in its place.
  [[nodiscard]] std::uint64_t evictions() const noexcept { return evictions_; }

  std::uint32_t add_site(const Site& site) {
    std::deque<Site>& sites = unit().sites;
    sites.push_back(site);
    return static_cast<std::uint32_t>(current_ << kSiteBits | (sites.size() - 1));
  }
  [[nodiscard]] Site& site(std::uint32_t index) noexcept {
    return units_[index >> kSiteBits].sites[index & ((1U << kSiteBits) - 1)];
  }
  /// Keeps the steps of an instruction that stays with the interpreter, for a Site.
  [[nodiscard]] std::uint32_t add_steps(std::span<const interp::Uop> steps) {
    return unit().add_steps(steps);
  }
  [[nodiscard]] interp::Block* steps(const Site& site) noexcept {
    return units_[unit_of(site.resume)].steps(site.steps);
  }

  /// Translated code or a stub lies at the host address. As find_fault().
  [[nodiscard]] bool holds(std::uint64_t at) const noexcept { return at - executable_ < size_; }
  /// In the order of addresses.
  void add_fault(const FaultRange& range) { unit().faults.push_back(range); }
  /// Where to go on after a fault at the host address; 0: no access that was announced. May be
  /// called by a signal handler of the thread that executes the code.
  [[nodiscard]] std::uint64_t find_fault(std::uint64_t at) const noexcept {
    return holds(at) ? units_[unit_of(at)].find_fault(at) : 0;
  }

  /// Host memory in use; never more than the budget.
  [[nodiscard]] std::size_t bytes() const noexcept;

 private:
  static constexpr unsigned kSiteBits = 24;

  [[nodiscard]] CodeUnit& unit() noexcept { return units_[current_]; }
  [[nodiscard]] const CodeUnit& unit() const noexcept { return units_[current_]; }
  [[nodiscard]] std::size_t unit_of(std::uint64_t at) const noexcept {
    return static_cast<std::size_t>(at - executable_) / unit_bytes_;
  }
  [[nodiscard]] bool map(std::size_t bytes) noexcept;
  [[nodiscard]] std::byte* writable(std::uint64_t at) noexcept {
    return writable_ + (at - executable_);
  }
  [[nodiscard]] std::size_t bucket(PA pa, std::uint32_t key) const noexcept;
  [[nodiscard]] std::size_t page_slot(PPN ppn) const noexcept;
  [[nodiscard]] std::size_t crossing_slot(PPN second) const noexcept;
  void patch_jump(std::uint64_t field, std::uint64_t target) noexcept;
  void lead_to_stale(std::uint32_t entry) noexcept;
  /// Notes that code at `at` leads to `target`. False: it may not.
  [[nodiscard]] bool note_link(std::uint64_t at, std::uint64_t target, LinkKind kind);
  void fill_in(std::uint64_t at, const FarLink& link) noexcept;
  [[nodiscard]] std::uint64_t far_target(std::uint64_t at) noexcept;
  void undo(const Link& link) noexcept;
  void evict(std::size_t which) noexcept;
  /// Nobody finds the block any more.
  void unlist(const TranslatedBlock& block) noexcept;
  /// ... and whoever jumps to it is sent on.
  void retire(TranslatedBlock& block) noexcept;
  std::size_t drop_in_page(PPN ppn, PA pa, PA end) noexcept;
  std::size_t drop_crossing_into(PPN ppn) noexcept;

  std::size_t size_ = 0;
  std::size_t unit_bytes_ = 0;
  std::uint64_t executable_ = 0;
  std::byte* writable_ = nullptr;
  UnlinkedTargets unlinked_;
  std::uint64_t changes_ = 0;
  std::uint64_t evictions_ = 0;
  std::deque<CodeUnit> units_;
  std::size_t current_ = 0;
  std::vector<TranslatedBlock*> buckets_;  ///< lists by address and key
  std::vector<TranslatedBlock*> pages_;    ///< lists by page
  std::vector<Crossing*> crossings_;       ///< lists by second page
};

}  // namespace strata::bt
