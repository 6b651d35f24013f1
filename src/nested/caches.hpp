// What a processor keeps of earlier walks: paging-structure caches and the nested TLB. They belong
// to one vCPU; whoever touches one holds that vCPU's lock.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "machine/walk.hpp"
#include "mmu/address.hpp"
#include "mmu/fault.hpp"

namespace strata::nested {

/// `Sets` x `Ways` entries found by a 64-bit key; a full set loses its oldest entry. `Sets` is a
/// power of two. Not synchronised.
template <class Value, std::size_t Sets, std::size_t Ways>
class SetAssociative {
  static_assert((Sets & (Sets - 1)) == 0, "the set is chosen by masking the key");

 public:
  static constexpr std::size_t kSets = Sets;
  static constexpr std::size_t kEntries = Sets * Ways;

  /// Keys are anything but all ones. Null when nothing is remembered under `key`.
  [[nodiscard]] const Value* find(std::uint64_t key) const noexcept {
    const Set& set = sets_[index_of(key)];
    for (const Way& way : set.ways) {
      if (way.key == key) return &way.value;
    }
    return nullptr;
  }
  void put(std::uint64_t key, const Value& value) noexcept {
    Set& set = sets_[index_of(key)];
    Way* way = nullptr;
    for (Way& w : set.ways) {
      if (w.key == key) way = &w;
    }
    if (way == nullptr) {
      way = &set.ways[set.next];
      set.next = (set.next + 1) % Ways;
    }
    *way = {key, value};
  }
  void drop(std::uint64_t key) noexcept {
    for (Way& way : sets_[index_of(key)].ways) {
      if (way.key == key) way.key = kEmpty;
    }
  }
  /// Forgets every entry whose key satisfies `condition`.
  template <class Condition>
  void drop_if(Condition condition) noexcept {
    for (Set& set : sets_) {
      for (Way& way : set.ways) {
        if (way.key != kEmpty && condition(way.key)) way.key = kEmpty;
      }
    }
  }
  void clear() noexcept {
    drop_if([](std::uint64_t) { return true; });
  }
  [[nodiscard]] std::size_t size() const noexcept {
    std::size_t used = 0;
    for (const Set& set : sets_) {
      for (const Way& way : set.ways) used += way.key != kEmpty ? 1 : 0;
    }
    return used;
  }

 private:
  static constexpr std::uint64_t kEmpty = ~0ULL;
  struct Way {
    std::uint64_t key = kEmpty;
    Value value{};
  };
  struct Set {
    std::array<Way, Ways> ways{};
    std::size_t next = 0;
  };
  /// Keys with a tag in the low 12 bits must spread by what is above it, too.
  [[nodiscard]] static std::size_t index_of(std::uint64_t key) noexcept {
    return static_cast<std::size_t>(key ^ key >> 12) & (Sets - 1);
  }
  std::array<Set, Sets> sets_{};
};

/// Remembers interior entries, so that a walk can start below the root (SDM 3A 4.10.3: PDE, PDPTE
/// and PML4E caches). Entries carry a tag: the PCID for guest tables, 0 for nested tables. Only
/// entries whose accessed bit is set are remembered, so a walk from here owes no updates above.
class PagingStructureCache {
 public:
  /// The lowest table known on the way to `input`.
  template <class Format>
  [[nodiscard]] std::optional<machine::WalkStart> find(std::uint64_t input,
                                                       std::uint16_t tag) const noexcept {
    for (unsigned level = 1; level < Format::kLevels; ++level) {
      if (const auto* start = at(level).find(key_of<Format>(input, level, tag))) return *start;
    }
    return std::nullopt;
  }
  /// Remembers the interior entries of a successful walk that started at `top`.
  template <class Format>
  void fill(std::uint64_t input, std::uint16_t tag, const machine::WalkResult& walk,
            unsigned top) noexcept {
    for (unsigned level = walk.leaf_level + 1; level <= top; ++level) {
      const machine::WalkStep& step = walk.steps[level];
      const std::uint64_t table =
          Format::table_address(static_cast<typename Format::Entry>(step.entry));
      at(level - 1).put(key_of<Format>(input, level - 1, tag), {table, level - 1, step.rights});
    }
  }
  /// Forgets what a walk to `input` could use.
  template <class Format>
  void drop(std::uint64_t input, std::uint16_t tag) noexcept {
    for (unsigned level = 1; level < Format::kLevels; ++level) {
      at(level).drop(key_of<Format>(input, level, tag));
    }
  }
  /// Forgets every entry of `tag`: what INVLPG and a CR3 load do (SDM 3A 4.10.4.1).
  void drop_tag(std::uint16_t tag) noexcept {
    for (auto& level : levels_) {
      level.drop_if([tag](std::uint64_t key) { return (key & kTagMask) == tag; });
    }
  }
  void clear() noexcept {
    for (auto& level : levels_) level.clear();
  }
  [[nodiscard]] std::size_t size() const noexcept {
    std::size_t used = 0;
    for (const auto& level : levels_) used += level.size();
    return used;
  }

 private:
  using Level = SetAssociative<machine::WalkStart, 16, 4>;
  static constexpr std::uint64_t kTagMask = 0xFFF;  ///< a PCID has 12 bits (SDM 3A 4.10.1)

  /// What decides the table at `level`: the input bits above it. Inputs have 48 significant bits.
  template <class Format>
  static std::uint64_t key_of(std::uint64_t input, unsigned level, std::uint16_t tag) noexcept {
    const std::uint64_t prefix = (input & machine::bit_range(0, 47)) >> Format::shift(level + 1);
    return prefix << 12 | (tag & kTagMask);
  }
  [[nodiscard]] Level& at(unsigned level) noexcept { return levels_[level - 1]; }
  [[nodiscard]] const Level& at(unsigned level) const noexcept { return levels_[level - 1]; }

  std::array<Level, 3> levels_{};
};

/// One guest-physical page as the nested tables map it.
struct NestedPage {
  MA page{};
  bool readable = false;
  bool writable = false;  ///< permitted, and the nested dirty bit is set where there is one
  bool executable = false;
  bool clean = false;  ///< writes are permitted, but the nested dirty bit is not set yet
  [[nodiscard]] constexpr bool allows(AccessKind kind) const noexcept {
    if (kind == AccessKind::write) return writable;
    return kind == AccessKind::execute ? executable : readable;
  }
};

/// PA -> MA, what Bhargava et al. (ASPLOS 2008) call the nested TLB.
class NestedTlb {
 public:
  [[nodiscard]] const NestedPage* find(PPN ppn) const noexcept { return pages_.find(ppn.value()); }
  void put(PPN ppn, const NestedPage& page) noexcept { pages_.put(ppn.value(), page); }
  void drop(PpnRange range) noexcept {
    if (range.count > kProbes) {
      pages_.drop_if([&](std::uint64_t key) { return range.contains(PPN{key}); });
      return;
    }
    for (std::uint64_t i = 0; i < range.count; ++i) pages_.drop((range.first + i).value());
  }
  void clear() noexcept { pages_.clear(); }
  [[nodiscard]] std::size_t size() const noexcept { return pages_.size(); }

 private:
  using Pages = SetAssociative<NestedPage, 64, 4>;
  /// Up to here probing page by page is cheaper than looking at every entry.
  static constexpr std::uint64_t kProbes = Pages::kSets;
  Pages pages_;
};

}  // namespace strata::nested
