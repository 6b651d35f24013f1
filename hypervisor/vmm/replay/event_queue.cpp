#include "vmm/replay/event_queue.hpp"

namespace strata::replay {

namespace {

constexpr std::size_t kRecent = 16;

}  // namespace

void EventQueue::write(const Event& event) {
  if (between_instructions(event.kind)) stops_.push_back(event.position);
  queue_.push_back(event);
  if (event.kind == EventKind::turn) return;
  if (recent_.size() == kRecent) recent_.pop_front();
  recent_.push_back(event);
}

Result<const Event*> EventQueue::front() { return queue_.empty() ? nullptr : &queue_.front(); }

Result<engine::VcpuPosition> EventQueue::next_stop() {
  if (stops_.empty()) return Unexpected{FileError{"the recording says of no place to stop at"}};
  return stops_.front();
}

void EventQueue::pop() {
  if (queue_.empty()) return;
  if (between_instructions(queue_.front().kind)) stops_.pop_front();
  queue_.pop_front();
  ++popped_;
}

}  // namespace strata::replay
