// One step of a decoded block, and the blocks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mmu/address.hpp"

namespace strata::interp {

class Core;
struct Uop;

/// Executes one step. Returns the next step (usually `u + 1`, or what Core::jump() gives), or null
/// to go back to the run loop; whoever returns null has said why through the Core (fault(),
/// abort(), finish(), leave()). A step that does not complete leaves the architectural state as it
/// found it.
using Handler = const Uop* (*)(Core&, const Uop*);

/// Slots of Core::r beyond the sixteen registers.
enum RegisterSlot : std::uint8_t {
  kZeroSlot = 16,  ///< always 0: no base, no index
  kPcSlot = 17,    ///< VA of the block's first byte: RIP-relative operands are based on it
  kRegisterSlots = 18,
};
/// Slots of Core::segment_base beyond the six segment registers.
inline constexpr std::uint8_t kFlatSegment = 6;  ///< always 0

enum class AddressSize : std::uint8_t { a64 = 0, a32 = 1, a16 = 2 };

/// Operands. Register operands are byte offsets into Core::r, so that AH..BH are ordinary.
struct Uop {
  Handler fn = nullptr;
  std::uint64_t imm = 0;  ///< immediate, branch target relative to kPcSlot, or a pointer
  std::int32_t disp = 0;
  std::uint8_t dst = 0;                ///< byte offset into Core::r (or a vector register number)
  std::uint8_t src = 0;                ///< likewise
  std::uint8_t base = kZeroSlot * 8;   ///< byte offset into Core::r
  std::uint8_t index = kZeroSlot * 8;  ///< byte offset into Core::r
  std::uint8_t scale = 0;              ///< shift count 0..3
  std::uint8_t segment = kFlatSegment;
  /// 0: 64-bit addressing with a flat segment, the fast case; else AddressSize + 1 with bit 7 set
  /// where the sum with the segment base wraps at 32 bits (outside 64-bit mode).
  std::uint8_t address_form = 0;
  std::uint8_t length = 0;   ///< instruction length in bytes
  std::uint16_t offset = 0;  ///< of the instruction's first byte from kPcSlot
  std::uint8_t aux = 0;      ///< handler's own use
  std::uint8_t aux2 = 0;     ///< handler's own use
};
static_assert(sizeof(Uop) == 32);

/// What decoding depends on besides the bytes.
struct DecodeMode {
  std::uint8_t bits = 64;  ///< 16, 32, 64: CS.L and CS.D
  bool stack32 = false;    ///< SS.B outside 64-bit mode
  bool single = false;     ///< blocks of one instruction: single step, MMIO replay
  /// Outside 64-bit mode: CS, DS, ES or SS is not a flat 4 GiB segment, so limits and rights are
  /// checked (code for flat segments has no checks in it).
  bool checked = false;
  bool aligned = false;                   ///< alignment is checked: CPL 3, CR0.AM, RFLAGS.AC
  bool real = false;                      ///< real-address or virtual-8086 mode: no VEX encodings
  static constexpr unsigned kSingle = 8;  ///< its bit in key()
  [[nodiscard]] constexpr unsigned key() const noexcept {
    const unsigned size = bits == 64 ? 0U : bits == 32 ? 1U : 2U;
    return size | (stack32 ? 4U : 0U) | (single ? kSingle : 0U) | (checked ? 16U : 0U) |
           (aligned ? 32U : 0U) | (real ? 64U : 0U);
  }
};

/// A decoded run of instructions that lies in one page, or one instruction that crosses two.
/// Lives in the block cache's arena, its steps right behind it. The last step always leaves.
struct Block {
  PA pa{};           ///< of the first byte
  PA second_page{};  ///< of the page the only instruction crosses into, if `crosses`
  Block* hash_next = nullptr;
  Block* page_next = nullptr;  ///< next block of the same page
  std::uint16_t bytes = 0;     ///< guest bytes covered
  std::uint16_t instructions = 0;
  std::uint16_t steps = 0;
  std::uint8_t mode_key = 0;
  bool crosses = false;
  [[nodiscard]] Uop* first() noexcept { return reinterpret_cast<Uop*>(this + 1); }
  [[nodiscard]] const Uop* first() const noexcept { return reinterpret_cast<const Uop*>(this + 1); }
};

}  // namespace strata::interp
