#include "mmu/flush.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "machine/test_support.hpp"

namespace strata {
namespace {

using machine::test::ManualHolder;

TEST(FlushDeathTest, destroying_one_that_owes_aborts) {
  FlushDomain domain;
  EXPECT_DEATH(
      {
        Flush flush{domain};
        flush.add({PPN{1}, 1});
      },
      "");
  EXPECT_DEATH(
      {
        Flush flush{domain};
        flush.defer([] {});
      },
      "");
  EXPECT_DEATH(
      {
        Flush flush{domain};
        flush.add_all();
      },
      "");
}

TEST(Flush, owes_nothing_once_committed) {
  FlushDomain domain;
  Flush flush{domain};
  EXPECT_EQ(flush.commit(), 0U);
  flush.add({PPN{1}, 2});
  EXPECT_TRUE(flush.owes());
  EXPECT_EQ(flush.commit(), 1U);
  EXPECT_FALSE(flush.owes());
  EXPECT_EQ(flush.commit(), 0U);
}

TEST(Flush, neighbouring_ranges_become_one) {
  FlushDomain domain;
  ManualHolder holder;
  domain.add(holder);
  Flush flush{domain};
  flush.add({PPN{1}, 2});
  flush.add({PPN{3}, 1});
  flush.add({PPN{9}, 1});
  flush.commit();
  ASSERT_EQ(holder.seen.size(), 1U);
  ASSERT_EQ(holder.seen[0].ranges.size(), 2U);
  EXPECT_EQ(holder.seen[0].ranges[0].count, 3U);
  domain.remove(holder);
}

TEST(Flush, frees_wait_for_every_holder_and_run_in_order) {
  FlushDomain domain;
  ManualHolder fast;
  ManualHolder slow;
  domain.add(fast);
  domain.add(slow);
  std::vector<int> freed;
  for (int i = 0; i < 3; ++i) {
    Flush flush{domain};
    flush.defer([&freed, i] { freed.push_back(i); });
    flush.commit();
  }
  fast.pass(3);
  domain.collect();
  EXPECT_TRUE(freed.empty());
  slow.pass(2);
  domain.collect();
  EXPECT_EQ(freed, (std::vector<int>{0, 1}));
  EXPECT_EQ(domain.waiting(), 1U);
  domain.remove(slow);
  domain.collect();
  EXPECT_EQ(freed, (std::vector<int>{0, 1, 2}));
  domain.remove(fast);
}

TEST(Flush, without_holders_frees_run_at_commit) {
  FlushDomain domain;
  bool freed = false;
  Flush flush{domain};
  flush.defer([&] { freed = true; });
  flush.commit();
  EXPECT_TRUE(freed);
}

TEST(Flush, the_domain_runs_what_is_left_when_it_goes) {
  bool freed = false;
  ManualHolder holder;
  {
    FlushDomain domain;
    domain.add(holder);
    Flush flush{domain};
    flush.defer([&] { freed = true; });
    flush.commit();
    EXPECT_FALSE(freed);
  }
  EXPECT_TRUE(freed);
}

TEST(Flush, waiting_leaves_oneself_out) {
  FlushDomain domain;
  ManualHolder self;
  domain.add(self);
  Flush flush{domain};
  flush.add({PPN{1}, 1});
  domain.wait(flush.commit(), &self);  // returns although self has passed nothing
  domain.remove(self);
}

// A holder that reads a cell until told to drop it: what is freed must never be read.
class ReadingHolder final : public TranslationHolder {
 public:
  void invalidate(const Invalidation&, Epoch epoch) noexcept override { asked_.store(epoch); }
  [[nodiscard]] Epoch passed() const noexcept override { return passed_.load(); }
  void run(const std::atomic<std::atomic<int>*>& current, const std::atomic<bool>& stop) {
    while (!stop.load()) {
      const Epoch asked = asked_.load();
      const std::atomic<int>* cell = current.load();
      passed_.store(asked);
      for (int i = 0; i < 20; ++i) {
        if (cell->load() == -1) ++bad;
      }
    }
    passed_.store(std::numeric_limits<Epoch>::max());
  }
  std::atomic<int> bad{0};

 private:
  std::atomic<Epoch> asked_{0};
  std::atomic<Epoch> passed_{0};
};

TEST(Flush, nothing_is_freed_under_a_running_holder) {
  FlushDomain domain;
  std::array<std::atomic<int>, 2> cells{};
  std::atomic<std::atomic<int>*> current{cells.data()};
  std::atomic<bool> stop{false};
  ReadingHolder a;
  ReadingHolder b;
  domain.add(a);
  domain.add(b);
  std::thread ta{[&] { a.run(current, stop); }};
  std::thread tb{[&] { b.run(current, stop); }};
  for (int i = 0; i < 500; ++i) {
    std::atomic<int>* old = current.load();
    auto* fresh = old == cells.data() ? &cells[1] : cells.data();
    fresh->store(i);
    current.store(fresh);
    Flush flush{domain};
    flush.add({PPN{1}, 1});
    flush.defer([old] { old->store(-1); });
    const Epoch epoch = flush.commit();
    domain.wait(epoch);
    domain.collect();
    EXPECT_EQ(old->load(), -1);
  }
  stop.store(true);
  ta.join();
  tb.join();
  EXPECT_EQ(a.bad.load(), 0);
  EXPECT_EQ(b.bad.load(), 0);
  domain.remove(a);
  domain.remove(b);
}

}  // namespace
}  // namespace strata
