// The x87 register state as VectorState::legacy keeps it, and conversions of it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engines/interp/vector.hpp"

namespace strata::interp {

/// The first 160 bytes of an FXSAVE64 image: control words, pointers and ST0-ST7.
inline constexpr std::size_t kX87Bytes = 160;

/// The first `Bytes` of an FXSAVE image, with its fields by offset.
template <std::size_t Bytes>
struct FxBytes {
  std::array<std::byte, Bytes> bytes;

  template <class T>
  [[nodiscard]] T get(std::size_t at) const noexcept {
    T v;
    std::memcpy(&v, bytes.data() + at, sizeof v);
    return v;
  }
  template <class T>
  void set(std::size_t at, T v) noexcept {
    std::memcpy(bytes.data() + at, &v, sizeof v);
  }
  friend bool operator==(const FxBytes&, const FxBytes&) = default;
};

/// x87 state by value. Bytes 24 to 31 (MXCSR) are not part of it and zero.
struct X87Image : FxBytes<kX87Bytes> {
  constexpr X87Image() noexcept : FxBytes{} {}
  [[nodiscard]] unsigned top() const noexcept { return get<std::uint16_t>(fx::kFsw) >> 11 & 7U; }
  /// Changes TOP and leaves the physical registers where they are: the image lists them from the
  /// top of the stack on (SDM 1 10.5.1.1).
  void set_top(unsigned top) noexcept;
  /// ES and B say whether a flag is set that the control word does not mask (SDM 1 8.1.3.3).
  void update_summary() noexcept;
  friend bool operator==(const X87Image&, const X87Image&) = default;
};

/// The initial configuration (SDM 1 13.6): as FNINIT leaves it, registers zero.
[[nodiscard]] X87Image initial_x87() noexcept;

/// Turns bytes a guest made up into a state the processor can have, by letting the host load and
/// save them: reserved bits go, ES and B follow the flags. Pointers lose their reserved bits only.
void canonicalise_x87(X87Image& image) noexcept;

/// The x87 part of the vCPU's state.
[[nodiscard]] X87Image get_x87(const Core& core) noexcept;
void set_x87(Core& core, const X87Image& image) noexcept;

/// XSAVE components that are not in their initial configuration: XINUSE (SDM 1 13.6).
[[nodiscard]] std::uint64_t xstate_in_use(const Core& core) noexcept;

}  // namespace strata::interp
