// Page tables that are not only page tables, and translations that change under what runs.
#include "cases.hpp"

namespace strata::hostile {
namespace {

using namespace layout;

constexpr std::uint64_t kWindow = 0x4000'0000;

void store(Code& c, std::uint64_t va, std::uint64_t value) {
  c.load_wide(cpu::RDX, va);
  c.load_wide(cpu::RAX, value);
  c.put({0x48, 0x89, 0x02});  // mov [rdx], rax
}
void invlpg(Code& c, std::uint64_t va) {
  c.load_wide(cpu::RDX, va);
  c.put({0x0F, 0x01, 0x3A});
}
/// R12 gathers what is read.
void gather(Code& c, std::uint64_t va) {
  c.load_wide(cpu::RDX, va);
  c.put({0x49, 0xC1, 0xC4, 7, 0x4C, 0x03, 0x22});  // rol r12, 7; add r12, [rdx]
}
/// Makes the rest a loop.
template <class Body>
void repeat(Code& c, unsigned rounds, Body&& body) {
  c.load(cpu::RCX, rounds);
  const std::uint64_t loop = c.here();
  body();
  c.put({0xFF, 0xC9});  // dec ecx
  c.branch({0x0F, 0x85}, loop);
}
void load_cr3(Code& c, std::uint64_t value) {
  c.load_wide(cpu::RAX, value);
  c.put({0x0F, 0x22, 0xD8});
}

/// The root is one of its own entries: the guest edits its tables through themselves.
void recursive_tables(Guest& g) {
  g.poke(kRoot + 510 * 8, kRoot | Guest::kAll);
  g.map(kWindow, kData);
  for (unsigned i = 0; i < 4; ++i) g.poke<std::uint64_t>(kData + i * 4096, 0x1111 * (i + 1));
  // The leaf of kWindow, seen through the recursive slot.
  const std::uint64_t leaf = 0xFFFF'FF00'0000'0000 + (kWindow >> 12) * 8;
  Code c{64};
  repeat(c, 300, [&] {
    for (unsigned i = 0; i < 4; ++i) {
      store(c, leaf, (kData + i * 4096) | Guest::kAll);
      invlpg(c, kWindow);
      gather(c, kWindow);
    }
  });
  for (unsigned level = 0; level < 3; ++level) {
    gather(c, 0xFFFF'FF7F'BFDF'E000);  // the root through four times itself
    gather(c, 0xFFFF'FF7F'BFC0'0000);
  }
  c.put({0xF4});
  g.put(c);
}
/// Every entry of the one table is the table: all addresses are one page, which is table, code,
/// data and stack. Its entries, as code, are `addr32 nop; add [rax], al; ...`.
void one_page_is_everything(Guest& g) {
  constexpr std::uint64_t kAll = kTables + 0x9000;  // 67 90
  static_assert((kAll & 0xF000) == 0x9000);
  for (unsigned i = 0; i < 512; ++i) g.poke(kAll + i * 8, kAll | Guest::kAll);
  g.state.cr3 = kAll;
  g.state.rip = 0x123'4567'8000;
  g.state.gpr[cpu::RAX] = 0x55'5555'0008;
  g.state.gpr[cpu::RSP] = 0x2000;
}
/// The same, and the code changes the entries.
void one_page_eats_itself(Guest& g) {
  one_page_is_everything(g);
  g.state.gpr[cpu::RAX] = 0x55'5555'0803;  // add [rax], al hits a byte of an entry's address
}
/// A leaf table that lies in the code page it maps, behind the code.
void table_is_code(Guest& g) {
  g.map(kWindow, kCode);
  const std::uint64_t directory = g.entry(kWindow, 2);
  // The code page becomes the leaf table: entry 0 maps the page itself.
  g.poke(directory, kCode | Guest::kAll);
  Code c{64, kCode + 0x100};
  c.load_wide(cpu::RBX, kWindow + 0x100 + 0x40);
  c.put({0xFF, 0xE3});
  while (c.bytes.size() < 0x40) c.put({0x90});
  repeat(c, 200, [&] {
    store(c, kWindow + 8, kData | Guest::kAll);  // entry 1, through entry 0
    invlpg(c, kWindow + 4096);
    gather(c, kWindow + 4096);
    store(c, kWindow + 8, kCode | Guest::kAll);
    invlpg(c, kWindow + 4096);
    gather(c, kWindow + 4096 + 0x110);
  });
  c.put({0xF4});
  g.put(c);
  g.poke(kCode, kCode | Guest::kAll);
  g.poke<std::uint64_t>(kData, 77);
  g.state.rip = c.origin;
}
/// Tables in ROM: accessed and dirty bits have nowhere to go.
void tables_in_rom(Guest& g) {
  std::memset(g.rom.data(), 0, g.rom.size());
  const std::array<std::uint64_t, 2> entries{(kRom + 4096) | 7, (kRom + 8192) | 7};
  std::memcpy(g.rom.data(), &entries[0], 8);
  std::memcpy(g.rom.data() + 4096, &entries[1], 8);
  for (std::uint64_t i = 0; i < 16; ++i) {
    const std::uint64_t leaf = i << 21 | 0x87;
    std::memcpy(g.rom.data() + 8192 + i * 8, &leaf, 8);
  }
  Code c{64};
  load_cr3(c, kRom);
  repeat(c, 100, [&] {
    store(c, kData, 5);
    gather(c, kData);
    store(c, kRom + 8192, 0);  // not mapped there
  });
  c.put({0xF4});
  g.put(c);
}
template <std::uint64_t kWhere>
void root_at(Guest& g) {
  Code c{64};
  load_cr3(c, kWhere);
  c.put({0x90, 0xF4});
  g.put(c);
}
/// A leaf table in device memory, one beyond all memory, and entries with reserved bits.
void tables_elsewhere(Guest& g) {
  g.exceptions_on_ist();
  const std::array<std::uint64_t, 6> tables{
      kMmio | Guest::kAll,   kRom | Guest::kAll,
      kMapped | Guest::kAll, 0x000F'FFFF'FFFF'F000 | Guest::kAll,
      0x00FF'0000'0000'0067, kRoot | Guest::kAll};
  const std::uint64_t directory = g.entry(kWindow, 2);
  Code c{64};
  for (const std::uint64_t table : tables) {
    store(c, directory, table);
    load_cr3(c, kRoot);
    for (unsigned page = 0; page < 3; ++page) {
      c.recover([&] { gather(c, kWindow + page * 4096); });
      c.recover([&] {
        c.load_wide(cpu::RDX, kWindow + page * 4096 + 0x800);
        c.put({0xFF, 0x02});  // inc dword [rdx]
      });
      c.recover([&] {
        c.load_wide(cpu::RDX, kWindow + page * 4096);
        c.put({0xFF, 0xE2});  // jmp rdx
      });
    }
  }
  c.put({0xF4});
  g.put(c);
}
/// Code runs in a 2 MiB page that is split and joined under it; a 1 GiB page too.
void sizes_change(Guest& g) {
  g.map(kWindow, 0, Guest::kAll | Guest::kLarge, 2);
  const std::uint64_t directory = g.entry(kWindow, 2);
  const std::uint64_t pdpte = g.entry(kWindow, 3);
  const std::uint64_t tables = g.peek<std::uint64_t>(pdpte);
  const std::uint64_t leaves = g.new_table();
  for (std::uint64_t i = 0; i < 512; ++i) g.poke(leaves + i * 8, (i << 12) | Guest::kAll);
  g.poke(leaves + 0x80 * 8, kData | Guest::kAll);  // VA kWindow + 0x80000 is elsewhere when split
  g.poke<std::uint64_t>(kStack, 1);
  g.poke<std::uint64_t>(kData, 2);
  Code c{64};
  repeat(c, 200, [&] {
    for (const std::uint64_t entry : {leaves | Guest::kAll, Guest::kAll | Guest::kLarge}) {
      store(c, directory, entry);
      invlpg(c, kWindow + kStack);
      gather(c, kWindow + kStack);
    }
    store(c, pdpte, Guest::kAll | Guest::kLarge);  // 1 GiB
    invlpg(c, kWindow);
    gather(c, kWindow + kStack);
    store(c, pdpte, tables);
    invlpg(c, kWindow);
  });
  c.put({0xF4});
  g.put(c);
  g.state.rip = kWindow + kCode;
}
/// The page that runs loses its rights, comes back as another one, and is gone.
void code_page_goes(Guest& g) {
  const std::uint64_t leaf = g.entry(kCode);
  Code c{64};
  repeat(c, 100, [&] {
    store(c, leaf, kCode | Guest::kAll | 1ULL << 63);
    c.put({0x90});  // until something flushes
    store(c, leaf, kCode | Guest::kAll);
    invlpg(c, kCode);
  });
  store(c, leaf, kData | Guest::kAll);
  invlpg(c, kCode);
  c.put({0xF4});
  const std::size_t end = c.bytes.size() - 1;
  g.put(c);
  // What is at that place of the other page: it makes the page vanish and jumps into it.
  Code d{64, kData + end};
  store(d, leaf, 0);
  invlpg(d, kCode);
  d.put({0xF4});
  g.put(d);
}
/// INVLPG, CR3 and CR4 loads at every step of a walk over many pages.
void flush_storm(Guest& g) {
  for (unsigned i = 0; i < 64; ++i) g.map(kWindow + i * 4096, kData + i * 4096);
  Code c{64};
  c.load(cpu::RSI, kWindow);
  repeat(c, 3000, [&] {
    c.put({0x4C, 0x03, 0x26, 0x4C, 0x89, 0x26});              // add r12, [rsi]; mov [rsi], r12
    c.put({0x0F, 0x01, 0x3E});                                // invlpg [rsi]
    c.put({0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8});              // cr3 = cr3
    c.put({0x0F, 0x20, 0xE0, 0x34, 0x80, 0x0F, 0x22, 0xE0});  // cr4 ^= PGE
    c.put({0x81, 0xC6, 0, 0x10, 0, 0});                       // add esi, 4096
    c.put({0x81, 0xE6, 0xFF, 0xFF, 0x03, 0x40});              // and esi, kWindow | 0x3FFFF
  });
  c.put({0xF4});
  g.put(c);
}

}  // namespace

std::vector<Case> paging_cases() {
  Case eats{"OnePageEatsItself", one_page_eats_itself, End::triple_fault};
  // Which walk meets the entries half eaten depends on what is cached.
  eats.compared = false;
  const auto real = [](Case c) {
    c.example = false;
    return c;
  };
  return {
      {"RecursiveTables", recursive_tables},
      {"OnePageIsEverything", one_page_is_everything, End::count, 64, true, true, 20'000},
      eats,
      {"TableIsCode", table_is_code},
      real({"TablesInRom", tables_in_rom}),
      real({"RootInMmio", root_at<kMmio>, End::triple_fault}),
      real({"RootNowhere", root_at<kMapped>, End::triple_fault}),
      {"RootBeyond", root_at<0x000F'FFFF'FFFF'F000>},
      real({"TablesElsewhere", tables_elsewhere}),
      {"SizesChange", sizes_change},
      {"CodePageGoes", code_page_goes},
      {"FlushStorm", flush_storm},
  };
}

}  // namespace strata::hostile
