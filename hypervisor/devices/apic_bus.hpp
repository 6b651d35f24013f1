// The medium between local APICs, I/O APICs and devices that send MSIs.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "devices/state_result.hpp"

namespace strata::devices {

class LocalApic;

/// Delivery modes of ICR, redirection entries and MSI data (SDM 3A 11.6.1).
enum class DeliveryMode : std::uint8_t {
  fixed = 0,
  lowest_priority = 1,
  smi = 2,
  reserved = 3,
  nmi = 4,
  init = 5,
  startup = 6,
  ext_int = 7
};

/// One interrupt message.
struct ApicMessage {
  std::uint32_t destination = 0;
  bool wide = false;  ///< 32-bit x2APIC destination; else 8 bits, FFh meaning everybody
  bool logical = false;
  DeliveryMode mode = DeliveryMode::fixed;
  std::uint8_t vector = 0;
  bool level = false;  ///< trigger mode
};

/// Hears about the end of level-triggered interrupts. Any thread, no APIC lock held.
class EoiListener {
 public:
  EoiListener() = default;
  EoiListener(const EoiListener&) = delete;
  EoiListener& operator=(const EoiListener&) = delete;
  virtual ~EoiListener() = default;
  virtual void end_of_interrupt(std::uint8_t vector) = 0;
};

/// Knows all local APICs. The add functions are for composition, before any vCPU runs; the others
/// come from any thread, with no LocalApic lock held.
class ApicBus {
 public:
  ApicBus() = default;
  ApicBus(const ApicBus&) = delete;
  ApicBus& operator=(const ApicBus&) = delete;

  void add(LocalApic& apic);
  void remove(LocalApic& apic);
  void add(EoiListener& listener);
  void remove(EoiListener& listener);

  /// Delivers to every APIC the destination names (lowest priority: to one of them). Returns how
  /// many took it.
  unsigned deliver(const ApicMessage& message);
  /// Delivers to all but `sender`, which may be null: the "all" shorthands.
  unsigned deliver_to_all(const ApicMessage& message, const LocalApic* sender);
  /// A memory write of a device to FEEx_xxxxh (SDM 3A 11.11). False: the address is not one of an
  /// interrupt message, or nobody took it.
  bool deliver_msi(std::uint64_t address, std::uint32_t data);
  /// A local APIC ended a level-triggered interrupt.
  void broadcast_eoi(std::uint8_t vector);

  /// As a device's. APICs save themselves.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

 private:
  template <class Archive>
  void fields(Archive& a);
  LocalApic* lowest(const ApicMessage& message);

  std::vector<LocalApic*> apics_;
  std::vector<EoiListener*> listeners_;
  std::atomic<std::uint32_t> rotor_{0};  ///< spreads lowest-priority ties
};

}  // namespace strata::devices
