#include "guest_image.hpp"

#include <algorithm>
#include <array>

#include "guest_program.hpp"

namespace strata::fuzz {
namespace {

namespace cr0 = cpu::cr0;
namespace cr4 = cpu::cr4;
namespace efer = cpu::efer;
namespace rf = cpu::rflags;
using cpu::Segment;
using cpu::VcpuState;

/// A segment descriptor (SDM 3A 3.4.5). `flags`: AVL, L, D/B; G follows from the limit.
std::uint64_t descriptor(std::uint64_t base, std::uint32_t limit, unsigned access, unsigned flags) {
  if (limit > 0xFFFFF) {
    limit >>= 12;
    flags |= 8;
  }
  return (limit & 0xFFFF) | (base & 0xFFFFFF) << 16 | std::uint64_t{access & 0xFF} << 40 |
         std::uint64_t{limit >> 16 & 0xF} << 48 | std::uint64_t{flags & 0xF} << 52 |
         (base >> 24 & 0xFF) << 56;
}

std::uint64_t gate(std::uint64_t offset, std::uint16_t selector, unsigned access, unsigned extra) {
  return (offset & 0xFFFF) | std::uint64_t{selector} << 16 | std::uint64_t{extra & 0x1F} << 32 |
         std::uint64_t{access & 0xFF} << 40 | (offset >> 16 & 0xFFFF) << 48;
}

struct Kind {
  unsigned access = 0;
  unsigned flags = 0;
};
/// Type, S, DPL, P and L, D/B of the descriptors below kTaskState.
constexpr std::array<Kind, kTaskState> kKinds = {{{},
                                                  {0x9B, 2},
                                                  {0x93, 4},
                                                  {0x9B, 4},
                                                  {0x9B, 0},
                                                  {0x93, 0},
                                                  {0xFB, 4},
                                                  {0xF3, 4},
                                                  {0xFB, 2},
                                                  {0xFB, 0},
                                                  {0xF3, 0},
                                                  {0x9F, 4},
                                                  {0x97, 4},
                                                  {0xBB, 4},
                                                  {0xB3, 4},
                                                  {0xDB, 4},
                                                  {0xD3, 4}}};

std::uint64_t code_address(Random& rng) {
  return layout::kCode + rng.below(layout::kCodeEnd - layout::kCode);
}

}  // namespace

GuestPlan make_plan(Random& rng) {
  GuestPlan plan;
  plan.mode = static_cast<GuestMode>(rng.below(7));
  if (plan.ia32e()) {
    plan.paging = PagingMode::long4;
  } else if (plan.mode != GuestMode::real) {
    plan.paging = static_cast<PagingMode>(rng.below(3));
  }
  if (plan.mode == GuestMode::vm86) {
    plan.cpl = 3;
  } else if (plan.mode != GuestMode::real) {
    plan.cpl = rng.chance(45) ? 3 : !plan.ia32e() && rng.chance(10) ? 1 : 0;
  }
  return plan;
}

std::uint64_t interesting_address(Random& rng, bool wide) {
  using namespace layout;
  constexpr std::array<std::uint64_t, 6> kEdges = {0x1'0000'0000,         0x8000'0000,
                                                   0x7FFF'FFFF'F000,      0x8000'0000'0000,
                                                   0xFFFF'8000'0000'0000, 0x10000};
  std::uint64_t at = 0;
  switch (rng.below(12)) {
    case 0:
    case 1:
      at = code_address(rng);
      break;
    case 2:
      at = rng.below(kTablesEnd);
      break;
    case 3:
      at = kMmio + rng.below(kMmioPages * kPageSize);
      break;
    case 4:
      at = kRom + rng.below(kRomPages * kPageSize);
      break;
    case 5:
      at = rng.below(kRamEnd);
      break;
    case 6:
      at = kPageSize * rng.below(kRamEnd / kPageSize) - rng.below(16);
      break;
    case 7:
      at = rng.pick(kEdges) + rng.below(32) - 16;
      break;
    case 8:
      at = 0xFFFF'FFFF'FFFF'FFFF - rng.below(64);
      break;
    default:
      at = kData + rng.below(kImageEnd - kData);
  }
  return wide ? at : static_cast<std::uint32_t>(at);
}

std::uint16_t interesting_selector(Random& rng) {
  if (rng.chance(8)) return static_cast<std::uint16_t>(rng());
  const auto index = static_cast<unsigned>(rng.below(layout::kDescriptors + 2));
  const unsigned table = rng.chance(10) ? 4 : 0;
  return static_cast<std::uint16_t>(index << 3 | table | (rng.chance(40) ? rng.below(4) : 0));
}

std::uint64_t interesting_entry(Random& rng) {
  std::uint64_t e = interesting_address(rng, true) & 0xF'FFFF'F000;
  if (rng.chance(50)) e = kPageSize * rng.below(layout::kRamEnd / kPageSize);
  e |= rng.chance(85) ? 7 : rng.below(8);
  if (rng.chance(30)) e |= rng() & 0xFF8;
  if (rng.chance(10)) e |= 1ULL << 63;
  if (rng.chance(10)) e |= rng() & 0x7FF0'0000'0000'0000;
  if (rng.chance(3)) e = rng();
  return e;
}

GuestImage::GuestImage(Random& rng, const GuestPlan& plan, const cpu::CpuModel& model,
                       const Catalogues& catalogues)
    : plan_{plan}, model_{model}, bytes_(layout::kImageEnd) {
  for (std::uint64_t at = layout::kData; at < layout::kImageEnd; at += 8) {
    put(at, rng.chance(40) ? interesting_address(rng, true) : rng.edge());
  }
  build_descriptors(rng);
  build_vectors(rng);
  build_gates(rng);
  build_tasks(rng);
  build_page_tables(rng);
  if (plan_.self_modifying) map_alias();
  // Handlers may be code of another width than the start.
  const auto main = make_program(rng, plan, catalogues, plan.bits(), 1536);
  const auto other = make_program(rng, plan, catalogues,
                                  plan.ia32e()     ? 64
                                  : rng.chance(50) ? 32
                                                   : 16,
                                  512);
  std::uint64_t at = layout::kCode;
  while (at < layout::kCodeEnd) {
    const auto& piece = rng.chance(75) ? main : other;
    const std::uint64_t length = std::min<std::uint64_t>(piece.size(), layout::kCodeEnd - at);
    std::memcpy(bytes_.data() + at, piece.data(), length);
    at += length;
  }
  for (std::uint64_t n = rng.below(300); n > 0; --n) put(code_address(rng), rng.byte());
  if (rng.chance(60))
    flip_bits(rng, 0, layout::kTss + 0x1000, static_cast<unsigned>(rng.below(60)));
  if (rng.chance(40)) {
    flip_bits(rng, layout::kRoot, layout::kTablesEnd, static_cast<unsigned>(rng.below(200)));
  }
}

void GuestImage::flip_bits(Random& rng, std::uint64_t from, std::uint64_t to, unsigned count) {
  for (; count > 0; --count) {
    bytes_[from + rng.below(to - from)] ^= static_cast<std::byte>(1U << rng.below(8));
  }
}

// ---- descriptor tables --------------------------------------------------------------------------

void GuestImage::build_descriptors(Random& rng) {
  using namespace layout;
  const auto set = [this](unsigned number, std::uint64_t value) { put(kGdt + 8 * number, value); };
  for (unsigned i = 1; i < kTaskState; ++i) {
    const bool odd = rng.chance(12);
    const std::uint64_t base = odd ? interesting_address(rng, false) : 0;
    const auto limit = static_cast<std::uint32_t>(odd ? rng.edge() : 0xFFFFFFFF);
    set(i, descriptor(base, limit, kKinds[i].access, kKinds[i].flags));
  }
  const bool busy = rng.chance(50);
  set(kTaskState, descriptor(kTss, 0x7FF, busy ? 0x8B : 0x89, 0));
  set(kLocalTable, descriptor(kLdt, 0xFF, 0x82, 0));
  set(kOtherTask, descriptor(kTss2, 0x3FF, 0x89, 0));
  const auto target = static_cast<std::uint16_t>(8 * (plan_.ia32e() ? kCode64 : kCode32));
  set(kCallGate, gate(code_address(rng), target, 0xEC, static_cast<unsigned>(rng.below(32))));
  set(kCallGate16, gate(code_address(rng), 8 * kCode16, 0xE4, static_cast<unsigned>(rng.below(8))));
  set(kTaskGate, gate(0, 8 * (rng.chance(70) ? kOtherTask : kTask16), 0xE5, 0));
  set(kTask16, descriptor(kTss16, 0x2B, 0x81, 0));
  for (unsigned i = kJunk; i < kDescriptors; ++i) set(i, rng());
  for (unsigned i = 0; i < kDescriptors; ++i) {
    const auto from = static_cast<unsigned>(rng.below(kDescriptors));
    std::memcpy(bytes_.data() + kLdt + 8 * i, bytes_.data() + kGdt + 8 * from, 8);
  }
}

void GuestImage::build_vectors(Random& rng) {
  for (std::uint64_t v = 0; v < 256; ++v) {
    put(layout::kVectors + 4 * v, static_cast<std::uint16_t>(rng.below(0x7F00)));
    put(layout::kVectors + 4 * v + 2, static_cast<std::uint16_t>(rng.chance(95) ? 0x1000 : rng()));
  }
}

void GuestImage::build_gates(Random& rng) {
  const std::uint16_t code = plan_.ia32e() ? kCode64 : rng.chance(80) ? kCode32 : kCode16;
  for (std::uint64_t v = 0; v < 256; ++v) {
    unsigned access = 0x8E | (rng.chance(30) ? 0x60 : 0) | (rng.chance(20) ? 1 : 0);
    std::uint16_t selector = static_cast<std::uint16_t>(8 * code);
    if (rng.chance(3)) selector = interesting_selector(rng);
    if (rng.chance(5)) access &= ~8U;  // 16-bit gates
    if (rng.chance(4)) {
      access = (access & 0xF0) | 5;  // task gate
      selector = 8 * kOtherTask;
    }
    const unsigned extra = rng.chance(25) ? static_cast<unsigned>(rng.below(8)) : 0;
    const std::uint64_t low = gate(code_address(rng), selector, access, extra);
    if (plan_.ia32e()) {
      put(layout::kIdt + 16 * v, low);
      put(layout::kIdt + 16 * v + 8, std::uint64_t{rng.chance(2) ? rng() : 0});
    } else {
      put(layout::kIdt + 8 * v, low);
    }
  }
}

void GuestImage::build_tasks(Random& rng) {
  using namespace layout;
  const auto stack = [&rng] { return kStacks + 16 * rng.below((kStacksEnd - kStacks) / 16); };
  if (plan_.ia32e()) {
    for (unsigned i = 0; i < 12; ++i) {
      put(kTss + 4 + 8 * i, rng.chance(95) ? stack() : interesting_address(rng, true));
    }
  } else {
    constexpr std::array<std::uint16_t, 3> kStackSelectors = {8 * kDataFlat, 8 * kDataLevel1 | 1,
                                                              8 * kDataLevel2 | 2};
    for (unsigned level = 0; level < 3; ++level) {
      put(kTss + 4 + 8 * level, static_cast<std::uint32_t>(stack()));
      put(kTss + 8 + 8 * level, kStackSelectors[level]);
    }
  }
  put(kTss + 0x66, static_cast<std::uint16_t>(rng.chance(90) ? 0x88 : rng()));
  const std::uint8_t ports = rng.chance(50) ? 0 : rng.chance(50) ? 0xFF : rng.byte();
  std::memset(bytes_.data() + kTss + 0x88, ports, 0x700);
  // The task to switch to (SDM 3A figure 8-2).
  put(kTss2 + 0x1C, static_cast<std::uint32_t>(kRoot | rng.below(2) << 3));
  put(kTss2 + 0x20, static_cast<std::uint32_t>(code_address(rng)));
  put(kTss2 + 0x24, static_cast<std::uint32_t>(2 | (rng() & 0x3FFF5)));
  for (unsigned i = 0; i < 8; ++i) {
    put(kTss2 + 0x28 + 4 * i, static_cast<std::uint32_t>(interesting_address(rng, false)));
  }
  put(kTss2 + 0x38, static_cast<std::uint32_t>(stack()));
  constexpr std::array<std::uint16_t, 6> kSegments = {8 * kDataFlat, 8 * kCode32,   8 * kDataFlat,
                                                      8 * kDataFlat, 8 * kDataFlat, 0};
  for (unsigned i = 0; i < 6; ++i) put(kTss2 + 0x48 + 4 * i, std::uint32_t{kSegments[i]});
  put(kTss2 + 0x60, std::uint32_t{rng.chance(50) ? 8U * kLocalTable : 0U});
  for (unsigned at = 0; at < 0x2C; at += 2) put(kTss16 + at, interesting_selector(rng));
  put(kTss16 + 0x0E, static_cast<std::uint16_t>(code_address(rng)));
}

// ---- page tables
// ---------------------------------------------------------------------------------

std::uint64_t GuestImage::leaf(Random& rng, std::uint64_t pa) const {
  if (rng.chance(6)) return interesting_entry(rng);
  // Ring 3 needs user pages; A and D, WP and G vary.
  std::uint64_t e = pa | 3 | (rng.chance(92) ? 4 : 0) | (rng.chance(50) ? 0x60 : 0);
  if (rng.chance(8)) e &= ~2ULL;
  if (rng.chance(15)) e |= 0x100;
  return e;
}

void GuestImage::build_page_tables(Random& rng) {
  if (plan_.paging == PagingMode::off) {
    // Still there for a guest that turns paging on.
    if (rng.chance(50)) build_i386_tables(rng);
    return;
  }
  if (plan_.paging == PagingMode::i386) {
    build_i386_tables(rng);
  } else {
    build_wide_tables(rng);
  }
}

void GuestImage::build_i386_tables(Random& rng) {
  using namespace layout;
  const std::uint64_t tables[2] = {kRoot + 0x1000, kRoot + 0x2000};
  for (std::uint64_t i = 0; i < 1024; ++i) {
    put(tables[0] + 4 * i, static_cast<std::uint32_t>(leaf(rng, i << 12)));
    put(tables[1] + 4 * i,
        static_cast<std::uint32_t>(rng.chance(50) ? interesting_entry(rng) : leaf(rng, i << 12)));
    std::uint64_t directory = rng.chance(70) ? 0 : interesting_entry(rng);
    if (rng.chance(50)) directory = (i % 4) << 22 | 0x87;
    put(kRoot + 4 * i, static_cast<std::uint32_t>(directory));
  }
  put(kRoot, static_cast<std::uint32_t>(tables[0] | 7));
  put(kRoot + 4, static_cast<std::uint32_t>(rng.chance(80) ? tables[1] | 7 : 0x87));
  put(kRoot + 4 * 1023, static_cast<std::uint32_t>(kRoot | 7));  // the tables map themselves
}

void GuestImage::build_wide_tables(Random& rng) {
  using namespace layout;
  const bool four = plan_.paging == PagingMode::long4;
  const std::uint64_t pointers = four ? kRoot + 0x1000 : kRoot;
  const std::uint64_t directory = kRoot + 0x2000, low = kRoot + 0x3000, high = kRoot + 0x4000;
  for (std::uint64_t i = 0; i < 512; ++i) {
    put(low + 8 * i, leaf(rng, i << 12));
    put(high + 8 * i, rng.chance(50) ? interesting_entry(rng) : leaf(rng, (512 + i) << 12));
    std::uint64_t large = rng.chance(70) ? 0 : interesting_entry(rng);
    if (rng.chance(50)) large = (i % 4) << 21 | 0x87;
    put(directory + 8 * i, large);
    if (four) {
      put(kRoot + 8 * i, rng.chance(90) ? 0 : interesting_entry(rng));
      put(pointers + 8 * i, rng.chance(85) ? 0 : interesting_entry(rng) | (rng.below(2) << 7));
    }
  }
  put(directory, low | 7);
  put(directory + 8, rng.chance(80) ? high | 7 : 0x20'0087);
  if (four) {
    put(kRoot, pointers | 7);
    put(kRoot + 8 * 511, pointers | 7);
    put(kRoot + 8 * 510, kRoot | 7);
    put(pointers, directory | 7);
    put(pointers + 8, directory | 7);
  } else {
    put(pointers, directory | 1);
    for (unsigned i = 1; i < 4; ++i) put(pointers + 8 * i, rng.chance(60) ? directory | 1 : 0);
  }
}

/// Only below kRamEnd's first 2 MiB, which each kind of tables maps by its first page table.
void GuestImage::map_alias() {
  using namespace layout;
  if (plan_.paging == PagingMode::off) return;
  const bool narrow = plan_.paging == PagingMode::i386;
  for (std::uint64_t at = 0; at < kCodeEnd - kCode; at += kPageSize) {
    const std::uint64_t index = (kAlias + at) >> kPageShift;
    const std::uint64_t entry = (kCode + at) | 0x67;
    if (narrow) {
      put(kRoot + 0x1000 + 4 * index, static_cast<std::uint32_t>(entry));
    } else {
      put(kRoot + 0x3000 + 8 * index, entry);
    }
  }
}

// ---- registers
// -----------------------------------------------------------------------------------

Segment GuestImage::segment(Random& rng, unsigned number, unsigned rpl) const {
  Segment s;
  const Kind& kind = kKinds[number];
  s.selector = static_cast<std::uint16_t>(8 * number | rpl);
  s.limit = 0xFFFFFFFF;
  s.attributes = kind.access | kind.flags << 12 | 1U << 15;
  if (rng.chance(8) && !plan_.ia32e()) {
    s.limit = static_cast<std::uint32_t>(rng.edge()) & 0xFFFFF;
    s.attributes &= ~(1U << 15);
  }
  return s;
}

void GuestImage::set_segments(Random& rng, VcpuState& s) const {
  using namespace layout;
  const bool user = plan_.cpl == 3;
  s.gdtr = {kGdt, static_cast<std::uint16_t>(rng.chance(95) ? 8 * kDescriptors - 1 : rng())};
  s.idtr = {kIdt, static_cast<std::uint16_t>(rng.chance(95) ? 0xFFF : rng())};
  s.tr = {kTss, 0x7FF, 8 * kTaskState, 0x8B};
  s.ldtr = {kLdt, 0xFF, 8 * kLocalTable, 0x82};
  if (plan_.mode == GuestMode::real || plan_.mode == GuestMode::vm86) {
    const std::uint32_t attributes = plan_.mode == GuestMode::vm86 ? 0xF3 : 0x93;
    for (Segment& g : s.segment) {
      const auto selector = static_cast<std::uint16_t>(rng.chance(80) ? 0x1800 : rng());
      g = {std::uint64_t{selector} * 16, 0xFFFF, selector, attributes};
    }
    s.segment[cpu::CS] = {0x10000, 0xFFFF, 0x1000,
                          plan_.mode == GuestMode::vm86 ? attributes : 0x9B};
    s.segment[cpu::SS] = {0xC000, 0xFFFF, 0xC00, attributes};
    if (plan_.mode == GuestMode::real) s.idtr = {kVectors, 0x3FF};
    return;
  }
  const bool wide = plan_.bits() == 32;
  unsigned code = user ? kUserCode16 : kCode16, data = user ? kUserData : kDataFlat;
  if (plan_.mode == GuestMode::long64) code = user ? kUserCode64 : kCode64;
  if (wide) code = user ? kUserCode32 : kCode32;
  if (plan_.cpl == 1) code = kCodeLevel1;
  if (plan_.cpl == 1) data = kDataLevel1;
  for (Segment& g : s.segment) g = segment(rng, data, plan_.cpl);
  s.segment[cpu::CS] = segment(rng, code, plan_.cpl);
  s.segment[cpu::CS].limit = 0xFFFFFFFF;
  s.segment[cpu::CS].attributes |= 1U << 15;
  if (rng.chance(50)) s.segment[cpu::FS].base = interesting_address(rng, false);
  if (rng.chance(50)) s.segment[cpu::GS].base = interesting_address(rng, false);
  if (rng.chance(10)) s.segment[cpu::ES] = Segment{};
}

void GuestImage::set_controls(Random& rng, VcpuState& s) const {
  s.cr0 = cr0::ET | (rng.chance(70) ? cr0::NE : 0) | (rng.chance(60) ? cr0::WP : 0) |
          (rng.chance(30) ? cr0::AM : 0) | (rng.chance(30) ? cr0::MP : 0) |
          (rng.chance(4) ? cr0::TS : 0) | (rng.chance(3) ? cr0::EM : 0);
  if (plan_.mode != GuestMode::real) s.cr0 |= cr0::PE;
  if (plan_.paging != PagingMode::off) s.cr0 |= cr0::PG;
  s.cr2 = rng.edge();
  s.cr3 = layout::kRoot | (rng() & 0x18);
  s.cr4 = rng() & (cr4::VME | cr4::PVI | cr4::TSD | cr4::DE | cr4::PSE | cr4::MCE | cr4::PGE |
                   cr4::PCE | cr4::OSXMMEXCPT | cr4::UMIP | cr4::FSGSBASE);
  if (rng.chance(85)) s.cr4 |= cr4::OSFXSR;
  if (rng.chance(80)) s.cr4 |= cr4::OSXSAVE;
  if (rng.chance(8)) s.cr4 |= cr4::SMEP;
  if (rng.chance(8)) s.cr4 |= cr4::SMAP;
  if (rng.chance(20)) s.cr4 |= cr4::PKE;
  if (plan_.paging == PagingMode::pae || plan_.ia32e()) s.cr4 |= cr4::PAE;
  if (plan_.ia32e() && rng.chance(30)) s.cr4 |= cr4::PCIDE;
  s.cr4 &= model_.cr4_mask() & ~cr4::LA57;
  s.efer = (rng.chance(70) ? efer::SCE : 0) | (rng.chance(60) ? efer::NXE : 0);
  if (plan_.ia32e()) s.efer |= efer::LME | efer::LMA;
  if (plan_.paging == PagingMode::off && rng.chance(10)) s.efer |= efer::LME;
  if (rng.chance(30)) s.pkru = static_cast<std::uint32_t>(rng() & rng() & rng());
  s.rflags = rf::FIXED | (rng() & (rf::ARITHMETIC | rf::IF | rf::IOPL | rf::ID)) |
             (rng.chance(2) ? rf::TF : 0) | (rng.chance(10) ? rf::DF : 0) |
             (rng.chance(5) ? rf::NT : 0) | (rng.chance(15) ? rf::AC : 0) |
             (rng.chance(5) ? rf::RF : 0) | (rng.chance(10) ? rf::VIF : 0) |
             (rng.chance(5) ? rf::VIP : 0);
  if (plan_.mode == GuestMode::vm86) s.rflags |= rf::VM;
  if (rng.chance(15)) {
    s.dr[7] |= rng() & 0xFFFF23FF;
    for (unsigned i = 0; i < 4; ++i) s.dr[i] = interesting_address(rng, plan_.ia32e());
  }
}

void GuestImage::set_registers(Random& rng, VcpuState& s) const {
  const bool wide = plan_.mode == GuestMode::long64;
  for (std::uint64_t& g : s.gpr) {
    g = rng.chance(60) ? interesting_address(rng, wide) : rng.edge();
  }
  if (rng.chance(60)) s.gpr[cpu::RCX] = rng.below(200);
  if (plan_.mode == GuestMode::real || plan_.mode == GuestMode::vm86) {
    s.rip = rng.below(0x1000);
    s.gpr[cpu::RSP] = rng.chance(90) ? 0x3F00 : rng.below(0x10000);
  } else {
    s.rip = layout::kCode + rng.below(0x1000);
    if (rng.chance(92)) s.gpr[cpu::RSP] = layout::kStacksEnd - 0x100 - rng.below(64);
  }
  if (!plan_.ia32e()) {
    for (unsigned i = 0; i < 16; ++i) s.gpr[i] = i < 8 ? static_cast<std::uint32_t>(s.gpr[i]) : 0;
  }
}

void GuestImage::set_units(Random& rng, VcpuState& s) const {
  constexpr std::array<std::uint64_t, 3> kEnabled = {1, 3, 7};
  cpu::reset_x87(s.vector);
  // Ten bytes of every 16 are a register; the others are 0 in all that a processor saves.
  for (std::size_t i = 32; i < 160; ++i) {
    const auto byte = static_cast<std::byte>(rng());
    if (i % 16 < 10) s.vector.legacy[i] = byte;
  }
  for (auto& y : s.vector.ymm) {
    for (auto& w : y) w = rng.chance(30) ? 0 : rng();
  }
  s.vector.mxcsr = static_cast<std::uint32_t>(rng.chance(60) ? 0x1F80 : rng() & 0xFFFF);
  s.vector.xcr0 = rng.chance(70) ? 7 : rng.pick(kEnabled);
  s.vector.xcr0 &= model_.xcr0_mask();
  const auto code = [&rng] { return code_address(rng); };
  s.msr.star = (rng.chance(80) ? 8ULL * kUserCode32 | 3 : rng() & 0xFFFF) << 48 |
               (rng.chance(80) ? 8ULL * kCode64 : rng() & 0xFFFF) << 32;
  s.msr.lstar = code();
  s.msr.cstar = code();
  s.msr.sfmask = rng() & 0xFFFFFFFF;
  s.msr.kernel_gs_base = rng.below(layout::kRamEnd);
  s.msr.sysenter_cs = interesting_selector(rng) & 0xFFFC;
  s.msr.sysenter_esp = layout::kStacksEnd - 256;
  s.msr.sysenter_eip = code();
}

VcpuState GuestImage::make_state(Random& rng) const {
  VcpuState s;
  set_segments(rng, s);
  set_controls(rng, s);
  set_registers(rng, s);
  set_units(rng, s);
  return s;
}

}  // namespace strata::fuzz
