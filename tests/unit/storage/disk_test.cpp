// What every disk does, whatever the way to the host's files.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "support.hpp"

namespace strata::storage::test {
namespace {

struct Kind {
  const char* name;
  Engine engine;
  bool overlay;
};

constexpr std::size_t kBytes = 3 * 1024 * 1024 + 5 * kSectorBytes;  // no whole clusters

class DiskTest : public testing::TestWithParam<Kind> {
 protected:
  DiskTest() {
    write_file(folder_.file("base"), model_);
    options_.path = folder_.file("base");
    options_.engine = GetParam().engine;
    if (GetParam().overlay) options_.overlay = folder_.file("overlay");
    open();
  }
  ~DiskTest() override { close(); }
  void open() { disk_ = open_started(options_); }
  void close() {
    if (disk_ != nullptr) disk_->drain();
    disk_.reset();
  }
  void model_write(std::uint64_t offset, const Bytes& bytes) {
    std::copy(bytes.begin(), bytes.end(), model_.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  void model_zero(std::uint64_t offset, std::uint64_t length) {
    std::fill_n(model_.begin() + static_cast<std::ptrdiff_t>(offset), length, std::uint8_t{0});
  }

  TemporaryFolder folder_;
  Bytes model_ = random_bytes(1, kBytes);
  DiskOptions options_;
  std::unique_ptr<Disk> disk_;
};

TEST_P(DiskTest, SaysWhatItIs) {
  EXPECT_EQ(disk_->bytes(), kBytes);
  EXPECT_FALSE(disk_->read_only());
  EXPECT_EQ(disk_->engine(), GetParam().engine == Engine::synchronous ? "synchronous" : "io_uring");
}

TEST_P(DiskTest, HoldsWhatAModelHolds) {
  std::mt19937_64 random{2};
  for (int i = 0; i < 600; ++i) {
    const std::uint64_t sectors = 1 + random() % (random() % 4 == 0 ? 700 : 9);
    const std::uint64_t offset = random() % (kBytes / kSectorBytes - sectors + 1) * kSectorBytes;
    const std::uint64_t length = sectors * kSectorBytes;
    const auto kind = random() % 16;
    if (kind < 7) {
      const Bytes bytes = random_bytes(random(), length);
      ASSERT_EQ(write(*disk_, offset, bytes), Status::ok);
      model_write(offset, bytes);
    } else if (kind == 7) {
      ASSERT_EQ(carry_out(*disk_, {.operation = Operation::write_zeroes,
                                   .offset = offset,
                                   .length = length,
                                   .unmap = random() % 2 == 0}),
                Status::ok);
      model_zero(offset, length);
    } else if (kind == 8) {
      ASSERT_EQ(flush(*disk_), Status::ok);
    } else if (kind == 9 && random() % 8 == 0) {
      close();
      open();
    } else {
      const Bytes expected{model_.begin() + static_cast<std::ptrdiff_t>(offset),
                           model_.begin() + static_cast<std::ptrdiff_t>(offset + length)};
      ASSERT_EQ(read(*disk_, offset, length), expected) << "offset " << offset;
    }
  }
  close();
  open();
  EXPECT_EQ(read(*disk_, 0, kBytes), model_);
}

TEST_P(DiskTest, ScattersOverManyBuffers) {
  const Bytes bytes = random_bytes(3, 2100 * kSectorBytes);  // more buffers than one call takes
  std::vector<Bytes> parts;
  std::vector<iovec> buffers;
  for (std::size_t at = 0; at < bytes.size(); at += kSectorBytes) {
    parts.emplace_back(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                       bytes.begin() + static_cast<std::ptrdiff_t>(at + kSectorBytes));
  }
  buffers.reserve(parts.size());
  for (Bytes& part : parts) buffers.push_back({part.data(), part.size()});
  Request request{.operation = Operation::write,
                  .offset = 7 * kSectorBytes,
                  .length = bytes.size(),
                  .buffers = buffers};
  ASSERT_EQ(carry_out(*disk_, request), Status::ok);
  for (Bytes& part : parts) std::fill(part.begin(), part.end(), std::uint8_t{0});
  request.operation = Operation::read;
  ASSERT_EQ(carry_out(*disk_, request), Status::ok);
  Bytes joined;
  for (const Bytes& part : parts) joined.insert(joined.end(), part.begin(), part.end());
  EXPECT_EQ(joined, bytes);
}

TEST_P(DiskTest, RefusesWhatIsOutside) {
  Bytes bytes(2 * kSectorBytes);
  for (const auto operation : {Operation::read, Operation::write}) {
    EXPECT_EQ(transfer(*disk_, operation, kBytes - kSectorBytes, bytes), Status::out_of_range);
    EXPECT_EQ(transfer(*disk_, operation, kBytes + kSectorBytes, bytes), Status::out_of_range);
    EXPECT_EQ(transfer(*disk_, operation, ~std::uint64_t{0} - 511, bytes), Status::out_of_range);
    EXPECT_EQ(transfer(*disk_, operation, 100, bytes), Status::out_of_range);
  }
  for (const auto operation : {Operation::discard, Operation::write_zeroes}) {
    EXPECT_EQ(carry_out(*disk_, {.operation = operation, .offset = 0, .length = kBytes + 512}),
              Status::out_of_range);
  }
  const iovec buffer{bytes.data(), bytes.size()};
  for (const std::uint64_t length : {kSectorBytes, 4 * kSectorBytes}) {
    EXPECT_EQ(carry_out(*disk_, {.offset = 0, .length = length, .buffers = {&buffer, 1}}),
              Status::out_of_range);
  }
  close();
  EXPECT_EQ(read_file(options_.path), model_);
}

TEST_P(DiskTest, TakesRequestsWithoutLength) {
  for (const auto operation :
       {Operation::read, Operation::write, Operation::discard, Operation::write_zeroes}) {
    EXPECT_EQ(carry_out(*disk_, {.operation = operation, .offset = kBytes}), Status::ok);
  }
}

TEST_P(DiskTest, DiscardsWholeSectorsOnly) {
  if (!disk_->discards()) GTEST_SKIP() << "the file system has no holes";
  const std::uint64_t offset = 60 * 1024, length = 200 * 1024;
  ASSERT_EQ(
      carry_out(*disk_, {.operation = Operation::discard, .offset = offset, .length = length}),
      Status::ok);
  const Bytes before{model_.begin(), model_.begin() + offset};
  const Bytes after{model_.begin() + offset + length, model_.end()};
  EXPECT_EQ(read(*disk_, 0, offset), before);
  EXPECT_EQ(read(*disk_, offset + length, after.size()), after);
}

/// Writes its own sectors and reads them back, the next request from inside the last's completion.
class Chain final : public Completion {
 public:
  Chain(Disk& disk, std::uint64_t first, std::uint64_t sectors, int rounds)
      : disk_{disk}, first_{first}, sectors_{sectors}, rounds_{rounds} {}
  void begin() { step(); }
  void completed(Status status) noexcept override {
    if (status != Status::ok || (reading_ && got_ != expected_)) {
      ++failures_;
    } else if (reading_ && ++round_ < rounds_) {
      reading_ = false;
      step();
    } else if (!reading_) {
      reading_ = true;
      step();
    }
  }
  [[nodiscard]] bool good() const { return failures_ == 0 && round_ == rounds_; }

 private:
  void step() {
    const auto round = static_cast<std::uint64_t>(round_);
    if (!reading_) expected_ = random_bytes(first_ * 1000 + round, 3 * kSectorBytes);
    if (!reading_) got_ = expected_;
    if (reading_) std::fill(got_.begin(), got_.end(), std::uint8_t{0});
    const iovec buffer{got_.data(), got_.size()};
    disk_.submit({.operation = reading_ ? Operation::read : Operation::write,
                  .offset = (first_ + round * 3 % (sectors_ - 2)) * kSectorBytes,
                  .length = got_.size(),
                  .buffers = {&buffer, 1}},
                 *this);
  }

  Disk& disk_;
  const std::uint64_t first_, sectors_;
  const int rounds_;
  int round_ = 0;
  int failures_ = 0;
  bool reading_ = false;
  Bytes expected_, got_;
};

TEST_P(DiskTest, ServesManyThreadsAtOnce) {
  constexpr std::uint64_t kThreads = 4, kChains = 8, kShare = 190;  // sectors of a chain
  std::vector<std::unique_ptr<Chain>> chains;
  for (std::uint64_t i = 0; i < kThreads * kChains; ++i) {
    chains.push_back(std::make_unique<Chain>(*disk_, i * kShare, kShare, 40));
  }
  std::atomic<int> flushes_failed{0};
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t c = 0; c < kChains; ++c) chains[t * kChains + c]->begin();
      disk_->kick();
      for (int i = 0; i < 3; ++i) {
        if (flush(*disk_) != Status::ok) ++flushes_failed;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  disk_->drain();
  EXPECT_EQ(flushes_failed, 0);
  for (const auto& chain : chains) EXPECT_TRUE(chain->good());
}

TEST_P(DiskTest, RequestsOutliveTheThreadThatSubmittedThem) {
  constexpr std::size_t kRequests = 40, kSize = 64 * 1024 + kSectorBytes;
  for (int round = 0; round < 5; ++round) {
    std::vector<Waiter> waiters(kRequests + 1);
    Bytes bytes = random_bytes(static_cast<std::uint64_t>(round), kRequests * kSize);
    std::thread{[&] {
      for (std::size_t i = 0; i < kRequests; ++i) {
        const iovec buffer{bytes.data() + i * kSize, kSize};
        disk_->submit({.operation = Operation::write,
                       .offset = i * kSize,
                       .length = kSize,
                       .buffers = {&buffer, 1}},
                      waiters[i]);
      }
      disk_->submit({.operation = Operation::flush}, waiters[kRequests]);
      disk_->kick();
    }}.join();
    for (Waiter& waiter : waiters) ASSERT_EQ(waiter.wait(), Status::ok);
    ASSERT_EQ(read(*disk_, 0, bytes.size()), bytes);
  }
}

TEST_P(DiskTest, CompletesEachRequestOnce) {
  constexpr std::size_t kRequests = 1000;  // more than a ring holds
  std::vector<Waiter> waiters(kRequests);
  Bytes bytes(kRequests * kSectorBytes);
  for (std::size_t i = 0; i < kRequests; ++i) {
    const iovec buffer{bytes.data() + i * kSectorBytes, kSectorBytes};
    disk_->submit({.operation = Operation::read,
                   .offset = i * kSectorBytes,
                   .length = kSectorBytes,
                   .buffers = {&buffer, 1}},
                  waiters[i]);
  }
  disk_->drain();
  for (Waiter& waiter : waiters) ASSERT_EQ(waiter.times(), 1);
  model_.resize(bytes.size());
  EXPECT_EQ(bytes, model_);
}

INSTANTIATE_TEST_SUITE_P(Kinds, DiskTest,
                         testing::Values(Kind{"RawUring", Engine::asynchronous, false},
                                         Kind{"RawSynchronous", Engine::synchronous, false},
                                         Kind{"OverlayUring", Engine::asynchronous, true},
                                         Kind{"OverlaySynchronous", Engine::synchronous, true}),
                         [](const auto& kind) { return kind.param.name; });

}  // namespace
}  // namespace strata::storage::test
