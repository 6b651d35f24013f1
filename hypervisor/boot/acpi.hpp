// ACPI tables for the machine of machine_layout.hpp (ACPI 6.4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "mmu/address.hpp"

namespace strata::boot {

struct AcpiOptions {
  unsigned cpus = 1;
  bool pci = false;  ///< a PCI host bridge with the windows of machine_layout.hpp
  bool pic = true;   ///< two 8259s at 20h and A0h
};

/// The tables as one block to be written at `base`: RSDP first, then XSDT, and what
/// they lead to: FADT, FACS, DSDT, MADT.
struct AcpiTables {
  PA base{};
  std::vector<std::byte> bytes;
  [[nodiscard]] PA rsdp() const noexcept { return base; }
};

/// Builds the tables for placement at `base`, which must be 64-byte aligned and below 4 GiB.
/// Thread-safe.
[[nodiscard]] AcpiTables build_acpi(const AcpiOptions& options, PA base);

}  // namespace strata::boot
