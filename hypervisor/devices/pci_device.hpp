// A PCI function with memory BARs (PCI 3.0, 6): configuration space, capabilities, INTx and MSI-X.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "devices/apic_bus.hpp"
#include "devices/bus.hpp"
#include "devices/msix.hpp"
#include "devices/pci_host.hpp"
#include "devices/state_result.hpp"

namespace strata::devices {

struct PciIdentity {
  std::uint16_t vendor = 0;
  std::uint16_t device = 0;
  std::uint8_t revision = 0;
  std::uint32_t class_code = 0;  ///< 24 bits: base class, sub-class, interface
  std::uint16_t subsystem_vendor = 0;
  std::uint16_t subsystem = 0;
};

/// What a function needs of the machine; all must outlive it.
struct PciSlot {
  Bus* mmio = nullptr;
  ApicBus* messages = nullptr;
  IrqLine* intx = nullptr;      ///< of INTA
  std::uint32_t registers = 0;  ///< where firmware would have put the function's registers, and
  std::uint32_t msix = 0;       ///< its MSI-X table: bus addresses, multiples of the BARs' sizes
};

/// BAR 0 has the function's registers, BAR 1 the MSI-X table. Both can be moved and switched off; a
/// BAR on top of something else is not there, as on a bus where nobody can tell who answers. All
/// functions: any thread.
class PciDevice : public PciFunction {
 public:
  /// `registers` answers in BAR 0, which has `bytes` of it (a power of two, at least 16), and must
  /// live as long as this object.
  PciDevice(const PciIdentity& identity, const PciSlot& slot, Device& registers,
            std::uint32_t bytes, unsigned vectors);
  ~PciDevice() override;

  std::uint32_t read_config(unsigned offset, unsigned size) final;
  void write_config(unsigned offset, unsigned size, std::uint32_t value) final;

  [[nodiscard]] Msix& msix() noexcept { return msix_; }
  /// Level of INTA; where MSI-X is on it is never asserted (PCI 3.0, 6.8.2).
  void set_intx(bool level);
  /// The function may not reach memory: bus mastering is off (PCI 3.0, 6.2.2).
  [[nodiscard]] bool bus_master();

 protected:
  /// Adds a capability with the bytes behind its id and link; returns its offset. At construction.
  unsigned add_capability(std::uint8_t id, std::span<const std::uint8_t> body);
  /// A window to the registers for drivers that can not map them (virtio 1.2, 4.1.4.9). Called
  /// without a lock; nothing: these bytes are ordinary.
  virtual std::uint32_t read_window(unsigned offset, unsigned size, std::uint32_t stored);
  virtual void write_window(unsigned offset, unsigned size, std::uint32_t value);
  /// Bytes [offset, offset + size) of configuration space that the driver may write.
  void allow_writes(unsigned offset, unsigned size);
  [[nodiscard]] std::uint32_t stored(unsigned offset, unsigned size);

  [[nodiscard]] nlohmann::json save_pci();
  [[nodiscard]] StateResult load_pci(const nlohmann::json& state);

 private:
  struct Bar {
    Device* target = nullptr;
    std::uint32_t bytes = 0;
    std::uint32_t mapped = 0;  ///< bus address at which it answers; 0: nowhere
  };
  static constexpr unsigned kBars = 2;

  template <class Archive>
  void fields(Archive& a);
  [[nodiscard]] std::uint32_t get(unsigned offset, unsigned size) const;
  void put(unsigned offset, unsigned size, std::uint32_t value);
  void map_bars();
  void update_intx();

  const PciSlot slot_;
  Msix msix_;
  unsigned msix_capability_ = 0;
  std::mutex mutex_;  ///< guards the rest; held while the bus is changed and INTA set
  std::array<std::uint8_t, 256> space_{};
  std::array<std::uint8_t, 256> writable_{};  ///< bits
  std::array<Bar, kBars> bars_{};
  unsigned next_capability_ = 0x40;
  unsigned last_link_ = 0x34;
  bool intx_ = false;
  bool asserted_ = false;
};

}  // namespace strata::devices
