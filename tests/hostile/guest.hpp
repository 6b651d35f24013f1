// A guest that is out to break the VMM: memory, ROM and registers, before its first instruction.
// It starts at CPL 0 at kCode with good descriptor tables, page tables and handlers, of which a
// case then spoils some.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "assembler.hpp"
#include "cpu/vcpu_state.hpp"

namespace strata::hostile {

/// Guest-physical; what is mapped at first is the identity.
namespace layout {
inline constexpr std::uint64_t kRoot = 0x1000, kPdpt = 0x2000, kDirectory = 0x3000, kTss = 0x5000,
                               kIdt = 0x7000, kHandlers = 0x8000, kRecover = 0xA000, kHash = 0xA008,
                               kHalt = 0xA010, kCode = 0x10000, kStackFloor = 0x70000,
                               kStack = 0x80000, kIst = 0x90000, kGdt = 0xA0000, kData = 0x200000,
                               kTables = 0x400000, kFirstRam = 8 << 20;
inline constexpr std::uint64_t kRamMib = 32, kRam = kRamMib << 20, kRom = 40ULL << 20,
                               kRomPages = 4, kMmio = 44ULL << 20, kMmioPages = 16,
                               kSegmentMib = 48;
/// Page-table entries map up to here with 2 MiB pages: RAM, ROM, MMIO, and nothing.
inline constexpr std::uint64_t kMapped = 64ULL << 20;
inline constexpr unsigned kHandlerBytes = 64;
}  // namespace layout

/// Selectors of the GDT. What is free is for the case.
inline constexpr std::uint16_t kCode64 = 0x08, kFlatData = 0x10, kCode32 = 0x18, kUserCode64 = 0x2B,
                               kUserData = 0x33, kTask = 0x40, kFirstFree = 0x50;

/// Code that will lie at `origin`.
struct CodeBuffer {
  std::vector<std::uint8_t> bytes;
};
class Code : public CodeBuffer, public fuzz::Assembler {
 public:
  explicit Code(unsigned code_bits, std::uint64_t at = layout::kCode)
      : fuzz::Assembler{code_bits, bytes}, origin{at} {}
  [[nodiscard]] std::uint64_t here() const noexcept { return origin + bytes.size(); }
  /// opcode /reg [absolute address], then an immediate of `size` bytes.
  void memory(std::initializer_list<std::uint64_t> opcode, unsigned reg, std::uint64_t address,
              std::uint64_t immediate = 0, unsigned size = 0);
  /// jmp, call, jcc and the like with a 32-bit displacement.
  void branch(std::initializer_list<std::uint64_t> opcode, std::uint64_t target);
  /// mov reg, cs-independent address of a RAM variable: 64 bits wide in 64-bit code.
  void load_wide(unsigned reg, std::uint64_t value);
  /// Whatever `attempt` appends may fault: execution goes on behind it, with the vector mixed into
  /// the word at kHash.
  template <class Attempt>
  void recover(Attempt&& attempt) {
    memory({0xC7}, 0, layout::kRecover, 0, 4);
    const std::size_t at = bytes.size() - 4;
    attempt();
    fix(at, here(), 4);
  }

  const std::uint64_t origin;
};

struct Guest {
  /// `bits` 64: long mode; 32: protected mode without paging.
  explicit Guest(unsigned code_bits);

  /// RAM beyond the first MiBs has to be asked for.
  void all_ram() { ram.resize(layout::kRam); }
  void put(std::uint64_t pa, const std::vector<std::uint8_t>& code);
  void put(const Code& code) { put(code.origin, code.bytes); }
  void fill(std::uint64_t pa, std::uint64_t count, std::uint8_t byte) {
    std::memset(ram.data() + pa, byte, count);
  }
  template <class T>
  void poke(std::uint64_t pa, T value) {
    std::memcpy(ram.data() + pa, &value, sizeof value);
  }
  template <class T>
  [[nodiscard]] T peek(std::uint64_t pa) const {
    T value;
    std::memcpy(&value, ram.data() + pa, sizeof value);
    return value;
  }
  void descriptor(unsigned selector, std::uint64_t value) {
    poke(layout::kGdt + (selector & 0xFFF8U), value);
  }
  /// An interrupt gate.
  void gate(unsigned vector, std::uint64_t offset, unsigned ist = 0);
  /// Every exception (or: the vectors up to 31) comes on the stack at kIst, whatever RSP is.
  void exceptions_on_ist();
  /// A zero page for tables.
  std::uint64_t new_table();
  /// The address of the long-mode entry of `level` (1: 4 KiB pages) for `va`; tables are made, and
  /// large pages on the way split.
  std::uint64_t entry(std::uint64_t va, unsigned level = 1);
  void map(std::uint64_t va, std::uint64_t pa, std::uint64_t marks = kAll, unsigned level = 1);
  /// No page at `va`, of 4 KiB.
  void unmap(std::uint64_t va) { poke<std::uint64_t>(entry(va), 0); }

  /// Present, writable, user, accessed, dirty: backends have nothing to write to it.
  static constexpr std::uint64_t kAll = 0x67, kLarge = 0x80;

  unsigned bits;
  std::vector<std::uint8_t> ram;
  std::vector<std::uint8_t> rom;
  cpu::VcpuState state;

 private:
  void build_descriptors();
  void build_handlers();
  void build_tables();
  std::uint64_t next_table_ = layout::kTables;
};

/// Bytes of a descriptor. `type_s`: type and S; `flags`: bits 55:52 (AVL, L, D, G).
[[nodiscard]] constexpr std::uint64_t segment(std::uint32_t base, std::uint32_t limit,
                                              unsigned type_s, unsigned dpl = 0,
                                              bool present = true, unsigned flags = 0xC) {
  return (limit & 0xFFFF) | static_cast<std::uint64_t>(base & 0xFFFFFF) << 16 |
         static_cast<std::uint64_t>(type_s | dpl << 5 | (present ? 0x80U : 0U)) << 40 |
         static_cast<std::uint64_t>(limit >> 16 & 0xF) << 48 |
         static_cast<std::uint64_t>(flags) << 52 | static_cast<std::uint64_t>(base >> 24) << 56;
}
[[nodiscard]] constexpr std::uint64_t gate_to(std::uint16_t selector, std::uint32_t offset,
                                              unsigned type, unsigned dpl = 0, bool present = true,
                                              unsigned ist = 0) {
  return (offset & 0xFFFF) | static_cast<std::uint64_t>(selector) << 16 |
         static_cast<std::uint64_t>(ist) << 32 |
         static_cast<std::uint64_t>(type | dpl << 5 | (present ? 0x80U : 0U)) << 40 |
         static_cast<std::uint64_t>(offset >> 16) << 48;
}

}  // namespace strata::hostile
