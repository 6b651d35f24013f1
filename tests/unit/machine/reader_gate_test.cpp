#include "machine/reader_gate.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace strata::machine {
namespace {

TEST(ReaderGate, waits_for_a_reader_that_is_inside) {
  ReaderGate gate;
  std::atomic<bool> inside{false};
  std::atomic<bool> leave{false};
  std::atomic<bool> left{false};
  std::thread reader{[&] {
    {
      const ReaderGate::Section section{gate};
      inside.store(true);
      while (!leave.load()) std::this_thread::yield();
      left.store(true);
    }
  }};
  while (!inside.load()) std::this_thread::yield();
  std::thread helper{[&] {
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
    leave.store(true);
  }};
  gate.synchronize();
  EXPECT_TRUE(left.load());
  reader.join();
  helper.join();
}

TEST(ReaderGate, what_is_unlinked_is_not_seen_after_the_grace_period) {
  ReaderGate gate;
  struct Node {
    std::atomic<bool> alive{true};
  };
  std::vector<Node> nodes(2);
  std::atomic<Node*> current{&nodes[0]};
  std::atomic<bool> stop{false};
  std::atomic<int> bad{0};
  std::vector<std::thread> readers;
  for (int t = 0; t < 3; ++t) {
    readers.emplace_back([&] {
      while (!stop.load()) {
        const ReaderGate::Section section{gate};
        const Node* node = current.load();
        for (int i = 0; i < 10; ++i) {
          if (!node->alive.load()) ++bad;
        }
      }
    });
  }
  for (std::size_t i = 0; i < 2000; ++i) {
    Node* old = current.load();
    Node* fresh = old == &nodes[0] ? &nodes[1] : &nodes[0];
    fresh->alive.store(true);
    current.store(fresh);
    gate.synchronize();
    old->alive.store(false);
  }
  stop.store(true);
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(bad.load(), 0);
}

}  // namespace
}  // namespace strata::machine
