#include "storage/cluster_table.hpp"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

namespace strata::storage {

namespace {

constexpr std::size_t kBitBytes = kSectorBytes - 8;

}  // namespace

ClusterTable::ClusterTable(std::uint64_t clusters, std::uint64_t identity)
    : clusters_{clusters}, identity_{identity}, bits_(sectors_for(clusters) * kBitBytes) {}

bool ClusterTable::holds_all(std::uint64_t first, std::uint64_t last) const noexcept {
  return holds(first) && same_until(first, last) == last;
}

std::uint64_t ClusterTable::same_until(std::uint64_t first, std::uint64_t last) const noexcept {
  const bool held = holds(first);
  const std::uint8_t eight = held ? 0xFF : 0;
  std::uint64_t next = first + 1;
  while (next <= last && holds(next) == held) {
    const bool whole_byte = next % 8 == 0 && bits_[next / 8] == eight;
    next += whole_byte ? 8 : 1;
  }
  return std::min(next - 1, last);
}

void ClusterTable::add(std::uint64_t first, std::uint64_t last) {
  std::uint64_t counted = ~std::uint64_t{0};  // sector that is among the dirty ones already
  for (std::uint64_t cluster = first; cluster <= last; ++cluster) {
    if (holds(cluster)) continue;
    bits_[cluster / 8] = static_cast<std::uint8_t>(bits_[cluster / 8] | 1U << (cluster % 8));
    const std::uint64_t index = cluster / kClustersPerSector;
    if (index == counted) continue;
    counted = index;
    const auto at = std::lower_bound(dirty_.begin(), dirty_.end(), index);
    if (at == dirty_.end() || *at != index) dirty_.insert(at, index);
  }
}

std::vector<ClusterTable::Dirty> ClusterTable::take_dirty() {
  std::vector<Dirty> taken;
  taken.reserve(dirty_.size());
  for (const std::uint64_t index : dirty_) taken.push_back({index, sector(index)});
  dirty_.clear();
  return taken;
}

ClusterTable::Sector ClusterTable::sector(std::uint64_t index) const {
  Sector sector{};
  std::memcpy(sector.data(), bits_.data() + index * kBitBytes, kBitBytes);
  const std::uint64_t sum = checksum(index, sector);
  std::memcpy(sector.data() + kBitBytes, &sum, sizeof sum);
  return sector;
}

bool ClusterTable::load(std::uint64_t index, const Sector& sector) {
  std::uint64_t sum = 0;
  std::memcpy(&sum, sector.data() + kBitBytes, sizeof sum);
  if (sum != checksum(index, sector)) return false;
  std::memcpy(bits_.data() + index * kBitBytes, sector.data(), kBitBytes);
  // Clusters behind the disk's end.
  const std::uint64_t end = (index + 1) * kClustersPerSector;
  for (std::uint64_t cluster = std::min(end, clusters_); cluster < end; ++cluster) {
    if (holds(cluster)) return false;
  }
  return true;
}

std::uint64_t ClusterTable::checksum(std::uint64_t index, const Sector& sector) const {
  return ::XXH3_64bits_withSeed(sector.data(), kBitBytes, identity_ + index);
}

}  // namespace strata::storage
