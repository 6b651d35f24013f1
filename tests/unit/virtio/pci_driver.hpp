// A machine with one virtio function, and a driver that reaches it as a guest would: configuration
// ports, MMIO, and queues in memory.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "devices/local_apic.hpp"
#include "devices/manual_clock.hpp"
#include "devices/pci_host.hpp"
#include "devices/virtio/pci_transport.hpp"
#include "machine/test_support.hpp"
#include "small_driver.hpp"

namespace strata::devices::virtio::test {

class Control final : public MachineControl {
  void power_off() override {}
  void reset() override {}
  void debug_exit(std::uint32_t) override {}
};

class Line final : public IrqLine {
 public:
  void set(bool to) override { level = to; }
  bool level = false;
};

/// Slot 3 has the function; INTA# ends in `intx`, messages in the APIC with id 0.
class PciMachine {
 public:
  static constexpr std::uint64_t kBase = 0xD0000000;
  static constexpr unsigned kSlot = 3;

  explicit PciMachine(std::unique_ptr<Device> device) {
    machine::test::must(host.attach(ports));
    apic.mmio_write(PA{kApicDefaultBase + kApicSvr}, 4, 0x1FF);
    apic.connect_pic(pic);
    function = std::make_unique<PciTransport>(
        std::move(device), PciTransport::Wiring{memory.guest, mmio, apics, intx});
    (void)host.add(kSlot, *function);
    (void)function->assign(kBase);
  }

  std::uint32_t config(unsigned offset, unsigned size = 4) {
    select(offset);
    return static_cast<std::uint32_t>(ports.read(0xCFC + (offset & 3), size));
  }
  void set_config(unsigned offset, std::uint32_t value, unsigned size = 4) {
    select(offset);
    ports.write(0xCFC + (offset & 3), size, value);
  }
  /// Offsets of the capabilities with this id, in order.
  std::vector<unsigned> capabilities(unsigned id) {
    std::vector<unsigned> found;
    for (unsigned at = config(0x34, 1); at != 0; at = config(at + 1, 1)) {
      if (config(at, 1) == id) found.push_back(at);
    }
    return found;
  }
  /// The vector of the interrupt that waits in the APIC, taken and ended.
  std::optional<std::uint8_t> take_interrupt() {
    const auto vector = apic.acknowledge();
    if (vector) apic.mmio_write(PA{kApicDefaultBase + kApicEoi}, 4, 0);
    return vector;
  }

  machine::test::TestMachine memory{8};
  Bus ports{16};
  Bus mmio{64};
  Control control;
  PciHost host{control};
  ManualClock clock;
  ApicBus apics;
  LocalApic apic{LocalApic::Config{.id = 0, .bootstrap = true}, apics, clock, clock};
  Line intx;
  std::unique_ptr<PciTransport> function;

 private:
  class NoPic final : public ExtIntSource {
    std::uint8_t acknowledge_ext_int() override { return 0; }
  } pic;
  void select(unsigned offset) { ports.write(0xCF8, 4, 1U << 31 | kSlot << 11 | (offset & 0xFC)); }
};

/// Finds the structures by their capabilities and negotiates.
class PciDriver {
 public:
  explicit PciDriver(PciMachine& machine) : machine_{machine} {
    for (const unsigned at : machine.capabilities(9)) {
      const unsigned type = machine.config(at + 3, 1);
      const std::uint64_t bar = machine.config(0x10 + 4 * machine.config(at + 4, 1)) & ~0xFU;
      where_[type] = bar + machine.config(at + 8);
      if (type == 2) multiplier_ = machine.config(at + 16);
      if (type == 5) access = at;
    }
  }

  std::uint64_t read(unsigned offset, unsigned size) {
    return machine_.mmio.read(where_[1] + offset, size);
  }
  void write(unsigned offset, unsigned size, std::uint64_t value) {
    machine_.mmio.write(where_[1] + offset, size, value);
  }
  std::uint64_t isr() { return machine_.mmio.read(where_[3], 1); }
  std::uint64_t device_config(unsigned offset, unsigned size) {
    return machine_.mmio.read(where_[4] + offset, size);
  }
  std::uint64_t msix_entry(unsigned vector) {
    const unsigned at = machine_.capabilities(0x11).front();
    return (machine_.config(0x10 + 4 * (machine_.config(at + 4) & 7)) & ~0xFU) + 16 * vector;
  }
  /// Vector `vector` of the table sends APIC vector `apic_vector`.
  void set_message(unsigned vector, std::uint8_t apic_vector) {
    const std::uint64_t entry = msix_entry(vector);
    machine_.mmio.write(entry, 4, 0xFEE00000);
    machine_.mmio.write(entry + 4, 4, 0);
    machine_.mmio.write(entry + 8, 4, apic_vector);
    machine_.mmio.write(entry + 12, 4, 0);
  }
  void enable_msix(bool masked = false) {
    const unsigned at = machine_.capabilities(0x11).front();
    machine_.set_config(at + 2, masked ? 0xC000 : 0x8000, 2);
  }

  std::uint8_t status() { return static_cast<std::uint8_t>(read(0x14, 1)); }
  void set_status(std::uint8_t value) { write(0x14, 1, value); }
  std::uint64_t offered() {
    write(0, 4, 0);
    const std::uint64_t low = read(4, 4);
    write(0, 4, 1);
    return low | read(4, 4) << 32;
  }
  void accept(std::uint64_t features) {
    write(8, 4, 0);
    write(12, 4, features & 0xFFFFFFFF);
    write(8, 4, 1);
    write(12, 4, features >> 32);
  }
  /// Up to FEATURES_OK; false where the device does not take it.
  bool negotiate(std::uint64_t features) {
    set_status(0);
    set_status(1);
    set_status(3);
    accept(features);
    set_status(11);
    return (status() & 8) != 0;
  }
  /// A queue as DriverQueue lays it out.
  void enable_queue(unsigned index, PA base, std::uint16_t size = DriverQueue::kSize) {
    write(0x16, 2, index);
    write(0x18, 2, size);
    write(0x1A, 2, index);
    write(0x20, 4, base.value());
    write(0x24, 4, 0);
    write(0x28, 8, base.value() + 0x100);
    write(0x30, 8, base.value() + 0x200);
    write(0x1C, 2, 1);
  }
  void start(std::uint64_t features, PA base) {
    (void)negotiate(features);
    enable_queue(0, base);
    set_status(15);
  }
  void notify(unsigned index) { machine_.mmio.write(where_[2] + multiplier_ * index, 2, index); }

  unsigned access = 0;  ///< offset of the access capability

 private:
  PciMachine& machine_;
  std::map<unsigned, std::uint64_t> where_;
  std::uint64_t multiplier_ = 0;
};

}  // namespace strata::devices::virtio::test
