// Control registers, EFER and segments changed under the code that runs.
#include "cases.hpp"

namespace strata::hostile {
namespace {

using namespace layout;

constexpr std::uint64_t kElsewhere = 0x4000'0000;

void wrmsr_efer(Code& c, std::uint64_t value) {
  c.load(cpu::RCX, 0xC000'0080);
  c.load(cpu::RAX, value & 0xFFFFFFFF);
  c.load(cpu::RDX, value >> 32);
  c.put({0x0F, 0x30});
}
/// CR0, 3 or 4, through RAX.
void write_control(Code& c, unsigned which, std::uint64_t value) {
  c.load(cpu::RAX, value);
  c.put({0x0F, 0x22, 0xC0U | which << 3});
}

/// Every bit of CR0, CR4 and EFER, turned over one by one in the middle of a block.
void every_control_bit(Guest& g) {
  Code c{64};
  const auto flip = [&](unsigned which, std::uint64_t good, std::uint64_t skipped) {
    for (unsigned bit = 0; bit < 64; ++bit) {
      if ((skipped >> bit & 1) != 0) continue;
      c.recover([&] {
        write_control(c, which, good ^ 1ULL << bit);
        c.memory({0xFF}, 0, kData);  // inc dword [kData]
        c.put({0x0F, 0x10, 0xC1});   // movups xmm0, xmm1
      });
      write_control(c, which, good);
    }
  };
  flip(0, g.state.cr0, 0);
  // With SMEP or SMAP not even the handlers are left: a case of its own.
  flip(4, g.state.cr4, cpu::cr4::SMEP | cpu::cr4::SMAP);
  for (unsigned bit = 0; bit < 64; ++bit) {
    c.recover([&] { wrmsr_efer(c, g.state.efer ^ 1ULL << bit); });
    c.recover([&] { wrmsr_efer(c, g.state.efer); });
  }
  c.put({0xF4});
  g.put(c);
}
void smep_takes_the_ground_away(Guest& g) {
  Code c{64};
  write_control(c, 4, g.state.cr4 | cpu::cr4::SMEP);
  c.put({0xF4});
  g.put(c);
}
void above_4_gib(Guest& g) {
  g.map(0x1'0001'0000, kCode);
  Code c{64};
  c.recover([&] { write_control(c, 0, g.state.cr0 & ~cpu::cr0::PG); });
  c.recover([&] { write_control(c, 0, 0); });
  c.put({0xF4});
  g.put(c);
  g.state.rip = 0x1'0001'0000;
}

void into_compatibility_mode(Guest& g) {
  g.state.segment[cpu::CS] = {0, 0xFFFFFFFF, kCode32, 0xC09B};
}
/// 32-bit code that is not where it seems to be turns paging off.
void paging_off_elsewhere(Guest& g) {
  into_compatibility_mode(g);
  g.map(kElsewhere, kCode);
  Code c{32};
  write_control(c, 0, g.state.cr0 & ~cpu::cr0::PG);
  c.put({0xF4});
  g.put(c);
  g.state.rip = kElsewhere;
}
void paging_off_into_mmio(Guest& g) {
  paging_off_elsewhere(g);
  g.map(kMmio, kCode);
  g.state.rip = kMmio;
}
/// Compatibility mode, protected mode, real mode with segments of 4 GiB, and up again; every
/// instruction is in the same block.
void wheel_of_modes(Guest& g) {
  into_compatibility_mode(g);
  Code c{32};
  c.load(cpu::RSI, 100);
  const std::uint64_t loop = c.here();
  const std::uint64_t up = g.state.cr0, pe = cpu::cr0::PE;
  const auto touch = [&] { c.memory({0xFF}, 0, kData); };
  write_control(c, 0, up & ~cpu::cr0::PG);
  touch();
  wrmsr_efer(c, 0);
  write_control(c, 4, 0);
  touch();
  write_control(c, 0, up & ~(cpu::cr0::PG | pe));
  touch();
  write_control(c, 0, up & ~cpu::cr0::PG);
  write_control(c, 4, g.state.cr4);
  wrmsr_efer(c, cpu::efer::LME | cpu::efer::NXE);
  touch();
  write_control(c, 0, up);
  touch();
  c.put({0x4E});  // dec esi
  c.branch({0x0F, 0x85}, loop);
  c.put({0xF4});
  g.put(c);
}
/// Stores to a read-only page with WP on and off, and loads through an entry that is reserved
/// unless EFER.NXE is set.
void rights_come_and_go(Guest& g) {
  g.map(kElsewhere, kData, 0x65);
  g.map(kElsewhere + 4096, kData, Guest::kAll | 1ULL << 63);
  Code c{64};
  c.load(cpu::RSI, 200);
  const std::uint64_t loop = c.here();
  for (const bool on : {true, false}) {
    write_control(c, 0, on ? g.state.cr0 : g.state.cr0 & ~cpu::cr0::WP);
    c.recover([&] { c.memory({0xFF}, 0, kElsewhere); });
    wrmsr_efer(c, on ? g.state.efer : g.state.efer & ~cpu::efer::NXE);
    c.recover([&] { c.memory({0xFF}, 0, kElsewhere + 4096); });
  }
  wrmsr_efer(c, g.state.efer);
  c.put({0xFF, 0xCE});
  c.branch({0x0F, 0x85}, loop);
  c.put({0xF4});
  g.put(c);
}
/// i386 paging on and off, with the data page somewhere else while it is on.
void paging_blinks(Guest& g) {
  g.poke<std::uint32_t>(kTables, 0xE7);
  g.poke<std::uint32_t>(kTables + 4, 0x4000E7);
  g.poke<std::uint32_t>(kTables + 256 * 4, 0xE7);
  g.state.cr3 = kTables;
  g.state.cr4 |= cpu::cr4::PSE;
  Code c{32};
  c.load(cpu::RSI, 500);
  const std::uint64_t loop = c.here();
  write_control(c, 0, g.state.cr0 | cpu::cr0::PG);
  c.memory({0xFF}, 0, kElsewhere + kData);
  write_control(c, 0, g.state.cr0);
  c.memory({0xFF}, 0, kData + 4);
  c.put({0x4E});
  c.branch({0x0F, 0x85}, loop);
  c.put({0xF4});
  g.put(c);
}

// ---- segments of 32-bit code --------------------------------------------------------------------

void load_selector(Code& c, unsigned name, unsigned selector) {
  c.load(cpu::RAX, selector);
  c.put({0x8E, 0xC0U | name << 3});
}
/// DS, ES and SS change from flat to anything and back between two accesses.
void flat_and_not(Guest& g) {
  constexpr unsigned kFirst = kFirstFree;
  const std::array<std::uint64_t, 6> kinds{
      segment(0, 0xFFFFF, 0x13),                // flat
      segment(0, kData + 7, 0x13, 0, true, 4),  // ends within the access
      segment(0x1000, 0xFFFFF, 0x13),           // elsewhere
      segment(0, kData >> 12, 0x17),            // expand-down
      segment(0xFFFF'F000, 0xFFFFF, 0x13),      // wraps
      segment(0, 0xFFFFF, 0x11)};               // read-only
  for (unsigned i = 0; i < kinds.size(); ++i) g.descriptor(kFirst + i * 8, kinds.at(i));
  Code c{32};
  c.load(cpu::RSI, 100);
  const std::uint64_t loop = c.here();
  for (unsigned i = 0; i < kinds.size(); ++i) {
    for (const unsigned name : {unsigned{cpu::DS}, unsigned{cpu::ES}, unsigned{cpu::SS}}) {
      // What is pushed for an exception has to have a place.
      if (name == cpu::SS && i % 2 == 1) continue;
      c.recover([&] {
        load_selector(c, name, kFirst + i * 8);
        c.memory({0xFF}, 0, kData + 4);
        c.memory({0x26, 0xFF}, 0, kData + 6);
        c.put({0x54, 0x5B, 0x89, 0x1C, 0x24});  // push esp; pop ebx; mov [esp], ebx
        c.memory({0x01}, cpu::RBX, kHash);
      });
      load_selector(c, name, kFlatData);
    }
  }
  c.put({0x4E});
  c.branch({0x0F, 0x85}, loop);
  c.put({0xF4});
  g.put(c);
}
/// Far jumps into code segments that end a byte further each time, and into one with a base.
void code_ends_in_the_middle(Guest& g) {
  constexpr std::uint64_t kTarget = kCode + 0x8000;
  g.put(kTarget, {0x05, 1, 0, 0, 0, 0x83, 0xC3, 1, 0xEB, 0xF6});  // add eax, 1; add ebx, 1; loop
  g.put(kTarget + 8, {0xCC});
  Code c{32};
  c.load(cpu::RSI, 20);
  const std::uint64_t loop = c.here();
  for (unsigned i = 0; i < 16; ++i) {
    const unsigned selector = kFirstFree + i * 8;
    const auto limit = static_cast<std::uint32_t>(kTarget + i - 3);
    g.descriptor(selector,
                 i < 14 ? segment(0, limit, 0x1B, 0, true, 4) : segment(0x1000, 0xFFFFF, 0x1B));
    c.recover([&] {
      c.put({0xEA});
      c.number(i < 14 ? kTarget : kTarget - 0x1000, 4);
      c.number(selector, 2);
    });
  }
  c.put({0x4E});
  c.branch({0x0F, 0x85}, loop);
  c.put({0xF4});
  g.put(c);
}

}  // namespace

std::vector<Case> mode_cases() {
  const auto real = [](Case c) {
    c.example = false;
    return c;
  };
  return {
      {"EveryControlBit", every_control_bit},
      {"SmepTakesTheGroundAway", smep_takes_the_ground_away, End::triple_fault},
      {"Above4GiB", above_4_gib},
      {"PagingOffElsewhere", paging_off_elsewhere, End::refused},
      {"PagingOffIntoMmio", paging_off_into_mmio, End::refused},
      {"WheelOfModes", wheel_of_modes},
      real({"RightsComeAndGo", rights_come_and_go}),
      real({"PagingBlinks", paging_blinks, End::halt, 32}),
      {"FlatAndNot", flat_and_not, End::halt, 32},
      {"CodeEndsInTheMiddle", code_ends_in_the_middle, End::halt, 32},
  };
}

}  // namespace strata::hostile
