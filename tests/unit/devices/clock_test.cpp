#include "devices/clock.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <semaphore>
#include <string>
#include <thread>

#include "devices/manual_clock.hpp"

namespace strata::devices {
namespace {

TEST(Scale, UsesTheWholeProductAndSaturates) {
  EXPECT_EQ(scale(~0ULL, 3, 3), ~0ULL);
  EXPECT_EQ(scale(~0ULL, 2, 3), 12297829382473034410ULL);
  EXPECT_EQ(scale(~0ULL, 2, 1), ~0ULL);
  EXPECT_EQ(scale(7, 1, 2), 3U);
}

TEST(Clock, ConvertsBothWaysAroundNow) {
  ManualClock clock{2'500'000, 1000};  // 2.5 ticks a nanosecond
  clock.jump(1'000'000);
  EXPECT_EQ(clock.tsc(), 1000U + 2'500'000);
  EXPECT_EQ(clock.tsc_at_ns(2'000'000), 1000U + 5'000'000);
  EXPECT_EQ(clock.tsc_at_ns(0), 1000U);
  EXPECT_EQ(clock.ns_at_tsc(1000), 0U);
  EXPECT_EQ(clock.ns_at_tsc(0), 0U) << "before power-on";
  const Nanoseconds when = clock.ns_at_tsc(1000 + 5'000'001);
  EXPECT_GE(clock.tsc_at_ns(when), 1000U + 5'000'001) << "at that time the TSC is there";
  EXPECT_LE(when, 2'000'002U);
  EXPECT_EQ(clock.ns_at_tsc(~0ULL), 1'000'000 + (~0ULL - 2'501'000) / 5 * 2 + 1)
      << "far, but within 64 bits";
  ManualClock slow{1000};  // 1 MHz: the last TSC value is past the last nanosecond
  EXPECT_EQ(slow.ns_at_tsc(~0ULL), kNever);
}

TEST(ManualClock, FiresInOrderAtTheDeadline) {
  ManualClock clock;
  std::string order;
  Nanoseconds seen = 0;
  Timer b{clock, [&] { order += 'b'; }};
  Timer a{clock, [&] {
            order += 'a';
            seen = clock.now();
          }};
  b.arm(200);
  a.arm(100);
  EXPECT_EQ(clock.next_deadline(), 100U);
  clock.advance(99);
  EXPECT_EQ(order, "");
  clock.advance(1000);
  EXPECT_EQ(order, "ab");
  EXPECT_EQ(seen, 100U);
  clock.advance(1000);
  EXPECT_EQ(order, "ab") << "one shot each";
}

TEST(Timers, CancelRearmAndRemove) {
  ManualClock clock;
  int fired = 0;
  auto timer = std::make_unique<Timer>(clock, [&] { ++fired; });
  timer->arm(100);
  timer->arm(300);
  clock.advance(200);
  EXPECT_EQ(fired, 0) << "moved back";
  timer->cancel();
  clock.advance(200);
  EXPECT_EQ(fired, 0);
  timer->arm(450);
  timer->arm(kNever);
  clock.advance(100);
  EXPECT_EQ(fired, 0) << "never is cancel";
  timer->arm(600);
  timer.reset();
  clock.advance(1000);
  EXPECT_EQ(fired, 0) << "removed";
  EXPECT_EQ(clock.next_deadline(), kNever);
}

TEST(Timers, CallbacksMayArmAndRemoveThemselves) {
  ManualClock clock;
  int fired = 0;
  Timers::Id id = 0;
  id = clock.add([&] {
    if (++fired < 3) {
      clock.arm(id, clock.now() + 10);
    } else {
      clock.remove(id);
    }
  });
  clock.arm(id, 10);
  clock.advance(1000);
  EXPECT_EQ(fired, 3);
  clock.arm(id, 2000);  // no such timer any more
  clock.advance(2000);
  EXPECT_EQ(fired, 3);
}

TEST(Timers, HandlesAreReused) {
  ManualClock clock;
  const Timers::Id first = clock.add([] {});
  clock.remove(first);
  EXPECT_EQ(clock.add([] {}), first);
}

TEST(TimerService, FiresAndNeverEarly) {
  GuestClock clock;
  TimerService timers{clock};
  timers.start();
  std::promise<Nanoseconds> fired;
  Timer timer{timers, [&] { fired.set_value(clock.now()); }};
  const Nanoseconds deadline = clock.now() + 2'000'000;
  timer.arm(deadline);
  EXPECT_GE(fired.get_future().get(), deadline);
}

TEST(TimerService, AnEarlierTimerOvertakesALaterOne) {
  GuestClock clock;
  TimerService timers{clock};
  timers.start();
  std::binary_semaphore fired{0};
  Timer late{timers, [] {}};
  Timer soon{timers, [&] { fired.release(); }};
  late.arm(clock.now() + 3600 * kNanosecondsPerSecond);
  // Often enough to find the thread asleep, where it would stay for an hour.
  for (int i = 0; i < 200; ++i) {
    soon.arm(clock.now());
    fired.acquire();
  }
  EXPECT_GE(timers.fired(), 199U);
}

TEST(TimerService, RemoveWaitsForTheCallback) {
  GuestClock clock;
  TimerService timers{clock};
  timers.start();
  std::promise<void> entered;
  std::promise<void> leave;
  std::atomic<bool> finished = false;
  auto timer = std::make_unique<Timer>(timers, [&] {
    entered.set_value();
    leave.get_future().get();
    finished = true;
  });
  timer->arm(0);
  entered.get_future().get();
  std::thread remover{[&] {
    timer.reset();
    EXPECT_TRUE(finished);
  }};
  leave.set_value();
  remover.join();
}

TEST(GuestClock, StartsNearZeroAndCountsAtItsRate) {
  GuestClock clock;
  const Nanoseconds first = clock.now();
  const std::uint64_t tsc = clock.tsc();
  EXPECT_GT(clock.tsc_khz(), 100'000U);
  EXPECT_LT(clock.tsc_khz(), 10'000'000U);
  EXPECT_GE(clock.now(), first);
  EXPECT_GE(clock.tsc(), tsc);
  EXPECT_GT(clock.realtime(), 1'600'000'000'000'000'000);
}

}  // namespace
}  // namespace strata::devices
