// Events in and out of chunks, and nonsense in place of them.
#include "vmm/replay/event.hpp"

#include <gtest/gtest.h>

#include <random>

#include "temporary_file.hpp"
#include "vmm/replay/event_queue.hpp"

namespace strata::replay {
namespace {

/// A run of random events, as two vCPUs taking turns would make them.
std::vector<Event> random_events(unsigned count) {
  std::mt19937_64 rng{5};
  std::vector<Event> events;
  std::array<std::uint64_t, 2> instructions{};
  VcpuId vcpu = 0;
  for (unsigned i = 0; i < count; ++i) {
    Event e;
    e.kind = static_cast<EventKind>(rng() % (kEventKinds - 1));
    e.vcpu = vcpu;
    e.position.instructions = instructions[vcpu] += rng() >> (rng() % 64) >> 8;
    const bool between = between_instructions(e.kind);
    if (between && rng() % 3 == 0) e.position.rep_remaining = 1 + (rng() >> rng() % 64);
    const bool access = e.kind >= EventKind::port_read && e.kind <= EventKind::mmio_write;
    const bool msr = e.kind == EventKind::msr_read || e.kind == EventKind::msr_write;
    const bool data = e.kind == EventKind::memory || e.kind == EventKind::dma;
    if (access || e.kind == EventKind::random) e.size = static_cast<std::uint8_t>(1U << rng() % 4);
    if (access || msr || data) e.address = rng() >> (rng() % 64);
    if (!data && e.kind != EventKind::nmi && e.kind != EventKind::init) {
      e.value = rng() >> (rng() % 64);
    }
    if (e.kind == EventKind::random) e.flag = rng() % 2 == 0;
    if (msr || e.kind == EventKind::random) e.failed = rng() % 2 == 0;
    if (e.kind == EventKind::interrupt || e.kind == EventKind::startup) e.value &= 0xFF;
    if (data) e.bytes.assign(rng() % 5000, static_cast<std::byte>(rng()));
    if (e.kind == EventKind::turn) vcpu = static_cast<VcpuId>(e.value = rng() % 2);
    events.push_back(std::move(e));
  }
  Event end;
  end.vcpu = vcpu;
  end.position.instructions = instructions[vcpu];
  events.push_back(end);
  return events;
}

TEST(Events, AQueuePassesThemOnAsTheyCome) {
  EventQueue queue;
  EXPECT_EQ(*queue.front(), nullptr);
  EXPECT_FALSE(queue.next_stop());
  const std::vector<Event> events = random_events(2'000);
  std::size_t out = 0;
  for (std::size_t in = 0; in < events.size(); ++in) {
    queue.write(events[in]);
    if (!between_instructions(events[in].kind)) continue;
    for (; out <= in; ++out) {
      ASSERT_EQ(**queue.front(), events[out]);
      const auto stop =
          std::find_if(events.begin() + static_cast<std::ptrdiff_t>(out), events.end(),
                       [](const Event& e) { return between_instructions(e.kind); });
      EXPECT_EQ(*queue.next_stop(), stop->position);
      queue.pop();
    }
    EXPECT_EQ(*queue.front(), nullptr);
  }
  EXPECT_EQ(queue.events(), events.size());
  EXPECT_FALSE(queue.recent().empty());
  queue.forget();
  EXPECT_TRUE(queue.recent().empty());
}

TEST(Events, WhatGoesInComesOut) {
  const test::TemporaryFile file;
  const std::vector<Event> events = random_events(20'000);
  auto out = ChunkWriter::create(test::output(file.path()), FileKind::recording);
  ASSERT_TRUE(out);
  EventWriter writer{**out, 2};
  for (const Event& e : events) writer.write(e);
  writer.flush();
  (*out)->write_json(ChunkType::end, nlohmann::json{{"done", true}});
  ASSERT_TRUE((*out)->finish());

  auto in = ChunkReader::open(file.path(), FileKind::recording);
  ASSERT_TRUE(in);
  EventReader reader{**in, 2};
  for (std::size_t i = 0; i < events.size(); ++i) {
    const auto front = reader.front();
    ASSERT_TRUE(front) << i;
    ASSERT_EQ(**front, events[i]) << i << ": " << describe(**front);
    if (i % 100 == 0) {
      const auto stop = reader.next_stop();
      const auto expected =
          std::find_if(events.begin() + static_cast<std::ptrdiff_t>(i), events.end(),
                       [](const Event& e) { return between_instructions(e.kind); });
      ASSERT_TRUE(stop);
      EXPECT_EQ(*stop, expected->position);
    }
    reader.pop();
  }
  EXPECT_FALSE(reader.front()) << "there is nothing behind the end";
  const auto end = reader.end();
  ASSERT_TRUE(end);
  EXPECT_EQ((*end)["done"], true);
}

/// A file whose chunks are whole and whose events are not.
TEST(Events, NonsenseIsRefusedOrRead) {
  std::mt19937_64 rng{9};
  for (int i = 0; i < 200; ++i) {
    const test::TemporaryFile file;
    auto out = ChunkWriter::create(test::output(file.path()), FileKind::recording);
    ASSERT_TRUE(out);
    std::vector<std::byte> noise(1 + rng() % 300);
    for (auto& b : noise) b = static_cast<std::byte>(rng());
    (*out)->write(ChunkType::events, noise);
    ASSERT_TRUE((*out)->finish());
    auto in = ChunkReader::open(file.path(), FileKind::recording);
    ASSERT_TRUE(in);
    EventReader reader{**in, 1};
    unsigned got = 0;
    while (reader.front()) {
      reader.pop();
      ASSERT_LE(++got, noise.size());
    }
  }
}

}  // namespace
}  // namespace strata::replay
