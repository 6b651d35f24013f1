// A PCI function with memory BARs, capabilities and interrupts (PCI 3.0, chapter 6).
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "devices/bus.hpp"
#include "devices/pci/msix.hpp"
#include "devices/pci_host.hpp"
#include "devices/state_result.hpp"

namespace strata::devices::pci {

struct Identity {
  std::uint16_t vendor = 0;
  std::uint16_t device = 0;
  std::uint32_t class_code = 0;  ///< class, subclass, programming interface: 24 bits
  std::uint8_t revision = 0;
  std::uint16_t subsystem_vendor = 0;
  std::uint16_t subsystem = 0;
};

/// What answers behind a 32-bit memory BAR. `bytes`: a power of two from 16 on.
struct Bar {
  std::uint32_t bytes = 0;
  Device* device = nullptr;
};

/// The configuration space. A BAR is on the bus while the command register enables memory; one that
/// overlaps what is there already is not, until the driver moves it or enables memory anew.
/// All functions: any thread, but those that say otherwise.
class PciDevice : public PciFunction {
 public:
  /// `mmio`, `intx` and the BARs' devices outlive this. At most six BARs.
  PciDevice(const Identity& identity, std::span<const Bar> bars, Bus& mmio, IrqLine& intx);
  ~PciDevice() override;

  /// Puts the BARs from `base` on, each aligned to its size, and enables memory, as firmware does.
  /// Returns the address after the last. Before the guest runs.
  std::uint64_t assign(std::uint64_t base);

  /// Takes the BARs off the bus, so that those of others find room. Before load_pci() of several
  /// functions, which puts them where they were saved.
  void unmap();

  std::uint32_t read_config(unsigned offset, unsigned size) final;
  void write_config(unsigned offset, unsigned size, std::uint32_t value) final;

  /// As a device's, MSI-X included.
  [[nodiscard]] nlohmann::json save_pci();
  [[nodiscard]] StateResult load_pci(const nlohmann::json& state);

 protected:
  /// Adds a capability with what follows its `next` pointer. Returns its offset. Construction only.
  unsigned add_capability(std::uint8_t id, std::span<const std::uint8_t> body);
  /// Bytes [offset, offset + bytes) are for the driver to write. Construction only.
  void make_writable(unsigned offset, unsigned bytes);
  /// Adds the capability for `msix`, whose device is BAR `bar`. Construction only.
  void add_msix(Msix& msix, unsigned bar);

  /// The level that the function wants INTA# to have; it does while neither the command register
  /// nor MSI-X forbids it.
  void set_intx(bool level);
  /// What a driver wrote to a writable double word.
  [[nodiscard]] std::uint32_t config_word(unsigned offset);

  /// Registers in configuration space that do something, asked for before those that do not. Called
  /// with no lock held.
  virtual std::optional<std::uint32_t> read_register(unsigned /*offset*/, unsigned /*size*/) {
    return std::nullopt;
  }
  /// False: not one of those.
  virtual bool write_register(unsigned /*offset*/, unsigned /*size*/, std::uint32_t /*value*/) {
    return false;
  }

 private:
  template <class Archive>
  void fields(Archive& a);
  [[nodiscard]] std::uint32_t word(unsigned offset) const noexcept;
  void set_word(unsigned offset, std::uint32_t value) noexcept;
  [[nodiscard]] std::uint16_t command() const noexcept;
  void update();
  void update_bars();
  void update_interrupts();

  struct Placed {
    Bar bar;
    std::optional<std::uint64_t> at;  ///< on the bus
  };
  Bus& mmio_;
  IrqLine& intx_;
  Msix* msix_ = nullptr;
  unsigned msix_at_ = 0;
  unsigned last_capability_ = 0;
  unsigned room_ = 0x40;  ///< where the next capability goes

  std::mutex mutex_;  ///< guards the rest; held while INTx and MSI-X are told
  std::array<std::uint8_t, 256> bytes_{};
  std::array<std::uint8_t, 256> writable_{};
  std::vector<Placed> bars_;
  bool intx_wanted_ = false;
};

}  // namespace strata::devices::pci
