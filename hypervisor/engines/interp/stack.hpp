// The stack as PUSH, POP, CALL and RET see it. In 64-bit mode it is flat and RSP is 64 bits wide;
// elsewhere SS has a base and SS.B says how much of ESP counts (SDM 1 6.2.3).
#pragma once

#include <cstdint>

#include "engines/interp/access.hpp"

namespace strata::interp {

inline constexpr std::uint8_t kSp = cpu::RSP * 8;

/// Long: 64-bit mode.
template <bool Long>
struct Stack {
  /// SP plus `delta`, wrapped to the stack's width.
  [[gnu::always_inline]] static std::uint64_t moved(const Core& core,
                                                    std::uint64_t delta) noexcept {
    const std::uint64_t sp = core.r[cpu::RSP] + delta;
    if constexpr (Long) return sp;
    return core.decode_mode.stack32 ? static_cast<std::uint32_t>(sp)
                                    : static_cast<std::uint16_t>(sp);
  }
  [[gnu::always_inline]] static std::uint64_t wrapped(const Core& core, std::uint64_t sp) noexcept {
    if constexpr (Long) return sp;
    return core.decode_mode.stack32 ? static_cast<std::uint32_t>(sp)
                                    : static_cast<std::uint16_t>(sp);
  }
  [[gnu::always_inline]] static std::uint64_t linear(const Core& core, std::uint64_t sp) noexcept {
    if constexpr (Long) return sp;
    return static_cast<std::uint32_t>(core.segment_base[cpu::SS] + sp);
  }
  [[gnu::always_inline]] static void commit(Core& core, std::uint64_t sp) noexcept {
    if constexpr (Long) {
      core.r[cpu::RSP] = sp;
    } else if (core.decode_mode.stack32) {
      core.set_reg<std::uint32_t>(kSp, static_cast<std::uint32_t>(sp));
    } else {
      core.set_reg<std::uint16_t>(kSp, static_cast<std::uint16_t>(sp));
    }
  }
};

/// Stores `v` below the stack's top and moves the top there.
template <bool Long, class T>
[[nodiscard, gnu::always_inline]] inline bool push_value(Core& core, T v) {
  const std::uint64_t sp = Stack<Long>::moved(core, 0 - std::uint64_t{sizeof(T)});
  if (!core.store<T>(Stack<Long>::linear(core, sp), v)) return false;
  Stack<Long>::commit(core, sp);
  return true;
}

/// Reads the top without moving it.
template <bool Long, class T>
[[nodiscard, gnu::always_inline]] inline bool peek_value(Core& core, T& v) {
  return load_value(core, Stack<Long>::linear(core, Stack<Long>::moved(core, 0)), v);
}

}  // namespace strata::interp
