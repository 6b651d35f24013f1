// An overlay on a disk with a write cache that loses power: requests end in any order, and what was
// not flushed is on the disk or not, sector by sector.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <set>

#include "storage/overlay_disk.hpp"
#include "support.hpp"

namespace strata::storage::test {
namespace {

constexpr std::size_t kBytes = 10 * kClusterBytes + 5 * kSectorBytes;

/// Both files in memory.
class CacheEngine final : public FileEngine {
 public:
  CacheEngine(Bytes base, Bytes overlay, std::uint64_t seed)
      : files_{std::move(base), std::move(overlay)}, stable_{files_[1]}, random_{seed} {}

  [[nodiscard]] std::string_view name() const noexcept override { return "cache"; }
  void start() override {}
  void submit(unsigned file, const Request& request, Completion& done) override {
    pending_.push_back({file, request, {request.buffers.begin(), request.buffers.end()}, &done});
  }
  void kick() override {}
  void drain() override {
    while (step()) {
    }
  }
  /// One of the requests ends, whichever. False: there is none.
  bool step() {
    if (pending_.empty()) return false;
    const std::size_t i = random_() % pending_.size();
    const Pending one = std::move(pending_[i]);
    pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(i));
    carry_out(one);
    one.done->completed(Status::ok);
    return true;
  }
  /// The overlay's file as it may be found afterwards.
  [[nodiscard]] Bytes lose_power() {
    Bytes file = stable_;
    for (const std::size_t sector : cached_) {
      if (random_() % 2 == 0) copy_sector(files_[1], file, sector);
    }
    return file;
  }

 private:
  struct Pending {
    unsigned file;
    Request request;
    std::vector<iovec> buffers;
    Completion* done;
  };
  static void copy_sector(const Bytes& from, Bytes& to, std::size_t sector) {
    std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(sector * kSectorBytes), kSectorBytes,
                to.begin() + static_cast<std::ptrdiff_t>(sector * kSectorBytes));
  }
  void carry_out(const Pending& one) {
    if (one.request.operation == Operation::flush) {
      for (const std::size_t sector : cached_) copy_sector(files_[1], stable_, sector);
      cached_.clear();
      return;
    }
    std::uint8_t* at = files_[one.file].data() + one.request.offset;
    if (one.request.operation == Operation::write_zeroes) std::memset(at, 0, one.request.length);
    for (const iovec& buffer : one.buffers) {
      if (one.request.operation == Operation::read)
        std::memcpy(buffer.iov_base, at, buffer.iov_len);
      if (one.request.operation == Operation::write)
        std::memcpy(at, buffer.iov_base, buffer.iov_len);
      at += buffer.iov_len;
    }
    if (one.request.operation == Operation::read) return;
    for (std::size_t i = 0; i < one.request.length / kSectorBytes; ++i) {
      cached_.insert(one.request.offset / kSectorBytes + i);
    }
  }

  std::array<Bytes, 2> files_;
  Bytes stable_;  ///< of the overlay
  std::set<std::size_t> cached_;
  std::vector<Pending> pending_;
  std::mt19937_64 random_;
};

/// Requests on a disk, and what its sectors may hold. A version is one byte, 512 times.
class Workload {
 public:
  Workload(Disk& disk, std::uint64_t seed) : disk_{disk}, random_{seed} {
    sectors_.resize(kBytes / kSectorBytes);
  }

  void submit_something() {
    const auto kind = random_() % 16;
    if (kind == 0) {
      submit_flush();
    } else if (kind < 12) {
      submit_write(kind == 1);
    } else {
      submit_read();
    }
  }
  [[nodiscard]] bool may_be(const Bytes& disk) const {
    for (std::size_t i = 0; i < sectors_.size(); ++i) {
      const std::uint8_t found = disk[i * kSectorBytes];
      const auto& versions = sectors_[i].versions;
      const auto first = versions.begin() + static_cast<std::ptrdiff_t>(sectors_[i].flushed);
      if (std::find(first, versions.end(), found) == versions.end()) return false;
      const auto sector = disk.begin() + static_cast<std::ptrdiff_t>(i * kSectorBytes);
      if (std::count(sector, sector + kSectorBytes, found) != kSectorBytes) return false;
    }
    return true;
  }
  [[nodiscard]] bool reads_were_right() const { return reads_right_; }

 private:
  struct Sector {
    std::vector<std::uint8_t> versions{0xFF};  ///< that of the base first
    std::size_t flushed = 0;                   ///< oldest that may be found
    bool busy = false;
  };
  struct Range {
    std::size_t first, count;
  };
  class Ended final : public Completion {
   public:
    explicit Ended(std::function<void()> then) : then_{std::move(then)} {}
    void completed(Status) noexcept override { then_(); }

   private:
    std::function<void()> then_;
  };

  void when_over(const Request& request, std::function<void()> then) {
    ended_.push_back(std::make_unique<Ended>(std::move(then)));
    disk_.submit(request, *ended_.back());
  }
  /// Sectors that no write is under way to: what they hold would be anybody's guess.
  [[nodiscard]] std::optional<Range> idle_range() {
    const std::size_t count = 1 + random_() % (random_() % 4 == 0 ? 400 : 20);
    const Range range{random_() % (sectors_.size() - count + 1), count};
    for (std::size_t i = 0; i < count; ++i) {
      if (sectors_[range.first + i].busy) return std::nullopt;
    }
    return range;
  }
  void submit_write(bool zeroes) {
    const auto range = idle_range();
    if (!range) return;
    version_ = zeroes ? 0 : static_cast<std::uint8_t>(1 + random_() % 254);
    for (std::size_t i = 0; i < range->count; ++i) {
      sectors_[range->first + i].versions.push_back(version_);
      sectors_[range->first + i].busy = true;
    }
    auto bytes = std::make_shared<Bytes>(range->count * kSectorBytes, version_);
    const iovec buffer{bytes->data(), bytes->size()};
    when_over({.operation = zeroes ? Operation::write_zeroes : Operation::write,
               .offset = range->first * kSectorBytes,
               .length = bytes->size(),
               .buffers = {&buffer, zeroes ? 0U : 1U},
               .unmap = random_() % 2 == 0},
              [this, range, bytes] {
                for (std::size_t i = 0; i < range->count; ++i) {
                  sectors_[range->first + i].busy = false;
                }
              });
  }
  void submit_read() {
    const auto range = idle_range();
    if (!range) return;
    std::vector<std::uint8_t> expected;
    for (std::size_t i = 0; i < range->count; ++i) {
      expected.push_back(sectors_[range->first + i].versions.back());
    }
    auto bytes = std::make_shared<Bytes>(range->count * kSectorBytes);
    const iovec buffer{bytes->data(), bytes->size()};
    // A write may come in between; then it may be found too.
    when_over(
        {.offset = range->first * kSectorBytes, .length = bytes->size(), .buffers = {&buffer, 1}},
        [this, range, bytes, expected] {
          for (std::size_t i = 0; i < range->count; ++i) {
            const Sector& sector = sectors_[range->first + i];
            const std::uint8_t found = (*bytes)[i * kSectorBytes];
            const bool later = std::find(sector.versions.begin(), sector.versions.end(), found) !=
                               sector.versions.end();
            const bool changed = sector.busy || sector.versions.back() != expected[i];
            if (found != expected[i] && !(changed && later)) reads_right_ = false;
          }
        });
  }
  void submit_flush() {
    std::vector<std::size_t> complete;  // of each sector, the version a flush now makes stable
    for (const Sector& sector : sectors_) {
      complete.push_back(sector.versions.size() - (sector.busy ? 2 : 1));
    }
    when_over({.operation = Operation::flush}, [this, complete] {
      for (std::size_t i = 0; i < sectors_.size(); ++i) {
        sectors_[i].flushed = std::max(sectors_[i].flushed, complete[i]);
      }
    });
  }

  Disk& disk_;
  std::mt19937_64 random_;
  std::vector<Sector> sectors_;
  std::vector<std::unique_ptr<Ended>> ended_;
  std::uint8_t version_ = 0;
  bool reads_right_ = true;
};

class PowerLossTest : public testing::Test {
 protected:
  PowerLossTest() { write_file(path_, base_); }
  [[nodiscard]] ImageFile base_image() const {
    return std::move(open_image(path_, Access::read_only)).value();
  }
  [[nodiscard]] Bytes what_is_found(const Bytes& overlay) const {
    const DiskOptions options{.path = path_, .overlay = folder_.file("found")};
    write_file(options.overlay, overlay);
    return read(*open_started(options), 0, kBytes);
  }

  TemporaryFolder folder_;
  const std::string path_ = folder_.file("base");
  const Bytes base_ = Bytes(kBytes, 0xFF);
};

TEST_F(PowerLossTest, FlushedDataIsThereAndNothingIsGarbage) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    const std::string name = folder_.file("overlay" + std::to_string(seed));
    ImageFile base = base_image();
    OverlayFile overlay = std::move(open_overlay(name, path_, base, Access::read_write)).value();
    auto cache = std::make_unique<CacheEngine>(base_, read_file(name), seed);
    CacheEngine& engine = *cache;
    OverlayDisk disk{std::move(base), std::move(overlay), Access::read_write, std::move(cache)};
    Workload workload{disk, seed + 100};
    std::mt19937_64 random{seed + 200};
    for (int i = 0; i < 250; ++i) {
      workload.submit_something();
      for (auto steps = random() % 6; steps > 0; --steps) engine.step();
      if (random() % 4 == 0) {
        ASSERT_TRUE(workload.may_be(what_is_found(engine.lose_power()))) << "seed " << seed;
      }
    }
    disk.drain();
    ASSERT_TRUE(workload.reads_were_right());
  }
}

}  // namespace
}  // namespace strata::storage::test
