// The first two passes of translation: a run of guest instructions decoded, each with what kind of
// code it becomes and which arithmetic flags anybody may read behind it.
#pragma once

#include <Zydis/Zydis.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "cpu/cpu_model.hpp"
#include "engines/interp/uop.hpp"
#include "isa/opcodes.hpp"

namespace strata::bt {

/// What an instruction is translated to.
enum class Kind : std::uint8_t {
  verbatim,  ///< itself, with registers renamed and its memory operand checked
  nothing,   ///< NOPs, prefetches
  lea,
  absolute_mov,  ///< MOV with a moffs operand
  push,
  pop,
  leave,
  divide,
  load_mxcsr,
  jump,
  jump_indirect,
  jcc,
  call,
  call_indirect,
  ret,
  cli,
  sti,
  swapgs,
  pushf,
  read_control,  ///< MOV from CR0, CR2, CR3 or CR4
  bit_string,    ///< BT and friends on memory, with the bit's number in a register
  steps,         ///< the interpreter's steps
};

/// What addresses are made of besides a number.
struct Pointer {
  /// Stand for the page that executes, and for nothing.
  static constexpr std::uint8_t kPage = 16, kNothing = 17;
  std::uint8_t base = kNothing;   ///< a register's number
  std::uint8_t index = kNothing;  ///< ... times scale
  std::uint8_t scale = 1;
  friend bool operator==(const Pointer&, const Pointer&) = default;
};

/// Accesses at fixed distances from one pointer that is not changed in between, or by known
/// amounts: one check of the whole span stands for all.
struct AccessGroup {
  Pointer pointer{};
  std::int32_t from = 0;  ///< the span, as distances from the pointer where the group began
  std::int32_t to = 0;
  std::uint16_t count = 0;
  bool write = false;  ///< one of them at least
  /// Through a window: what is looked up for it is where the pointer was when the group began, not
  /// only what is added there. Longer to find, but then no register is needed besides.
  bool anchored = false;
};

/// An instruction's part in a group.
struct GroupedAccess {
  static constexpr std::int8_t kNone = -1;
  std::int8_t group = kNone;
  bool first = false;  ///< the check is made here
  std::uint8_t size = 0;
  bool write = false;
  bool may_fault = true;    ///< the group's check does not stand for it
  bool near_index = false;  ///< its index surely leads no farther than guard zones reach
  std::int32_t at = 0;      ///< distance from the pointer where the group began, index apart
  std::int32_t moved = 0;   ///< what the pointer has changed by since
  [[nodiscard]] bool is_grouped() const noexcept { return group != kNone; }
};

/// One instruction of a region.
struct Insn {
  ZydisDecodedInstruction insn;
  std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> ops;
  const std::uint8_t* bytes = nullptr;
  std::uint16_t offset = 0;  ///< from the region's first byte
  isa::Opcode opcode{};
  Kind kind = Kind::steps;
  bool ends = false;  ///< nothing of the region comes behind it
  /// A conditional branch back to an instruction of the region, which comes next once more.
  bool loops = false;
  GroupedAccess access{};
  std::uint32_t live_after = 0;  ///< arithmetic flags that may be read before they are written
  /// The same for each way that a conditional branch may go.
  std::uint32_t live_taken = 0, live_straight = 0;
};

/// A run of instructions in one page, from a block's first on, past conditional branches. A short
/// loop is there several times in a row.
class Region {
 public:
  static constexpr unsigned kMaxInstructions = 64;
  [[nodiscard]] std::span<const Insn> insns() const noexcept { return {insns_.data(), count}; }
  [[nodiscard]] std::span<Insn> insns() noexcept { return {insns_.data(), count}; }
  /// Room for one more; it counts once `count` says so.
  [[nodiscard]] Insn& next() noexcept { return insns_[count]; }
  unsigned count = 0;
  std::uint16_t bytes = 0;
  /// Page offsets that its code depends on: its own bytes, and those looked at for flags.
  std::uint16_t from = 0, to = 0;
  std::vector<AccessGroup> groups;

 private:
  /// Decoded instructions are large: made once and reused.
  std::vector<Insn> insns_ = std::vector<Insn>(kMaxInstructions);
};

/// Where guest code is: its bytes up to the page's end, and how to read them.
struct CodeView {
  const std::uint8_t* bytes = nullptr;
  std::size_t available = 0;
  std::uint64_t page_offset = 0;
  interp::DecodeMode mode{};
  const cpu::CpuModel* model = nullptr;
  unsigned cpl = 0;
  /// The bytes are a copy, of an instruction that lies in two pages.
  bool crosses = false;
  /// Accesses may be checked in groups.
  bool grouped = true;
  bool exact_state = false;  ///< see interp::CoreEnvironment
  /// Accesses go through the window, but those of instructions that it is not for.
  bool windowed = false;
  /// Page offsets of those; null: none.
  const std::set<std::uint16_t>* refused = nullptr;
  [[nodiscard]] bool goes_through_window(std::uint16_t at) const {
    return windowed && (refused == nullptr || !refused->contains(at));
  }
};

/// grouping.cpp: finds the groups of a decoded region.
void group_accesses(const CodeView& code, Region& region);

/// Decodes into `region` (reused between calls). Empty: not even one instruction lies in the page.
void decode_region(const CodeView& code, Region& region);

/// Flags that may be read from the instruction at `page_offset` of the same page on.
/// What it looked at becomes part of what `region` depends on.
[[nodiscard]] std::uint32_t flags_wanted_at(const CodeView& code, std::int64_t page_offset,
                                            Region& region);

/// The explicit operand in memory, or null. LEA's and NOP's do not count.
[[nodiscard]] const ZydisDecodedOperand* memory_operand(const Insn& i) noexcept;

/// What an instruction does with arithmetic flags.
struct FlagEffect {
  std::uint32_t reads = 0;
  std::uint32_t writes = 0;     ///< undefined ones included
  std::uint32_t undefined = 0;  ///< may depend on what they were
  bool replaces = false;        ///< all of them, whatever they were
  bool may_keep = false;        ///< writes may not happen
};
[[nodiscard]] FlagEffect flag_effect(const Insn& i) noexcept;

}  // namespace strata::bt
