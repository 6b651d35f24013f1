#include "devices/acpi_pm.hpp"

namespace strata::devices {

namespace {

namespace at = acpi_pm_layout;
// PM1 status and enable (ACPI 6.4 tables 4.13 and 4.14).
constexpr std::uint16_t kTimerSts = 1U << 0, kPowerButton = 1U << 8;
constexpr std::uint16_t kEnableBits = 0x0721;
// PM1 control (table 4.15).
constexpr std::uint16_t kControlBits = 0x1C02;  // SCI_EN is read-only here
constexpr std::uint8_t kSleepEnableHigh = 1U << 5;

constexpr std::uint8_t byte_of(std::uint32_t value, std::uint64_t byte) noexcept {
  return static_cast<std::uint8_t>(value >> (8 * byte));
}

/// `value` with its byte `byte` (0 or 1) replaced, within `allowed`.
constexpr std::uint16_t replace(std::uint16_t value, std::uint64_t byte, std::uint8_t with,
                                std::uint16_t allowed) noexcept {
  const unsigned shift = 8 * (byte & 1);
  const unsigned mask = (0xFFU << shift) & allowed;
  return static_cast<std::uint16_t>((value & ~mask) | (unsigned{with} << shift & mask));
}

/// Writing ones clears.
constexpr std::uint16_t clear(std::uint16_t value, std::uint64_t byte, std::uint8_t ones) noexcept {
  return static_cast<std::uint16_t>(value & ~(unsigned{ones} << (8 * (byte & 1))));
}

}  // namespace

AcpiPm::AcpiPm(const Config& config, Clock& clock, Timers& timers, IrqLine& sci,
               MachineControl& control)
    : config_{config}, clock_{clock}, sci_{sci}, control_{control}, timer_{timers, [this] {
                                                                             expire();
                                                                           }} {}

Expected<void, BusError> AcpiPm::attach(Bus& ports) {
  return ports.add(config_.base, at::kLength, *this);
}

void AcpiPm::press_power_button() {
  const std::lock_guard lock{mutex_};
  status_ |= kPowerButton;
  update_sci();
}

void AcpiPm::raise_gpe(unsigned bit) {
  if (bit > 15) return;
  const std::lock_guard lock{mutex_};
  gpe_status_ |= static_cast<std::uint16_t>(1U << bit);
  update_sci();
}

std::uint64_t AcpiPm::ticks() noexcept {
  return scale(clock_.now(), kPmTimerHz, kNanosecondsPerSecond);
}

std::uint64_t AcpiPm::read(std::uint64_t offset, unsigned size) {
  const std::lock_guard lock{mutex_};
  catch_up();
  const std::uint64_t wide = ticks();
  const auto timer =
      static_cast<std::uint32_t>(config_.timer_32_bit ? wide & 0xFFFFFFFF : wide & 0xFFFFFF);
  std::uint64_t value = 0;
  for (unsigned i = 0; i < size && i < 8; ++i) {
    value |= std::uint64_t{read_byte(offset + i, timer)} << (8 * i);
  }
  update_sci();
  return value;
}

std::uint8_t AcpiPm::read_byte(std::uint64_t offset, std::uint32_t timer) const noexcept {
  if (offset < at::kPm1Event + 2) return byte_of(status_, offset);
  if (offset < at::kPm1Event + 4) return byte_of(enable_, offset - 2);
  if (offset < at::kPm1Control + 2) return byte_of(control_value_, offset - at::kPm1Control);
  if (offset >= at::kPmTimer && offset < at::kPmTimer + 4) {
    return byte_of(timer, offset - at::kPmTimer);
  }
  if (offset < at::kGpe0) return 0;
  if (offset < at::kGpe0 + 2) return byte_of(gpe_status_, offset - at::kGpe0);
  return byte_of(gpe_enable_, offset - at::kGpe0 - 2);
}

void AcpiPm::write(std::uint64_t offset, unsigned size, std::uint64_t value) {
  bool off = false;
  {
    const std::lock_guard lock{mutex_};
    catch_up();
    for (unsigned i = 0; i < size && i < 8; ++i) {
      off |= write_byte(offset + i, static_cast<std::uint8_t>(value >> (8 * i)));
    }
    update_sci();
    arm();
  }
  if (off) control_.power_off();
}

bool AcpiPm::write_byte(std::uint64_t offset, std::uint8_t value) noexcept {
  if (offset < at::kPm1Event + 2) {
    status_ = clear(status_, offset, value);
  } else if (offset < at::kPm1Event + 4) {
    enable_ = replace(enable_, offset - 2, value, kEnableBits);
  } else if (offset < at::kPm1Control + 2) {
    return write_control(static_cast<unsigned>(offset - at::kPm1Control), value);
  } else if (offset >= at::kGpe0 && offset < at::kGpe0 + 2) {
    gpe_status_ = clear(gpe_status_, offset - at::kGpe0, value);
  } else if (offset >= at::kGpe0 + 2) {
    gpe_enable_ = replace(gpe_enable_, offset - at::kGpe0, value, 0xFFFF);
  }
  return false;
}

/// SLP_EN reads 0 and acts at once with the SLP_TYP beside it. Sleep states other than S5 are not
/// in the DSDT; asking for them does nothing.
bool AcpiPm::write_control(unsigned byte, std::uint8_t value) noexcept {
  control_value_ = replace(control_value_, byte, value, kControlBits);
  if (byte != 1 || (value & kSleepEnableHigh) == 0) return false;
  return (control_value_ >> 10 & 7) == config_.s5_sleep_type;
}

/// TMR_STS is set when the top bit of the timer changes (ACPI 6.4, 4.8.2.1).
void AcpiPm::catch_up() {
  const std::uint64_t changes = ticks() >> top_bit();
  if (changes != carries_) status_ |= kTimerSts;
  carries_ = changes;
}

/// Only an enabled timer event needs a host timer.
void AcpiPm::arm() {
  if ((enable_ & kTimerSts) == 0 || (status_ & kTimerSts) != 0) return timer_.cancel();
  const std::uint64_t next = (carries_ + 1) << top_bit();
  timer_.arm(scale(next, kNanosecondsPerSecond, kPmTimerHz) + 1);
}

void AcpiPm::expire() {
  const std::lock_guard lock{mutex_};
  catch_up();
  update_sci();
  arm();
}

void AcpiPm::update_sci() {
  const bool level = (status_ & enable_) != 0 || (gpe_status_ & gpe_enable_) != 0;
  if (level == sci_level_) return;
  sci_level_ = level;
  sci_.set(level);
}

}  // namespace strata::devices
