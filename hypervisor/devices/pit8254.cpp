#include "devices/pit8254.hpp"

#include <algorithm>

namespace strata::devices {

namespace {

constexpr std::uint8_t kLowByte = 1, kHighByte = 2, kBothBytes = 3;
/// Interrupts this far behind (100 ms) are given up instead of delivered late in a burst.
constexpr PitCounter::Tick kCatchUp = kPitHz / 10;
constexpr PitCounter::Tick kShortestTicks = kShortestPeriod * kPitHz / kNanosecondsPerSecond + 1;

/// Four digits; 0 stands for the largest count. Digits above 9 are the guest's mistake and only
/// have to stay in range.
std::uint32_t decode_count(std::uint16_t value, bool bcd) noexcept {
  if (!bcd) return value == 0 ? 0x10000 : value;
  std::uint32_t n = 0;
  for (int shift = 12; shift >= 0; shift -= 4) {
    n = n * 10 + std::min<std::uint32_t>(value >> shift & 0xF, 9);
  }
  return n == 0 ? 10000 : n;
}

std::uint16_t encode_count(std::uint64_t n, bool bcd) noexcept {
  if (!bcd) return static_cast<std::uint16_t>(n);
  n %= 10000;
  return static_cast<std::uint16_t>(n / 1000 << 12 | n / 100 % 10 << 8 | n / 10 % 10 << 4 | n % 10);
}

}  // namespace

void PitCounter::write_control(std::uint8_t control, Tick) noexcept {
  access_ = control >> 4 & 3;
  mode_ = control >> 1 & 7;
  if (mode_ > 5) mode_ &= 3;  // x10 and x11: bit 2 does not matter
  bcd_ = (control & 1) != 0;
  loaded_ = false;
  waits_ = mode_ == 1 || mode_ == 5;
  stopped_ = !gate_ && !waits_;
  high_next_write_ = high_next_read_ = false;
  next_reload_.reset();
  status_latch_.reset();
  count_latch_.reset();
  held_ = 0;
}

void PitCounter::write_count(std::uint8_t value, Tick now) noexcept {
  if (access_ == kLowByte) return commit(value, now);
  if (access_ == kHighByte) return commit(static_cast<std::uint16_t>(value << 8), now);
  if (!high_next_write_) {
    low_byte_ = value;
    high_next_write_ = true;
    // Mode 0: the first byte stops counting, so that the second cannot come too late.
    if (mode_ == 0) loaded_ = false;
    return;
  }
  high_next_write_ = false;
  commit(static_cast<std::uint16_t>(value << 8 | low_byte_), now);
}

/// A complete count. The square wave and rate generators finish their period first, the triggered
/// modes wait for their trigger, modes 0 and 4 begin again (8254 data sheet, mode definitions).
void PitCounter::commit(std::uint16_t value, Tick now) noexcept {
  const std::uint32_t reload = decode_count(value, bcd_);
  const bool periodic = mode_ == 2 || mode_ == 3;
  if (periodic && counting()) {
    settle(now);
    start_ += elapsed(now) / period() * period();
    next_reload_ = reload;
    return;
  }
  if (mode_ == 1 || mode_ == 5) {
    if (counting()) {
      next_reload_ = reload;
    } else {
      reload_ = reload;
    }
    loaded_ = true;
    return;
  }
  reload_ = reload;
  start(now);
}

void PitCounter::start(Tick now) noexcept {
  start_ = now;
  held_ = 0;
  loaded_ = true;
}

PitCounter::Tick PitCounter::elapsed(Tick now) const noexcept {
  if (!loaded_ || waits_) return 0;
  if (stopped_) return held_;
  return now > start_ ? now - start_ : 0;
}

/// Lets a count that was written during a period take over at its end.
void PitCounter::settle(Tick now) noexcept {
  if ((mode_ != 2 && mode_ != 3) || !next_reload_ || !counting()) return;
  if (elapsed(now) < period()) return;
  start_ += period();
  reload_ = *next_reload_;
  next_reload_.reset();
}

void PitCounter::set_gate(bool gate, Tick now) noexcept {
  if (gate == gate_) return;
  settle(now);
  gate_ = gate;
  if (mode_ == 1 || mode_ == 5) {
    if (!gate || !loaded_) return;
    reload_ = next_reload_.value_or(reload_);
    next_reload_.reset();
    waits_ = false;
    start(now);
    return;
  }
  if (!gate) {
    held_ = elapsed(now);
    stopped_ = true;
    return;
  }
  stopped_ = false;
  if (!loaded_) return;
  if (mode_ == 0 || mode_ == 4) {
    start_ = now - held_;  // goes on where it stopped
    return;
  }
  reload_ = next_reload_.value_or(reload_);
  next_reload_.reset();
  start(now);
}

PitCounter::Tick PitCounter::period() const noexcept {
  if ((mode_ != 2 && mode_ != 3) || !counting()) return 0;
  return std::max<Tick>(reload_, 2);  // a count of 1 is illegal
}

bool PitCounter::output(Tick now) noexcept {
  settle(now);
  const Tick passed = elapsed(now);
  switch (mode_) {
    case 0:
      return loaded_ && passed >= reload_;
    case 1:
      return !counting() || passed >= reload_;
    case 2:
      return !counting() || passed % period() != period() - 1;
    case 3:
      return !counting() || passed % period() < (period() + 1) / 2;
    default:
      return !loaded_ || waits_ || passed != reload_;
  }
}

std::uint16_t PitCounter::count(Tick now) noexcept {
  settle(now);
  const Tick passed = elapsed(now);
  const Tick modulus = bcd_ ? 10000 : 0x10000;
  const Tick cycle = period();
  if (cycle == 0) {
    // Counts through zero and on from the largest count.
    return encode_count((reload_ + modulus - passed % modulus) % modulus, bcd_);
  }
  const Tick position = passed % cycle;
  if (mode_ == 2) return encode_count((cycle - position) % modulus, bcd_);
  // Mode 3 counts down by two, twice in a period.
  const Tick high = (cycle + 1) / 2;
  const Tick even = cycle & ~Tick{1};
  const Tick steps = position < high ? position : position - high;
  return encode_count((even - 2 * steps) % modulus, bcd_);
}

void PitCounter::latch_count(Tick now) noexcept {
  if (!count_latch_) count_latch_ = count(now);
}

void PitCounter::latch_status(Tick now) noexcept {
  if (status_latch_) return;
  const bool null_count = !loaded_ || next_reload_.has_value();
  status_latch_ = static_cast<std::uint8_t>((output(now) ? 0x80 : 0) | (null_count ? 0x40 : 0) |
                                            access_ << 4 | mode_ << 1 | (bcd_ ? 1 : 0));
}

std::uint8_t PitCounter::read(Tick now) noexcept {
  if (status_latch_) {
    const std::uint8_t status = *status_latch_;
    status_latch_.reset();
    return status;
  }
  const std::uint16_t value = count_latch_.value_or(count(now));
  const bool high = access_ == kHighByte || (access_ == kBothBytes && high_next_read_);
  if (access_ == kBothBytes) high_next_read_ = !high_next_read_;
  if (high || access_ != kBothBytes) count_latch_.reset();
  return static_cast<std::uint8_t>(high ? value >> 8 : value);
}

PitCounter::Tick PitCounter::next_rising_edge(Tick now) noexcept {
  settle(now);
  if (!counting()) return kNoEdge;
  if (const Tick p = period(); p != 0) {
    const Tick passed = now > start_ ? now - start_ : 0;
    return start_ + (passed / p + 1) * p;
  }
  const Tick edge = start_ + reload_ + (mode_ >= 4 ? 1 : 0);
  return edge > now ? edge : kNoEdge;
}

Pit8254::Pit8254(Clock& clock, Timers& timers, IrqLine& irq0)
    : clock_{clock},
      irq0_{irq0},
      ports_{"pit", [this](std::uint64_t o) { return read(o); },
             [this](std::uint64_t o, std::uint8_t v) { write(o, v); }},
      port_61_{"port61", [this](std::uint64_t) { return read_61(); },
               [this](std::uint64_t, std::uint8_t v) { write_61(v); }},
      timer_{timers, [this] { expire(); }} {
  counters_[2].set_gate(false, 0);
}

Expected<void, BusError> Pit8254::attach(Bus& ports) {
  if (auto r = ports.add(0x40, 4, ports_); !r) return r;
  return ports.add(0x61, 1, port_61_);
}

PitCounter::Tick Pit8254::tick() noexcept {
  return scale(clock_.now(), kPitHz, kNanosecondsPerSecond);
}

std::uint8_t Pit8254::read(std::uint64_t port) {
  if (port > 2) return 0xFF;  // the control word is write-only
  const std::lock_guard lock{mutex_};
  return counters_[port].read(tick());
}

void Pit8254::write(std::uint64_t port, std::uint8_t value) {
  const std::lock_guard lock{mutex_};
  const PitCounter::Tick now = tick();
  unsigned which = static_cast<unsigned>(port);
  if (port > 2) {
    which = value >> 6;
    if (which == 3) return read_back(value, now);
    if ((value & 0x30) == 0) return counters_[which].latch_count(now);
    counters_[which].write_control(value, now);
  } else {
    counters_[which].write_count(value, now);
  }
  if (which != 0) return;
  if (!counters_[0].output(now)) irq0_.set(false);
  arm(now);
}

/// Bits 5 and 4 low: latch count, latch status; bits 3:1: of which counters.
void Pit8254::read_back(std::uint8_t command, PitCounter::Tick now) {
  for (unsigned i = 0; i < counters_.size(); ++i) {
    if ((command & 2U << i) == 0) continue;
    if ((command & 0x20) == 0) counters_[i].latch_count(now);
    if ((command & 0x10) == 0) counters_[i].latch_status(now);
  }
}

void Pit8254::arm(PitCounter::Tick now) {
  edge_ = counters_[0].next_rising_edge(now);
  if (edge_ == PitCounter::kNoEdge) {
    timer_.cancel();
  } else {
    // Rounded up: at the deadline, tick() has reached the edge.
    timer_.arm(scale(edge_, kNanosecondsPerSecond, kPitHz) + 1);
  }
}

/// The periodic modes hold OUT high but for an instant (mode 2) or half a period (mode 3): the
/// line goes down and up at the rising edge, so that no acknowledge comes too late for the level.
void Pit8254::expire() {
  const std::lock_guard lock{mutex_};
  const PitCounter::Tick now = tick();
  if (edge_ == PitCounter::kNoEdge) return;
  if (now < edge_) return arm(now);  // armed anew while this call waited for the lock
  irq0_.set(false);
  irq0_.set(true);
  const bool thin = counters_[0].period() < kShortestTicks;
  const bool late = now - edge_ > kCatchUp;
  arm(thin ? now + kShortestTicks : late ? now : edge_);
}

/// Bit 0 gate of counter 2, 1 speaker data, 4 refresh (toggles every 15 µs), 5 OUT of counter 2.
std::uint8_t Pit8254::read_61() {
  const std::lock_guard lock{mutex_};
  const Nanoseconds now = clock_.now();
  const bool out = counters_[2].output(tick());
  return static_cast<std::uint8_t>((counters_[2].gate() ? 1 : 0) | (speaker_data_ ? 2 : 0) |
                                   (now / 15'085 % 2 != 0 ? 0x10 : 0) | (out ? 0x20 : 0));
}

void Pit8254::write_61(std::uint8_t value) {
  const std::lock_guard lock{mutex_};
  counters_[2].set_gate((value & 1) != 0, tick());
  speaker_data_ = (value & 2) != 0;
}

}  // namespace strata::devices
