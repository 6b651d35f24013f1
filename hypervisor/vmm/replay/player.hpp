// Replay: gives vCPUs from a recording what the outside gave them when it was made. No devices.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpu/vcpu_state.hpp"
#include "devices/kvmclock.hpp"
#include "engines/engine.hpp"
#include "vmm/replay/event.hpp"

namespace strata::replay {

/// Drives vCPUs through a recording on the calling thread. A run that does not ask for what was
/// recorded, where it was recorded, has diverged: that ends it, with one line.
class Player final : public engine::TscSource, public engine::RandomSource {
 public:
  /// `memory` is where recorded device writes go; `signature` is CPUID.1:EAX, for INIT. All must
  /// outlive the player.
  Player(EventSource& events, unsigned vcpus, devices::MemoryWriter& memory,
         std::uint32_t signature);
  ~Player() override;
  [[nodiscard]] engine::InterruptSource& interrupts(VcpuId vcpu);
  /// Once per vCPU, before run().
  void connect(VcpuId vcpu, engine::Vcpu& engine);

  enum class Stop : std::uint8_t {
    end,      ///< the recording's end, reached where it was recorded
    reached,  ///< until() was reached
    waiting,  ///< the source has no more events yet
    error     ///< see error()
  };
  /// Runs to the recording's end, or through the last event there is yet, or until the vCPU whose
  /// turn it is has retired `until` instructions if that comes first.
  Stop run(std::optional<std::uint64_t> until);
  [[nodiscard]] const std::string& error() const noexcept { return error_; }
  [[nodiscard]] VcpuId current() const noexcept { return current_; }

  // engine::TscSource, engine::RandomSource
  std::uint64_t tsc() noexcept override;
  std::optional<std::uint64_t> random(bool seed, unsigned bytes) noexcept override;

 private:
  class Interrupts;
  /// Takes the front event if it is what was asked for, with device writes before it carried out;
  /// nothing: diverged.
  std::optional<Event> expect(Event asked);
  /// The next event; null: none, and fail() has been called if that is an error.
  const Event* front();
  void diverge(const std::string& got);
  void fail(std::string message);
  [[nodiscard]] engine::Vcpu& vcpu() noexcept { return *vcpus_[current_]; }
  [[nodiscard]] bool interrupt_here(EventKind kind);
  void answer(const engine::Exit& exit);
  /// Carries out a front event that lies here. True: it was the end.
  bool apply(const Event& event);
  void deliver();
  void advance(const engine::VcpuPosition& stop);

  EventSource& events_;
  devices::MemoryWriter& memory_;
  const std::uint32_t signature_;
  std::vector<engine::Vcpu*> vcpus_;
  std::vector<std::unique_ptr<Interrupts>> interrupts_;
  VcpuId current_ = 0;
  std::string error_;
};

/// `a` comes before `b` in an instruction stream.
[[nodiscard]] bool before(const engine::VcpuPosition& a, const engine::VcpuPosition& b) noexcept;
[[nodiscard]] std::string describe(const engine::VcpuPosition& position);

}  // namespace strata::replay
