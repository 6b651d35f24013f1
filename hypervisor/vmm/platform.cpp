#include "vmm/platform.hpp"

#include <cstdlib>

#include "boot/machine_layout.hpp"

namespace strata::vmm {

namespace layout = boot::layout;

Platform::Platform(const Config& config, devices::GuestClock& clock, const cpu::CpuModel& model,
                   devices::CharSink& sink, devices::MachineControl& control,
                   devices::MemoryWriter& memory)
    : timers_{clock},
      apic_{{.id = 0,
             .bootstrap = true,
             .physical_bits = model.maxphyaddr(),
             .x2apic = model.has(cpu::Feature::x2apic),
             .tsc_deadline = model.has(cpu::Feature::tsc_deadline)},
            apic_bus_,
            clock,
            timers_},
      pic_{apic_.lint0()},
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
      kvmclock_{clock, memory, config.vcpus} {
  apic_.connect_pic(pic_);
  apic_.enter_virtual_wire_mode();
  attach_all();
}

void Platform::attach_all() {
  const auto must = [](const Expected<void, devices::BusError>& done) {
    if (!done) std::abort();  // the layout is ours: an overlap is our bug
  };
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

std::uint64_t Platform::mmio_read(PA pa, unsigned size) {
  return apic_.claims(pa) ? apic_.mmio_read(pa, size) : mmio_.read(pa.value(), size);
}

void Platform::mmio_write(PA pa, unsigned size, std::uint64_t value) {
  if (apic_.claims(pa)) {
    apic_.mmio_write(pa, size, value);
  } else {
    mmio_.write(pa.value(), size, value);
  }
}

std::optional<std::uint64_t> Platform::msr_read(std::uint32_t msr) {
  if (devices::LocalApic::owns_msr(msr)) return apic_.read_msr(msr);
  return kvmclock_.read_msr(0, msr);
}

bool Platform::msr_write(std::uint32_t msr, std::uint64_t value) {
  if (devices::LocalApic::owns_msr(msr)) return apic_.write_msr(msr, value);
  return kvmclock_.write_msr(0, msr, value);
}

}  // namespace strata::vmm
