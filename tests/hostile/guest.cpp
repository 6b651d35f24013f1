#include "guest.hpp"

namespace strata::hostile {

using namespace layout;

void Code::memory(std::initializer_list<std::uint64_t> opcode, unsigned reg, std::uint64_t address,
                  std::uint64_t immediate, unsigned size) {
  put(opcode);
  if (bits() == 64) {
    put({0x04U | reg << 3, 0x25});  // SIB without base: not relative to RIP
  } else {
    put({0x05U | reg << 3});
  }
  number(address, 4);
  number(immediate, size);
}

void Code::branch(std::initializer_list<std::uint64_t> opcode, std::uint64_t target) {
  put(opcode);
  number(target - (here() + 4), 4);
}

void Code::load_wide(unsigned reg, std::uint64_t value) {
  if (bits() == 64 && reg >= 8) {
    put({0x49, 0xB8 + (reg & 7)});
    number(value, 8);
  } else {
    load(reg, value);
  }
}

Guest::Guest(unsigned code_bits)
    : bits{code_bits},
      ram(kFirstRam),
      rom(kRomPages * 4096),
      state{cpu::flat_protected_mode(kCode)} {
  for (std::size_t i = 0; i < rom.size(); ++i) rom[i] = static_cast<std::uint8_t>(i * 7 >> 3);
  fill(0, 4096, 0xCC);  // stray jumps and what devices answer lead to page 0
  put(kHalt, {0xF4});
  poke<std::uint32_t>(kRecover, kHalt);  // where there is nowhere to go on
  build_descriptors();
  build_handlers();
  if (bits == 64) build_tables();
  state.gpr[cpu::RSP] = kStack;
  state.cr0 |= cpu::cr0::NE;
  state.cr4 |= cpu::cr4::OSFXSR;
}

void Guest::build_descriptors() {
  descriptor(kCode64, segment(0, 0xFFFFF, 0x1B, 0, true, 0xA));
  descriptor(kFlatData, segment(0, 0xFFFFF, 0x13));
  descriptor(kCode32, segment(0, 0xFFFFF, 0x1B));
  descriptor(kUserCode64, segment(0, 0xFFFFF, 0x1B, 3, true, bits == 64 ? 0xA : 0xC));
  descriptor(kUserData, segment(0, 0xFFFFF, 0x13, 3));
  descriptor(kTask, segment(kTss, 0x67, 11, 0, true, 0));
  state.gdtr = {kGdt, 0xFFFF};
  state.tr = {kTss, 0x67, kTask, 0x8B};
  for (const auto name : {cpu::ES, cpu::SS, cpu::DS, cpu::FS, cpu::GS}) {
    state.segment[name] = {0, 0xFFFFFFFF, kFlatData, 0xC093};
  }
  state.segment[cpu::CS] = {0, 0xFFFFFFFF, bits == 64 ? kCode64 : kCode32,
                            bits == 64 ? 0xA09BU : 0xC09BU};
  if (bits == 64) {
    poke<std::uint64_t>(kTss + 4, kStack);
    poke<std::uint64_t>(kTss + 36, kIst);
  } else {
    poke<std::uint32_t>(kTss + 4, kStack);
    poke<std::uint16_t>(kTss + 8, kFlatData);
  }
  poke<std::uint16_t>(kTss + 102, 0x68);
}

/// Each mixes its vector into kHash, makes segments and stack usable and jumps to what kRecover
/// says.
void Guest::build_handlers() {
  for (unsigned v = 0; v < 32; ++v) {
    Code c{bits, kHandlers + v * kHandlerBytes};
    c.put({0xB8});
    c.number(kFlatData, 4);
    c.put({0x8E, 0xD8, 0x8E, 0xC0, 0x8E, 0xD0});  // mov ds, es, ss
    c.put({0xBC});
    c.number(kStack, 4);
    c.memory({0xC1}, 0, kHash, 5, 1);      // rol dword [kHash], 5
    c.memory({0x83}, 0, kHash, v + 1, 1);  // add dword [kHash], vector + 1
    c.memory({0xFF}, 4, kRecover);         // jmp [kRecover]
    put(c);
    gate(v, c.origin);
  }
  state.idtr = {kIdt, 0xFFF};
}

void Guest::gate(unsigned vector, std::uint64_t offset, unsigned ist) {
  const auto low = static_cast<std::uint32_t>(offset);
  if (bits == 64) {
    poke(kIdt + vector * 16, gate_to(kCode64, low, 0xE, 0, true, ist));
    poke(kIdt + vector * 16 + 8, offset >> 32);
  } else {
    poke(kIdt + vector * 8, gate_to(kCode32, low, 0xE));
  }
}

void Guest::exceptions_on_ist() {
  for (unsigned v = 0; v < 32; ++v) gate(v, kHandlers + v * kHandlerBytes, 1);
}

void Guest::build_tables() {
  poke(kRoot, kPdpt | kAll);
  poke(kPdpt, kDirectory | kAll);
  for (std::uint64_t at = 0; at < kMapped; at += 2U << 20) {
    poke(kDirectory + (at >> 21) * 8, at | kAll | kLarge);
  }
  state.cr0 |= cpu::cr0::PG | cpu::cr0::WP;
  state.cr4 |= cpu::cr4::PAE | cpu::cr4::PGE | cpu::cr4::PSE;
  state.efer = cpu::efer::LME | cpu::efer::LMA | cpu::efer::NXE | cpu::efer::SCE;
  state.cr3 = kRoot;
}

void Guest::put(std::uint64_t pa, const std::vector<std::uint8_t>& code) {
  std::memcpy(ram.data() + pa, code.data(), code.size());
}

std::uint64_t Guest::new_table() {
  next_table_ += 4096;
  return next_table_ - 4096;
}

std::uint64_t Guest::entry(std::uint64_t va, unsigned level) {
  std::uint64_t table = kRoot;
  for (unsigned l = 4;; --l) {
    const std::uint64_t at = table + (va >> (3 + 9 * l) & 0x1FF) * 8;
    if (l == level) return at;
    auto e = peek<std::uint64_t>(at);
    if ((e & 1) == 0 || (l <= 3 && (e & kLarge) != 0)) {
      const std::uint64_t below = new_table();
      const std::uint64_t part = 1ULL << (3 + 9 * (l - 1));
      const std::uint64_t size = l - 1 == 1 ? e & ~kLarge : e;
      for (unsigned i = 0; (e & 1) != 0 && i < 512; ++i) poke(below + i * 8, size + i * part);
      e = below | kAll;
      poke(at, e);
    }
    table = e & ~0xFFFULL;
  }
}

void Guest::map(std::uint64_t va, std::uint64_t pa, std::uint64_t marks, unsigned level) {
  poke(entry(va, level), pa | marks);
}

}  // namespace strata::hostile
