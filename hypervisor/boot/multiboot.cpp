#include "boot/multiboot.hpp"

#include <vector>

#include "boot/bios.hpp"
#include "boot/bytes.hpp"
#include "boot/machine_layout.hpp"

namespace strata::boot {

Result<cpu::VcpuState> prepare_multiboot(const BootInfo& info, std::uint32_t entry,
                                         MemorySink& sink) {
  using namespace multiboot_info;
  const auto& e820 = info.memory.e820();
  constexpr std::size_t kModuleAt = 128;
  constexpr std::size_t kMapAt = kModuleAt + kModuleBytes;
  std::vector<std::byte> block(kMapAt + e820.size() * kMapEntryBytes);
  const std::span<std::byte> out{block};
  const auto at_base = [](std::size_t offset) {
    return static_cast<std::uint32_t>(layout::kStartInfoBase + offset);
  };
  const bool has_initrd = info.initrd_bytes != 0;
  put(out, kFlags, kHasMemory | kHasCmdline | kHasMap | (has_initrd ? kHasModules : 0));
  put(out, kMemoryLower, static_cast<std::uint32_t>(layout::kEbdaBase / 1024));
  put(out, kMemoryUpper,
      static_cast<std::uint32_t>((info.memory.low_end().value() - layout::kMiB) / 1024));
  put(out, kCmdline, static_cast<std::uint32_t>(info.cmdline.value()));
  put(out, kModuleCount, has_initrd ? 1U : 0U);
  put(out, kModules, at_base(kModuleAt));
  put(out, kMapBytes, static_cast<std::uint32_t>(e820.size() * kMapEntryBytes));
  put(out, kMap, at_base(kMapAt));
  put(out, kModuleAt, static_cast<std::uint32_t>(info.initrd.value()));
  put(out, kModuleAt + 4, static_cast<std::uint32_t>(info.initrd.value() + info.initrd_bytes));
  for (std::size_t i = 0; i < e820.size(); ++i) {
    const std::size_t at = kMapAt + i * kMapEntryBytes;
    put(out, at, static_cast<std::uint32_t>(kMapEntryBytes - 4));  // the size does not count itself
    put(out, at + 4, e820[i].start.value());
    put(out, at + 12, e820[i].bytes);
    put(out, at + 20, static_cast<std::uint32_t>(e820[i].kind));
  }
  if (auto ok = sink.write(PA{layout::kStartInfoBase}, block); !ok) {
    return fail(ok.error().message);
  }
  if (auto ok = write_bios(sink); !ok) return fail(ok.error().message);
  cpu::VcpuState s = cpu::flat_protected_mode(entry);
  s.gpr[cpu::RAX] = kBootMagic;
  s.gpr[cpu::RBX] = layout::kStartInfoBase;
  return s;
}

}  // namespace strata::boot
