#include "devices/instruction_clock.hpp"

namespace strata::devices {

std::int64_t InstructionClock::realtime() noexcept {
  return kEpoch + static_cast<std::int64_t>(now());
}

std::uint64_t InstructionClock::ticks() const noexcept {
  const engine::Vcpu* vcpu = vcpu_.load(std::memory_order_relaxed);
  const std::uint64_t base = base_.load(std::memory_order_relaxed);
  return vcpu == nullptr ? base : base + vcpu->position().instructions;
}

void InstructionClock::follow(const engine::Vcpu& vcpu) noexcept {
  const std::uint64_t now = ticks();
  base_.store(now - vcpu.position().instructions, std::memory_order_relaxed);
  vcpu_.store(&vcpu, std::memory_order_relaxed);
}

void InstructionClock::set_ticks(std::uint64_t ticks) noexcept {
  base_.fetch_add(ticks - this->ticks(), std::memory_order_relaxed);
}

std::optional<std::uint64_t> InstructionClock::ticks_to_next() noexcept {
  const Nanoseconds next = queue_.next();
  if (next == kNever) return std::nullopt;
  // The first tick at which now() has reached the deadline.
  const std::uint64_t whole = scale(next, mhz_, 1000);
  const std::uint64_t due = scale(whole, 1000, mhz_) >= next ? whole : whole + 1;
  const std::uint64_t present = ticks();
  return due > present ? due - present : 0;
}

void InstructionClock::run_due() {
  while (queue_.run_one(now())) {
  }
}

bool InstructionClock::skip() {
  const auto ticks = ticks_to_next();
  if (!ticks) return false;
  base_.fetch_add(*ticks, std::memory_order_relaxed);
  return true;
}

}  // namespace strata::devices
