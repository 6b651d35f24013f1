// A hash table from 64-bit keys to 32-bit indices: open addressing, linear probing, no allocation
// except when it grows. The backend looks something up in one of these on every shadow hit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace strata::shadow {

/// "No index": absent from a FlatIndex, end of a chain, empty head.
inline constexpr std::uint32_t kNone = 0xFFFFFFFFU;

/// Maps keys to indices other than kNone. Not thread-safe: guarded by whoever owns it.
class FlatIndex {
 public:
  FlatIndex() : slots_(kInitialSlots) {}

  /// The value of `key`, or kNone.
  [[nodiscard]] std::uint32_t find(std::uint64_t key) const noexcept {
    for (std::size_t i = home(key);; i = next(i)) {
      const Slot& slot = slots_[i];
      if (slot.value == kNone || slot.key == key) return slot.value;
    }
  }

  /// Inserts or replaces.
  void set(std::uint64_t key, std::uint32_t value) {
    if ((used_ + 1) * 4 > slots_.size() * 3) grow();
    std::size_t i = home(key);
    while (slots_[i].value != kNone && slots_[i].key != key) i = next(i);
    if (slots_[i].value == kNone) ++used_;
    slots_[i] = {key, value};
  }

  /// Removes `key` if it is there, closing the gap so that probing needs no tombstones.
  void erase(std::uint64_t key) noexcept {
    std::size_t hole = home(key);
    while (slots_[hole].value != kNone && slots_[hole].key != key) hole = next(hole);
    if (slots_[hole].value == kNone) return;
    for (std::size_t i = next(hole); slots_[i].value != kNone; i = next(i)) {
      // An element may move back into the hole if its home is not between the hole and itself.
      const std::size_t distance_home = (i - home(slots_[i].key)) & mask();
      const std::size_t distance_hole = (i - hole) & mask();
      if (distance_home >= distance_hole) {
        slots_[hole] = slots_[i];
        hole = i;
      }
    }
    slots_[hole] = {};
    --used_;
  }

  [[nodiscard]] std::size_t size() const noexcept { return used_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return slots_.size() * sizeof(Slot); }

 private:
  struct Slot {
    std::uint64_t key = 0;
    std::uint32_t value = kNone;
  };
  static constexpr std::size_t kInitialSlots = 64;

  [[nodiscard]] std::size_t mask() const noexcept { return slots_.size() - 1; }
  [[nodiscard]] std::size_t next(std::size_t i) const noexcept { return (i + 1) & mask(); }
  /// Fibonacci hashing; keys are page numbers, dense and low in entropy.
  [[nodiscard]] std::size_t home(std::uint64_t key) const noexcept {
    return static_cast<std::size_t>(key * 0x9E3779B97F4A7C15ULL >> 32) & mask();
  }

  void grow() {
    std::vector<Slot> old(slots_.size() * 2);
    std::swap(old, slots_);
    used_ = 0;
    for (const Slot& slot : old) {
      if (slot.value != kNone) set(slot.key, slot.value);
    }
  }

  std::vector<Slot> slots_;
  std::size_t used_ = 0;
};

}  // namespace strata::shadow
