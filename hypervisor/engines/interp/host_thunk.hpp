// Native code for guest instructions that need no privilege: the host has the same instruction set,
// so its own units give bit-exact results. A thunk is one instruction with its registers renamed to
// fixed ones and its memory operand to a pointer, between loads and stores of what it uses; guest
// instructions that differ in registers only share one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>

#include "engines/interp/flags.hpp"
#include "engines/interp/host_thunk_arena.hpp"
#include "engines/interp/host_thunk_form.hpp"

namespace strata::interp {

/// In and out of a thunk, besides the vector registers and memory. Fields a thunk does not use
/// need no value.
struct ThunkFrame {
  std::uint64_t gpr;  ///< the general register operand
  std::uint64_t rax;  ///< implicit inputs of PCMPESTRx
  std::uint64_t rdx;
  std::uint64_t rcx;        ///< implicit result of PCMPxSTRI
  std::uint32_t mxcsr_in;   ///< rounding and denormal control, all exceptions masked, no flags
  std::uint32_t mxcsr_out;  ///< with the flags that were raised
  std::uint32_t unmasked;   ///< flags that make the thunk keep its results to itself
  ArithFlags flags;
};

/// Vector thunks: up to four registers of the VectorState (or MMX registers in an FXSAVE image),
/// the frame, the memory operand. Returns MXCSR with the flags raised, for floating-point forms.
/// v3 comes in RDX and v2 in RCX: PCMPESTRM needs RDX itself and has three vector operands.
using VectorThunk = std::uint32_t (*)(void* v0, void* v1, void* v3, void* v2, ThunkFrame* frame,
                                      void* memory);
/// x87 thunks: a 512-byte FXSAVE area, the frame (flags in and out), the memory operand. The area
/// must hold no pending exception if the instruction is a waiting one, and a valid MXCSR.
using X87Thunk = void (*)(void* area, ThunkFrame* frame, void* memory);

/// A thunk and what its caller has to know.
struct HostThunk {
  ThunkForm form;
  const std::byte* code = nullptr;
  std::uint16_t code_size = 0;
  /// Not 0: `code` has a placeholder for the immediate here and runs through ThunkCache only.
  std::uint16_t immediate_at = 0;

  [[nodiscard]] VectorThunk vector() const noexcept {
    return reinterpret_cast<VectorThunk>(reinterpret_cast<std::uintptr_t>(code));
  }
  [[nodiscard]] X87Thunk x87() const noexcept {
    return reinterpret_cast<X87Thunk>(reinterpret_cast<std::uintptr_t>(code));
  }
};

/// All thunks of the process; they live as long as it does, so steps may point to them freely.
/// Thread-safe. Bounded: the forms without an immediate are few by the nature of the instruction
/// set and always fit; each value of an immediate gets a thunk of its own only while there is room,
/// afterwards it is patched into a scratch copy for every execution.
class ThunkCache {
 public:
  static constexpr std::size_t kDefaultBytes = 1U << 20;
  /// Kept free for forms without an immediate.
  static constexpr std::size_t kReserveBytes = 384U << 10;

  explicit ThunkCache(std::size_t bytes = kDefaultBytes, std::size_t reserve = kReserveBytes);
  ThunkCache(const ThunkCache&) = delete;
  ThunkCache& operator=(const ThunkCache&) = delete;

  /// The thunk for a form, made if need be. Null: no executable memory, or even the reserve is
  /// used up.
  [[nodiscard]] const HostThunk* find(const ThunkForm& form);

  /// Runs a thunk that is not specialised for its immediate.
  std::uint32_t run_patched(const HostThunk& thunk, std::uint8_t immediate,
                            const std::array<void*, 4>& v, ThunkFrame* frame, void* memory);

  /// Whether a step's `imm` is one of the thunks: how a test tells what the host executes.
  [[nodiscard]] bool holds(std::uint64_t imm) const;
  /// Bytes of executable memory in use.
  [[nodiscard]] std::size_t bytes() const;

 private:
  using Key = std::array<std::uint8_t, 16>;
  [[nodiscard]] const HostThunk* insert(const Key& key, const ThunkForm& form, bool patched);

  mutable std::mutex lock_;  ///< guards everything below; a leaf in the lock order
  ThunkArena arena_;
  std::size_t reserve_;
  std::map<Key, HostThunk> thunks_;
};

/// The process's cache: one process is one VM (design: Processes). The first call maps its memory,
/// so make it before system calls are filtered.
[[nodiscard]] ThunkCache& thunk_cache();

}  // namespace strata::interp
