// Running vector thunks: operands in and out of the vCPU, MXCSR, #XM.
#pragma once

#include <array>
#include <cstdint>

#include "engines/interp/host_thunk.hpp"
#include "engines/interp/vector.hpp"

namespace strata::interp {

/// MXCSR (SDM 1 10.2.3).
namespace mxcsr {
inline constexpr std::uint32_t kInvalid = 1, kDenormal = 2, kDivideByZero = 4, kOverflow = 8,
                               kUnderflow = 16, kPrecision = 32, kFlags = 0x3F, kDaz = 0x40,
                               kMasks = 0x1F80, kRounding = 0x6000, kFtz = 0x8000;
}

[[nodiscard]] inline std::uint32_t host_mxcsr() noexcept {
  std::uint32_t v = 0;
  asm volatile("stmxcsr %0" : "=m"(v));
  return v;
}
inline void set_host_mxcsr(std::uint32_t v) noexcept { asm volatile("ldmxcsr %0" : : "m"(v)); }

/// Calls the thunk of step `u`; a patched one goes through the cache.
std::uint32_t call_thunk(const HostThunk& t, const Uop* u, const std::array<void*, 4>& v,
                         ThunkFrame* frame, void* memory);

/// Puts the guest's rounding and denormal controls into `frame`.
void prepare_floating(const Core& core, ThunkFrame& frame) noexcept;

/// The flags that an instruction with an unmasked exception leaves in MXCSR. `raised` is what the
/// thunk saw; `v` and `memory` are its operands, unchanged.
[[nodiscard]] std::uint32_t flags_of_exception(const HostThunk& t, const Uop* u,
                                               const ThunkFrame& frame, std::uint32_t raised,
                                               const std::array<void*, 4>& v, void* memory);

/// Sets `flags` and raises #XM, or #UD where the operating system does not handle it
/// (SDM 3A 2.5, CR4.OSXMMEXCPT).
const Uop* raise_simd(Core& core, const Uop* u, std::uint32_t flags) noexcept;

/// The host bytes of a readable operand: in place where the TLB allows, else copied to `buffer`.
/// Null: abort.
[[nodiscard]] inline void* thunk_source(Core& core, std::uint64_t va, unsigned size, void* buffer) {
  const TlbEntry& e = core.dtlb[tlb_index(va, core.pcid)];
  if (e.read_tag == (((va + size - 1) & ~kPageMask) | core.pcid)) [[likely]] {
    return reinterpret_cast<void*>(va + e.addend);
  }
  return core.load_bytes(va, buffer, size) ? buffer : nullptr;
}

/// vector_mmx.cpp: emits the step of a form that uses MMX registers.
void emit_mmx_thunk(Lowering& l, Uop u);

}  // namespace strata::interp
