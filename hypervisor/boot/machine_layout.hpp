// Where the machine's fixed devices are: told to the guest by ACPI, given to the devices by the
// VMM.
#pragma once

#include <cstdint>

namespace strata::boot::layout {

// Legacy ports.
inline constexpr std::uint16_t kCom1Port = 0x3F8;
inline constexpr std::uint16_t kCom1Ports = 8;
inline constexpr unsigned kCom1Irq = 4;
inline constexpr std::uint16_t kRtcPort = 0x70;
inline constexpr std::uint16_t kRtcPorts = 2;
inline constexpr unsigned kRtcIrq = 8;
inline constexpr std::uint16_t kPitPort = 0x40;
inline constexpr unsigned kPitIrq = 0;
/// ACPI's override: the PIT's interrupt arrives at the IOAPIC's input 2.
inline constexpr unsigned kPitGsi = 2;

inline constexpr std::uint16_t kDebugExitPort = 0xF4;  ///< only with test devices

// ACPI fixed hardware (ACPI 6.4, 4.8).
inline constexpr std::uint16_t kPm1aEventPort = 0x600;  ///< 4 bytes: status, enable
inline constexpr std::uint16_t kPm1EventBytes = 4;
inline constexpr std::uint16_t kPm1aControlPort = 0x604;  ///< 2 bytes
inline constexpr std::uint16_t kPm1ControlBytes = 2;
inline constexpr std::uint16_t kPmTimerPort = 0x608;  ///< 4 bytes, 3.579545 MHz
inline constexpr std::uint16_t kPmTimerBytes = 4;
inline constexpr std::uint16_t kGpe0Port = 0x620;  ///< 2 bytes status, 2 bytes enable
inline constexpr std::uint16_t kGpe0Bytes = 4;
inline constexpr unsigned kSciIrq = 9;
/// PM1_CNT: bits 12:10 SLP_TYP, bit 13 SLP_EN, bit 0 SCI_EN (ACPI 6.4, table 4.17).
inline constexpr std::uint16_t kPm1SciEnable = 1U << 0;
inline constexpr unsigned kSleepTypeShift = 10;
inline constexpr std::uint16_t kSleepEnable = 1U << 13;
/// What \_S5 says, and what a write of (kSleepTypeS5 << kSleepTypeShift | kSleepEnable) means.
inline constexpr std::uint16_t kSleepTypeS5 = 5;
inline constexpr std::uint16_t kResetPort = 0xCF9;
inline constexpr std::uint8_t kResetValue = 0x06;

// Interrupt controllers.
inline constexpr std::uint64_t kIoApicBase = 0xFEC00000;
inline constexpr std::uint64_t kIoApicBytes = 0x1000;
inline constexpr unsigned kIoApicInputs = 24;
inline constexpr std::uint64_t kLocalApicBase = 0xFEE00000;
inline constexpr std::uint64_t kLocalApicBytes = 0x1000;
inline constexpr std::uint8_t kIoApicId = 0;

// PCI: configuration mechanism 1, and the ports its devices may be given.
inline constexpr std::uint16_t kPciConfigPort = 0xCF8;
inline constexpr std::uint16_t kPciPortsFirst = 0x1000;
/// IOAPIC input of INTA to INTD (`pin` 0 to 3) of the device in `slot`: 16 to 23, level-triggered.
[[nodiscard]] constexpr unsigned pci_gsi(unsigned slot, unsigned pin) noexcept {
  return 16 + (slot + pin) % 8;
}

// Guest-physical address space.
inline constexpr std::uint64_t kMiB = 1ULL << 20;
inline constexpr std::uint64_t kGiB = 1ULL << 30;
inline constexpr std::uint64_t kEbdaBase = 0x9FC00;  ///< end of usable low memory
inline constexpr std::uint64_t kLowRamEnd = 0xA0000;
inline constexpr std::uint64_t kBiosBase = 0xE0000;  ///< ACPI tables live from here to 1 MiB
inline constexpr std::uint64_t kBiosEnd = 0x100000;
/// Interrupt handlers in real mode, where the IBM PC's ROM has that of the timer: F000:FEA5.
inline constexpr std::uint64_t kBiosRomBase = 0xFFEA5;
inline constexpr std::uint64_t kMmioHoleBase = 0xC0000000;  ///< RAM below 4 GiB ends here
inline constexpr std::uint64_t kMmioHoleEnd = 0x100000000;
/// Windows for device memory that ACPI offers the guest: below and above 4 GiB.
inline constexpr std::uint64_t kMmio32Base = 0xD0000000;
inline constexpr std::uint64_t kMmio32Bytes = 0x20000000;  ///< up to 0xF0000000
inline constexpr std::uint64_t kMinRam = 16 * kMiB;
inline constexpr std::uint64_t kMaxRam = 512 * kGiB;  ///< below half of 40 address bits
inline constexpr unsigned kMaxCpus = 64;

// What the loader builds in low memory. Everything lies in RAM below kEbdaBase.
inline constexpr std::uint64_t kVectorTableBase = 0;  ///< real mode's; with kBiosData* see bios.hpp
inline constexpr std::uint64_t kBiosDataBase = 0x400;
inline constexpr std::uint64_t kBiosDataBytes = 0x100;
inline constexpr std::uint64_t kGdtBase = 0x500;
inline constexpr std::uint64_t kStartInfoBase = 0x6000;   ///< hvm_start_info, modules, memory map
inline constexpr std::uint64_t kBootParamsBase = 0x7000;  ///< Linux's zero page
inline constexpr std::uint64_t kPageTablesBase = 0x9000;  ///< PML4, PDPT, four PDs
inline constexpr std::uint64_t kCmdlineBase = 0x20000;
inline constexpr std::uint64_t kMaxCmdlineBytes = 0x10000;  ///< with its terminator
inline constexpr std::uint64_t kKernelBase = 0x100000;      ///< kernels load at or above this
/// Where a Multiboot image may load below 1 MiB: between its information block and command line.
inline constexpr std::uint64_t kLowImageBase = 0x8000;
inline constexpr std::uint64_t kLowImageEnd = kCmdlineBase;

}  // namespace strata::boot::layout
