#include "storage/cluster_table.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace strata::storage::test {
namespace {

constexpr std::uint64_t kClusters = 3 * ClusterTable::kClustersPerSector - 77;

TEST(ClusterTableTest, FindsRunsAsALookAtEachClusterDoes) {
  std::mt19937_64 random{1};
  ClusterTable table{kClusters, 5};
  std::vector<bool> model(kClusters);
  for (int i = 0; i < 400; ++i) {
    const std::uint64_t first = random() % kClusters;
    const std::uint64_t last = std::min(first + random() % 60, kClusters - 1);
    if (i % 4 == 0) table.add(first, last);
    for (std::uint64_t c = first; c <= last; ++c) model[c] = model[c] || i % 4 == 0;
    std::uint64_t same = first;
    while (same < last && model[same + 1] == model[first]) ++same;
    ASSERT_EQ(table.holds(first), model[first]);
    ASSERT_EQ(table.same_until(first, last), same);
    ASSERT_EQ(table.holds_all(first, last), model[first] && same == last);
  }
}

TEST(ClusterTableTest, SectorsComeBackAsTheyWere) {
  ClusterTable table{kClusters, 5};
  EXPECT_FALSE(table.dirty());
  table.add(ClusterTable::kClustersPerSector - 1, ClusterTable::kClustersPerSector);
  table.add(kClusters - 1, kClusters - 1);
  table.add(0, 0);
  const auto dirty = table.take_dirty();
  ASSERT_EQ(dirty.size(), 3U);
  EXPECT_FALSE(table.dirty());
  ClusterTable copy{kClusters, 5};
  ClusterTable other{kClusters, 6};
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(dirty[i].index, i);
    EXPECT_TRUE(copy.load(i, dirty[i].sector));
    EXPECT_FALSE(copy.load((i + 1) % 3, dirty[i].sector));
    EXPECT_FALSE(other.load(i, dirty[i].sector));
  }
  for (std::uint64_t i = 0; i < 3; ++i) EXPECT_TRUE(copy.load(i, dirty[i].sector));
  for (std::uint64_t c = 0; c < kClusters; ++c) ASSERT_EQ(copy.holds(c), table.holds(c));
}

TEST(ClusterTableTest, RefusesClustersBehindTheEnd) {
  ClusterTable longer{kClusters + 8, 5};
  longer.add(kClusters, kClusters);
  ClusterTable table{kClusters, 5};
  EXPECT_FALSE(table.load(2, longer.sector(2)));
}

}  // namespace
}  // namespace strata::storage::test
