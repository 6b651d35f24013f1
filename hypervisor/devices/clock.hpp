// Guest time: the clock devices read, the guest's TSC, and one-shot timers.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <limits>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "devices/device.hpp"
#include "engines/engine.hpp"

namespace strata::devices {

inline constexpr Nanoseconds kNanosecondsPerSecond = 1'000'000'000;
inline constexpr Nanoseconds kNever = std::numeric_limits<Nanoseconds>::max();
/// The shortest period a guest can make a periodic timer interrupt with. A hostile guest can ask
/// for nanoseconds; the host would spend itself on timer callbacks. 20 µs is 50 kHz, far above
/// what any kernel uses, and far below what keeps a host thread busy.
inline constexpr Nanoseconds kShortestPeriod = 20'000;

/// floor(a * b / c) with a 128-bit product; saturates at the largest 64-bit value. c > 0.
[[nodiscard]] std::uint64_t scale(std::uint64_t a, std::uint64_t b, std::uint64_t c) noexcept;

/// Guest time. All functions: any thread.
class Clock : public engine::TscSource {
 public:
  /// Nanoseconds since power-on; never goes back.
  [[nodiscard]] virtual Nanoseconds now() noexcept = 0;
  /// Nanoseconds since 1970-01-01 00:00 UTC: what the RTC and the paravirtual wall clock show.
  [[nodiscard]] virtual std::int64_t realtime() noexcept = 0;
  /// Rate of the guest's TSC in kHz; constant.
  [[nodiscard]] virtual std::uint64_t tsc_khz() const noexcept = 0;

  /// When (in ns of now()) the TSC shows `tsc`. Counted from this moment's pair of readings, so
  /// that slewing of the host's clock does not add up. Past: 0 at the earliest. Saturates.
  [[nodiscard]] Nanoseconds ns_at_tsc(std::uint64_t tsc) noexcept;
  /// What the TSC shows at `when`. Saturates at both ends.
  [[nodiscard]] std::uint64_t tsc_at_ns(Nanoseconds when) noexcept;
};

/// How tsc_khz was found.
enum class TscRate : std::uint8_t { cpuid_15h, cpuid_16h, hypervisor_leaf, calibrated };

/// Follows the host's CLOCK_MONOTONIC since construction; TSC = host TSC minus its value then.
class GuestClock final : public Clock {
 public:
  /// Power-on is now. May take 20 ms to calibrate the TSC (1 ms where CPUID states the rate).
  GuestClock();
  [[nodiscard]] std::uint64_t tsc() noexcept override;
  [[nodiscard]] Nanoseconds now() noexcept override;
  [[nodiscard]] std::int64_t realtime() noexcept override;
  [[nodiscard]] std::uint64_t tsc_khz() const noexcept override { return rate_khz_; }
  /// A loaded VM: goes on from `now` and `tsc`, with the TSC at `khz` whatever this host's does.
  /// Before anybody else reads the clock.
  void resume(Nanoseconds now, std::uint64_t tsc, std::uint64_t khz) noexcept;
  [[nodiscard]] TscRate rate_source() const noexcept { return rate_source_; }
  /// Host TSC at power-on: what KVM's TSC offset is the negative of.
  [[nodiscard]] std::uint64_t tsc_offset() const noexcept { return tsc_offset_; }

 private:
  TscRate rate_source_ = TscRate::calibrated;
  std::uint64_t rate_khz_ = 0;
  std::uint64_t start_ns_ = 0;
  std::uint64_t tsc_offset_ = 0;
  struct Resumed {
    Nanoseconds now = 0;
    std::uint64_t tsc = 0;
  };
  std::optional<Resumed> resumed_;  ///< the TSC is computed from the time since
};

/// One-shot timers on guest time. A handle is made once and armed many times; nothing is
/// allocated per arming without bound. All functions: any thread, also from inside a callback.
class Timers {
 public:
  using Id = std::uint32_t;
  using Callback = std::function<void()>;
  Timers() = default;
  Timers(const Timers&) = delete;
  Timers& operator=(const Timers&) = delete;
  virtual ~Timers() = default;

  /// A new timer, not armed. `callback` runs with no lock of this class held.
  virtual Id add(Callback callback) = 0;
  /// Fires once at or soon after `deadline` (ns of Clock::now()); replaces an earlier deadline.
  /// kNever: the same as cancel().
  virtual void arm(Id id, Nanoseconds deadline) = 0;
  /// Does not wait: a callback that has started already still runs. Callbacks look at their
  /// device's state under its lock and find out.
  virtual void cancel(Id id) = 0;
  /// Ends the timer and waits for a running callback (unless called from inside it). Not with a
  /// lock held that the callback takes.
  virtual void remove(Id id) = 0;
  /// When each timer is due, by Id; kNever: not armed. A saved VM keeps them: its devices make
  /// their timers in the same order every time.
  [[nodiscard]] virtual std::vector<Nanoseconds> deadlines() const = 0;
};

/// A timer that a device owns: removed, and its callback finished, when the device dies. Declare
/// it last, so that it dies first.
class Timer {
 public:
  Timer(Timers& timers, Timers::Callback callback)
      : timers_{timers}, id_{timers.add(std::move(callback))} {}
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer() { timers_.remove(id_); }
  void arm(Nanoseconds deadline) { timers_.arm(id_, deadline); }
  void cancel() { timers_.cancel(id_); }

 private:
  Timers& timers_;
  const Timers::Id id_;
};

/// The set of armed timers, without a thread: what TimerService and ManualClock share. Locks
/// itself.
class TimerQueue {
 public:
  Timers::Id add(Timers::Callback callback);
  /// True: `deadline` is now the earliest of all.
  bool arm(Timers::Id id, Nanoseconds deadline);
  void cancel(Timers::Id id);
  void remove(Timers::Id id);
  /// Deadline of the earliest timer; kNever: none.
  [[nodiscard]] Nanoseconds next() const;
  [[nodiscard]] std::vector<Nanoseconds> deadlines() const;
  /// Runs the callback of the earliest timer if its deadline is not after `now`. False: none due.
  /// One thread at a time.
  bool run_one(Nanoseconds now);

 private:
  struct Slot {
    Timers::Callback callback;
    Nanoseconds deadline = kNever;
    bool used = false;
  };
  static constexpr Timers::Id kNone = std::numeric_limits<Timers::Id>::max();

  mutable std::mutex mutex_;  ///< guards everything below; innermost lock, nothing called under it
  std::condition_variable finished_;
  std::vector<Slot> slots_;
  std::set<std::pair<Nanoseconds, Timers::Id>> armed_;
  Timers::Id running_ = kNone;
  std::thread::id runner_;
};

/// Timers on a host thread; fires within about 50 µs of the deadline on an idle host. Destroy it
/// after the devices that use it.
class TimerService final : public Timers {
 public:
  /// `clock` is one whose now() runs at CLOCK_MONOTONIC's rate. Throws std::system_error if the
  /// host has no timer descriptor left.
  explicit TimerService(Clock& clock);
  ~TimerService() override;
  /// Starts the thread; what was armed before fires from then on. Once. Throws std::system_error if
  /// the host has no thread left.
  void start();
  Id add(Callback callback) override;
  void arm(Id id, Nanoseconds deadline) override;
  void cancel(Id id) override;
  void remove(Id id) override;
  [[nodiscard]] std::vector<Nanoseconds> deadlines() const override { return queue_.deadlines(); }
  /// Callbacks run so far. Relaxed.
  [[nodiscard]] std::uint64_t fired() const noexcept {
    return fired_.load(std::memory_order_relaxed);
  }

 private:
  void work();
  void program(Nanoseconds deadline);

  Clock& clock_;
  TimerQueue queue_;
  const int timer_fd_;
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> fired_{0};
  std::mutex program_mutex_;  ///< guards programmed_ and the descriptor's setting; before queue_'s
  Nanoseconds programmed_ = kNever;
  std::thread thread_;
};

}  // namespace strata::devices
