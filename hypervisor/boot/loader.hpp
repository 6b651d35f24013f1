// Puts a guest into memory: kernel, initrd, command line, ACPI tables, boot structures.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "boot/error.hpp"
#include "boot/kernel_image.hpp"
#include "boot/memory_map.hpp"
#include "boot/memory_sink.hpp"
#include "cpu/vcpu_state.hpp"

namespace strata::boot {

/// What to start. The references must live until load() returns.
struct LoadRequest {
  const KernelImage& kernel;
  const MemoryMap& memory;
  std::span<const std::byte> initrd{};      ///< empty: none
  std::string_view cmdline{};               ///< no terminator; no NUL inside
  std::string_view kernel_name = "kernel";  ///< Multiboot: the command line's first word
  unsigned cpus = 1;                        ///< 1 to layout::kMaxCpus; APIC ids 0 to cpus - 1
  /// ACPI describes a PCI host bridge (configuration mechanism 1 at CF8h).
  bool pci = false;
  /// The machine has the two 8259 interrupt controllers.
  bool pic = true;
};

/// Writes the guest through `sink` and returns the boot processor's state. The memory must read as
/// zero beforehand (a fresh or discarded VM). Errors: a part does not fit the memory map, the
/// command line is too long, or the sink's own. Thread-safe as far as `sink` is.
[[nodiscard]] Result<cpu::VcpuState> load(const LoadRequest& request, MemorySink& sink);

}  // namespace strata::boot
