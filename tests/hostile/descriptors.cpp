// Descriptors of every type, with wrong bases, limits and targets, loaded and used in every way.
#include "cases.hpp"

namespace strata::hostile {
namespace {

using namespace layout;

constexpr unsigned kSelectors = 1024;
constexpr std::uint64_t kPointer = kData;  // an m16:32

/// All 32 types, present and not, of both privileges and four kinds of base, limit and selector.
/// In long mode every second one is the upper half of the system descriptor before it.
std::uint64_t odd_descriptor(unsigned n) {
  const unsigned type_s = n & 0x1F, kind = n >> 5 & 3, dpl = (n >> 7 & 1) * 3;
  const bool present = (n >> 8 & 1) == 0;
  const bool gate = (type_s & 0x14) == 4;
  const auto own = static_cast<std::uint16_t>(kFirstFree + n * 8);
  const std::array<std::uint16_t, 4> selectors{own, kCode64, 0, 0xFFF8};
  if (gate)
    return gate_to(selectors.at(kind), static_cast<std::uint32_t>(kHalt), type_s, dpl, present,
                   n & 7);
  const std::array<std::uint32_t, 4> bases{0, 0xFFFFFFF0, kData, kRom}, limits{0xFFFFF, 0, 0x67, 1};
  return segment(bases.at(kind), limits.at(kind), type_s, dpl, present,
                 kind == 1 ? 0xE : 0xC - kind);
}

void fill_table(Guest& g) {
  for (unsigned n = 0; n < kSelectors; ++n) g.descriptor(kFirstFree + n * 8, odd_descriptor(n));
  g.fill(0, kHalt & 0xFFF, 0xCC);
  g.put(kHalt, {0xCC});  // where far transfers lead
  g.put(kHalt + 1, {0xCC});
  g.put(kData + kHalt, {0xCC});
}

/// Tries each of the operations on each selector, in EBX.
void try_all(Guest& g, const std::vector<std::vector<std::uint64_t>>& operations) {
  fill_table(g);
  Code c{g.bits};
  c.load(cpu::RBX, kFirstFree);
  c.put({0x53});  // the loop: push; the counter lives in memory, since tasks change registers
  c.memory({0x89}, cpu::RBX, kPointer + 8);
  const std::uint64_t loop = c.here();
  for (const auto& operation : operations) {
    c.recover([&] {
      c.memory({0x8B}, cpu::RBX, kPointer + 8);
      c.memory({0x89}, cpu::RBX, kPointer + 4);
      c.put({0x89, 0xD8});  // mov eax, ebx
      for (const std::uint64_t byte : operation) c.put({byte});
    });
  }
  // Whatever is loaded now, the next round begins with what is good.
  c.recover([&] { c.put({0x0F, 0x0B}); });
  c.memory({0x83}, 0, kPointer + 8, 8, 1);
  c.memory({0x81}, 7, kPointer + 8, kFirstFree + kSelectors * 8, 4);
  c.branch({0x0F, 0x82}, loop);
  c.put({0xF4});
  g.put(c);
  g.poke<std::uint32_t>(kPointer, kHalt);
}

/// mov to ES, DS, SS, FS, GS; lar, lsl, verr, verw.
void load_every_type(Guest& g) {
  try_all(g, {{0x8E, 0xC0},
              {0x8E, 0xE0},
              {0x8E, 0xE8},
              {0x0F, 0x02, 0xC8},
              {0x0F, 0x03, 0xC8},
              {0x0F, 0x00, 0xE0},
              {0x0F, 0x00, 0xE8}});
}
/// DS and SS: in 32-bit code there is soon nowhere to push an exception's frame.
void load_ds_and_ss(Guest& g) { try_all(g, {{0x8E, 0xD8}, {0x8E, 0xD0}}); }
/// ... and then uses what was loaded.
void use_every_type(Guest& g) {
  try_all(g, {{0x8E, 0xC0, 0x26, 0x8B, 0x0E},
              {0x8E, 0xE0, 0x64, 0x89, 0x0E},
              {0x8E, 0xE8, 0x65, 0xFF, 0x06}});
}
/// lldt and then a selector of that table; ltr and then what needs a TSS.
void system_tables_of_every_type(Guest& g) {
  try_all(g,
          {{0x0F, 0x00, 0xD0, 0xB8, 0x04, 0, 0, 0, 0x8E, 0xC0}, {0x0F, 0x00, 0xD8}, {0xE4, 0x10}});
}
/// call and jmp far through memory, and IRET to a frame of the selector.
void far_transfers_to_every_type(Guest& g) {
  std::vector<std::uint64_t> call{0xFF, 0x1C, 0x25, 0, 0, 0x20, 0},
      jump{0xFF, 0x2C, 0x25, 0, 0, 0x20, 0};
  if (g.bits == 32) {
    call = {0xFF, 0x1D, 0, 0, 0x20, 0};
    jump = {0xFF, 0x2D, 0, 0, 0x20, 0};
  }
  for (auto* pointer : {&call, &jump}) {
    const std::size_t at = pointer->size() - 4;
    for (unsigned i = 0; i < 4; ++i) (*pointer)[at + i] = (kPointer >> 8 * i) & 0xFF;
  }
  // The m16:32 is at kPointer + 0 (offset) and + 4 (selector).
  try_all(g, {call, jump, {0x50, 0x68, 0x10, 0xA0, 0, 0, 0xCB}});
}
/// INT through gates of every type, of which a few lead to themselves.
void gates_of_every_type(Guest& g) {
  fill_table(g);
  const unsigned size = g.bits == 64 ? 16 : 8;
  Code c{g.bits};
  for (unsigned v = 32; v < 256; ++v) {
    g.poke(kIdt + v * size, (odd_descriptor(v) & ~(0x1FULL << 40)) | (v & 0x1FULL) << 40);
    if (g.bits == 64) g.poke<std::uint64_t>(kIdt + v * 16 + 8, v % 3 == 0 ? 0x8000 : 0);
    c.recover([&] { c.put({0xCD, v}); });
  }
  c.put({0xF4});
  g.put(c);
}
/// Table bases and limits that LGDT and LIDT are asked for, and what is then looked up there.
void tables_anywhere(Guest& g) {
  constexpr std::array<std::uint64_t, 8> kBases{
      0,     ~0ULL,    0x8000'0000'0000,      0x7FFF'FFFF'FFF9,
      kMmio, kRom - 4, 0xFFFF'8000'0000'0000, kMapped - 2};
  Code c{64};
  std::uint64_t at = kData + 0x1000;
  for (const std::uint64_t base : kBases) {
    for (const unsigned limit : {0U, 7U, 0xFFFFU}) {
      g.poke<std::uint16_t>(at, static_cast<std::uint16_t>(limit));
      g.poke(at + 2, base);
      c.recover([&] {
        c.memory({0x0F, 0x01}, 2, at);             // lgdt
        c.put({0xB8, 0x50, 0, 0, 0, 0x8E, 0xC0});  // mov es, 0x50
      });
      c.memory({0x0F, 0x01}, 2, kData + 0x800);  // the good one again
      at += 16;
    }
  }
  g.poke<std::uint16_t>(kData + 0x800, 0xFFFF);
  g.poke(kData + 0x802, kGdt);
  c.put({0xF4});
  g.put(c);
  // Where the GDT is bad while an exception is delivered, its gate's selector is bad as well.
  g.poke<std::uint64_t>(kTss + 36, kIst);
}

}  // namespace

std::vector<Case> descriptor_cases() {
  return {
      {"LoadEveryType", load_every_type},
      {"LoadEveryType32", load_every_type, End::halt, 32},
      {"LoadDsAndSs", load_ds_and_ss},
      {"LoadDsAndSs32", load_ds_and_ss, End::triple_fault, 32},
      {"UseEveryType", use_every_type},
      {"UseEveryType32", use_every_type, End::halt, 32},
      {"SystemTablesOfEveryType", system_tables_of_every_type},
      {"SystemTablesOfEveryType32", system_tables_of_every_type, End::halt, 32},
      {"FarTransfersToEveryType", far_transfers_to_every_type},
      {"FarTransfersToEveryType32", far_transfers_to_every_type, End::count, 32},
      {"GatesOfEveryType", gates_of_every_type},
      {"GatesOfEveryType32", gates_of_every_type, End::halt, 32},
      {"TablesAnywhere", tables_anywhere, End::triple_fault},
  };
}

}  // namespace strata::hostile
