// Frames of machine memory for tables and shared pages, and the one way from MA to a host pointer.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "mmu/address.hpp"
#include "mmu/expected.hpp"

namespace strata {

/// What a frame is for; every frame is accounted under one of these.
enum class FrameKind : std::uint8_t {
  p2m_node,      ///< interior P2M tables
  p2m_leaf,      ///< P2M tables with an entry a 4 KiB page
  shadow_table,  ///< shadow page tables
  nested_table,  ///< EPT or NPT tables
  shared_page,   ///< guest contents shared by several PPNs, the zero frame among them
  other,
};
inline constexpr std::size_t kFrameKinds = 6;

struct OutOfFrames {};

/// Machine memory as this process sees it: one reserved range in which every segment is mapped at
/// its machine address. Copyable; valid while the machine memory it came from lives. Thread-safe.
class MachineWindow {
 public:
  constexpr MachineWindow() noexcept = default;
  constexpr explicit MachineWindow(std::byte* base) noexcept : base_{base} {}
  [[nodiscard]] std::byte* host(MA ma) const noexcept { return base_ + ma.value(); }
  /// The 64-bit words of the table (or page) in frame `mpn`.
  [[nodiscard]] std::uint64_t* words(MPN mpn) const noexcept {
    return reinterpret_cast<std::uint64_t*>(host(address_of(mpn)));
  }
  /// Inverse of host(). `pointer` must lie inside the window.
  [[nodiscard]] MA machine(const void* pointer) const noexcept {
    return MA{static_cast<std::uint64_t>(static_cast<const std::byte*>(pointer) - base_)};
  }

 private:
  std::byte* base_ = nullptr;
};

/// Gives and takes single frames. Thread-safe. Implemented by machine memory; tests implement it
/// to inject exhaustion.
class FrameSource {
 public:
  FrameSource() = default;
  FrameSource(const FrameSource&) = delete;
  FrameSource& operator=(const FrameSource&) = delete;
  virtual ~FrameSource() = default;
  /// A zeroed frame.
  virtual Expected<MPN, OutOfFrames> allocate(FrameKind kind) = 0;
  /// Takes the frame back at once: the caller knows that nobody uses it any more (see Flush).
  virtual void release(MPN mpn, FrameKind kind) noexcept = 0;
  [[nodiscard]] virtual MachineWindow window() const noexcept = 0;
  /// Frames now allocated of each kind, indexed by FrameKind.
  [[nodiscard]] virtual std::array<std::uint64_t, kFrameKinds> in_use() const noexcept = 0;
};

}  // namespace strata
