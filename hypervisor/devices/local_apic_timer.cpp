// The APIC timer: one-shot, periodic and TSC-deadline (SDM 3A 11.5.4).
#include <algorithm>

#include "devices/local_apic.hpp"

namespace strata::devices {

static_assert(kApicTimerHz == kNanosecondsPerSecond, "one tick of the undivided timer is 1 ns");

LocalApic::TimerMode LocalApic::timer_mode_locked() const noexcept {
  switch (lvt_[timer] >> 17 & 3) {
    case 1:
      return TimerMode::periodic;
    case 2:
      return TimerMode::tsc_deadline;
    default:
      return TimerMode::one_shot;
  }
}

/// Divide configuration: bits 3, 1, 0 are 2, 4 ... 128, and 111 is 1 (SDM 3A figure 11-10).
std::uint64_t LocalApic::tick_ns_locked() const noexcept {
  const unsigned code = (divide_ & 3) | (divide_ >> 1 & 4);
  return 1ULL << ((code + 1) & 7);
}

Nanoseconds LocalApic::period_locked() const noexcept { return initial_count_ * tick_ns_locked(); }

/// After a write of the initial count. In TSC-deadline mode such writes are ignored.
void LocalApic::start_timer_locked() {
  if (timer_mode_locked() == TimerMode::tsc_deadline) return;
  if (initial_count_ == 0) return stop_timer_locked();
  timer_start_ = clock_.now();
  timer_running_ = true;
  timer_.arm(timer_start_ + period_locked());
}

void LocalApic::stop_timer_locked() {
  timer_running_ = false;
  tsc_deadline_ = 0;
  timer_.cancel();
}

/// The count goes on from where it is at the new rate. The start may lie before power-on then;
/// all sums with it are modulo 2^64.
void LocalApic::set_divide_locked(std::uint32_t value) {
  settle_timer_locked();
  const std::uint32_t count = current_count_locked();
  divide_ = value & 0xB;
  if (!timer_running_) return;
  timer_start_ = clock_.now() - (initial_count_ - count) * tick_ns_locked();
  timer_.arm(timer_start_ + period_locked());
}

/// After a change of mode. Into and out of TSC-deadline mode the timer is disarmed; between the
/// others it goes on.
void LocalApic::timer_mode_changed_locked(TimerMode before) {
  const TimerMode mode = timer_mode_locked();
  if (mode == before) return;
  if (mode == TimerMode::tsc_deadline || before == TimerMode::tsc_deadline) stop_timer_locked();
}

std::uint32_t LocalApic::current_count_locked() {
  if (!timer_running_) return 0;
  const Nanoseconds passed = clock_.now() - timer_start_;
  const Nanoseconds period = period_locked();
  if (timer_mode_locked() == TimerMode::periodic) {
    return initial_count_ - static_cast<std::uint32_t>(passed % period / tick_ns_locked());
  }
  if (passed >= period) return 0;
  return initial_count_ - static_cast<std::uint32_t>(passed / tick_ns_locked());
}

/// A deadline that is not in the future fires at once.
void LocalApic::set_deadline_locked(std::uint64_t tsc) {
  if (timer_mode_locked() != TimerMode::tsc_deadline) return;
  settle_timer_locked();
  tsc_deadline_ = tsc;
  if (tsc == 0) {
    timer_.cancel();
  } else if (tsc <= clock_.tsc()) {
    timer_.cancel();
    fire_timer_locked();
  } else {
    timer_.arm(clock_.ns_at_tsc(tsc));
  }
}

void LocalApic::fire_timer_locked() {
  tsc_deadline_ = 0;
  counters_.timer.fetch_add(1, std::memory_order_relaxed);
  raise_lvt_locked(timer);
}

/// Lets happen what is due: the interrupt, and the end of a one-shot count or the start of a new
/// period. True: something was due. Every register access that shows or changes the timer does this
/// first, since the timer thread may come late: a count that reads as 0 has expired, is not started
/// again by a change to periodic mode, and its interrupt is not lost to a write of a new one.
/// Missed periods become one interrupt, as IRR holds no more.
bool LocalApic::settle_timer_locked() {
  if (timer_mode_locked() == TimerMode::tsc_deadline) {
    if (tsc_deadline_ == 0 || clock_.tsc() < tsc_deadline_) return false;
    timer_.cancel();
  } else {
    if (!timer_running_) return false;
    const Nanoseconds now = clock_.now();
    const Nanoseconds period = period_locked();
    const Nanoseconds passed = now - timer_start_;
    if (passed < period) return false;
    if (timer_mode_locked() == TimerMode::periodic) {
      timer_start_ += passed / period * period;
      // Never answered faster than kShortestPeriod, other than by accesses of the guest's own.
      timer_.arm(std::max(timer_start_ + period, now + kShortestPeriod));
    } else {
      timer_running_ = false;
      timer_.cancel();
    }
  }
  fire_timer_locked();
  return true;
}

/// On the timer thread. The guest may have changed anything since the timer was armed, so only
/// the state decides.
void LocalApic::timer_expired() {
  Aftermath after;
  {
    const std::lock_guard lock{mutex_};
    if (!settle_timer_locked()) return arm_timer_locked();
    after.wake = update_locked();
  }
  finish(after);
}

/// For when the state says that the timer is due next, if it is running.
void LocalApic::arm_timer_locked() {
  if (timer_mode_locked() == TimerMode::tsc_deadline) {
    if (tsc_deadline_ != 0) timer_.arm(clock_.ns_at_tsc(tsc_deadline_));
  } else if (timer_running_) {
    timer_.arm(timer_start_ + period_locked());
  }
}

}  // namespace strata::devices
