#include "network/frame_ring.hpp"

#include <gtest/gtest.h>

#include <array>
#include <thread>

namespace strata::network {
namespace {

FrameRing::Pushed push(FrameRing& ring, std::size_t length, int fill = 0) {
  std::vector<std::byte> bytes(length, static_cast<std::byte>(fill));
  const std::array<iovec, 3> pieces{
      {{bytes.data(), length / 2}, {nullptr, 0}, {bytes.data(), length - length / 2}}};
  return ring.push(pieces);
}

TEST(FrameRing, KeepsOrderAndBounds) {
  FrameRing ring{3};
  for (int round = 0; round < 5; ++round) {
    EXPECT_EQ(push(ring, 60, 1), FrameRing::Pushed::first);
    EXPECT_EQ(push(ring, 61, 2), FrameRing::Pushed::more);
    ring.pop();
    EXPECT_EQ(push(ring, 62, 3), FrameRing::Pushed::more);
    EXPECT_EQ(push(ring, 63, 4), FrameRing::Pushed::more);
    EXPECT_EQ(push(ring, 64, 5), FrameRing::Pushed::dropped);
    for (std::size_t i = 0; i < 3; ++i) {
      ASSERT_EQ(ring.front().size(), 61 + i);
      EXPECT_EQ(ring.front().back(), static_cast<std::byte>(2 + i));
      ring.pop();
    }
    EXPECT_TRUE(ring.front().empty());
  }
}

TEST(FrameRing, TakesFramesOnly) {
  FrameRing ring{3};
  for (const std::size_t length : {0UL, 13UL, kMaxFrameBytes + 1, 100'000UL}) {
    EXPECT_EQ(push(ring, length), FrameRing::Pushed::dropped);
  }
  EXPECT_EQ(push(ring, kMaxFrameBytes), FrameRing::Pushed::first);
  EXPECT_EQ(push(ring, kMinFrameBytes), FrameRing::Pushed::more);
}

TEST(FrameRing, WhoFindsItEmptyIsTold) {
  constexpr int kFrames = 20'000;
  FrameRing ring{8};
  std::atomic<int> signals{0};
  std::atomic<bool> done{false};
  std::thread producer{[&] {
    for (int i = 0; i < kFrames; ++i) {
      FrameRing::Pushed pushed;
      while ((pushed = push(ring, 20, i)) == FrameRing::Pushed::dropped) std::this_thread::yield();
      if (pushed == FrameRing::Pushed::first) ++signals;
    }
    done = true;
  }};
  int taken = 0;
  for (int seen = 0; taken < kFrames;) {
    // As a thread that sleeps until it is told, and then takes all.
    while (signals == seen) std::this_thread::yield();
    seen = signals;
    while (!ring.front().empty()) {
      EXPECT_EQ(ring.front()[3], static_cast<std::byte>(taken));
      ring.pop();
      ++taken;
    }
  }
  producer.join();
  EXPECT_TRUE(done);
}

}  // namespace
}  // namespace strata::network
