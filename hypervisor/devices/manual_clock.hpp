// Guest time that a test moves by hand; timers fire inside advance(), in order of deadline.
#pragma once

#include <atomic>
#include <cstdint>

#include "devices/clock.hpp"

namespace strata::devices {

/// Clock and timers in one. advance() and set_now(): one thread; the rest: any thread.
class ManualClock final : public Clock, public Timers {
 public:
  /// `tsc_khz` > 0. The TSC starts at `tsc_start`, now() at 0, realtime() at `unix_ns`.
  explicit ManualClock(std::uint64_t tsc_khz = 1'000'000, std::uint64_t tsc_start = 0,
                       std::int64_t unix_ns = 0) noexcept
      : tsc_khz_{tsc_khz}, tsc_start_{tsc_start}, epoch_{unix_ns} {}

  [[nodiscard]] std::uint64_t tsc() noexcept override;
  [[nodiscard]] Nanoseconds now() noexcept override { return now_.load(); }
  [[nodiscard]] std::int64_t realtime() noexcept override;
  [[nodiscard]] std::uint64_t tsc_khz() const noexcept override { return tsc_khz_; }

  Id add(Callback callback) override { return queue_.add(std::move(callback)); }
  void arm(Id id, Nanoseconds deadline) override { queue_.arm(id, deadline); }
  void cancel(Id id) override { queue_.cancel(id); }
  void remove(Id id) override { queue_.remove(id); }
  [[nodiscard]] std::vector<Nanoseconds> deadlines() const override { return queue_.deadlines(); }

  /// Moves time by `step` ns; each timer on the way fires at exactly its deadline.
  void advance(Nanoseconds step);
  /// Moves time without firing anything: a host that was not scheduled. run_due() catches up.
  void jump(Nanoseconds step) { now_ += step; }
  /// Fires what is due now.
  void run_due();
  /// Unix time in ns at now() == 0.
  void set_epoch(std::int64_t unix_ns) { epoch_ = unix_ns; }
  /// The earliest deadline armed; kNever: none.
  [[nodiscard]] Nanoseconds next_deadline() const { return queue_.next(); }

 private:
  const std::uint64_t tsc_khz_;
  const std::uint64_t tsc_start_;
  std::atomic<Nanoseconds> now_{0};
  std::atomic<std::int64_t> epoch_;
  TimerQueue queue_;
};

}  // namespace strata::devices
