#include "devices/apic_bus.hpp"

#include <algorithm>

#include "devices/local_apic.hpp"

namespace strata::devices {

void ApicBus::add(LocalApic& apic) { apics_.push_back(&apic); }
void ApicBus::remove(LocalApic& apic) { std::erase(apics_, &apic); }
void ApicBus::add(EoiListener& listener) { listeners_.push_back(&listener); }
void ApicBus::remove(EoiListener& listener) { std::erase(listeners_, &listener); }

unsigned ApicBus::deliver(const ApicMessage& message) {
  if (message.mode == DeliveryMode::lowest_priority) {
    LocalApic* const target = lowest(message);
    return target != nullptr && target->accept(message) ? 1 : 0;
  }
  unsigned taken = 0;
  for (LocalApic* apic : apics_) {
    if (apic->matches(message) && apic->accept(message)) ++taken;
  }
  return taken;
}

/// The target with the lowest processor priority; among equals a different one each time, so that
/// an idle guest's interrupts spread (SDM 3A 11.6.2.4).
LocalApic* ApicBus::lowest(const ApicMessage& message) {
  if (apics_.empty()) return nullptr;
  const std::size_t first = rotor_.fetch_add(1, std::memory_order_relaxed) % apics_.size();
  LocalApic* best = nullptr;
  int best_priority = 256;
  for (std::size_t i = 0; i < apics_.size(); ++i) {
    LocalApic* const apic = apics_[(first + i) % apics_.size()];
    if (!apic->matches(message)) continue;
    const auto priority = apic->arbitration_priority();
    if (priority && *priority < best_priority) {
      best_priority = *priority;
      best = apic;
    }
  }
  return best;
}

unsigned ApicBus::deliver_to_all(const ApicMessage& message, const LocalApic* sender) {
  unsigned taken = 0;
  for (LocalApic* apic : apics_) {
    if (apic != sender && apic->accept(message)) ++taken;
  }
  return taken;
}

bool ApicBus::deliver_msi(std::uint64_t address, std::uint32_t data) {
  if (address >> 20 != 0xFEE) return false;
  ApicMessage message;
  message.destination = static_cast<std::uint32_t>(address >> 12 & 0xFF);
  message.logical = (address & 1U << 2) != 0;
  message.mode = static_cast<DeliveryMode>(data >> 8 & 7);
  message.vector = static_cast<std::uint8_t>(data);
  message.level = (data & 1U << 15) != 0;
  return deliver(message) != 0;
}

void ApicBus::broadcast_eoi(std::uint8_t vector) {
  for (EoiListener* listener : listeners_) listener->end_of_interrupt(vector);
}

}  // namespace strata::devices
