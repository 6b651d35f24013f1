// Events on their way from a recorder to a player in the same process.
#pragma once

#include <deque>

#include "vmm/replay/event.hpp"

namespace strata::replay {

/// One thread. A reader that has to know the next stop finds it if the last event written is one:
/// see Recorder::mark().
class EventQueue final : public EventSink, public EventSource {
 public:
  void write(const Event& event) override;
  [[nodiscard]] Result<const Event*> front() override;
  [[nodiscard]] Result<engine::VcpuPosition> next_stop() override;
  void pop() override;
  [[nodiscard]] std::uint64_t events() const noexcept override { return popped_; }

  /// The last events other than turns, for reports; forget() starts anew.
  [[nodiscard]] const std::deque<Event>& recent() const noexcept { return recent_; }
  void forget() noexcept { recent_.clear(); }

 private:
  std::deque<Event> queue_;
  std::deque<engine::VcpuPosition> stops_;  ///< of those in queue_ between instructions
  std::deque<Event> recent_;
  std::uint64_t popped_ = 0;
};

}  // namespace strata::replay
