#include "devices/virtio/queue.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "small_driver.hpp"

namespace strata::devices::virtio::test {
namespace {

constexpr std::uint16_t kSize = 8, kNext = 1, kWrite = 2, kIndirect = 4;
constexpr PA kTable{0x1000}, kAvailable{0x2000}, kUsed{0x3000}, kData{0x10000}, kInner{0x8000};
constexpr std::uint64_t kRamEnd = 8 << 20;

struct Entry {
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  std::uint16_t flags = 0;
  std::uint16_t next = 0;
};

class QueueTest : public testing::Test {
 protected:
  void put(PA table, unsigned index, const Entry& entry) {
    memory.store(table + 16 * index, entry);
  }
  void offer(std::uint16_t head) {
    memory.store<std::uint16_t>(kAvailable + 4 + 2ULL * (made_ % kSize), head);
    memory.store<std::uint16_t>(kAvailable + 2, ++made_);
  }
  static QueueConfig config(bool event_idx = false) {
    return {.size = kSize,
            .max_size = 16,
            .descriptors = kTable,
            .available = kAvailable,
            .used = kUsed,
            .indirect = true,
            .event_idx = event_idx};
  }
  machine::test::TestMachine memory{8};
  std::uint16_t made_ = 0;
};

TEST_F(QueueTest, PopsReadablePartsBeforeWritableOnes) {
  put(kTable, 2, {kData.value(), 10, kNext, 5});
  put(kTable, 5, {kData.value() + 0x1000, 0, kNext, 6});
  put(kTable, 6, {kData.value() + 0x2000, 20, kNext | kWrite, 7});
  put(kTable, 7, {kData.value() + 0x3000, 30, kWrite, 0});
  Queue queue{memory.guest, config()};
  Chain chain;
  EXPECT_EQ(queue.pop(chain), Queue::Popped::empty);
  offer(2);
  ASSERT_EQ(queue.pop(chain), Queue::Popped::chain);
  EXPECT_EQ(chain.head(), 2);
  EXPECT_EQ(chain.readable_bytes(), 10U);
  EXPECT_EQ(chain.writable_bytes(), 50U);
  ASSERT_EQ(chain.readable().size(), 1U) << "the empty buffer holds nothing";
  ASSERT_EQ(chain.writable().size(), 2U);
  EXPECT_EQ(chain.writable()[1].pa, kData + 0x3000);
  EXPECT_EQ(queue.pop(chain), Queue::Popped::empty);
}

TEST_F(QueueTest, CopiesAcrossSegmentsAndNotBeyond) {
  put(kTable, 0, {kData.value() + 0xFFE, 4, kNext, 1});
  put(kTable, 1, {kData.value() + 0x3000, 4, kNext | kWrite, 2});
  put(kTable, 2, {kData.value() + 0x4FFF, 2, kWrite, 0});
  memory.store<std::uint32_t>(kData + 0xFFE, 0x44332211);
  offer(0);
  Queue queue{memory.guest, config()};
  Chain chain;
  ASSERT_EQ(queue.pop(chain), Queue::Popped::chain);
  std::array<std::byte, 3> out{};
  EXPECT_TRUE(chain.read(memory.guest, 1, out));
  EXPECT_EQ(std::to_integer<int>(out[2]), 0x44);
  EXPECT_FALSE(chain.read(memory.guest, 2, out)) << "one byte too many";
  const std::array<std::byte, 4> in{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  EXPECT_TRUE(chain.write(memory.guest, 2, in));
  EXPECT_EQ(memory.load<std::uint16_t>(kData + 0x3002), 0x0201);
  EXPECT_EQ(memory.load<std::uint16_t>(kData + 0x4FFF), 0x0403);
  EXPECT_FALSE(chain.write(memory.guest, 3, in));
  PinnedBuffers buffers;
  EXPECT_EQ(chain.pin_writable(memory.guest, 0, 6, buffers), Chain::Held::yes);
  std::size_t held = 0;
  for (const iovec& v : buffers.vectors) held += v.iov_len;
  EXPECT_EQ(held, 6U);
  EXPECT_EQ(chain.pin_writable(memory.guest, 0, 7, buffers), Chain::Held::no);
}

TEST_F(QueueTest, IndirectTablesEndAChain) {
  put(kTable, 0, {kData.value(), 1, kNext, 1});
  put(kTable, 1, {kInner.value(), 2 * 16, kIndirect | kWrite, 0});
  put(kInner, 0, {kData.value() + 0x1000, 2, kNext, 1});
  put(kInner, 1, {kData.value() + 0x2000, 3, kWrite, 0});
  offer(0);
  Queue queue{memory.guest, config()};
  Chain chain;
  ASSERT_EQ(queue.pop(chain), Queue::Popped::chain);
  EXPECT_EQ(chain.readable_bytes(), 3U);
  EXPECT_EQ(chain.writable_bytes(), 3U);
}

TEST_F(QueueTest, ChainsThatWereNotUsedCanBeGivenBackToPop) {
  put(kTable, 0, {kData.value(), 1, 0, 0});
  put(kTable, 1, {kData.value(), 2, 0, 0});
  offer(0);
  offer(1);
  Queue queue{memory.guest, config()};
  Chain chain;
  ASSERT_EQ(queue.pop(chain), Queue::Popped::chain);
  ASSERT_EQ(queue.pop(chain), Queue::Popped::chain);
  queue.unpop(1);
  ASSERT_EQ(queue.pop(chain), Queue::Popped::chain);
  EXPECT_EQ(chain.head(), 1);
}

TEST_F(QueueTest, PushFillsTheUsedRing) {
  Queue queue{memory.guest, config(), {.available = 0xFFFF, .used = 0xFFFF}};
  queue.push(3, 77);
  EXPECT_EQ(memory.load<std::uint32_t>(kUsed + 4 + 8 * 7), 3U);
  EXPECT_EQ(memory.load<std::uint32_t>(kUsed + 8 + 8 * 7), 77U);
  EXPECT_EQ(memory.load<std::uint16_t>(kUsed + 2), 0) << "the index wraps around";
  EXPECT_EQ(queue.position().used, 0);
}

TEST_F(QueueTest, TheFlagSuppressesInterrupts) {
  Queue queue{memory.guest, config()};
  EXPECT_TRUE(queue.wants_interrupt());
  EXPECT_FALSE(queue.wants_interrupt()) << "nothing new";
  queue.push(0, 0);
  EXPECT_TRUE(queue.wants_interrupt());
  memory.store<std::uint16_t>(kAvailable, 1);
  queue.push(0, 0);
  EXPECT_FALSE(queue.wants_interrupt());
}

TEST_F(QueueTest, EventIndicesSuppressBothWays) {
  Queue queue{memory.guest, config(true), {.signalled_valid = true}};
  const PA used_event = kAvailable + 4 + 2 * kSize, avail_event = kUsed + 4 + 8 * kSize;
  memory.store<std::uint16_t>(used_event, 1);
  queue.push(0, 0);
  EXPECT_FALSE(queue.wants_interrupt()) << "asked for from entry 1 on";
  queue.push(0, 0);
  queue.push(0, 0);
  EXPECT_TRUE(queue.wants_interrupt()) << "entry 1 is among those pushed since";
  queue.push(0, 0);
  EXPECT_FALSE(queue.wants_interrupt());
  Chain chain;
  put(kTable, 0, {kData.value(), 1, 0, 0});
  offer(0);
  offer(0);
  ASSERT_EQ(queue.pop(chain), Queue::Popped::chain);
  EXPECT_EQ(memory.load<std::uint16_t>(avail_event), 0) << "no notification while it works";
  ASSERT_EQ(queue.pop(chain), Queue::Popped::chain);
  EXPECT_EQ(queue.pop(chain), Queue::Popped::empty);
  EXPECT_EQ(memory.load<std::uint16_t>(avail_event), 2);
}

/// Its parts are open to the table of what no driver may do.
class HostileQueueTest : public QueueTest {
 public:
  using QueueTest::made_;
  using QueueTest::memory;
  using QueueTest::offer;
  using QueueTest::put;
};

TEST_F(HostileQueueTest, BreakTheQueueAndNothingElse) {
  using Make = std::function<void(HostileQueueTest&)>;
  const std::vector<std::pair<const char*, Make>> cases{
      {"a loop",
       [](auto& t) {
         t.put(kTable, 0, {kData.value(), 1, kNext, 0});
         t.offer(0);
       }},
      {"a head outside", [](auto& t) { t.offer(kSize); }},
      {"a next outside",
       [](auto& t) {
         t.put(kTable, 0, {kData.value(), 1, kNext, 0xFFFF});
         t.offer(0);
       }},
      {"an index that jumps",
       [](auto& t) { t.memory.template store<std::uint16_t>(kAvailable + 2, kSize + 1); }},
      {"an index that goes back",
       [](auto& t) { t.memory.template store<std::uint16_t>(kAvailable + 2, 0xFFFF); }},
      {"readable after writable",
       [](auto& t) {
         t.put(kTable, 0, {kData.value(), 1, kWrite | kNext, 1});
         t.put(kTable, 1, {kData.value(), 1, 0, 0});
         t.offer(0);
       }},
      {"an address that wraps around",
       [](auto& t) {
         t.put(kTable, 0, {~0ULL - 4, 16, 0, 0});
         t.offer(0);
       }},
      {"more than 4 GiB",
       [](auto& t) {
         t.put(kTable, 0, {0, 0xFFFFFFFF, kNext, 1});
         t.put(kTable, 1, {0, 2, 0, 0});
         t.offer(0);
       }},
      {"indirect in indirect",
       [](auto& t) {
         t.put(kTable, 0, {kInner.value(), 16, kIndirect, 0});
         t.put(kInner, 0, {kInner.value(), 16, kIndirect, 0});
         t.offer(0);
       }},
      {"indirect with a next",
       [](auto& t) {
         t.put(kTable, 0, {kInner.value(), 16, kIndirect | kNext, 1});
         t.put(kTable, 1, {kData.value(), 1, 0, 0});
         t.put(kInner, 0, {kData.value(), 1, 0, 0});
         t.offer(0);
       }},
      {"an empty indirect table",
       [](auto& t) {
         t.put(kTable, 0, {kInner.value(), 0, kIndirect, 0});
         t.offer(0);
       }},
      {"an indirect table of a part of an entry",
       [](auto& t) {
         t.put(kTable, 0, {kInner.value(), 24, kIndirect, 0});
         t.offer(0);
       }},
      {"an indirect table that is too long",
       [](auto& t) {
         for (unsigned i = 0; i < 17; ++i) {
           t.put(kInner, i, {kData.value(), 1, kNext, static_cast<std::uint16_t>(i + 1)});
         }
         t.put(kInner, 16, {kData.value(), 1, 0, 0});
         t.put(kTable, 0, {kInner.value(), 17 * 16, kIndirect, 0});
         t.offer(0);
       }},
      {"an indirect table that wraps around",
       [](auto& t) {
         t.put(kTable, 0, {~0ULL - 15, 32, kIndirect, 0});
         t.offer(0);
       }},
      {"an indirect table that is not memory",
       [](auto& t) {
         t.put(kTable, 0, {kRamEnd, 16, kIndirect, 0});
         t.offer(0);
       }},
      {"an indirect table that leaves memory",
       [](auto& t) {
         t.put(PA{kRamEnd - 16}, 0, {kData.value(), 1, kNext, 1});
         t.put(kTable, 0, {kRamEnd - 16, 32, kIndirect, 0});
         t.offer(0);
       }},
  };
  for (const auto& [name, make] : cases) {
    HostileQueueTest::made_ = 0;
    memory.store<std::uint32_t>(kAvailable, 0);
    make(*this);
    Queue queue{memory.guest, config()};
    Chain chain;
    EXPECT_EQ(queue.pop(chain), Queue::Popped::broken) << name;
    EXPECT_TRUE(queue.broken()) << name;
    queue.push(0, 1);
    EXPECT_EQ(memory.load<std::uint16_t>(kUsed + 2), 0) << name << ": a broken queue gives nothing";
  }
}

TEST_F(QueueTest, RingsOutsideMemoryBreakIt) {
  for (const int ring : {0, 1, 2}) {
    QueueConfig c = config(true);
    (ring == 0 ? c.descriptors : ring == 1 ? c.available : c.used) = PA{1ULL << 40};
    made_ = 0;
    put(kTable, 0, {kData.value(), 1, 0, 0});
    offer(0);
    Queue queue{memory.guest, c};
    Chain chain;
    if (queue.pop(chain) == Queue::Popped::chain) queue.push(chain.head(), 0);
    EXPECT_TRUE(queue.broken()) << ring;
    EXPECT_FALSE(queue.wants_interrupt());
  }
}

TEST_F(QueueTest, IndirectNeedsItsFeature) {
  QueueConfig c = config();
  c.indirect = false;
  put(kTable, 0, {kInner.value(), 16, kIndirect, 0});
  put(kInner, 0, {kData.value(), 1, 0, 0});
  offer(0);
  Queue queue{memory.guest, c};
  Chain chain;
  EXPECT_EQ(queue.pop(chain), Queue::Popped::broken);
}

TEST_F(QueueTest, PlacesOfRings) {
  EXPECT_TRUE(config().valid());
  const auto with = [](auto change) {
    QueueConfig c = config();
    change(c);
    return c.valid();
  };
  EXPECT_FALSE(with([](auto& c) { c.size = 0; }));
  EXPECT_FALSE(with([](auto& c) { c.size = 6; }));
  EXPECT_FALSE(with([](auto& c) { c.size = 32; })) << "larger than offered";
  EXPECT_FALSE(with([](auto& c) { c.descriptors = PA{0x1008}; }));
  EXPECT_FALSE(with([](auto& c) { c.available = PA{0x2001}; }));
  EXPECT_FALSE(with([](auto& c) { c.used = PA{0x3002}; }));
  EXPECT_FALSE(with([](auto& c) { c.used = PA{~0ULL & ~0xFULL}; })) << "wraps around";
  EXPECT_FALSE(with([](auto& c) { c.descriptors = PA{~0ULL & ~0xFULL}; }));
}

/// A driver on a thread of its own, with event indices: nothing is lost in either direction.
TEST_F(QueueTest, ADriverThatRunsMeanwhileMissesNothing) {
  constexpr unsigned kRequests = 20'000;
  for (std::uint16_t i = 0; i < kSize; ++i) put(kTable, i, {kData.value(), 4, 0, 0});
  Queue queue{memory.guest, config(true)};
  const auto host = [&](PA pa) {
    auto pin =
        machine::test::must(memory.guest.pin(machine::kIdentitySpace, pa, 2, AccessKind::write));
    return std::atomic_ref<std::uint16_t>{
        *reinterpret_cast<std::uint16_t*>(pin.chunks()[0].data())};
  };
  const auto avail_index = host(kAvailable + 2), used_index = host(kUsed + 2);
  const auto avail_event = host(kUsed + 4 + 8 * kSize);
  std::atomic<unsigned> notified{0};
  std::thread driver{[&] {
    std::uint16_t made = 0;
    for (unsigned sent = 0; sent < kRequests; ++sent) {
      while (static_cast<std::uint16_t>(made - used_index.load()) == kSize) {
        std::this_thread::yield();
      }
      const std::uint16_t before = made++;
      avail_index.store(made, std::memory_order_release);
      std::atomic_thread_fence(std::memory_order_seq_cst);
      if (static_cast<std::uint16_t>(made - avail_event.load() - 1) <
          static_cast<std::uint16_t>(made - before)) {
        ++notified;
      }
    }
  }};
  unsigned seen = 0, answered = 0;
  Chain chain;
  // The device looks only when it was notified.
  while (answered < kRequests) {
    const unsigned now = notified.load();
    if (now == seen) {
      std::this_thread::yield();
      continue;
    }
    seen = now;
    while (queue.pop(chain) == Queue::Popped::chain) {
      queue.push(chain.head(), 0);
      ++answered;
    }
  }
  driver.join();
  EXPECT_FALSE(queue.broken());
  EXPECT_EQ(answered, kRequests);
}

}  // namespace
}  // namespace strata::devices::virtio::test
