#include "boot/pvh.hpp"

#include <vector>

#include "boot/bytes.hpp"
#include "boot/machine_layout.hpp"

namespace strata::boot {

Result<cpu::VcpuState> prepare_pvh(const BootInfo& info, std::uint32_t entry, MemorySink& sink) {
  using namespace start_info;
  const auto& e820 = info.memory.e820();
  constexpr std::size_t kModuleAt = 64;
  constexpr std::size_t kMapAt = kModuleAt + kModuleBytes;
  std::vector<std::byte> block(kMapAt + e820.size() * kMemoryMapEntryBytes);
  const std::span<std::byte> out{block};
  const bool has_initrd = info.initrd_bytes != 0;
  put(out, kMagic, kMagicValue);
  put(out, kVersion, 1U);
  put(out, kModuleCount, has_initrd ? 1U : 0U);
  put(out, kModules, has_initrd ? layout::kStartInfoBase + kModuleAt : std::uint64_t{0});
  put(out, kCmdline, info.cmdline.value());
  put(out, kRsdp, info.rsdp.value());
  put(out, kMemoryMap, layout::kStartInfoBase + kMapAt);
  put(out, kMemoryMapCount, static_cast<std::uint32_t>(e820.size()));
  put(out, kModuleAt, info.initrd.value());
  put(out, kModuleAt + 8, info.initrd_bytes);
  for (std::size_t i = 0; i < e820.size(); ++i) {
    const std::size_t at = kMapAt + i * kMemoryMapEntryBytes;
    put(out, at, e820[i].start.value());
    put(out, at + 8, e820[i].bytes);
    put(out, at + 16, static_cast<std::uint32_t>(e820[i].kind));
  }
  if (auto ok = sink.write(PA{layout::kStartInfoBase}, block); !ok) {
    return fail(ok.error().message);
  }
  cpu::VcpuState s = cpu::flat_protected_mode(entry);
  s.gpr[cpu::RBX] = layout::kStartInfoBase;
  return s;
}

}  // namespace strata::boot
