// The MC146818 real-time clock with the PC's CMOS RAM, ports 70h and 71h.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>

#include "devices/bus.hpp"
#include "devices/byte_window.hpp"
#include "devices/clock.hpp"
#include "devices/device.hpp"
#include "devices/state_result.hpp"

namespace strata::devices {

/// Shows UTC. Starts in 24-hour BCD mode with interrupts off. The century is byte 32h (say so in
/// the FADT). All functions: any thread.
class RtcCmos {
 public:
  RtcCmos(Clock& clock, Timers& timers, IrqLine& irq8);
  Expected<void, BusError> attach(Bus& ports);
  /// A byte of CMOS RAM, 0Eh..7Fh (not the century); others are ignored.
  void set_ram(std::uint8_t index, std::uint8_t value);
  /// Bit 7 of port 70h: the guest masks NMIs of the chipset.
  [[nodiscard]] bool nmi_masked() const;
  /// The device's state for a saved VM, and back. No vCPU runs meanwhile. load() checks what it is
  /// given; after an error the device must not be used.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

 private:
  struct Calendar {
    unsigned second = 0, minute = 0, hour = 0, weekday = 1, day = 1, month = 1, year = 1970;
    template <class Archive>
    void fields(Archive& a);
  };
  template <class Archive>
  void fields(Archive& a);
  std::uint8_t read_data();
  void write_index(std::uint8_t value);
  void write_data(std::uint8_t value);
  [[nodiscard]] std::uint8_t read_time(std::uint8_t index);
  void write_time(std::uint8_t index, std::uint8_t value);
  void write_status(std::uint8_t index, std::uint8_t value);
  [[nodiscard]] std::uint8_t read_status_c();
  [[nodiscard]] std::int64_t rtc_ns();
  [[nodiscard]] Calendar calendar();
  [[nodiscard]] static Calendar calendar_at(std::int64_t second);
  void set_calendar(const Calendar& c, std::int64_t fraction_ns);
  [[nodiscard]] std::uint8_t encode(unsigned value) const noexcept;
  [[nodiscard]] unsigned decode(std::uint8_t value) const noexcept;
  [[nodiscard]] std::uint8_t encode_hour(unsigned hour) const noexcept;
  [[nodiscard]] unsigned decode_hour(std::uint8_t value) const noexcept;
  [[nodiscard]] bool alarm_matches(const Calendar& c) const noexcept;
  [[nodiscard]] bool update_in_progress();
  [[nodiscard]] Nanoseconds periodic_ns() const noexcept;
  [[nodiscard]] bool halted() const noexcept;
  void restart_periodic();
  void arm();
  void catch_up();
  void expire();
  void update_irq();

  Clock& clock_;
  IrqLine& irq8_;
  mutable std::mutex mutex_;  ///< guards the rest; held while irq8_ is set
  std::array<std::uint8_t, 128> ram_{};
  std::uint8_t index_ = 0;
  bool nmi_masked_ = false;
  std::int64_t offset_ns_ = 0;    ///< the guest's time minus Clock::realtime()
  Calendar frozen_;               ///< while SET is on
  std::int64_t last_second_ = 0;  ///< updates up to this Unix second have been noticed
  Nanoseconds next_periodic_ = kNever;
  bool irq_level_ = false;
  ByteWindow ports_;
  Timer timer_;
};

}  // namespace strata::devices
