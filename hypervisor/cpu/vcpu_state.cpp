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

VcpuState after_init(const VcpuState& before, std::uint32_t signature) noexcept {
  VcpuState s;
  s.msr = before.msr;
  s.vector = before.vector;
  s.pkru = before.pkru;
  s.gpr[RDX] = signature;
  s.cr0 = (before.cr0 & (cr0::CD | cr0::NW)) | cr0::ET;
  s.rip = 0xFFF0;
  s.segment.fill(Segment{0, 0xFFFF, 0, 0x0093});
  s.segment[CS] = Segment{0xFFFF0000, 0xFFFF, 0xF000, 0x009B};
  s.ldtr = Segment{0, 0xFFFF, 0, 0x0082};
  s.tr = Segment{0, 0xFFFF, 0, 0x008B};
  s.gdtr = s.idtr = DescriptorTable{0, 0xFFFF};
  return s;
}

void start_up(VcpuState& state, std::uint8_t vector) noexcept {
  state.segment[CS].selector = static_cast<std::uint16_t>(vector << 8);
  state.segment[CS].base = static_cast<std::uint64_t>(vector) << 12;
  state.rip = 0;
}

}  // namespace strata::cpu
