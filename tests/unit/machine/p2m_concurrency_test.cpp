// The P2M under several threads at once.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "machine/test_support.hpp"

namespace strata::machine {
namespace {

using test::must;
using test::TestMachine;

std::uint64_t next_random(std::uint64_t& state) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

void run_threads(std::uint64_t count, const std::function<void(std::uint64_t)>& body) {
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < count; ++t) threads.emplace_back([&, t] { body(t); });
  for (auto& thread : threads) thread.join();
}

TEST(P2mConcurrency, writers_of_one_page_agree) {
  TestMachine m{16};
  run_threads(4, [&](std::uint64_t) {
    for (std::uint64_t p = 0; p < 2000; ++p) {
      for (;;) {
        const auto r = m.p2m.resolve(PPN{p}, AccessKind::write);
        if (r) {
          ASSERT_EQ(r->entry.mpn(), m.p2m.home_of(PPN{p}));
          break;
        }
        ASSERT_EQ(r.error().kind, FaultKind::retry);
      }
    }
  });
  EXPECT_EQ(m.p2m.private_pages(), 2000U);
  EXPECT_EQ(m.home->resident_bytes(), 2000 * kPageSize);
}

TEST(P2mConcurrency, lookups_see_whole_entries_while_runs_come_and_go) {
  TestMachine m{8};
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> bad{0};
  std::vector<std::thread> readers;
  for (std::uint64_t t = 0; t < 2; ++t) {
    readers.emplace_back([&, t] {
      std::uint64_t random = 77 + t;
      while (!stop.load()) {
        const PPN ppn{next_random(random) % 2048};
        const P2mEntry e = m.p2m.lookup(ppn).entry;
        const bool home = e.mpn() == m.p2m.home_of(ppn);
        const bool fine = (e.state() == PageState::private_page && home) ||
                          (e.state() == PageState::zero && e.payload() == 0);
        if (!fine) ++bad;
      }
    });
  }
  for (int round = 0; round < 30; ++round) {
    for (std::uint64_t p = 512; p < 1024; ++p) must(m.p2m.resolve(PPN{p}, AccessKind::write));
    EXPECT_TRUE(m.p2m.join(PPN{512}));
    Flush flush{m.domain};
    (void)must(m.p2m.discard({PPN{600}, 1}, flush));
    (void)must(m.p2m.discard({PPN{512}, 512}, flush));
    flush.commit();
    (void)m.p2m.join(PPN{512});
  }
  stop.store(true);
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(bad.load(), 0U);
}

// Everything at once: each thread writes its own mark under a pin and checks it, while others
// discard, join, log and collect. A page's contents are its writer's or zero, never another page's.
TEST(P2mConcurrency, pinned_writes_discards_joins_and_logging_together) {
  TestMachine m{4};
  constexpr std::uint64_t kPages = 1024;
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> bad{0};
  const auto writer = [&](std::uint64_t t) {
    std::uint64_t random = 1000 + t;
    for (int i = 0; i < 4000; ++i) {
      const PPN ppn{next_random(random) % kPages};
      const auto pin = m.p2m.pin(ppn, AccessKind::write);
      if (!pin) {
        if (pin.error().kind != FaultKind::retry) ++bad;
        continue;
      }
      const std::atomic_ref<std::uint64_t> word{m.window().words(pin->mpn)[t]};
      const std::uint64_t was = word.load();
      if (was != 0 && was != ppn.value() + 1) ++bad;
      word.store(ppn.value() + 1);
      if (word.load() != ppn.value() + 1) ++bad;
      m.p2m.unpin(ppn, AccessKind::write);
    }
  };
  const auto discarder = [&] {
    std::uint64_t random = 5;
    while (!stop.load()) {
      const std::uint64_t first = next_random(random) % kPages;
      const std::uint64_t count = 1 + next_random(random) % (kPages - first);
      Flush flush{m.domain};
      const auto done = m.p2m.discard({PPN{first}, std::min<std::uint64_t>(count, 40)}, flush);
      if (!done && done.error() == EditError::bad_range) ++bad;
      flush.commit();
      (void)m.p2m.join(PPN{first});
    }
  };
  const auto logger = [&] {
    while (!stop.load()) {
      Flush flush{m.domain};
      must(m.p2m.log_dirty({PPN{3}, 700}, flush));
      flush.commit();
      for (const PpnRange& r : m.p2m.collect_dirty({PPN{0}, kPages})) {
        if (r.first.value() + r.count > kPages) ++bad;
      }
      std::this_thread::yield();
    }
  };
  std::thread d{discarder};
  std::thread l{logger};
  run_threads(3, writer);
  stop.store(true);
  d.join();
  l.join();
  EXPECT_EQ(bad.load(), 0U);
  std::uint64_t found = 0;
  for (std::uint64_t p = 0; p < kPages; ++p) {
    const P2mEntry e = m.p2m.lookup(PPN{p}).entry;
    EXPECT_FALSE(e.busy());
    EXPECT_EQ(e.pins(), 0U);
    if (e.state() == PageState::private_page) ++found;
  }
  EXPECT_EQ(m.p2m.private_pages(), found);
  EXPECT_EQ(m.home->resident_bytes(), found * kPageSize);
}

TEST(P2mConcurrency, replacing_is_won_by_one) {
  TestMachine m{4};
  std::atomic<std::uint64_t> won{0};
  for (std::uint64_t p = 0; p < 200; ++p) {
    const P2mEntry seen = m.p2m.lookup(PPN{p}).entry;
    run_threads(3, [&](std::uint64_t t) {
      Flush flush{m.domain};
      const auto wanted = P2mEntry::make(PageState::swapped, t);
      if (m.p2m.replace(PPN{p}, seen, wanted, flush)) won.fetch_add(1);
      flush.commit();
    });
  }
  EXPECT_EQ(won.load(), 200U);
}

// A collector that marks, then copies, must end with a copy of the last write.
TEST(P2mConcurrency, no_write_is_lost_between_log_and_copy) {
  TestMachine m{4};
  constexpr std::uint64_t kPages = 64;
  std::atomic<bool> stop{false};
  std::vector<std::uint64_t> copy(kPages);
  std::thread writer{[&] {
    std::uint64_t random = 3;
    for (std::uint64_t i = 1; i < 20000; ++i) {
      const PPN ppn{next_random(random) % kPages};
      const auto pin = m.p2m.pin(ppn, AccessKind::write);
      if (!pin) continue;
      std::atomic_ref<std::uint64_t>{*m.window().words(pin->mpn)}.store(i);
      m.p2m.unpin(ppn, AccessKind::write);
    }
    stop.store(true);
  }};
  const auto pass = [&](bool first) {
    const auto dirty = m.p2m.collect_dirty({PPN{0}, kPages});
    Flush flush{m.domain};
    must(m.p2m.log_dirty({PPN{0}, kPages}, flush));
    flush.commit();
    const auto copy_page = [&](std::uint64_t p) {
      const P2mEntry e = m.p2m.lookup(PPN{p}).entry;
      const MPN from = e.state() == PageState::private_page ? e.mpn() : m.p2m.zero_frame();
      copy[p] = std::atomic_ref<std::uint64_t>{*m.window().words(from)}.load();
    };
    for (std::uint64_t p = 0; first && p < kPages; ++p) copy_page(p);
    for (const PpnRange& r : dirty) {
      for (std::uint64_t i = 0; i < r.count; ++i) copy_page(r.first.value() + i);
    }
  };
  pass(true);
  while (!stop.load()) pass(false);
  writer.join();
  pass(false);
  for (std::uint64_t p = 0; p < kPages; ++p) {
    const P2mEntry e = m.p2m.lookup(PPN{p}).entry;
    const MPN at = e.state() == PageState::private_page ? e.mpn() : m.p2m.zero_frame();
    EXPECT_EQ(copy[p], *m.window().words(at)) << p;
  }
}

}  // namespace
}  // namespace strata::machine
