// The PC's 8254 interval timer and the parts of port 61h that belong to it.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>

#include "devices/bus.hpp"
#include "devices/byte_window.hpp"
#include "devices/clock.hpp"
#include "devices/device.hpp"
#include "devices/state_result.hpp"

namespace strata::devices {

/// Input clock of all three counters.
inline constexpr std::uint64_t kPitHz = 1'193'182;

/// One counter. Nothing ticks: state is computed from the tick number of the input clock that
/// every function is given (floor(now * kPitHz / 1e9)), which never goes back. No lock of its own.
class PitCounter {
 public:
  using Tick = std::uint64_t;
  static constexpr Tick kNoEdge = ~Tick{0};

  void write_control(std::uint8_t control, Tick now) noexcept;
  void write_count(std::uint8_t value, Tick now) noexcept;
  [[nodiscard]] std::uint8_t read(Tick now) noexcept;
  void latch_count(Tick now) noexcept;
  void latch_status(Tick now) noexcept;
  void set_gate(bool gate, Tick now) noexcept;
  [[nodiscard]] bool gate() const noexcept { return gate_; }
  [[nodiscard]] bool output(Tick now) noexcept;
  [[nodiscard]] std::uint16_t count(Tick now) noexcept;
  [[nodiscard]] unsigned mode() const noexcept { return mode_; }
  /// Tick of the first rising edge of OUT after `now`; kNoEdge: none to come.
  [[nodiscard]] Tick next_rising_edge(Tick now) noexcept;
  /// Ticks between rising edges; 0: not periodic.
  [[nodiscard]] Tick period() const noexcept;
  /// See devices/device_state.hpp.
  template <class Archive>
  void fields(Archive& a);

 private:
  void commit(std::uint16_t value, Tick now) noexcept;
  void start(Tick now) noexcept;
  void settle(Tick now) noexcept;
  [[nodiscard]] bool counting() const noexcept { return loaded_ && !waits_ && !stopped_; }
  [[nodiscard]] Tick elapsed(Tick now) const noexcept;

  std::uint8_t mode_ = 0, access_ = 3;
  bool bcd_ = false;
  bool gate_ = true;
  bool loaded_ = false;   ///< a count was written since the control word
  bool waits_ = false;    ///< modes 1 and 5: no trigger yet
  bool stopped_ = false;  ///< by the gate (modes 0, 2, 3, 4)
  bool high_next_write_ = false, high_next_read_ = false;
  std::uint8_t low_byte_ = 0;
  std::uint32_t reload_ = 0x10000;            ///< 1..65536 (or ..10000 in BCD), in ticks
  std::optional<std::uint32_t> next_reload_;  ///< modes 2 and 3: taken at the period's end
  Tick start_ = 0;                            ///< when counting of reload_ began
  Tick held_ = 0;                             ///< elapsed ticks while stopped
  std::optional<std::uint8_t> status_latch_;
  std::optional<std::uint16_t> count_latch_;
};

/// Ports 40h-43h and 61h. Counter 0 drives IRQ 0; counter 2 is gated by bit 0 of port 61h and read
/// back in bit 5 (Linux calibrates the TSC there). Interrupts of a period under kShortestPeriod
/// are thinned out to it; the registers still show the period asked for. Any thread.
class Pit8254 {
 public:
  Pit8254(Clock& clock, Timers& timers, IrqLine& irq0);
  Expected<void, BusError> attach(Bus& ports);
  /// The device's state for a saved VM, and back. No vCPU runs meanwhile. load() checks what it is
  /// given; after an error the device must not be used.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

 private:
  template <class Archive>
  void fields(Archive& a);
  [[nodiscard]] PitCounter::Tick tick() noexcept;
  std::uint8_t read(std::uint64_t port);
  void write(std::uint64_t port, std::uint8_t value);
  std::uint8_t read_61();
  void write_61(std::uint8_t value);
  void read_back(std::uint8_t command, PitCounter::Tick now);
  void arm(PitCounter::Tick now);
  void expire();

  Clock& clock_;
  IrqLine& irq0_;
  std::mutex mutex_;  ///< guards the rest; held while irq0_ is set
  std::array<PitCounter, 3> counters_;
  bool speaker_data_ = false;
  PitCounter::Tick edge_ = PitCounter::kNoEdge;  ///< the edge the timer waits for
  ByteWindow ports_, port_61_;
  Timer timer_;
};

}  // namespace strata::devices
