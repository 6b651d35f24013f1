#include "boot/loader.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "boot/acpi.hpp"
#include "boot/bytes.hpp"
#include "boot/linux_boot.hpp"
#include "boot/machine_layout.hpp"
#include "boot/multiboot.hpp"
#include "boot/pvh.hpp"

namespace strata::boot {
namespace {

std::string mib(std::uint64_t bytes) {
  return std::to_string((bytes + layout::kMiB - 1) / layout::kMiB) + " MiB";
}

Result<void> load_kernel(const KernelImage& kernel, const MemoryMap& memory, MemorySink& sink) {
  if (kernel.memory_end() > memory.low_end().value()) {
    return fail("the kernel needs memory up to " + mib(kernel.memory_end()) + ", the VM has " +
                mib(memory.low_end().value()) + " below 4 GiB");
  }
  for (const LoadSegment& s : kernel.segments()) {
    if (!memory.is_ram(PA{s.physical}, s.memory_bytes)) {
      return fail("a kernel segment at " + std::to_string(s.physical) + " lies outside RAM");
    }
    if (auto ok = sink.write(PA{s.physical}, s.data); !ok) return ok;
    const std::uint64_t rest = s.memory_bytes - s.data.size();
    if (rest == 0) continue;
    if (auto ok = sink.zero(PA{s.physical + s.data.size()}, rest); !ok) return ok;
  }
  return {};
}

/// The highest place that the kernel accepts: what it allocates first, it allocates low or high of
/// its own, and neither end of the gap between must be in the way.
Result<PA> place_initrd(const LoadRequest& request) {
  const std::uint64_t bytes = request.initrd.size();
  const std::uint64_t limit =
      std::min(request.memory.low_end().value(), request.kernel.initrd_limit() + 1);
  const std::uint64_t floor = request.kernel.memory_end();
  if (bytes > limit || ((limit - bytes) & ~kPageMask) < floor) {
    return fail("the initrd of " + mib(bytes) + " does not fit between the kernel's end at " +
                mib(floor) + " and " + mib(limit) + "; give the VM more memory");
  }
  return PA{(limit - bytes) & ~kPageMask};
}

Result<void> write_cmdline(const LoadRequest& request, MemorySink& sink) {
  const std::uint64_t longest =
      std::min<std::uint64_t>(request.kernel.max_cmdline(), layout::kMaxCmdlineBytes - 1);
  // Multiboot's first word is the image's name, as a shell passes argv[0] (Multiboot 0.6.96, 3.3).
  std::string line{request.cmdline};
  if (request.kernel.entry_kind() == EntryKind::multiboot) {
    line.insert(0, std::string{request.kernel_name} + (line.empty() ? "" : " "));
  }
  if (line.size() > longest) {
    return fail("the command line has " + std::to_string(line.size()) +
                " characters; this kernel takes " + std::to_string(longest));
  }
  if (line.find('\0') != std::string::npos) {
    return fail("the command line has a NUL character inside");
  }
  std::vector<std::byte> text(line.size() + 1);
  std::ranges::copy(as_bytes(line), text.begin());
  return sink.write(PA{layout::kCmdlineBase}, text);
}

Result<cpu::VcpuState> enter(const KernelImage& kernel, const BootInfo& info, MemorySink& sink) {
  const auto entry32 = static_cast<std::uint32_t>(kernel.entry());  // parse() checked the range
  if (kernel.entry_kind() == EntryKind::pvh) return prepare_pvh(info, entry32, sink);
  if (kernel.entry_kind() == EntryKind::multiboot) return prepare_multiboot(info, entry32, sink);
  if (auto ok = write_boot_params(info, kernel.setup_header(), sink); !ok) {
    return fail(ok.error().message);
  }
  return kernel.entry_kind() == EntryKind::linux64 ? linux64_state(kernel.entry(), sink)
                                                   : linux32_state(entry32, sink);
}

}  // namespace

Result<cpu::VcpuState> load(const LoadRequest& request, MemorySink& sink) {
  if (request.cpus == 0 || request.cpus > layout::kMaxCpus) {
    return fail(std::to_string(request.cpus) + " vCPUs; 1 to " + std::to_string(layout::kMaxCpus) +
                " are possible");
  }
  const auto forward = [](const Result<void>& r) { return fail(r.error().message); };
  if (auto ok = load_kernel(request.kernel, request.memory, sink); !ok) return forward(ok);
  if (auto ok = write_cmdline(request, sink); !ok) return forward(ok);
  const AcpiTables acpi = build_acpi({.cpus = request.cpus, .pci = request.pci, .pic = request.pic},
                                     PA{layout::kBiosBase});
  if (acpi.bytes.size() > layout::kBiosRomBase - layout::kBiosBase) {
    return fail("the ACPI tables do not fit below 1 MiB");
  }
  if (auto ok = sink.write(acpi.base, acpi.bytes); !ok) return forward(ok);
  BootInfo info{.memory = request.memory, .rsdp = acpi.rsdp(), .cmdline = PA{layout::kCmdlineBase}};
  if (!request.initrd.empty()) {
    const auto place = place_initrd(request);
    if (!place) return fail(place.error().message);
    info.initrd = *place;
    info.initrd_bytes = request.initrd.size();
    if (auto ok = sink.write(info.initrd, request.initrd); !ok) return forward(ok);
  }
  return enter(request.kernel, info, sink);
}

}  // namespace strata::boot
