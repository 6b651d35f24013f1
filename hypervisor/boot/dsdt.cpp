#include "boot/dsdt.hpp"

#include "boot/machine_layout.hpp"

namespace strata::boot {
namespace {

using namespace aml;

Bytes isa_device(std::string_view path, std::string_view id, std::uint16_t port, std::uint8_t ports,
                 unsigned irq_number) {
  return device(path, join({name("_HID", eisa_id(id)), name("_UID", integer(1)),
                            name("_CRS", resources({io_ports(port, ports), irq(irq_number)}))}));
}

/// _PRT: where the INTx pins of slots 1 to 31 arrive (ACPI 6.4, 6.2.13). Slot 0 is the bridge.
Bytes interrupt_routing() {
  std::vector<Bytes> routes;
  constexpr std::uint64_t kAnyFunction = 0xFFFF;
  for (unsigned slot = 1; slot < 32; ++slot) {
    for (unsigned pin = 0; pin < 4; ++pin) {
      const Bytes route[] = {integer(std::uint64_t{slot} << 16 | kAnyFunction), integer(pin),
                             integer(0), integer(layout::pci_gsi(slot, pin))};
      routes.push_back(package(route));
    }
  }
  return package(routes);
}

Bytes pci_root() {
  constexpr auto kMmioEnd =
      static_cast<std::uint32_t>(layout::kMmio32Base + layout::kMmio32Bytes - 1);
  return device(
      "PCI0",
      join({name("_HID", eisa_id("PNP0A03")), name("_UID", integer(0)), name("_BBN", integer(0)),
            name("_CRS", resources({bus_numbers(0, 0xFF), io_ports(layout::kPciConfigPort, 8),
                                    port_window(layout::kPciPortsFirst, 0xFFFF),
                                    memory_window(static_cast<std::uint32_t>(layout::kMmio32Base),
                                                  kMmioEnd)})),
            name("_PRT", interrupt_routing())}));
}

}  // namespace

aml::Bytes dsdt_body(const AcpiOptions& options) {
  Bytes devices =
      join({isa_device("COM1", "PNP0501", layout::kCom1Port, layout::kCom1Ports, layout::kCom1Irq),
            isa_device("RTC", "PNP0B00", layout::kRtcPort, layout::kRtcPorts, layout::kRtcIrq)});
  if (options.pci) devices = join({devices, pci_root()});
  // \_S5: SLP_TYP for PM1a, PM1b, two reserved (7.4.2.6).
  const Bytes s5[] = {integer(layout::kSleepTypeS5), integer(layout::kSleepTypeS5), integer(0),
                      integer(0)};
  return join({name("\\_S5", package(s5)), scope("\\_SB", devices)});
}

}  // namespace strata::boot
