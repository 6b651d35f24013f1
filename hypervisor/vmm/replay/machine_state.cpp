#include "vmm/replay/machine_state.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>

#include "devices/device_state.hpp"

namespace strata::replay {

namespace {

using devices::StateReader;
using devices::StateWriter;

/// A segment register as a part of the vCPU's state.
struct SegmentPart {
  cpu::Segment& s;
  template <class Archive>
  void fields(Archive& a) {
    a("base", s.base);
    a("limit", s.limit);
    a("selector", s.selector);
    a("attributes", s.attributes, 0x1FFFF);
  }
};

struct TablePart {
  cpu::DescriptorTable& t;
  template <class Archive>
  void fields(Archive& a) {
    a("base", t.base);
    a("limit", t.limit);
  }
};

struct MsrPart {
  cpu::Msrs& m;
  template <class Archive>
  void fields(Archive& a) {
    a("star", m.star);
    a("lstar", m.lstar);
    a("cstar", m.cstar);
    a("sfmask", m.sfmask);
    a("kernel_gs_base", m.kernel_gs_base);
    a("sysenter_cs", m.sysenter_cs);
    a("sysenter_esp", m.sysenter_esp);
    a("sysenter_eip", m.sysenter_eip);
    a("pat", m.pat);
    a("tsc_aux", m.tsc_aux);
    a("tsc_adjust", m.tsc_adjust);
    a("misc_enable", m.misc_enable);
    a("debugctl", m.debugctl);
    a("spec_ctrl", m.spec_ctrl);
    a("mtrr_def_type", m.mtrr_def_type);
    a("mtrr_fixed", m.mtrr_fixed);
    a("mtrr_variable", m.mtrr_variable);
    a("mcg_status", m.mcg_status);
    a("mcg_ctl", m.mcg_ctl);
    auto banks = std::bit_cast<std::array<std::uint64_t, 16>>(m.mc_banks);
    a("mc_banks", banks);
    if constexpr (Archive::kReads) m.mc_banks = std::bit_cast<decltype(m.mc_banks)>(banks);
    a("k7_counters", m.k7_counters);
  }
};

struct VectorPart {
  cpu::VectorState& v;
  template <class Archive>
  void fields(Archive& a) {
    auto legacy = std::bit_cast<std::array<std::uint64_t, 64>>(v.legacy);
    // Of the FXSAVE image only the x87 part counts. MXCSR and XMM in it are leftovers of the
    // host's FXSAVE, and its FXRSTOR faults on a bad MXCSR.
    legacy[3] = 0x1F80;
    std::fill(legacy.begin() + 20, legacy.end(), 0);
    auto ymm = std::bit_cast<std::array<std::uint64_t, 64>>(v.ymm);
    a("legacy", legacy);
    a("ymm", ymm);
    a("mxcsr", v.mxcsr, 0xFFFF);  // the host faults on bits above (SDM 1 10.2.3)
    a("xcr0", v.xcr0);
    a.require("xcr0", (v.xcr0 & 1) != 0 && (v.xcr0 & 6) != 4 && (v.xcr0 & ~0x207ULL) == 0);
    if constexpr (Archive::kReads) {
      legacy[3] = 0x1F80;
      v.legacy = std::bit_cast<decltype(v.legacy)>(legacy);
      v.ymm = std::bit_cast<decltype(v.ymm)>(ymm);
    }
  }
};

template <class Archive>
void vcpu_fields(Archive& a, cpu::VcpuState& s) {
  constexpr std::array kNames{"es", "cs", "ss", "ds", "fs", "gs"};
  a("gpr", s.gpr);
  a("rip", s.rip);
  a("rflags", s.rflags);
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    SegmentPart part{s.segment[i]};
    a.part(kNames[i], part);
  }
  SegmentPart ldtr{s.ldtr};
  SegmentPart tr{s.tr};
  TablePart gdtr{s.gdtr};
  TablePart idtr{s.idtr};
  MsrPart msr{s.msr};
  VectorPart vector{s.vector};
  a.part("ldtr", ldtr);
  a.part("tr", tr);
  a.part("gdtr", gdtr);
  a.part("idtr", idtr);
  a("cr0", s.cr0);
  a("cr2", s.cr2);
  a("cr3", s.cr3);
  a("cr4", s.cr4);
  a("efer", s.efer);
  a("dr", s.dr);
  a("pkru", s.pkru);
  a.part("msr", msr);
  a.part("vector", vector);
  a("interrupt_shadow", s.interrupt_shadow);
  a("debug_shadow", s.debug_shadow);
  a("pending_debug", s.pending_debug);
  a("nmi_blocked", s.nmi_blocked);
  a("halted", s.halted);
}

constexpr std::size_t kPageRecord = sizeof(std::uint64_t) + kPageSize;
constexpr std::size_t kPagesPerChunk = 255;

/// Calls use(PA, bytes) for RAM in pieces of whole pages. False: a page cannot be read.
template <class Use>
bool each_piece(machine::GuestMemory& memory, std::span<const boot::Region> ram, Use&& use) {
  constexpr std::uint64_t kPiece = 1U << 20;
  for (const boot::Region& region : ram) {
    for (std::uint64_t at = 0; at < region.bytes; at += kPiece) {
      const std::uint64_t length = std::min(kPiece, region.bytes - at);
      auto pin = memory.pin(machine::kIdentitySpace, region.start + at, length, AccessKind::read);
      if (!pin) return false;
      PA pa = region.start + at;
      for (const std::span<std::byte> chunk : pin->chunks()) {
        use(pa, std::span<const std::byte>{chunk});
        pa = pa + chunk.size();
      }
    }
  }
  return true;
}

bool all_zero(std::span<const std::byte> page) {
  return page[0] == std::byte{0} && std::memcmp(page.data(), page.data() + 1, page.size() - 1) == 0;
}

}  // namespace

nlohmann::json save_vcpu(const cpu::VcpuState& state) {
  cpu::VcpuState copy = state;
  StateWriter writer;
  vcpu_fields(writer, copy);
  return std::move(writer).take();
}

Result<cpu::VcpuState> load_vcpu(const nlohmann::json& state) {
  cpu::VcpuState s;
  StateReader reader{state, "vcpu"};
  vcpu_fields(reader, s);
  if (const auto done = reader.result(); !done) return Unexpected{FileError{done.error().message}};
  return s;
}

std::optional<std::uint64_t> memory_checksum(machine::GuestMemory& memory,
                                             std::span<const boot::Region> ram) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> hash{XXH3_createState(),
                                                                      &XXH3_freeState};
  if (hash == nullptr || XXH3_64bits_reset(hash.get()) != XXH_OK) return std::nullopt;
  const bool read = each_piece(memory, ram, [&](PA, std::span<const std::byte> bytes) {
    (void)XXH3_64bits_update(hash.get(), bytes.data(), bytes.size());
  });
  if (!read) return std::nullopt;
  return XXH3_64bits_digest(hash.get());
}

Result<void> copy_memory(machine::GuestMemory& from, machine::GuestMemory& to,
                         std::span<const boot::Region> ram) {
  bool written = true;
  const bool read = each_piece(from, ram, [&](PA pa, std::span<const std::byte> bytes) {
    for (std::size_t at = 0; at < bytes.size(); at += kPageSize) {
      const auto page = bytes.subspan(at, kPageSize);
      if (!all_zero(page)) written &= to.write(machine::kIdentitySpace, pa + at, page).has_value();
    }
  });
  if (read && written) return {};
  return Unexpected{FileError{"the host has no memory for a copy of the guest's"}};
}

std::optional<PA> first_difference(machine::GuestMemory& a, machine::GuestMemory& b,
                                   std::span<const boot::Region> ram) {
  std::optional<PA> found;
  std::vector<std::byte> other;
  const bool read = each_piece(a, ram, [&](PA pa, std::span<const std::byte> bytes) {
    if (found) return;
    other.resize(bytes.size());
    if (!b.read(machine::kIdentitySpace, pa, other)) {
      found = pa;
    } else if (std::memcmp(bytes.data(), other.data(), bytes.size()) != 0) {
      const auto at = std::mismatch(bytes.begin(), bytes.end(), other.begin()).first;
      found = pa + static_cast<std::uint64_t>(at - bytes.begin());
    }
  });
  if (!read && !found) found = ram.front().start;
  return found;
}

Result<void> save_memory(machine::GuestMemory& memory, std::span<const boot::Region> ram,
                         ChunkWriter& file) {
  std::vector<std::byte> buffer;
  buffer.reserve(kPagesPerChunk * kPageRecord);
  const bool read = each_piece(memory, ram, [&](PA pa, std::span<const std::byte> bytes) {
    for (std::size_t at = 0; at + kPageSize <= bytes.size(); at += kPageSize) {
      const auto page = bytes.subspan(at, kPageSize);
      if (all_zero(page)) continue;
      const std::uint64_t ppn = page_of(pa + at).value();
      const auto number = std::bit_cast<std::array<std::byte, sizeof ppn>>(ppn);
      buffer.insert(buffer.end(), number.begin(), number.end());
      buffer.insert(buffer.end(), page.begin(), page.end());
      if (buffer.size() < kPagesPerChunk * kPageRecord) continue;
      file.write(ChunkType::memory, buffer);
      buffer.clear();
    }
  });
  if (!read) return Unexpected{FileError{"guest memory cannot be read"}};
  if (!buffer.empty()) file.write(ChunkType::memory, buffer);
  return {};
}

Result<void> load_memory(machine::GuestMemory& memory, std::span<const std::byte> chunk,
                         const std::string& path) {
  if (chunk.size() % kPageRecord != 0) {
    return Unexpected{FileError{path + ": holds half a page of memory"}};
  }
  for (; !chunk.empty(); chunk = chunk.subspan(kPageRecord)) {
    std::uint64_t ppn = 0;
    std::memcpy(&ppn, chunk.data(), sizeof ppn);
    const bool fits = ppn < 1ULL << 40;
    if (!fits || !memory.write(machine::kIdentitySpace, PA{ppn << kPageShift},
                               chunk.subspan(sizeof ppn, kPageSize))) {
      return Unexpected{
          FileError{fmt::format("{}: holds a page {:#x} that is not memory", path, ppn)}};
    }
  }
  return {};
}

}  // namespace strata::replay
