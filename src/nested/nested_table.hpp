// One EPT or NPT table: installing leaves, taking them out, splitting and joining large ones.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "machine/formats.hpp"
#include "machine/radix_table.hpp"
#include "mmu/address.hpp"
#include "mmu/expected.hpp"
#include "mmu/frames.hpp"

namespace strata::nested {

/// A leaf to be installed.
struct Leaf {
  PA page{};    ///< base of the page, aligned to its size
  MA target{};  ///< aligned alike
  machine::Rights rights{};
  unsigned level = 1;  ///< 1: 4 KiB, 2: 2 MiB, 3: 1 GiB
};

enum class Installed : std::uint8_t {
  done,
  /// Something walkers may rely on has to go first (a table, or a leaf that leads elsewhere):
  /// keep walkers out and use replace().
  in_the_way,
};

/// What one removal took out.
struct Removed {
  std::uint64_t first = 0;  ///< PA of the first byte; may begin before what was asked for
  std::uint64_t last = 0;   ///< PA of the last byte
  std::uint64_t leaves = 0;
  std::uint64_t splits = 0;
  std::vector<MPN> tables;  ///< no longer linked; the caller releases them
};

/// Thread-safety: walks may run at any time beside install(); replace() and remove() need walkers
/// kept out. All three exclude each other (the caller holds the backend's fill lock).
template <class Format>
class NestedTable {
 public:
  using Entry = typename Format::Entry;
  using Radix = machine::RadixTable<Format>;
  static constexpr unsigned kMaxLeafLevel = 3;

  explicit NestedTable(Radix radix) noexcept : radix_{std::move(radix)} {}

  [[nodiscard]] MA root() const noexcept { return address_of(radix_.root()); }
  [[nodiscard]] std::uint64_t tables() const noexcept {
    const machine::TableFrames frames = radix_.table_frames();
    return frames.nodes + frames.leaves;
  }
  /// Guest-physical bytes the table can map; addresses beyond must not get here.
  [[nodiscard]] static constexpr std::uint64_t span() noexcept { return Radix::span(); }
  [[nodiscard]] static constexpr std::uint64_t bytes_of(unsigned level) noexcept {
    return Radix::reach_of(level);
  }

  /// The level of the leaf that maps `pa`, or 0.
  [[nodiscard]] unsigned leaf_level(PA pa) const noexcept {
    const auto slot = radix_.find(pa.value());
    return Format::present(slot.value) ? slot.level : 0;
  }
  /// Whether the entry of `level` for `pa` leads to a table.
  [[nodiscard]] bool has_table(PA pa, unsigned level) const noexcept {
    const auto slot = radix_.find(pa.value(), level);
    return slot.level == level && Radix::is_table(slot.value, level);
  }
  /// Whether anything in [first, last] is mapped.
  [[nodiscard]] bool any(std::uint64_t first, std::uint64_t last) const {
    if (last - first < kPageSize) return leaf_level(PA{first}) != 0;
    bool found = false;
    radix_.for_each(first, last, [&](std::uint64_t, const auto&) { found = true; });
    return found;
  }
  /// Calls visit(PA, level) for every leaf that touches [first, last].
  template <class Visit>
  void for_each_leaf(std::uint64_t first, std::uint64_t last, Visit&& visit) const {
    radix_.for_each(first, last,
                    [&](std::uint64_t at, const auto& slot) { visit(PA{at}, slot.level); });
  }

  /// Puts a leaf where there is none, or changes the rights of the one that is there, keeping its
  /// accessed and dirty bits. A larger leaf around it is split; `splits` grows by the tables that
  /// took. OutOfFrames: the table is as it was.
  Expected<Installed, OutOfFrames> install(const Leaf& leaf, std::uint64_t& splits) {
    const unsigned there = leaf_level(leaf.page);
    auto slot = radix_.reach(leaf.page.value(), leaf.level);
    if (!slot) return Unexpected{slot.error()};
    if (there > leaf.level) splits += there - leaf.level;
    for (;;) {
      const Entry seen = slot->value;
      if (Radix::is_table(seen, leaf.level)) return Installed::in_the_way;
      if (Format::present(seen) && Format::page_address(seen, leaf.level) != leaf.target.value()) {
        return Installed::in_the_way;
      }
      // A walker may be setting A or D at this moment.
      if (slot->compare_exchange(entry_of(leaf) | (seen & kGathered))) return Installed::done;
    }
  }

  /// install() whatever is in the way. A table that was there goes: its accessed and dirty bits
  /// pass to the leaf. Returns the frames of the tables taken out.
  Expected<std::vector<MPN>, OutOfFrames> replace(const Leaf& leaf) {
    auto slot = radix_.reach(leaf.page.value(), leaf.level);
    if (!slot) return Unexpected{slot.error()};
    std::vector<MPN> freed;
    if (!Radix::is_table(slot->value, leaf.level)) {
      slot->store(entry_of(leaf));
      return freed;
    }
    Entry gathered = 0;
    const std::uint64_t first = leaf.page.value();
    radix_.for_each(first, first + (bytes_of(leaf.level) - 1),
                    [&](std::uint64_t, const auto& s) { gathered |= s.value & kGathered; });
    radix_.replace_table(*slot, entry_of(leaf) | gathered, sink_into(freed));
    return freed;
  }

  /// Takes out what maps [first, last], splitting large leaves that reach beyond. Without a frame
  /// for a split the whole leaf goes: the range reported grows, and walks fill it again.
  Removed remove(std::uint64_t first, std::uint64_t last) {
    Removed r{first, last, 0, 0, {}};
    split_before(first, r);
    split_before(last + 1, r);
    r.leaves = radix_.clear(r.first, r.last, sink_into(r.tables));
    prune(r.first, r.tables);
    prune(r.last, r.tables);
    return r;
  }

 private:
  static constexpr Entry kGathered = Format::kAccessed | Format::kDirty;

  [[nodiscard]] static constexpr Entry entry_of(const Leaf& leaf) noexcept {
    return Format::make_leaf(leaf.target.value(), leaf.rights, leaf.level);
  }
  [[nodiscard]] static auto sink_into(std::vector<MPN>& freed) {
    return [&freed](MPN mpn, FrameKind) { freed.push_back(mpn); };
  }

  /// Makes `at` a boundary between leaves; where that fails, widens `r` to the leaf around it.
  void split_before(std::uint64_t at, Removed& r) {
    if (at >= span()) return;
    for (unsigned level = leaf_level(PA{at}); level > 1; --level) {
      const std::uint64_t bytes = bytes_of(level);
      if ((at & (bytes - 1)) == 0) return;
      if (!radix_.reach(at, level - 1)) {
        const std::uint64_t base = at & ~(bytes - 1);
        r.first = std::min(r.first, base);
        r.last = std::max(r.last, base + (bytes - 1));
        return;
      }
      ++r.splits;
    }
  }

  /// Unlinks the tables on the way to `at` that have become empty, from the lowest up.
  void prune(std::uint64_t at, std::vector<MPN>& freed) {
    for (unsigned level = 2; level <= Radix::kLevels; ++level) {
      const auto slot = radix_.find(at, level);
      if (slot.level != level || !Radix::is_table(slot.value, level)) continue;
      if (!empty(Radix::table_of(slot.value), level - 1)) return;
      radix_.replace_table(slot, Entry{}, sink_into(freed));
    }
  }
  [[nodiscard]] bool empty(MPN table, unsigned level) const noexcept {
    const std::uint64_t entries = 1ULL << Format::index_bits(level);
    for (std::uint64_t i = 0; i < entries; ++i) {
      if (radix_.slot_in(table, level, i << Format::shift(level)).value != 0) return false;
    }
    return true;
  }

  Radix radix_;
};

}  // namespace strata::nested
