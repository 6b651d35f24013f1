// One case of the differential fuzzer and its result, as they lie in the memory shared with the
// executor. Plain data: the executor is another program, and may run under an emulator.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace strata::differential {

/// The addresses of code and data: the same in the executor and in the guest. Below 4 MiB, where
/// statically linked programs leave room.
inline constexpr std::uint64_t kCode = 0x200000, kCodeBytes = 0x2000;
inline constexpr std::uint64_t kContext = 0x210000;
inline constexpr std::uint64_t kData = 0x220000, kWritableBytes = 0x4000;
inline constexpr std::uint64_t kReadOnly = kData + kWritableBytes, kAbsent = kReadOnly + 0x1000;
inline constexpr std::uint64_t kPatternBytes = kWritableBytes + 0x1000;
/// What fills the code pages around the instruction: every way out is a breakpoint or a fault.
inline constexpr std::uint8_t kBreakpoint = 0xCC;

/// Registers in the processor's order; `fx` is an FXSAVE64 image whose XMM fields are not used.
struct Registers {
  std::array<std::uint64_t, 16> gpr{};
  std::uint64_t rflags = 2;
  std::uint64_t rip = 0;
  alignas(16) std::array<std::uint8_t, 512> fx{};
  alignas(32) std::array<std::array<std::uint64_t, 4>, 16> ymm{};
};

struct Case {
  Registers before;
  std::array<std::uint8_t, 16> code{};
  std::uint32_t length = 0;
  std::uint32_t bits = 64;         ///< or 32
  std::uint64_t patch_at = kData;  ///< where `patch` replaces the pattern
  std::array<std::uint8_t, 32> patch{};
};

struct Result {
  Registers after;
  std::uint32_t vector = 0;  ///< 3 at `rip` just behind a breakpoint, or the exception
  std::uint32_t error = 0;
  std::uint64_t cr2 = 0;  ///< of a page fault
  /// Bytes of the data window that changed: from the first to the last (all ones: none), hashed.
  std::uint32_t changed_first = ~0U, changed_last = 0;
  std::uint64_t changed_hash = 0;
};

inline constexpr std::uint32_t kBatch = 2048;

struct Batch {
  std::uint32_t count = 0;
  std::uint32_t current = 0;  ///< the case the executor is at
  alignas(64) std::array<std::uint8_t, kPatternBytes> pattern{};
  std::array<Case, kBatch> cases{};
  std::array<Result, kBatch> results{};
};

/// Puts breakpoints back over the case's instruction and whatever it stored among them. True: more
/// than the instruction had changed.
inline bool restore_code(std::uint8_t* code, const Case& c) {
  const std::size_t at = c.before.rip - kCode;
  for (std::size_t i = at; i < at + c.length; ++i) code[i] = kBreakpoint;
  constexpr std::uint64_t kFill = kBreakpoint * 0x0101'0101'0101'0101ULL;
  bool more = false;
  for (std::size_t word = 0; word < kCodeBytes; word += 8) {
    std::uint64_t now = 0;
    __builtin_memcpy(&now, code + word, 8);
    if (now == kFill) continue;
    more = true;
    for (std::size_t i = word; i < word + 8; ++i) code[i] = kBreakpoint;
  }
  return more;
}

/// Compares the window with what it was, fills in changed_*, and puts it back. Not a library call:
/// the executor must not touch vector registers behind the compiler's back.
inline void take_changes(std::uint8_t* window, const std::uint8_t* pattern, const Case& c,
                         Result& out) {
  const std::size_t patch = c.patch_at - kData;
  const auto before = [&](std::size_t i) {
    return i - patch < c.patch.size() ? c.patch[i - patch] : pattern[i];
  };
  out.changed_first = ~0U;
  out.changed_last = 0;
  out.changed_hash = 0;
  std::uint64_t h = 0;
  for (std::size_t word = 0; word < kWritableBytes; word += 8) {
    std::uint64_t now = 0, then = 0;
    __builtin_memcpy(&now, window + word, 8);
    __builtin_memcpy(&then, pattern + word, 8);
    if (now == then && (word + 8 <= patch || word >= patch + c.patch.size())) continue;
    for (std::size_t i = word; i < word + 8; ++i) {
      if (window[i] != before(i)) {
        if (out.changed_first == ~0U) out.changed_first = static_cast<std::uint32_t>(i);
        out.changed_last = static_cast<std::uint32_t>(i);
        h = (h ^ (i << 8 | window[i])) * 0x9E3779B97F4A7C15ULL;
        h ^= h >> 29;
      }
      window[i] = pattern[i];
    }
  }
  out.changed_hash = h;
}

}  // namespace strata::differential
