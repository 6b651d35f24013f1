// Host address space for windows: reserved 1 TiB at a time, each slice between guard zones that
// nothing is ever mapped in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace strata::bt {

inline constexpr unsigned kSliceShift = 40;
inline constexpr std::uint64_t kSliceBytes = 1ULL << kSliceShift;
/// How far an access may be from the address whose slice is looked up for it: what eight times an
/// index of 32 bits and a displacement reach.
inline constexpr std::int64_t kFarthestAccess = (std::int64_t{8} << 32) + (std::int64_t{2} << 30);
/// Beyond that, the longest access and what pointers move by in a block on top.
inline constexpr std::uint64_t kGuardBytes =
    static_cast<std::uint64_t>(kFarthestAccess) + (2U << 30);

/// Slices of one vCPU. Its thread only.
///
/// Every call either leaves the range as asked or reserved and inaccessible: a hole in a slice
/// could be taken by another mapping of the VMM, which guest code would then reach. Where the host
/// leaves one and it is taken, the process ends.
class SlicePool {
 public:
  SlicePool() = default;
  SlicePool(const SlicePool&) = delete;
  SlicePool& operator=(const SlicePool&) = delete;
  ~SlicePool();

  /// Address of an inaccessible slice; 0: the limit is reached or the host refuses.
  [[nodiscard]] std::uint64_t take() noexcept;
  /// Gives one back; nothing is mapped in it any more.
  void give_back(std::uint64_t slice) noexcept { free_.push_back(slice); }

  /// Makes the memory at `source`, part of one shared mapping, appear at `at` as well. False: the
  /// host refuses; the range is inaccessible.
  static bool map(std::uint64_t at, const std::byte* source, std::size_t bytes,
                  bool write) noexcept;
  /// Makes a range of a slice inaccessible.
  static void unmap(std::uint64_t at, std::size_t bytes) noexcept;

 private:
  /// A host of 128 TiB has room for those of four vCPUs beside everything else.
  static constexpr std::size_t kMostSlices = 24;
  std::vector<std::uint64_t> all_;
  std::vector<std::uint64_t> free_;
};

}  // namespace strata::bt
