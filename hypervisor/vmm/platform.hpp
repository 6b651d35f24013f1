// The machine around the vCPUs: every device, wired. Port and MMIO addresses are
// machine_layout.hpp's.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "cpu/cpu_model.hpp"
#include "devices/acpi_pm.hpp"
#include "devices/apic_bus.hpp"
#include "devices/bus.hpp"
#include "devices/clock.hpp"
#include "devices/fw_cfg.hpp"
#include "devices/ioapic.hpp"
#include "devices/kvmclock.hpp"
#include "devices/local_apic.hpp"
#include "devices/machine_control.hpp"
#include "devices/pci/shared_line.hpp"
#include "devices/pci_host.hpp"
#include "devices/pic8259.hpp"
#include "devices/pit8254.hpp"
#include "devices/rtc_cmos.hpp"
#include "devices/serial8250.hpp"
#include "devices/system_ports.hpp"
#include "devices/test_device.hpp"
#include "devices/virtio/pci_transport.hpp"
#include "engines/engine.hpp"

namespace strata::vmm {

/// Owns the devices of one VM. Construction order is destruction order reversed: the APIC bus
/// outlives the APICs.
class Platform {
 public:
  struct Config {
    unsigned vcpus = 1;
    std::optional<std::uint16_t> debug_exit_port;
    bool test_devices = false;
    std::uint64_t ram_bytes = 0;                     ///< what fw_cfg says
    devices::TestDevice::FlushPage flush_page = {};  ///< see TestDevice
  };
  /// `sink` gets the serial port's output; `control` hears power-off and reset; `memory` is where
  /// kvmclock writes. All must outlive the platform.
  Platform(const Config& config, devices::Clock& clock, devices::Timers& timers,
           const cpu::CpuModel& model, devices::CharSink& sink, devices::MachineControl& control,
           devices::MemoryWriter& memory);

  /// Puts a virtio device into the next PCI slot. Before any vCPU runs. False: all are taken.
  [[nodiscard]] bool add(std::unique_ptr<devices::virtio::Device> device,
                         machine::GuestMemory& memory);
  [[nodiscard]] bool has_virtio() const noexcept { return !virtio_.empty(); }
  /// Makes the devices' threads. Once, before the process gives up making any.
  void start();
  /// Nothing is in flight in the virtio devices when it returns, until resume(); no vCPU runs
  /// meanwhile.
  void quiesce();
  void resume();

  /// All devices' state, timers included, after a quiesce(); no vCPU runs meanwhile. load() checks
  /// what it is given; after an error the platform must not be used.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] devices::StateResult load(const nlohmann::json& state);

  /// The interrupt controllers and the timer as a PC's BIOS hands them to a kernel; boot/bios.hpp
  /// says why. Before any vCPU runs.
  void enter_bios_state();

  [[nodiscard]] devices::Timers& timers() noexcept { return timers_; }
  [[nodiscard]] devices::Serial8250& serial() noexcept { return serial_; }
  [[nodiscard]] devices::LocalApic& apic(VcpuId vcpu) noexcept { return *apics_[vcpu]; }
  [[nodiscard]] unsigned vcpus() const noexcept { return static_cast<unsigned>(apics_.size()); }
  [[nodiscard]] devices::ApicBus& apic_bus() noexcept { return apic_bus_; }
  [[nodiscard]] devices::AcpiPm& acpi() noexcept { return acpi_; }
  [[nodiscard]] const devices::Bus& ports() const noexcept { return ports_; }
  [[nodiscard]] const devices::Bus& mmio() const noexcept { return mmio_; }

  // What a vCPU's exits need. Any vCPU thread; each for its own vCPU.
  [[nodiscard]] std::uint64_t port_read(std::uint16_t port, unsigned size) {
    return ports_.read(port, size);
  }
  void port_write(std::uint16_t port, unsigned size, std::uint64_t value) {
    ports_.write(port, size, value);
  }
  [[nodiscard]] std::uint64_t mmio_read(VcpuId vcpu, PA pa, unsigned size);
  void mmio_write(VcpuId vcpu, PA pa, unsigned size, std::uint64_t value);
  /// Nothing (false): #GP(0).
  [[nodiscard]] std::optional<std::uint64_t> msr_read(VcpuId vcpu, std::uint32_t msr);
  [[nodiscard]] bool msr_write(VcpuId vcpu, std::uint32_t msr, std::uint64_t value);

 private:
  using Apics = std::vector<std::unique_ptr<devices::LocalApic>>;
  [[nodiscard]] static Apics make_apics(unsigned count, const cpu::CpuModel& model,
                                        devices::ApicBus& bus, devices::Clock& clock,
                                        devices::Timers& timers);
  void attach_all();
  [[nodiscard]] devices::StateResult load_virtio(const nlohmann::json& state);
  void attach_test_devices(const Config& config);

  devices::Timers& timers_;
  devices::Bus ports_{16};
  devices::Bus mmio_{64};
  devices::ApicBus apic_bus_;
  Apics apics_;  ///< by vCPU; APIC ids are the same numbers
  devices::Pic8259 pic_;
  devices::IoApic ioapic_;
  devices::IrqRouter irqs_;
  devices::Pit8254 pit_;
  devices::RtcCmos rtc_;
  devices::AcpiPm acpi_;
  devices::Serial8250 serial_;
  devices::PciHost pci_;
  devices::PciHostBridge host_bridge_;
  devices::SystemPorts system_ports_;
  devices::KvmClock kvmclock_;
  const std::size_t own_timers_;            ///< how many timers the devices above have made
  std::unique_ptr<devices::FwCfg> fw_cfg_;  ///< Config::test_devices
  std::map<unsigned, devices::pci::SharedLine> pci_lines_;  ///< by GSI
  /// From slot 1 on.
  std::vector<std::unique_ptr<devices::virtio::PciTransport>> virtio_;
  std::unique_ptr<devices::TestDevice> test_device_;  ///< Config::test_devices
};

}  // namespace strata::vmm
