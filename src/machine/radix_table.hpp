// The one radix table: P2M, EPT, NPT and x86 tables are instances of it (design rule 5).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <utility>

#include "machine/formats.hpp"
#include "mmu/expected.hpp"
#include "mmu/frames.hpp"

namespace strata::machine {

struct TableFrames {
  std::uint64_t nodes = 0;   ///< tables above level 1, the root among them
  std::uint64_t leaves = 0;  ///< tables of level 1
};

/// A table of `Format` in machine memory, with frames from a FrameSource. Format supplies Entry,
/// kLevels, present, large, make_table, table_address, shift, index_bits and child_leaf; for join()
/// also page_address and the bits kLarge, kAccessed and kDirty.
///
/// Thread-safety: find(), reach() and compare_exchange of single entries may run concurrently;
/// tables only grow under them. Whatever takes tables out (clear, join, replace_table) needs its
/// caller to keep writers off the part it takes out, and hands the frames to a sink: the caller
/// frees them when no reader can be inside any more (a lock, a Flush, a ReaderGate).
///
/// Inputs are byte addresses in whatever space the table translates; bits above the top level are
/// ignored.
template <class Format>
class RadixTable {
 public:
  using Entry = typename Format::Entry;
  static constexpr unsigned kLevels = Format::kLevels;

  /// Where an entry lies, and what it was when it was read.
  struct Slot {
    Entry* word = nullptr;
    unsigned level = 0;
    Entry value{};
    [[nodiscard]] Entry load() const noexcept {
      return std::atomic_ref<Entry>{*word}.load(std::memory_order_acquire);
    }
    /// Replaces `value` by `wanted` if it is still there; otherwise `value` becomes what is.
    bool compare_exchange(Entry wanted) noexcept {
      return std::atomic_ref<Entry>{*word}.compare_exchange_strong(value, wanted,
                                                                   std::memory_order_acq_rel);
    }
    /// For entries nobody else changes now.
    void store(Entry wanted) noexcept {
      std::atomic_ref<Entry>{*word}.store(wanted, std::memory_order_release);
      value = wanted;
    }
  };

  /// An empty table: one frame, the root. `nodes` and `leaves` say how frames are accounted.
  static Expected<RadixTable, OutOfFrames> create(FrameSource& frames, FrameKind nodes,
                                                  FrameKind leaves) {
    const auto root = frames.allocate(kLevels == 1 ? leaves : nodes);
    if (!root) return Unexpected{root.error()};
    return RadixTable{frames, nodes, leaves, *root};
  }

  RadixTable(RadixTable&& other) noexcept
      : frames_{other.frames_},
        window_{other.window_},
        node_kind_{other.node_kind_},
        leaf_kind_{other.leaf_kind_},
        root_{std::exchange(other.root_, std::nullopt)},
        nodes_{other.nodes_.load()},
        leaves_{other.leaves_.load()} {}
  RadixTable(const RadixTable&) = delete;
  RadixTable& operator=(const RadixTable&) = delete;
  RadixTable& operator=(RadixTable&&) = delete;
  /// Frees every table at once: nobody may be reading.
  ~RadixTable() {
    if (!root_) return;
    release_below(*root_, kLevels, release_sink());
    frames_->release(*root_, kind_of(kLevels));
  }

  [[nodiscard]] MPN root() const noexcept { return *root_; }
  [[nodiscard]] TableFrames table_frames() const noexcept {
    return {nodes_.load(std::memory_order_relaxed), leaves_.load(std::memory_order_relaxed)};
  }
  /// Bytes that the whole table translates.
  [[nodiscard]] static constexpr std::uint64_t span() noexcept {
    return 1ULL << (Format::shift(kLevels) + Format::index_bits(kLevels));
  }
  /// Bytes that one entry of `level` covers.
  [[nodiscard]] static constexpr std::uint64_t reach_of(unsigned level) noexcept {
    return 1ULL << Format::shift(level);
  }
  /// The sink that frees at once.
  [[nodiscard]] auto release_sink() noexcept {
    return [frames = frames_](MPN mpn, FrameKind kind) { frames->release(mpn, kind); };
  }

  /// The lowest entry that decides about `input`, not below `level`: a leaf, a large entry, an
  /// entry that is not present, or the entry of that level. Lock-free.
  [[nodiscard]] Slot find(std::uint64_t input, unsigned level = 1) const noexcept {
    Slot slot = slot_in(*root_, kLevels, input);
    while (slot.level > level && is_table(slot.value, slot.level)) {
      slot = slot_in(table_of(slot.value), slot.level - 1, input);
    }
    return slot;
  }

  /// The entry of `level` for `input`, with the tables above it made and larger entries on the way
  /// split as needed; splitting changes no translation. OutOfFrames: the table is as it was.
  [[nodiscard]] Expected<Slot, OutOfFrames> reach(std::uint64_t input, unsigned level) {
    Slot slot = find(input, level);
    if (slot.level == level) return slot;
    // All frames first, so that running out half way leaves nothing to undo.
    Reserve reserve{*this};
    for (unsigned l = slot.level - 1; l >= level; --l) {
      if (!reserve.add(l)) return Unexpected{OutOfFrames{}};
    }
    while (slot.level > level) {
      if (is_table(slot.value, slot.level)) {
        slot = slot_in(table_of(slot.value), slot.level - 1, input);
        continue;
      }
      // Somebody took a table out meanwhile: the path is longer than what was reserved.
      if (!reserve.has(slot.level - 1)) return reach(input, level);
      const MPN table = reserve.peek(slot.level - 1);
      fill(table, slot.level, slot.value);
      if (!slot.compare_exchange(Format::make_table(address_of(table).value()))) continue;
      reserve.take(slot.level - 1);
      counter_of(slot.level - 1).fetch_add(1, std::memory_order_relaxed);
      slot = slot_in(table, slot.level - 1, input);
    }
    return slot;
  }

  /// Makes one entry of `level` (> 1) out of the table below it if all its entries are one run;
  /// accessed and dirty bits are gathered. False: not a table there, or not one run. Writers must
  /// be kept off the table.
  template <class Sink>
  bool join(std::uint64_t input, unsigned level, Sink&& sink) {
    const Slot slot = find(input, level);
    if (slot.level != level || !is_table(slot.value, level)) return false;
    const auto joined = joined_entry(table_of(slot.value), level);
    return joined && replace_table(slot, *joined, sink);
  }

  /// Puts `wanted` where `slot` has a table and hands the table, and all tables below it, to
  /// `sink(MPN, FrameKind)`. False: the entry has changed. Writers must be kept off the tables.
  template <class Sink>
  bool replace_table(Slot slot, Entry wanted, Sink&& sink) {
    const MPN table = table_of(slot.value);
    if (!slot.compare_exchange(wanted)) return false;
    release_below(table, slot.level - 1, sink);
    counter_of(slot.level - 1).fetch_sub(1, std::memory_order_relaxed);
    sink(table, kind_of(slot.level - 1));
    return true;
  }

  /// Empties [first, last]: entries become `Entry{}`, tables that lie inside as a whole go to
  /// `sink(MPN, FrameKind)`. A large entry that reaches beyond the range goes as a whole, so this
  /// is for tables that can be derived again. Returns how many leaf entries it removed.
  template <class Sink>
  std::uint64_t clear(std::uint64_t first, std::uint64_t last, Sink&& sink) {
    return clear_in(*root_, kLevels, 0, first, last, sink);
  }

  /// Calls `visit(input, Slot&)` for every present leaf or large entry that touches [first, last],
  /// in order; `input` is where the entry begins. Tables may grow meanwhile.
  template <class Visit>
  void for_each(std::uint64_t first, std::uint64_t last, Visit&& visit) const {
    visit_in(*root_, kLevels, 0, first, last, visit);
  }

  [[nodiscard]] static bool is_table(Entry e, unsigned level) noexcept {
    return level > 1 && Format::present(e) && !Format::large(e, level, kControls);
  }
  [[nodiscard]] static MPN table_of(Entry e) noexcept {
    return page_of(MA{Format::table_address(e)});
  }
  [[nodiscard]] Slot slot_in(MPN table, unsigned level, std::uint64_t input) const noexcept {
    const std::uint64_t index = input >> Format::shift(level) & (entries(level) - 1);
    Slot slot{reinterpret_cast<Entry*>(window_.host(address_of(table))) + index, level, {}};
    slot.value = slot.load();
    return slot;
  }

 private:
  // Tables of ours use every feature a format has; only guests' tables depend on control registers.
  static constexpr WalkControls kControls{.pse = true};

  /// Frames for the tables of one path; what is not taken goes back.
  class Reserve {
   public:
    explicit Reserve(RadixTable& table) noexcept : table_{&table} {}
    Reserve(const Reserve&) = delete;
    Reserve& operator=(const Reserve&) = delete;
    ~Reserve() {
      for (unsigned l = 1; l <= kLevels; ++l) {
        if (frames_[l]) table_->frames_->release(*frames_[l], table_->kind_of(l));
      }
    }
    bool add(unsigned level) {
      const auto frame = table_->frames_->allocate(table_->kind_of(level));
      if (frame) frames_[level] = *frame;
      return frame.has_value();
    }
    [[nodiscard]] bool has(unsigned level) const { return frames_[level].has_value(); }
    [[nodiscard]] MPN peek(unsigned level) const { return *frames_[level]; }
    void take(unsigned level) { frames_[level].reset(); }

   private:
    RadixTable* table_;
    std::array<std::optional<MPN>, kLevels + 1> frames_{};
  };

  RadixTable(FrameSource& frames, FrameKind nodes, FrameKind leaves, MPN root) noexcept
      : frames_{&frames},
        window_{frames.window()},
        node_kind_{nodes},
        leaf_kind_{leaves},
        root_{root} {
    counter_of(kLevels).store(1, std::memory_order_relaxed);
  }

  [[nodiscard]] static constexpr std::uint64_t entries(unsigned level) noexcept {
    return 1ULL << Format::index_bits(level);
  }
  [[nodiscard]] FrameKind kind_of(unsigned level) const noexcept {
    return level == 1 ? leaf_kind_ : node_kind_;
  }
  [[nodiscard]] std::atomic<std::uint64_t>& counter_of(unsigned level) noexcept {
    return level == 1 ? leaves_ : nodes_;
  }

  /// Prepares a table, not yet linked, to stand for `parent`, an entry of `level`.
  void fill(MPN table, unsigned level, Entry parent) const noexcept {
    const bool run = Format::large(parent, level, kControls);
    for (unsigned i = 0; i < entries(level - 1); ++i) {
      const Entry e = run ? Format::child_leaf(parent, level, i) : Entry{};
      slot_in(table, level - 1, std::uint64_t{i} << Format::shift(level - 1)).store(e);
    }
  }

  /// The large entry of `level` that a table below it amounts to.
  [[nodiscard]] std::optional<Entry> joined_entry(MPN table, unsigned level) const noexcept {
    const Entry first = slot_in(table, level - 1, 0).value;
    if (!Format::present(first) || is_table(first, level - 1)) return std::nullopt;
    Entry joined = first | static_cast<Entry>(Format::kLarge);
    if (Format::page_address(joined, level) != Format::page_address(first, level - 1)) {
      return std::nullopt;  // not aligned for a page that large
    }
    constexpr Entry gathered = Format::kAccessed | Format::kDirty;
    for (unsigned i = 0; i < entries(level - 1); ++i) {
      const Entry e = slot_in(table, level - 1, std::uint64_t{i} << Format::shift(level - 1)).value;
      if ((Format::child_leaf(joined, level, i) | gathered) != (e | gathered)) return std::nullopt;
      joined |= e & gathered;
    }
    return joined;
  }

  template <class Sink>
  void release_below(MPN table, unsigned level, Sink&& sink) noexcept {
    if (level == 1) return;
    for (std::uint64_t i = 0; i < entries(level); ++i) {
      const Slot slot = slot_in(table, level, i << Format::shift(level));
      if (!is_table(slot.value, level)) continue;
      release_below(table_of(slot.value), level - 1, sink);
      counter_of(level - 1).fetch_sub(1, std::memory_order_relaxed);
      sink(table_of(slot.value), kind_of(level - 1));
    }
  }

  /// Indices of a table at `level` beginning at `base` that [first, last] touches.
  [[nodiscard]] static std::pair<std::uint64_t, std::uint64_t> indices(
      unsigned level, std::uint64_t base, std::uint64_t first, std::uint64_t last) noexcept {
    const std::uint64_t end = base + (entries(level) << Format::shift(level)) - 1;
    if (last < base || first > end) return {1, 0};
    const std::uint64_t from = first <= base ? 0 : (first - base) >> Format::shift(level);
    const std::uint64_t to = (last >= end ? end - base : last - base) >> Format::shift(level);
    return {from, to};
  }

  template <class Sink>
  std::uint64_t clear_in(MPN table, unsigned level, std::uint64_t base, std::uint64_t first,
                         std::uint64_t last, Sink&& sink) {
    std::uint64_t removed = 0;
    const auto [from, to] = indices(level, base, first, last);
    for (std::uint64_t i = from; i <= to; ++i) {
      const std::uint64_t begin = base + (i << Format::shift(level));
      Slot slot = slot_in(table, level, begin);
      if (!Format::present(slot.value)) continue;
      if (!is_table(slot.value, level)) {
        ++removed;
        slot.store(Entry{});
        continue;
      }
      removed += clear_in(table_of(slot.value), level - 1, begin, first, last, sink);
      const std::uint64_t end = begin + (reach_of(level) - 1);
      if (first <= begin && end <= last) replace_table(slot, Entry{}, sink);
    }
    return removed;
  }

  template <class Visit>
  void visit_in(MPN table, unsigned level, std::uint64_t base, std::uint64_t first,
                std::uint64_t last, Visit&& visit) const {
    const auto [from, to] = indices(level, base, first, last);
    for (std::uint64_t i = from; i <= to; ++i) {
      const std::uint64_t begin = base + (i << Format::shift(level));
      Slot slot = slot_in(table, level, begin);
      if (is_table(slot.value, level)) {
        visit_in(table_of(slot.value), level - 1, begin, first, last, visit);
      } else if (Format::present(slot.value)) {
        visit(begin, slot);
      }
    }
  }

  FrameSource* frames_;
  MachineWindow window_;
  FrameKind node_kind_;
  FrameKind leaf_kind_;
  std::optional<MPN> root_;
  std::atomic<std::uint64_t> nodes_{0};
  std::atomic<std::uint64_t> leaves_{0};
};

}  // namespace strata::machine
