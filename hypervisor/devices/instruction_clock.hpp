// Guest time that the guest's own instructions move: the same run shows the same time everywhere.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "devices/clock.hpp"
#include "engines/engine.hpp"

namespace strata::devices {

/// Clock and timers in one. A tick passes with each retired instruction, of whichever vCPU has the
/// turn; when all sleep, skip() moves time to the next timer. The TSC counts ticks. Reading: any
/// thread, exact on the vCPUs' thread; everything that moves time or fires timers: that thread.
class InstructionClock final : public Clock, public Timers {
 public:
  /// `mhz`: ticks a microsecond, 1 to 1'000'000.
  explicit InstructionClock(std::uint64_t mhz) noexcept : mhz_{mhz} {}

  /// 2024-01-01 00:00 UTC at power-on: the host's clock is no part of the run.
  static constexpr std::int64_t kEpoch = 1'704'067'200'000'000'000;

  [[nodiscard]] std::uint64_t tsc() noexcept override { return ticks(); }
  [[nodiscard]] Nanoseconds now() noexcept override { return scale(ticks(), 1000, mhz_); }
  [[nodiscard]] std::int64_t realtime() noexcept override;
  [[nodiscard]] std::uint64_t tsc_khz() const noexcept override { return mhz_ * 1000; }

  Id add(Callback callback) override { return queue_.add(std::move(callback)); }
  void arm(Id id, Nanoseconds deadline) override { queue_.arm(id, deadline); }
  void cancel(Id id) override { queue_.cancel(id); }
  void remove(Id id) override { queue_.remove(id); }
  [[nodiscard]] std::vector<Nanoseconds> deadlines() const override { return queue_.deadlines(); }

  [[nodiscard]] std::uint64_t ticks() const noexcept;
  /// The clock goes on with the instructions of `vcpu`, which must outlive it or the next follow().
  void follow(const engine::Vcpu& vcpu) noexcept;
  /// A loaded VM: this many ticks have passed.
  void set_ticks(std::uint64_t ticks) noexcept;
  /// Instructions to go until the next timer is due; nothing: none is armed.
  [[nodiscard]] std::optional<std::uint64_t> ticks_to_next() noexcept;
  /// Fires what is due.
  void run_due();
  /// Time goes to the next timer at once. False: none is armed.
  bool skip();

 private:
  const std::uint64_t mhz_;
  std::atomic<const engine::Vcpu*> vcpu_{nullptr};
  std::atomic<std::uint64_t> base_{0};  ///< ticks minus the instructions of vcpu_; may wrap
  TimerQueue queue_;
};

}  // namespace strata::devices
