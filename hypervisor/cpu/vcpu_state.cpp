#include "cpu/vcpu_state.hpp"

#include <cstring>

namespace strata::cpu {

void reset_x87(VectorState& v) noexcept {
  v.legacy.fill(std::byte{0});
  const std::uint16_t fcw = 0x037F;
  std::memcpy(v.legacy.data(), &fcw, sizeof fcw);
  std::memcpy(v.legacy.data() + 24, &v.mxcsr, sizeof v.mxcsr);
}

VcpuState flat_protected_mode(std::uint32_t entry) noexcept {
  VcpuState s;
  s.rip = entry;
  s.cr0 = cr0::PE | cr0::ET | cr0::NE;
  const Segment code{0, 0xFFFFFFFF, 0x08, 0xC09B};
  const Segment data{0, 0xFFFFFFFF, 0x10, 0xC093};
  s.segment.fill(data);
  s.segment[CS] = code;
  s.tr = Segment{0, 0x67, 0x18, 0x008B};
  reset_x87(s.vector);
  return s;
}

}  // namespace strata::cpu
