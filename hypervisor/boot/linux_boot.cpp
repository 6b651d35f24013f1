#include "boot/linux_boot.hpp"

#include <algorithm>
#include <array>
#include <vector>

#include "boot/bytes.hpp"
#include "boot/machine_layout.hpp"

namespace strata::boot {
namespace {

// __BOOT_CS and __BOOT_DS, which the protocol fixes, and what they select.
constexpr std::uint16_t kBootCs = 0x10, kBootDs = 0x18, kBootTss = 0x20;
constexpr std::uint32_t kCode64 = 0xA09B, kCode32 = 0xC09B, kData = 0xC093, kBusyTss = 0x008B;

/// A flat descriptor (SDM 3A 3.4.5) with the attributes of cpu::Segment.
constexpr std::uint64_t descriptor(std::uint32_t attributes, std::uint32_t limit_field) {
  return std::uint64_t{limit_field & 0xFFFF} | std::uint64_t{limit_field >> 16 & 0xF} << 48 |
         std::uint64_t{attributes & 0xFF} << 40 | std::uint64_t{attributes >> 12 & 0xF} << 52;
}

Result<cpu::DescriptorTable> write_gdt(std::uint32_t code, MemorySink& sink) {
  const std::array<std::uint64_t, 6> gdt{
      0, 0, descriptor(code, 0xFFFFF), descriptor(kData, 0xFFFFF), descriptor(kBusyTss, 0x67), 0};
  if (auto ok = sink.write(PA{layout::kGdtBase}, std::as_bytes(std::span{gdt})); !ok) {
    return fail(ok.error().message);
  }
  return cpu::DescriptorTable{layout::kGdtBase, sizeof gdt - 1};
}

/// PML4, PDPT and four page directories of 2 MiB pages: 0 to 4 GiB onto itself (SDM 3A 4.5).
Result<void> write_page_tables(MemorySink& sink) {
  constexpr std::uint64_t kPresentWritable = 3, kLarge = 1U << 7;
  constexpr std::size_t kEntries = 512, kDirectories = 4;
  constexpr std::uint64_t kPdpt = layout::kPageTablesBase + kPageSize;
  constexpr std::uint64_t kFirstDirectory = kPdpt + kPageSize;
  std::vector<std::uint64_t> tables((2 + kDirectories) * kEntries);
  tables[0] = kPdpt | kPresentWritable;
  for (std::size_t i = 0; i < kDirectories; ++i) {
    tables[kEntries + i] = (kFirstDirectory + i * kPageSize) | kPresentWritable;
  }
  for (std::size_t i = 0; i < kDirectories * kEntries; ++i) {
    tables[2 * kEntries + i] = i * kLargePageSize | kLarge | kPresentWritable;
  }
  return sink.write(PA{layout::kPageTablesBase}, std::as_bytes(std::span{tables}));
}

/// Flat segments with the protocol's selectors; RSI points to the zero page.
cpu::VcpuState linux_state(std::uint64_t entry, std::uint32_t code, cpu::DescriptorTable gdt) {
  cpu::VcpuState s = cpu::flat_protected_mode(static_cast<std::uint32_t>(entry));
  s.rip = entry;
  s.gpr[cpu::RSI] = layout::kBootParamsBase;
  const cpu::Segment data{0, 0xFFFFFFFF, kBootDs, kData};
  s.segment.fill(data);
  s.segment[cpu::CS] = cpu::Segment{0, 0xFFFFFFFF, kBootCs, code};
  s.tr = cpu::Segment{0, 0x67, kBootTss, kBusyTss};
  s.gdtr = gdt;
  return s;
}

void put_e820(const MemoryMap& memory, std::span<std::byte> page) {
  const std::size_t count = std::min(memory.e820().size(), zero_page::kE820Max);
  put(page, zero_page::kE820Count, static_cast<std::uint8_t>(count));
  for (std::size_t i = 0; i < count; ++i) {
    const Region& region = memory.e820()[i];
    const std::size_t at = zero_page::kE820Table + i * zero_page::kE820EntryBytes;
    put(page, at, region.start.value());
    put(page, at + 8, region.bytes);
    put(page, at + 16, static_cast<std::uint32_t>(region.kind));
  }
}

}  // namespace

Result<void> write_boot_params(const BootInfo& info, std::span<const std::byte> setup_header,
                               MemorySink& sink) {
  using namespace zero_page;
  std::vector<std::byte> page(kBytes);
  const std::span<std::byte> out{page};
  const std::size_t header_bytes = std::min<std::size_t>(setup_header.size(), 0x290 - kSetupHeader);
  std::copy_n(setup_header.begin(), header_bytes, out.begin() + kSetupHeader);
  put(out, kAcpiRsdp, info.rsdp.value());
  constexpr std::uint16_t kNormalVideo = 0xFFFF;
  put(out, kVideoMode, kNormalVideo);
  constexpr std::uint8_t kUnregisteredLoader = 0xFF;
  put(out, kLoaderType, kUnregisteredLoader);
  put(out, kCmdlinePointer, static_cast<std::uint32_t>(info.cmdline.value()));
  // The loader places both below 4 GiB, so the extensions at C0h, C4h and C8h stay zero.
  put(out, kInitrdAddress, static_cast<std::uint32_t>(info.initrd.value()));
  put(out, kInitrdBytes, static_cast<std::uint32_t>(info.initrd_bytes));
  put_e820(info.memory, out);
  return sink.write(PA{layout::kBootParamsBase}, page);
}

Result<cpu::VcpuState> linux64_state(std::uint64_t entry, MemorySink& sink) {
  auto gdt = write_gdt(kCode64, sink);
  if (!gdt) return fail(gdt.error().message);
  if (auto ok = write_page_tables(sink); !ok) return fail(ok.error().message);
  cpu::VcpuState s = linux_state(entry, kCode64, *gdt);
  s.cr0 |= cpu::cr0::PG;
  s.cr3 = layout::kPageTablesBase;
  s.cr4 = cpu::cr4::PAE;
  s.efer = cpu::efer::LME | cpu::efer::LMA;
  return s;
}

Result<cpu::VcpuState> linux32_state(std::uint32_t entry, MemorySink& sink) {
  auto gdt = write_gdt(kCode32, sink);
  if (!gdt) return fail(gdt.error().message);
  return linux_state(entry, kCode32, *gdt);
}

}  // namespace strata::boot
