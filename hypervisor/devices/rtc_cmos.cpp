#include "devices/rtc_cmos.hpp"

#include <algorithm>
#include <chrono>

namespace strata::devices {

namespace {

// MC146818 address map.
constexpr std::uint8_t kSecond = 0, kSecondAlarm = 1, kMinute = 2, kMinuteAlarm = 3, kHour = 4,
                       kHourAlarm = 5, kWeekday = 6, kDay = 7, kMonth = 8, kYear = 9, kStatusA = 10,
                       kStatusB = 11, kStatusC = 12, kStatusD = 13, kCentury = 0x32;
constexpr std::uint8_t kUip = 0x80;  // A
constexpr std::uint8_t kSet = 0x80, kPie = 0x40, kAie = 0x20, kUie = 0x10, kBinary = 4,
                       kHours24 = 2;                                      // B
constexpr std::uint8_t kIrqf = 0x80, kPf = 0x40, kAf = 0x20, kUf = 0x10;  // C
constexpr std::uint8_t kValid = 0x80;                                     // D
constexpr std::int64_t kSecondNs = 1'000'000'000;
/// UIP goes up 244 µs before an update that takes 1984 µs (data sheet, "update cycle").
constexpr std::int64_t kUpdateNs = 2'228'000;
/// Seconds that an alarm is looked for backwards: while its interrupt is on, none are missed.
constexpr std::int64_t kAlarmLookBack = 60;

constexpr bool is_time(std::uint8_t index) noexcept { return index <= kYear || index == kCentury; }

std::int64_t floor_seconds(std::int64_t ns) noexcept {
  return ns / kSecondNs - (ns % kSecondNs < 0 ? 1 : 0);
}

}  // namespace

RtcCmos::RtcCmos(Clock& clock, Timers& timers, IrqLine& irq8)
    : clock_{clock},
      irq8_{irq8},
      ports_{"rtc", [this](std::uint64_t o) { return o == 0 ? std::uint8_t{0xFF} : read_data(); },
             [this](std::uint64_t o, std::uint8_t v) { o == 0 ? write_index(v) : write_data(v); }},
      timer_{timers, [this] { expire(); }} {
  ram_[kStatusA] = 0x26;  // 32768 Hz time base, 1024 Hz periodic rate
  ram_[kStatusB] = kHours24;
  ram_[kStatusD] = kValid;
  last_second_ = floor_seconds(rtc_ns());
  restart_periodic();
}

Expected<void, BusError> RtcCmos::attach(Bus& ports) { return ports.add(0x70, 2, ports_); }

void RtcCmos::set_ram(std::uint8_t index, std::uint8_t value) {
  const std::lock_guard lock{mutex_};
  if (index > kStatusD && index < ram_.size() && !is_time(index)) ram_[index] = value;
}

bool RtcCmos::nmi_masked() const {
  const std::lock_guard lock{mutex_};
  return nmi_masked_;
}

std::int64_t RtcCmos::rtc_ns() { return clock_.realtime() + offset_ns_; }

/// Time stands still while SET is on or the divider is not at its 32768 Hz setting (010).
bool RtcCmos::halted() const noexcept {
  return (ram_[kStatusB] & kSet) != 0 || (ram_[kStatusA] & 0x70) != 0x20;
}

RtcCmos::Calendar RtcCmos::calendar() {
  if (halted()) return frozen_;
  return calendar_at(floor_seconds(rtc_ns()));
}

RtcCmos::Calendar RtcCmos::calendar_at(std::int64_t second) {
  const std::chrono::sys_seconds when{std::chrono::seconds{second}};
  const auto day = std::chrono::floor<std::chrono::days>(when);
  const std::chrono::year_month_day date{day};
  const std::chrono::hh_mm_ss time{when - day};
  Calendar c;
  c.second = static_cast<unsigned>(time.seconds().count());
  c.minute = static_cast<unsigned>(time.minutes().count());
  c.hour = static_cast<unsigned>(time.hours().count());
  c.weekday = std::chrono::weekday{day}.c_encoding() + 1;
  c.day = static_cast<unsigned>(date.day());
  c.month = static_cast<unsigned>(date.month());
  c.year = static_cast<unsigned>(std::clamp(static_cast<int>(date.year()), 0, 9999));
  return c;
}

/// Makes the clock show `c`, `fraction_ns` into its second. Fields that no calendar has are
/// brought into range: the chip would count on from them somehow.
void RtcCmos::set_calendar(const Calendar& c, std::int64_t fraction_ns) {
  const std::chrono::year_month_day date{
      std::chrono::year{static_cast<int>(std::clamp(c.year, 1970U, 2199U))},
      std::chrono::month{std::clamp(c.month, 1U, 12U)},
      std::chrono::day{std::clamp(c.day, 1U, 31U)}};
  const std::int64_t days = std::chrono::sys_days{date}.time_since_epoch().count();
  const std::int64_t seconds = days * 86400 + std::int64_t{std::min(c.hour, 23U)} * 3600 +
                               std::min(c.minute, 59U) * 60 + std::min(c.second, 59U);
  offset_ns_ = seconds * kSecondNs + fraction_ns - clock_.realtime();
  last_second_ = seconds;
}

std::uint8_t RtcCmos::encode(unsigned value) const noexcept {
  if ((ram_[kStatusB] & kBinary) != 0) return static_cast<std::uint8_t>(value);
  return static_cast<std::uint8_t>(value / 10 % 10 << 4 | value % 10);
}

unsigned RtcCmos::decode(std::uint8_t value) const noexcept {
  if ((ram_[kStatusB] & kBinary) != 0) return value;
  return (value >> 4) * 10U + (value & 0xF);
}

/// 12-hour mode: 1..12, bit 7 is PM.
std::uint8_t RtcCmos::encode_hour(unsigned hour) const noexcept {
  if ((ram_[kStatusB] & kHours24) != 0) return encode(hour);
  const unsigned twelve = hour % 12 == 0 ? 12 : hour % 12;
  return static_cast<std::uint8_t>(encode(twelve) | (hour >= 12 ? 0x80 : 0));
}

unsigned RtcCmos::decode_hour(std::uint8_t value) const noexcept {
  if ((ram_[kStatusB] & kHours24) != 0) return decode(value);
  return decode(value & 0x7F) % 12 + ((value & 0x80) != 0 ? 12 : 0);
}

std::uint8_t RtcCmos::read_time(std::uint8_t index) {
  const Calendar c = calendar();
  switch (index) {
    case kSecond:
      return encode(c.second);
    case kMinute:
      return encode(c.minute);
    case kHour:
      return encode_hour(c.hour);
    case kWeekday:
      return encode(c.weekday);
    case kDay:
      return encode(c.day);
    case kMonth:
      return encode(c.month);
    case kYear:
      return encode(c.year % 100);
    case kCentury:
      return encode(c.year / 100);
    default:
      return ram_[index];  // alarms
  }
}

void RtcCmos::write_time(std::uint8_t index, std::uint8_t value) {
  Calendar c = calendar();
  switch (index) {
    case kSecond:
      c.second = decode(value);
      break;
    case kMinute:
      c.minute = decode(value);
      break;
    case kHour:
      c.hour = decode_hour(value);
      break;
    case kWeekday:
      return;  // follows the date
    case kDay:
      c.day = decode(value);
      break;
    case kMonth:
      c.month = decode(value);
      break;
    case kYear:
      c.year = c.year / 100 * 100 + decode(value) % 100;
      break;
    case kCentury:
      c.year = decode(value) * 100 + c.year % 100;
      break;
    default:
      ram_[index] = value;
      return;
  }
  if (halted()) {
    frozen_ = c;
  } else {
    const std::int64_t now = rtc_ns();
    set_calendar(c, now - floor_seconds(now) * kSecondNs);
  }
}

bool RtcCmos::update_in_progress() {
  if (halted()) return false;
  const std::int64_t now = rtc_ns();
  return now - floor_seconds(now) * kSecondNs >= kSecondNs - kUpdateNs;
}

std::uint8_t RtcCmos::read_data() {
  const std::lock_guard lock{mutex_};
  if (is_time(index_)) return read_time(index_);
  if (index_ == kStatusA) {
    return static_cast<std::uint8_t>(ram_[kStatusA] | (update_in_progress() ? kUip : 0));
  }
  return index_ == kStatusC ? read_status_c() : ram_[index_];
}

void RtcCmos::write_index(std::uint8_t value) {
  const std::lock_guard lock{mutex_};
  index_ = value & 0x7F;
  nmi_masked_ = (value & 0x80) != 0;
}

void RtcCmos::write_data(std::uint8_t value) {
  const std::lock_guard lock{mutex_};
  catch_up();
  if (is_time(index_)) {
    write_time(index_, value);
  } else if (index_ == kStatusA || index_ == kStatusB) {
    write_status(index_, value);
  } else if (index_ != kStatusC && index_ != kStatusD) {
    ram_[index_] = value;
  }
  arm();
  update_irq();
}

void RtcCmos::write_status(std::uint8_t index, std::uint8_t value) {
  const Calendar before = calendar();
  const bool was_halted = halted();
  const bool divider_was_off = (ram_[kStatusA] & 0x70) != 0x20;
  if (index == kStatusA) {
    ram_[kStatusA] = value & 0x7F;  // UIP is read-only
    restart_periodic();
  } else {
    ram_[kStatusB] = (value & kSet) != 0 ? value & static_cast<std::uint8_t>(~kUie) : value;
  }
  if (!was_halted && halted()) frozen_ = before;
  if (was_halted && !halted()) {
    // After a divider reset the first update comes half a second later; SET alone holds back
    // updates while the divider chain counts on (data sheet, "divider control", "SET").
    const std::int64_t now = rtc_ns();
    const std::int64_t fraction = now - floor_seconds(now) * kSecondNs;
    set_calendar(frozen_, divider_was_off ? kSecondNs / 2 : fraction);
  }
}

/// Rates 1 and 2 are 256 and 128 Hz; 3..15 are 32768 Hz >> (rate - 1); 0 is off.
Nanoseconds RtcCmos::periodic_ns() const noexcept {
  unsigned rate = ram_[kStatusA] & 0xF;
  if (rate == 0 || (ram_[kStatusA] & 0x70) != 0x20) return 0;
  if (rate < 3) rate += 7;
  return scale(1ULL << (rate - 1), kNanosecondsPerSecond, 32768);
}

void RtcCmos::restart_periodic() {
  const Nanoseconds period = periodic_ns();
  next_periodic_ = period == 0 ? kNever : clock_.now() + period;
}

/// An alarm byte from C0h up matches anything.
bool RtcCmos::alarm_matches(const Calendar& c) const noexcept {
  const auto matches = [](std::uint8_t alarm, std::uint8_t shown) {
    return (alarm & 0xC0) == 0xC0 || alarm == shown;
  };
  return matches(ram_[kSecondAlarm], encode(c.second)) &&
         matches(ram_[kMinuteAlarm], encode(c.minute)) &&
         matches(ram_[kHourAlarm], encode_hour(c.hour));
}

/// Sets the flags of what has happened since the last look.
void RtcCmos::catch_up() {
  const Nanoseconds now = clock_.now();
  if (next_periodic_ <= now) {
    const Nanoseconds period = periodic_ns();
    ram_[kStatusC] |= kPf;
    next_periodic_ =
        period == 0 ? kNever : next_periodic_ + ((now - next_periodic_) / period + 1) * period;
  }
  if (halted()) return;
  const std::int64_t second = floor_seconds(rtc_ns());
  if (second > last_second_) {
    ram_[kStatusC] |= kUf;
    for (std::int64_t s = std::max(last_second_ + 1, second - kAlarmLookBack); s <= second; ++s) {
      if (alarm_matches(calendar_at(s))) ram_[kStatusC] |= kAf;
    }
  }
  last_second_ = second;  // also when the host's wall clock was set back
}

std::uint8_t RtcCmos::read_status_c() {
  catch_up();
  const std::uint8_t flags = ram_[kStatusC];
  const bool irq = (flags & ram_[kStatusB] & (kPf | kAf | kUf)) != 0;
  ram_[kStatusC] = 0;
  update_irq();
  arm();
  return static_cast<std::uint8_t>(flags | (irq ? kIrqf : 0));
}

/// Only enabled interrupts need a timer; flags alone are found when they are read.
void RtcCmos::arm() {
  const std::uint8_t enabled = ram_[kStatusB];
  Nanoseconds deadline = (enabled & kPie) != 0 ? next_periodic_ : kNever;
  if ((enabled & (kAie | kUie)) != 0 && !halted()) {
    const std::int64_t now = rtc_ns();
    const std::int64_t rest = (floor_seconds(now) + 1) * kSecondNs - now;
    deadline = std::min(deadline, clock_.now() + static_cast<Nanoseconds>(rest));
  }
  timer_.arm(deadline);
}

void RtcCmos::expire() {
  const std::lock_guard lock{mutex_};
  catch_up();
  arm();
  update_irq();
}

void RtcCmos::update_irq() {
  const bool level = (ram_[kStatusC] & ram_[kStatusB] & (kPf | kAf | kUf)) != 0;
  if (level == irq_level_) return;
  irq_level_ = level;
  irq8_.set(level);
}

}  // namespace strata::devices
