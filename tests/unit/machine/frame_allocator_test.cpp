#include "machine/frame_allocator.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include "machine/test_support.hpp"

namespace strata::machine {
namespace {

using test::must;

class FrameAllocatorTest : public ::testing::Test {
 protected:
  static HostLayout layout() {
    HostLayout l;
    l.window_bytes = 1ULL << 34;
    l.system_pool_bytes = 1ULL << 30;
    return l;
  }
  static std::uint64_t total(const FrameSource& frames) {
    const auto counts = frames.in_use();
    return std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
  }
  bool zeroed(MPN mpn) const {
    const std::uint64_t* w = memory_->window().words(mpn);
    return std::all_of(w, w + 512, [](std::uint64_t x) { return x == 0; });
  }
  void scribble(MPN mpn) const { std::memset(memory_->window().words(mpn), 0xEE, kPageSize); }

  std::unique_ptr<MachineMemory> memory_ = must(MachineMemory::create(layout()));
};

TEST_F(FrameAllocatorTest, frames_are_distinct_zeroed_and_never_frame_zero) {
  FrameAllocator frames{*memory_};
  std::set<MPN> seen;
  for (int i = 0; i < 200; ++i) {
    const MPN mpn = must(frames.allocate(FrameKind::other));
    EXPECT_NE(mpn, MPN{0});
    EXPECT_TRUE(seen.insert(mpn).second);
    EXPECT_TRUE(zeroed(mpn));
    scribble(mpn);
  }
  for (const MPN mpn : seen) frames.release(mpn, FrameKind::other);
}

TEST_F(FrameAllocatorTest, a_frame_used_before_is_zeroed_again) {
  FrameAllocator frames{*memory_};
  for (int round = 0; round < 3; ++round) {
    std::vector<MPN> got;
    for (int i = 0; i < 1000; ++i) {
      got.push_back(must(frames.allocate(FrameKind::other)));
      ASSERT_TRUE(zeroed(got.back()));
      scribble(got.back());
    }
    for (const MPN mpn : got) frames.release(mpn, FrameKind::other);
  }
}

TEST_F(FrameAllocatorTest, counts_by_kind) {
  FrameAllocator frames{*memory_};
  const MPN a = must(frames.allocate(FrameKind::p2m_leaf));
  const MPN b = must(frames.allocate(FrameKind::p2m_leaf));
  const MPN c = must(frames.allocate(FrameKind::shadow_table));
  EXPECT_EQ(frames.in_use()[static_cast<std::size_t>(FrameKind::p2m_leaf)], 2U);
  EXPECT_EQ(frames.in_use()[static_cast<std::size_t>(FrameKind::shadow_table)], 1U);
  frames.release(a, FrameKind::p2m_leaf);
  frames.release(c, FrameKind::shadow_table);
  EXPECT_EQ(frames.in_use()[static_cast<std::size_t>(FrameKind::p2m_leaf)], 1U);
  EXPECT_EQ(total(frames), 1U);
  frames.release(b, FrameKind::p2m_leaf);
}

TEST_F(FrameAllocatorTest, the_budget_is_exact) {
  FrameAllocator frames{*memory_, 50};
  std::vector<MPN> got;
  for (int i = 0; i < 50; ++i) got.push_back(must(frames.allocate(FrameKind::other)));
  EXPECT_FALSE(frames.allocate(FrameKind::other));
  frames.release(got.back(), FrameKind::other);
  got.back() = must(frames.allocate(FrameKind::other));
  frames.set_budget(51);
  got.push_back(must(frames.allocate(FrameKind::other)));
  EXPECT_FALSE(frames.allocate(FrameKind::other));
  for (const MPN mpn : got) frames.release(mpn, FrameKind::other);
}

TEST_F(FrameAllocatorTest, frames_cached_by_another_thread_are_found) {
  FrameAllocator frames{*memory_, 20};
  std::vector<MPN> got;
  for (int i = 0; i < 20; ++i) got.push_back(must(frames.allocate(FrameKind::other)));
  std::atomic<bool> finish{false};
  std::atomic<bool> released{false};
  std::thread other{[&] {
    for (const MPN mpn : got) frames.release(mpn, FrameKind::other);
    released.store(true);
    while (!finish.load()) std::this_thread::yield();  // stays alive, its cache full
  }};
  while (!released.load()) std::this_thread::yield();
  for (MPN& mpn : got) mpn = must(frames.allocate(FrameKind::other));
  EXPECT_FALSE(frames.allocate(FrameKind::other));
  finish.store(true);
  other.join();
  for (const MPN mpn : got) frames.release(mpn, FrameKind::other);
}

TEST_F(FrameAllocatorTest, a_full_pool_is_out_of_frames) {
  const auto pool = must(memory_->create_segment(40 * kPageSize, "pool"));
  FrameAllocator frames{pool, memory_->window()};
  std::vector<MPN> got;
  while (auto mpn = frames.allocate(FrameKind::other)) got.push_back(*mpn);
  EXPECT_EQ(got.size(), 39U);
  for (const MPN mpn : got) frames.release(mpn, FrameKind::other);
  EXPECT_TRUE(frames.allocate(FrameKind::other));
}

TEST_F(FrameAllocatorTest, a_host_without_memory_is_out_of_frames) {
  FileDescriptor fd{::memfd_create("shrunk", MFD_CLOEXEC)};
  ASSERT_EQ(::ftruncate(fd.get(), 1 << 20), 0);
  const int raw = ::dup(fd.get());
  const auto pool = must(memory_->adopt_segment(std::move(fd), 1 << 20, "pool", true));
  ASSERT_EQ(::ftruncate(raw, 0), 0);
  FrameAllocator frames{pool, memory_->window()};
  EXPECT_FALSE(frames.allocate(FrameKind::other));
  EXPECT_EQ(frames.resident_frames(), 0U);
  ASSERT_EQ(::ftruncate(raw, 1 << 20), 0);
  EXPECT_TRUE(frames.allocate(FrameKind::other)) << "memory came back";
  ::close(raw);
}

TEST_F(FrameAllocatorTest, many_freed_frames_go_back_to_the_host) {
  FrameAllocator frames{*memory_};
  std::vector<MPN> got;
  for (int i = 0; i < 4000; ++i) got.push_back(must(frames.allocate(FrameKind::other)));
  EXPECT_GE(memory_->system_pool()->resident_bytes(), 4000 * kPageSize);
  for (const MPN mpn : got) frames.release(mpn, FrameKind::other);
  EXPECT_LE(memory_->system_pool()->resident_bytes(), 400 * kPageSize);
  EXPECT_LE(frames.resident_frames(), 400U);
  frames.trim();
  EXPECT_EQ(memory_->system_pool()->resident_bytes(), 0U);
  EXPECT_EQ(frames.resident_frames(), 0U);
  EXPECT_EQ(total(frames), 0U);
}

TEST_F(FrameAllocatorTest, a_thread_that_ends_gives_its_cache_back) {
  FrameAllocator frames{*memory_};
  std::thread{[&] {
    frames.release(must(frames.allocate(FrameKind::other)), FrameKind::other);
  }}.join();
  frames.trim();
  EXPECT_EQ(frames.resident_frames(), 0U);
  EXPECT_EQ(total(frames), 0U);
}

TEST_F(FrameAllocatorTest, an_allocator_may_end_before_a_thread_that_used_it) {
  const auto second = must(memory_->create_segment(1 << 20, "pool"));
  for (int i = 0; i < 3; ++i) {
    FrameAllocator a{*memory_};
    FrameAllocator b{second, memory_->window()};
    const MPN x = must(a.allocate(FrameKind::other));
    const MPN y = must(b.allocate(FrameKind::other));
    EXPECT_TRUE(second->contains(address_of(y)));
    EXPECT_FALSE(second->contains(address_of(x)));
    a.release(x, FrameKind::other);
    b.release(y, FrameKind::other);
    EXPECT_EQ(total(a) + total(b), 0U);
  }
}

TEST_F(FrameAllocatorTest, threads_never_share_a_frame) {
  FrameAllocator frames{*memory_};
  std::atomic<int> bad{0};
  std::vector<std::thread> threads;
  for (std::uint64_t t = 1; t <= 4; ++t) {
    threads.emplace_back([&, t] {
      std::vector<MPN> mine;
      std::uint64_t random = t;
      for (int i = 0; i < 5000; ++i) {
        random = random * 6364136223846793005ULL + 1442695040888963407ULL;
        if (mine.empty() || (random >> 60) < 9) {
          const auto mpn = frames.allocate(FrameKind::other);
          if (!mpn) continue;
          std::uint64_t* words = memory_->window().words(*mpn);
          if (words[0] != 0 || words[511] != 0) ++bad;
          words[0] = words[511] = t;
          mine.push_back(*mpn);
        } else {
          const std::size_t k = (random >> 32) % mine.size();
          if (memory_->window().words(mine[k])[511] != t) ++bad;
          frames.release(mine[k], FrameKind::other);
          mine[k] = mine.back();
          mine.pop_back();
        }
      }
      for (const MPN mpn : mine) frames.release(mpn, FrameKind::other);
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(bad.load(), 0);
  EXPECT_EQ(total(frames), 0U);
  frames.trim();
  EXPECT_EQ(frames.resident_frames(), 0U);
}

using FrameAllocatorDeathTest = FrameAllocatorTest;

TEST_F(FrameAllocatorDeathTest, freeing_what_is_not_allocated_aborts) {
  FrameAllocator frames{*memory_};
  const MPN mpn = must(frames.allocate(FrameKind::other));
  frames.release(mpn, FrameKind::other);
  EXPECT_DEATH(frames.release(mpn, FrameKind::other), "");
  EXPECT_DEATH(frames.release(MPN{1ULL << 30}, FrameKind::other), "");
}

}  // namespace
}  // namespace strata::machine
