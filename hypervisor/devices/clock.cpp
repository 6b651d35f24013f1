#include "devices/clock.hpp"

#include <cpuid.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include <array>
#include <cerrno>
#include <optional>
#include <system_error>

namespace strata::devices {

namespace {

__extension__ using Wide = unsigned __int128;

std::uint64_t read_clock(clockid_t which) noexcept {
  timespec t{};
  clock_gettime(which, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * kNanosecondsPerSecond +
         static_cast<std::uint64_t>(t.tv_nsec);
}

/// The clock and the TSC at one moment: of a few tries the one whose two clock readings lie
/// closest together, since the thread may lose the processor in between.
struct Sample {
  std::uint64_t ns = 0;
  std::uint64_t tsc = 0;
};
Sample sample() noexcept {
  Sample best;
  std::uint64_t best_gap = ~0ULL;
  for (int i = 0; i < 8; ++i) {
    const std::uint64_t before = read_clock(CLOCK_MONOTONIC);
    const std::uint64_t tsc = __rdtsc();
    const std::uint64_t after = read_clock(CLOCK_MONOTONIC);
    if (after - before < best_gap) {
      best_gap = after - before;
      best = {before + best_gap / 2, tsc};
    }
  }
  return best;
}

std::uint64_t measure_khz(std::uint64_t wait_ns) noexcept {
  const Sample first = sample();
  const timespec wait{0, static_cast<long>(wait_ns)};
  clock_nanosleep(CLOCK_MONOTONIC, 0, &wait, nullptr);
  const Sample second = sample();
  const std::uint64_t ns = second.ns - first.ns;
  return ns == 0 ? 1 : scale(second.tsc - first.tsc, 1'000'000, ns);
}

struct Stated {
  std::uint64_t khz = 0;
  TscRate source = TscRate::calibrated;
};

/// What CPUID says about the TSC's rate: KVM's timing leaf (cpuid 40000010h), then leaf 15h
/// (crystal * ratio), then 16h (processor base frequency) where 15h leaves the crystal out
/// (SDM 2A, CPUID; 3B 18.7.3).
std::optional<Stated> stated_khz() noexcept {
  std::uint32_t a = 0, b = 0, c = 0, d = 0;
  const std::uint32_t highest = static_cast<std::uint32_t>(__get_cpuid_max(0, nullptr));
  if (highest < 1) return std::nullopt;
  __cpuid(1, a, b, c, d);
  if ((c & 1U << 31) != 0) {
    __cpuid(0x40000000, a, b, c, d);
    if (a >= 0x40000010 && a < 0x40000100) {
      __cpuid(0x40000010, a, b, c, d);
      if (a != 0) return Stated{a, TscRate::hypervisor_leaf};
    }
  }
  if (highest < 0x15) return std::nullopt;
  __cpuid_count(0x15, 0, a, b, c, d);
  if (a != 0 && b != 0 && c != 0) {
    return Stated{scale(c, b, std::uint64_t{a} * 1000), TscRate::cpuid_15h};
  }
  if (highest < 0x16 || a == 0 || b == 0) return std::nullopt;
  __cpuid_count(0x16, 0, a, b, c, d);
  if ((a & 0xFFFF) != 0) return Stated{(a & 0xFFFFULL) * 1000, TscRate::cpuid_16h};
  return std::nullopt;
}

/// The stated rate, unless a short measurement shows that it is of another clock (a host's host
/// may pass CPUID through and scale the TSC); then a longer measurement.
Stated find_khz() noexcept {
  if (const auto stated = stated_khz()) {
    const std::uint64_t measured = measure_khz(1'000'000);
    const std::uint64_t tolerance = stated->khz / 100;
    if (measured + tolerance > stated->khz && measured < stated->khz + tolerance) return *stated;
  }
  return {measure_khz(20'000'000), TscRate::calibrated};
}

}  // namespace

std::uint64_t scale(std::uint64_t a, std::uint64_t b, std::uint64_t c) noexcept {
  const Wide result = Wide{a} * b / c;
  return result > ~0ULL ? ~0ULL : static_cast<std::uint64_t>(result);
}

Nanoseconds Clock::ns_at_tsc(std::uint64_t when) noexcept {
  const std::uint64_t present = tsc();
  const Nanoseconds base = now();
  if (when <= present) {
    const Nanoseconds back = scale(present - when, 1'000'000, tsc_khz());
    return back >= base ? 0 : base - back;
  }
  // Rounded up: at the answer, the TSC has got there.
  const Nanoseconds ahead = scale(when - present, 1'000'000, tsc_khz());
  return ahead >= kNever - 1 - base ? kNever : base + ahead + 1;
}

std::uint64_t Clock::tsc_at_ns(Nanoseconds when) noexcept {
  const std::uint64_t present = tsc();
  const Nanoseconds base = now();
  if (when <= base) {
    const std::uint64_t back = scale(base - when, tsc_khz(), 1'000'000);
    return back >= present ? 0 : present - back;
  }
  const std::uint64_t ahead = scale(when - base, tsc_khz(), 1'000'000);
  return ahead >= ~0ULL - present ? ~0ULL : present + ahead;
}

GuestClock::GuestClock() {
  const Stated rate = find_khz();
  rate_khz_ = rate.khz == 0 ? 1 : rate.khz;
  rate_source_ = rate.source;
  const Sample start = sample();
  start_ns_ = start.ns;
  tsc_offset_ = start.tsc;
}

std::uint64_t GuestClock::tsc() noexcept {
  if (!resumed_) [[likely]]
    return __rdtsc() - tsc_offset_;
  return resumed_->tsc + scale(now() - resumed_->now, rate_khz_, 1'000'000);
}

void GuestClock::resume(Nanoseconds now, std::uint64_t tsc, std::uint64_t khz) noexcept {
  start_ns_ = read_clock(CLOCK_MONOTONIC) - now;
  rate_khz_ = khz;
  resumed_ = Resumed{now, tsc};
}

Nanoseconds GuestClock::now() noexcept { return read_clock(CLOCK_MONOTONIC) - start_ns_; }

std::int64_t GuestClock::realtime() noexcept {
  return static_cast<std::int64_t>(read_clock(CLOCK_REALTIME));
}

Timers::Id TimerQueue::add(Timers::Callback callback) {
  const std::lock_guard lock{mutex_};
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    if (!slots_[i].used) {
      slots_[i] = {std::move(callback), kNever, true};
      return static_cast<Timers::Id>(i);
    }
  }
  slots_.push_back({std::move(callback), kNever, true});
  return static_cast<Timers::Id>(slots_.size() - 1);
}

bool TimerQueue::arm(Timers::Id id, Nanoseconds deadline) {
  const std::lock_guard lock{mutex_};
  if (id >= slots_.size() || !slots_[id].used) return false;
  Slot& slot = slots_[id];
  if (slot.deadline != kNever) armed_.erase({slot.deadline, id});
  slot.deadline = deadline;
  if (deadline == kNever) return false;
  armed_.insert({deadline, id});
  return armed_.begin()->second == id;
}

void TimerQueue::cancel(Timers::Id id) { arm(id, kNever); }

void TimerQueue::remove(Timers::Id id) {
  std::unique_lock lock{mutex_};
  if (id >= slots_.size() || !slots_[id].used) return;
  if (slots_[id].deadline != kNever) armed_.erase({slots_[id].deadline, id});
  slots_[id].deadline = kNever;
  // The slot stays taken until its callback is over, so that nobody is given it in the middle.
  if (running_ == id && runner_ != std::this_thread::get_id()) {
    finished_.wait(lock, [&] { return running_ != id; });
  }
  slots_[id] = {};
}

Nanoseconds TimerQueue::next() const {
  const std::lock_guard lock{mutex_};
  return armed_.empty() ? kNever : armed_.begin()->first;
}

std::vector<Nanoseconds> TimerQueue::deadlines() const {
  const std::lock_guard lock{mutex_};
  std::vector<Nanoseconds> all;
  all.reserve(slots_.size());
  for (const Slot& slot : slots_) all.push_back(slot.deadline);
  return all;
}

bool TimerQueue::run_one(Nanoseconds now) {
  Timers::Callback callback;
  {
    const std::lock_guard lock{mutex_};
    if (armed_.empty() || armed_.begin()->first > now) return false;
    running_ = armed_.begin()->second;
    runner_ = std::this_thread::get_id();
    armed_.erase(armed_.begin());
    slots_[running_].deadline = kNever;
    // A copy: the callback may remove its own timer.
    callback = slots_[running_].callback;
  }
  if (callback) callback();
  callback = nullptr;
  {
    const std::lock_guard lock{mutex_};
    running_ = kNone;
  }
  finished_.notify_all();
  return true;
}

namespace {

int make_timer() {
  const int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
  if (fd < 0) throw std::system_error{errno, std::generic_category(), "timerfd_create"};
  return fd;
}

}  // namespace

TimerService::TimerService(Clock& clock) : clock_{clock}, timer_fd_{make_timer()} {}

void TimerService::start() {
  thread_ = std::thread{[this] { work(); }};
}

TimerService::~TimerService() {
  stop_ = true;
  {
    const std::lock_guard lock{program_mutex_};
    programmed_ = 0;
    program(0);
  }
  if (thread_.joinable()) thread_.join();
  close(timer_fd_);
}

Timers::Id TimerService::add(Callback callback) { return queue_.add(std::move(callback)); }

void TimerService::arm(Id id, Nanoseconds deadline) {
  if (!queue_.arm(id, deadline)) return;
  const std::lock_guard lock{program_mutex_};
  // A descriptor set too early only costs a wake-up; guests move their deadlines back far more
  // often than the earlier one fires, so that is cheaper than a system call for each.
  if (deadline >= programmed_) return;
  programmed_ = deadline;
  program(deadline);
}

void TimerService::cancel(Id id) { queue_.cancel(id); }

void TimerService::remove(Id id) { queue_.remove(id); }

/// Makes the descriptor fire at `deadline`. A relative setting of 0 would disarm it.
void TimerService::program(Nanoseconds deadline) {
  const Nanoseconds present = clock_.now();
  const Nanoseconds wait = deadline > present ? deadline - present : 1;
  itimerspec setting{};
  setting.it_value.tv_sec = static_cast<time_t>(wait / kNanosecondsPerSecond);
  setting.it_value.tv_nsec = static_cast<long>(wait % kNanosecondsPerSecond);
  timerfd_settime(timer_fd_, 0, &setting, nullptr);
}

void TimerService::work() {
  while (!stop_) {
    while (!stop_ && queue_.run_one(clock_.now())) fired_.fetch_add(1, std::memory_order_relaxed);
    {
      // Under the lock that arm() programs under: a timer armed after next() sees programmed_.
      const std::lock_guard lock{program_mutex_};
      if (stop_) return;
      programmed_ = queue_.next();
      if (programmed_ != kNever) program(programmed_);
    }
    std::uint64_t expirations = 0;
    const ssize_t got = ::read(timer_fd_, &expirations, sizeof expirations);
    if (got < 0 && errno != EINTR && errno != EAGAIN) return;
  }
}

}  // namespace strata::devices
