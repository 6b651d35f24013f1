// Decoded blocks, keyed by physical address and decode mode, in an arena of bounded size.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engines/interp/uop.hpp"
#include "mmu/address.hpp"
#include "mmu/flush.hpp"

namespace strata::interp {

/// Owned by one vCPU thread. Blocks live until flush(); a dropped block's steps are turned into
/// "look up again" steps, so whoever still links to it finds out by running it.
class BlockCache {
 public:
  /// `bytes`: the arena's size. `stale` is the handler put over the steps of dropped blocks.
  BlockCache(std::size_t bytes, Handler stale);

  /// A block that starts at `pa`, or null.
  [[nodiscard]] Block* find(PA pa, unsigned mode_key) const noexcept;
  /// Room for a block of `steps` steps; null when the arena is full: flush() and ask again.
  [[nodiscard]] Block* allocate(std::size_t steps) noexcept;
  /// Makes a filled-in block findable.
  void insert(Block* block);

  [[nodiscard]] bool page_has_code(PPN ppn) const noexcept { return pages_.contains(ppn); }
  /// May say yes where there is none.
  [[nodiscard]] bool any_code_in(const std::vector<PpnRange>& ranges) const noexcept;
  /// From now on the page counts as having code, though no block has been inserted yet.
  void claim(PPN ppn) { pages_.try_emplace(ppn, nullptr); }
  /// Drops the blocks that overlap the bytes. Returns how many; a page left without blocks no
  /// longer counts as having code, which `emptied(ppn)` hears.
  template <class Emptied>
  std::size_t drop(PA pa, std::uint64_t length, Emptied&& emptied) {
    std::size_t dropped = 0;
    const PA end = pa + length;
    for (PPN ppn = page_of(pa); address_of(ppn) < end; ppn = ppn + 1) {
      const auto page = pages_.find(ppn);
      if (page == pages_.end()) continue;
      dropped += drop_in_page(page->second, pa, end);
      if (page->second != nullptr) continue;
      pages_.erase(page);
      emptied(ppn);
    }
    return dropped;
  }
  template <class Visit>
  void for_each_page(Visit&& visit) const {
    for (const auto& page : pages_) visit(page.first);
  }
  /// Forgets everything and starts the arena anew. No block may be executing.
  void flush() noexcept;

  /// The bytes a page-crossing block was decoded from. Such a block is compared with memory each
  /// time it is found, since nobody watches its second page.
  using CrossingBytes = std::array<std::byte, 16>;
  void remember_crossing(const Block* block, const CrossingBytes& bytes) {
    crossing_[block] = bytes;
  }
  [[nodiscard]] const CrossingBytes& crossing(const Block* block) const {
    return crossing_.at(block);
  }

  /// Grows with every flush(): pointers into the arena from before are dead.
  [[nodiscard]] std::uint64_t flushes() const noexcept { return flushes_; }
  [[nodiscard]] std::size_t bytes() const noexcept;

 private:
  [[nodiscard]] std::size_t bucket(PA pa, unsigned mode_key) const noexcept;
  std::size_t drop_in_page(Block*& first, PA pa, PA end) noexcept;
  void unhash(Block* block) noexcept;

  Handler stale_;
  std::size_t size_;
  std::size_t used_ = 0;
  std::unique_ptr<std::byte[]> arena_;
  std::vector<Block*> buckets_;
  std::uint64_t flushes_ = 0;
  std::unordered_map<const Block*, CrossingBytes> crossing_;
  std::unordered_map<PPN, Block*> pages_;  ///< pages with code, each with its list of blocks
};

}  // namespace strata::interp
