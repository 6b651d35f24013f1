// What translated code and its stubs share with the VMM besides the Core: in low memory, addressed
// absolutely.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace strata::bt {

/// Code for a virtual address, as indirect branches look it up. `context` covers everything else
/// that the way from VA to code depends on.
struct JumpEntry {
  std::uint64_t va = ~0ULL;
  std::uint64_t context = 0;
  std::uint64_t code = 0;
  std::uint32_t chain = 0;  ///< what jumps within the page may be linked to
  /// Guest page that the code is of; kNoPage: more than that says what it is.
  static constexpr std::uint32_t kNoPage = ~0U;
  std::uint32_t page = kNoPage;
};
static_assert(sizeof(JumpEntry) == 32);
inline constexpr std::size_t kJumpEntries = 8192;
/// Where in the table the entry of a VA is, in bytes: bits of a product of its low half.
inline constexpr std::uint32_t kJumpFactor = 0x9E3779B1, kJumpShift = 13;
/// Lowest bit of `salt` that counts.
inline constexpr unsigned kJumpSaltShift = 5;
inline constexpr std::uint32_t kJumpOffsets = (kJumpEntries - 1) * sizeof(JumpEntry);
[[nodiscard]] constexpr std::uint32_t jump_offset(std::uint64_t va, std::uint32_t salt) noexcept {
  return (static_cast<std::uint32_t>(va) * kJumpFactor >> kJumpShift ^ salt) & kJumpOffsets;
}

/// How far vector state has been loaded into the host's registers.
enum SimdLevel : std::uint8_t { kSimdInMemory = 0, kSimdSse = 1, kSimdAvx = 2 };

/// What translated code adds to a VA, by bits 40 to 47 of it; see window.hpp.
using SliceTable = std::array<std::uint64_t, 256>;

[[nodiscard]] constexpr bool is_homed(unsigned guest) noexcept { return guest >= 8 && guest <= 11; }

/// Only `context` is touched by other threads: attend() spoils it, so that lookups miss.
struct NativeState {
  std::uint64_t page_va = 0;  ///< VA of the guest page that executes
  std::atomic<std::uint64_t> context{0};
  std::uint64_t pcid = 0;       ///< low bits of TLB tags
  std::uint32_t tlb_place = 0;  ///< what they add to a TLB entry's offset (interp::tlb_index())
  /// Part of a JumpEntry's index: what is known of one address space stays when another one runs.
  std::uint32_t jump_salt = 0;
  std::uint64_t host_rsp = 0;  ///< the VMM's stack while guest code runs
  std::uint64_t arg0 = 0;      ///< R9 and R10 as a stub was called
  std::uint64_t arg1 = 0;
  std::uint64_t resume = 0;  ///< where to go behind a stub
  std::uint64_t target = 0;  ///< an indirect branch's target while something else is checked
  std::uint64_t code = 0;    ///< and its code
  /// Of a host fault that is left by Stubs::fault: the guest's RSP, and where to go on.
  std::uint64_t fault_rsp = 0;
  std::uint64_t fault_resume = 0;
  /// Of the running block's groups of accesses: what is to be added to a VA, or where in a window
  /// the group's pointer was when it began.
  std::array<std::uint64_t, 24> group{};
  std::uint32_t host_mxcsr = 0x1F80;
  std::uint8_t simd_live = kSimdInMemory;
  std::uint8_t upper_halves = 1;  ///< of vector registers as last saved: one of them is not 0
  std::uint8_t x87_live = 0;
  /// Limits of FS and GS outside 64-bit mode; 0 where accesses need more than a limit check.
  std::array<std::uint64_t, 2> segment_limit{};
  SliceTable slices{};
  std::array<JumpEntry, kJumpEntries> jumps{};
};

/// The functions that stubs call: R9 and R10 in, where to go on out.
using StubFunction = std::uint64_t (*)(void* runtime, std::uint64_t a, std::uint64_t b);

/// Addresses of the stubs. Translated code jumps to them with arguments in R9 and R10.
struct Stubs {
  std::uint64_t enter = 0;     ///< called by C++: void(code)
  std::uint64_t leave = 0;     ///< back to the caller of `enter`; guest registers are saved
  std::uint64_t look_up = 0;   ///< go on at VA R9
  std::uint64_t stale = 0;     ///< the dropped block with its entry at R10 was entered
  std::uint64_t link = 0;      ///< go on at offset R9 of the page, and patch the jump field at R10
  std::uint64_t far = 0;       ///< go on at VA R9; the far jump at R10 was not linked for it
  std::uint64_t link_far = 0;  ///< ... and is to be
  /// The block at page offset R9, its code at R11, counted R10 instructions, more than were left.
  std::uint64_t slice = 0;
  std::uint64_t memory = 0;     ///< site R10 missed the TLB at VA R9
  std::uint64_t group = 0;      ///< site R10's group, from VA R9 on, missed the TLB
  std::uint64_t window = 0;     ///< site R10 was not allowed VA R9 by the window
  std::uint64_t steps = 0;      ///< the interpreter executes site R10's steps
  std::uint64_t jump = 0;       ///< site R10, an indirect branch to R9, found no code
  std::uint64_t interpret = 0;  ///< ... site R10's instruction, and looks up what comes then
  std::uint64_t simd = 0;       ///< site R10 needs vector registers at level R9
  std::uint64_t x87 = 0;        ///< site R10 needs x87 state
  /// Go on at NativeState::fault_resume with fault_rsp; and its instruction that does so.
  std::uint64_t fault = 0;
  std::uint64_t fault_jump = 0;
};

}  // namespace strata::bt
