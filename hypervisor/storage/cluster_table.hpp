// Which clusters of a disk an overlay holds, in memory and as sectors of its file
// (docs/storage.md).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "storage/disk.hpp"

namespace strata::storage {

inline constexpr std::uint64_t kClusterBytes = 64 * 1024;

/// One bit per cluster. One thread at a time.
class ClusterTable {
 public:
  /// A sector: 504 bytes of bits and 8 of checksum, so that a disk writes all of it or nothing.
  using Sector = std::array<std::byte, kSectorBytes>;
  static constexpr std::uint64_t kClustersPerSector = (kSectorBytes - 8) * 8;
  struct Dirty {
    std::uint64_t index = 0;  ///< of the sector within the table
    Sector sector{};
  };

  /// No cluster is held. `identity` is the file's, so that no sector of another file is taken.
  ClusterTable(std::uint64_t clusters, std::uint64_t identity);
  [[nodiscard]] static std::uint64_t sectors_for(std::uint64_t clusters) noexcept {
    return (clusters + kClustersPerSector - 1) / kClustersPerSector;
  }

  [[nodiscard]] bool holds(std::uint64_t cluster) const noexcept {
    return (bits_[cluster / 8] >> (cluster % 8) & 1U) != 0;
  }
  /// Whether all of [first, last] are held.
  [[nodiscard]] bool holds_all(std::uint64_t first, std::uint64_t last) const noexcept;
  /// The last cluster up to `last` that is held or not as `first` is, like all between.
  [[nodiscard]] std::uint64_t same_until(std::uint64_t first, std::uint64_t last) const noexcept;
  /// From now on all of [first, last] are held.
  void add(std::uint64_t first, std::uint64_t last);

  [[nodiscard]] bool dirty() const noexcept { return !dirty_.empty(); }
  /// The sectors that were changed since they were last taken.
  [[nodiscard]] std::vector<Dirty> take_dirty();
  [[nodiscard]] Sector sector(std::uint64_t index) const;
  /// False: not a sector that this table can have at `index`.
  [[nodiscard]] bool load(std::uint64_t index, const Sector& sector);

 private:
  [[nodiscard]] std::uint64_t checksum(std::uint64_t index, const Sector& sector) const;

  std::uint64_t clusters_;
  std::uint64_t identity_;
  std::vector<std::uint8_t> bits_;    ///< of whole sectors
  std::vector<std::uint64_t> dirty_;  ///< indices of sectors, ascending
};

}  // namespace strata::storage
