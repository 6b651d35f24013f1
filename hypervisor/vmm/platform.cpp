#include "vmm/platform.hpp"

#include <cstdlib>

#include "boot/bios.hpp"
#include "boot/machine_layout.hpp"
#include "devices/device_state.hpp"

namespace strata::vmm {

namespace layout = boot::layout;

namespace {

/// The layout is ours: an overlap is our bug.
void must(const Expected<void, devices::BusError>& done) {
  if (!done) std::abort();
}

}  // namespace

Platform::Platform(const Config& config, devices::Clock& clock, devices::Timers& timers,
                   const cpu::CpuModel& model, devices::CharSink& sink,
                   devices::MachineControl& control, devices::MemoryWriter& memory)
    : timers_{timers},
      apics_{make_apics(config.vcpus, model, apic_bus_, clock, timers_)},
      pic_{apics_[0]->lint0()},
      ioapic_{apic_bus_, layout::kIoApicId},
      irqs_{pic_, ioapic_},
      pit_{clock, timers_, irqs_.isa(layout::kPitIrq)},
      rtc_{clock, timers_, irqs_.isa(layout::kRtcIrq)},
      acpi_{{.base = layout::kPm1aEventPort,
             .s5_sleep_type = static_cast<std::uint8_t>(layout::kSleepTypeS5)},
            clock,
            timers_,
            irqs_.isa(layout::kSciIrq),
            control},
      serial_{sink, irqs_.isa(layout::kCom1Irq)},
      pci_{control},
      system_ports_{{.debug_exit_port = config.debug_exit_port}, control},
      kvmclock_{clock, memory, config.vcpus},
      own_timers_{timers_.deadlines().size()} {
  // The PIC's INTR goes to the bootstrap processor's LINT0 alone: firmware leaves the others' LINT0
  // masked, and one interrupt must not be acknowledged twice.
  apics_[0]->connect_pic(pic_);
  apics_[0]->enter_virtual_wire_mode();
  attach_all();
  if (config.test_devices) attach_test_devices(config);
}

void Platform::attach_test_devices(const Config& config) {
  fw_cfg_ = std::make_unique<devices::FwCfg>(devices::FwCfg::Config{
      .cpus = static_cast<std::uint16_t>(config.vcpus), .ram_bytes = config.ram_bytes});
  test_device_ = std::make_unique<devices::TestDevice>(irqs_, config.flush_page);
  must(fw_cfg_->attach(ports_));
  must(test_device_->attach(ports_, mmio_));
}

Platform::Apics Platform::make_apics(unsigned count, const cpu::CpuModel& model,
                                     devices::ApicBus& bus, devices::Clock& clock,
                                     devices::Timers& timers) {
  Apics apics;
  for (unsigned id = 0; id < count; ++id) {
    const devices::LocalApic::Config config{.id = id,
                                            .bootstrap = id == 0,
                                            .physical_bits = model.maxphyaddr(),
                                            .x2apic = model.has(cpu::Feature::x2apic),
                                            .tsc_deadline = model.has(cpu::Feature::tsc_deadline)};
    apics.push_back(std::make_unique<devices::LocalApic>(config, bus, clock, timers));
  }
  return apics;
}

void Platform::attach_all() {
  must(pic_.attach(ports_));
  must(pit_.attach(ports_));
  must(rtc_.attach(ports_));
  must(acpi_.attach(ports_));
  must(serial_.attach(ports_, layout::kCom1Port));
  must(pci_.attach(ports_));
  if (!pci_.add(0, host_bridge_)) std::abort();
  must(system_ports_.attach(ports_));
  must(ioapic_.attach(mmio_, layout::kIoApicBase));
}

/// As the BIOS does it, through the ports. 8259s (data sheet, "initialization command words"):
/// edge-triggered, cascaded on input 2, 8086 mode; the timer and the cascade unmasked, but no input
/// whose handler would only end the interrupt. Counter 0 of the 8254: square wave of the longest
/// period, 65536 counts, which makes the 18.2 Hz of the PC's tick.
void Platform::enter_bios_state() {
  constexpr std::uint16_t kMaster = 0x20, kSlave = 0xA0;
  constexpr std::uint8_t kIcw1 = 0x11, kIcw4 = 0x01, kSlaveOnInput2 = 1U << 2, kSlaveId = 2;
  constexpr std::uint8_t kSquareWave = 0x36;  // counter 0, both bytes, mode 3
  const auto out = [this](unsigned port, std::uint8_t value) {
    port_write(static_cast<std::uint16_t>(port), 1, value);
  };
  out(kMaster, kIcw1);
  out(kMaster + 1, boot::kBiosMasterVector);
  out(kMaster + 1, kSlaveOnInput2);
  out(kMaster + 1, kIcw4);
  out(kSlave, kIcw1);
  out(kSlave + 1, boot::kBiosSlaveVector);
  out(kSlave + 1, kSlaveId);
  out(kSlave + 1, kIcw4);
  out(kMaster + 1, static_cast<std::uint8_t>(~(1U << layout::kPitIrq | kSlaveOnInput2)));
  out(kSlave + 1, 0xFF);
  out(layout::kPitPort + 3, kSquareWave);
  out(layout::kPitPort, 0);
  out(layout::kPitPort, 0);
}

bool Platform::add(std::unique_ptr<devices::virtio::Device> device, machine::GuestMemory& memory) {
  // What firmware would do: each slot has a piece of the window that ACPI tells of.
  constexpr std::uint64_t kSlotBytes = 0x10000;
  const auto slot = static_cast<unsigned>(virtio_.size()) + 1;
  const unsigned gsi = layout::pci_gsi(slot, 0);
  devices::IrqLine& intx = pci_lines_.try_emplace(gsi, irqs_.gsi(gsi)).first->second.connect();
  using devices::virtio::PciTransport;
  const PciTransport::Wiring wiring{
      .memory = memory, .mmio = mmio_, .apics = apic_bus_, .intx = intx};
  auto function = std::make_unique<PciTransport>(std::move(device), wiring);
  if (!pci_.add(slot, *function)) return false;
  const std::uint64_t base = layout::kMmio32Base + slot * kSlotBytes;
  if (function->assign(base) > base + kSlotBytes) std::abort();
  virtio_.push_back(std::move(function));
  return true;
}

void Platform::start() {
  for (const auto& function : virtio_) function->device().start();
}

void Platform::quiesce() {
  for (const auto& function : virtio_) function->quiesce();
}

void Platform::resume() {
  for (const auto& function : virtio_) function->resume();
}

devices::StateResult Platform::load_virtio(const nlohmann::json& state) {
  if (!state.is_array() || state.size() != virtio_.size()) {
    return Unexpected{devices::StateError{
        "it was saved with other PCI devices; give the same --disk, --console and --no-rng"}};
  }
  for (const auto& function : virtio_) function->unmap();
  for (std::size_t i = 0; i < virtio_.size(); ++i) {
    if (auto done = virtio_[i]->load(state[i]); !done) return done;
  }
  return {};
}

nlohmann::json Platform::save() {
  quiesce();
  nlohmann::json state = nlohmann::json::object();
  state["apics"] = nlohmann::json::array();
  for (const auto& apic : apics_) state["apics"].push_back(apic->save());
  state["apic_bus"] = apic_bus_.save();
  state["pic"] = pic_.save();
  state["ioapic"] = ioapic_.save();
  state["pit"] = pit_.save();
  state["rtc"] = rtc_.save();
  state["acpi"] = acpi_.save();
  state["serial"] = serial_.save();
  state["pci"] = pci_.save();
  state["ports"] = system_ports_.save();
  state["kvmclock"] = kvmclock_.save();
  state["virtio"] = nlohmann::json::array();
  for (const auto& function : virtio_) state["virtio"].push_back(function->save());
  auto deadlines = timers_.deadlines();
  deadlines.resize(own_timers_);  // others are not the machine's
  state["timers"] = deadlines;
  return state;
}

devices::StateResult Platform::load(const nlohmann::json& state) {
  const auto wrong = [](const char* what) {
    return devices::StateResult{Unexpected{devices::StateError{what}}};
  };
  for (const char* part : {"apics", "apic_bus", "pic", "ioapic", "pit", "rtc", "acpi", "serial",
                           "pci", "ports", "kvmclock", "virtio", "timers"}) {
    if (!state.is_object() || !state.contains(part)) return wrong("a device's state is missing");
  }
  const nlohmann::json& apics = state["apics"];
  if (!apics.is_array() || apics.size() != apics_.size()) return wrong("not one APIC per vCPU");
  std::vector<devices::Nanoseconds> deadlines(own_timers_, 0);
  devices::StateReader reader{state, "devices"};
  reader("timers", deadlines);
  devices::StateResult done = reader.result();
  for (std::size_t i = 0; done && i < apics_.size(); ++i) done = apics_[i]->load(apics[i]);
  if (done) done = apic_bus_.load(state["apic_bus"]);
  if (done) done = pic_.load(state["pic"]);
  if (done) done = ioapic_.load(state["ioapic"]);
  if (done) done = pit_.load(state["pit"]);
  if (done) done = rtc_.load(state["rtc"]);
  if (done) done = acpi_.load(state["acpi"]);
  if (done) done = serial_.load(state["serial"]);
  if (done) done = pci_.load(state["pci"]);
  if (done) done = system_ports_.load(state["ports"]);
  if (done) done = kvmclock_.load(state["kvmclock"]);
  if (done) done = load_virtio(state["virtio"]);
  if (!done) return done;
  for (std::size_t id = 0; id < deadlines.size(); ++id) {
    timers_.arm(static_cast<devices::Timers::Id>(id), deadlines[id]);
  }
  return {};
}

std::uint64_t Platform::mmio_read(VcpuId vcpu, PA pa, unsigned size) {
  devices::LocalApic& own = apic(vcpu);
  return own.claims(pa) ? own.mmio_read(pa, size) : mmio_.read(pa.value(), size);
}

void Platform::mmio_write(VcpuId vcpu, PA pa, unsigned size, std::uint64_t value) {
  devices::LocalApic& own = apic(vcpu);
  if (own.claims(pa)) {
    own.mmio_write(pa, size, value);
  } else {
    mmio_.write(pa.value(), size, value);
  }
}

std::optional<std::uint64_t> Platform::msr_read(VcpuId vcpu, std::uint32_t msr) {
  if (devices::LocalApic::owns_msr(msr)) return apic(vcpu).read_msr(msr);
  return kvmclock_.read_msr(vcpu, msr);
}

bool Platform::msr_write(VcpuId vcpu, std::uint32_t msr, std::uint64_t value) {
  if (devices::LocalApic::owns_msr(msr)) return apic(vcpu).write_msr(msr, value);
  return kvmclock_.write_msr(vcpu, msr, value);
}

}  // namespace strata::vmm
