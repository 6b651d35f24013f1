#include "devices/manual_clock.hpp"

namespace strata::devices {

std::uint64_t ManualClock::tsc() noexcept {
  return tsc_start_ + scale(now_.load(), tsc_khz_, 1'000'000);
}

std::int64_t ManualClock::realtime() noexcept {
  return epoch_.load() + static_cast<std::int64_t>(now_.load());
}

void ManualClock::advance(Nanoseconds step) {
  const Nanoseconds target = now_.load() + step;
  for (Nanoseconds next = queue_.next(); next <= target; next = queue_.next()) {
    if (next > now_.load()) now_ = next;
    if (!queue_.run_one(now_.load())) break;
  }
  now_ = target;
}

void ManualClock::run_due() {
  while (queue_.run_one(now_.load())) {
  }
}

}  // namespace strata::devices
