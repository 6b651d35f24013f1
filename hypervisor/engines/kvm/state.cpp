#include "engines/kvm/state.hpp"

#include <cstring>

namespace strata::kvm {

namespace {

/// XSAVE area: legacy region, header, components (SDM 1 13.4). Offsets in bytes.
constexpr std::size_t kLegacyBytes = 512;
constexpr std::size_t kMxcsr = 24;
constexpr std::size_t kMxcsrMask = 28;
constexpr std::size_t kXmm = 160;
constexpr std::size_t kXmmEnd = kXmm + 256;
constexpr std::size_t kXstateBv = 512;
constexpr std::uint64_t kX87 = 1, kSse = 2, kAvx = 4, kPkru = 1U << 9;

std::byte* area_of(Xsave& x) noexcept { return reinterpret_cast<std::byte*>(x.data()); }
const std::byte* area_of(const Xsave& x) noexcept {
  return reinterpret_cast<const std::byte*>(x.data());
}

kvm_dtable to_kvm(const cpu::DescriptorTable& t) noexcept {
  kvm_dtable k{};
  k.base = t.base;
  k.limit = t.limit;
  return k;
}

void put_vectors(const cpu::VcpuState& state, const XsaveLayout& layout, Xsave& xsave) {
  const cpu::VectorState& v = state.vector;
  std::byte* area = area_of(xsave);
  xsave.fill(0);
  std::memcpy(area, v.legacy.data(), kXmm);
  std::memcpy(area + kMxcsr, &v.mxcsr, sizeof v.mxcsr);
  std::uint64_t bv = kX87 | kSse;
  for (std::size_t i = 0; i < v.ymm.size(); ++i) {
    std::memcpy(area + kXmm + 16 * i, v.ymm[i].data(), 16);
  }
  if ((layout.components & kAvx) != 0) {
    bv |= kAvx;
    for (std::size_t i = 0; i < v.ymm.size(); ++i) {
      std::memcpy(area + layout.avx_offset + 16 * i, &v.ymm[i][2], 16);
    }
  }
  if ((layout.components & kPkru) != 0) {
    bv |= kPkru;
    std::memcpy(area + layout.pkru_offset, &state.pkru, sizeof state.pkru);
  }
  std::memcpy(area + kXstateBv, &bv, sizeof bv);
}

/// A component whose XSTATE_BV bit is clear is in its initial state, whatever the bytes say.
void get_vectors(const Xsave& xsave, const XsaveLayout& layout, cpu::VcpuState& state) {
  cpu::VectorState& v = state.vector;
  const std::byte* area = area_of(xsave);
  std::uint64_t bv = 0;
  std::memcpy(&bv, area + kXstateBv, sizeof bv);
  std::memcpy(&v.mxcsr, area + kMxcsr, sizeof v.mxcsr);
  if ((bv & kX87) != 0) {
    v.legacy.fill(std::byte{0});
    std::memcpy(v.legacy.data(), area, kXmm);
    std::memcpy(v.legacy.data() + kMxcsr, &v.mxcsr, sizeof v.mxcsr);
    std::memset(v.legacy.data() + kMxcsrMask, 0, 4);
  } else {
    cpu::reset_x87(v);
  }
  const bool avx = (bv & layout.components & kAvx) != 0;
  for (std::size_t i = 0; i < v.ymm.size(); ++i) {
    v.ymm[i] = {};
    if ((bv & kSse) != 0) std::memcpy(v.ymm[i].data(), area + kXmm + 16 * i, 16);
    if (avx) std::memcpy(&v.ymm[i][2], area + layout.avx_offset + 16 * i, 16);
  }
  state.pkru = 0;
  if ((bv & layout.components & kPkru) != 0) {
    std::memcpy(&state.pkru, area + layout.pkru_offset, sizeof state.pkru);
  }
}
static_assert(kXmmEnd <= kLegacyBytes);

/// kvm_regs names the registers in its own order.
constexpr std::array kGeneral{&kvm_regs::rax, &kvm_regs::rcx, &kvm_regs::rdx, &kvm_regs::rbx,
                              &kvm_regs::rsp, &kvm_regs::rbp, &kvm_regs::rsi, &kvm_regs::rdi,
                              &kvm_regs::r8,  &kvm_regs::r9,  &kvm_regs::r10, &kvm_regs::r11,
                              &kvm_regs::r12, &kvm_regs::r13, &kvm_regs::r14, &kvm_regs::r15};
constexpr std::array kSegments{&kvm_sregs::es, &kvm_sregs::cs, &kvm_sregs::ss,
                               &kvm_sregs::ds, &kvm_sregs::fs, &kvm_sregs::gs};

}  // namespace

kvm_segment to_kvm(const cpu::Segment& s) noexcept {
  const auto bits = [&](unsigned shift, unsigned mask) {
    return static_cast<std::uint8_t>(s.attributes >> shift & mask);
  };
  kvm_segment k{};
  k.base = s.base;
  k.limit = s.limit;
  k.selector = s.selector;
  k.type = bits(0, 0xF);
  k.s = bits(4, 1);
  k.dpl = bits(5, 3);
  k.present = bits(7, 1);
  k.avl = bits(12, 1);
  k.l = bits(13, 1);
  k.db = bits(14, 1);
  k.g = bits(15, 1);
  k.unusable = bits(16, 1);
  return k;
}

cpu::Segment from_kvm(const kvm_segment& k) noexcept {
  cpu::Segment s;
  s.base = k.base;
  s.limit = k.limit;
  s.selector = k.selector;
  s.attributes = (k.type & 0xFU) | (k.s & 1U) << 4 | (k.dpl & 3U) << 5 | (k.present & 1U) << 7 |
                 (k.avl & 1U) << 12 | (k.l & 1U) << 13 | (k.db & 1U) << 14 | (k.g & 1U) << 15 |
                 (k.unusable & 1U) << 16;
  return s;
}

void put_state(const cpu::VcpuState& state, const XsaveLayout& layout, Registers& r) noexcept {
  for (std::size_t i = 0; i < kGeneral.size(); ++i) r.general.*kGeneral[i] = state.gpr[i];
  r.general.rip = state.rip;
  r.general.rflags = state.rflags;
  for (std::size_t i = 0; i < kSegments.size(); ++i) {
    r.special.*kSegments[i] = to_kvm(state.segment[i]);
  }
  r.special.ldt = to_kvm(state.ldtr);
  r.special.tr = to_kvm(state.tr);
  r.special.gdt = to_kvm(state.gdtr);
  r.special.idt = to_kvm(state.idtr);
  r.special.cr0 = state.cr0;
  r.special.cr2 = state.cr2;
  r.special.cr3 = state.cr3;
  r.special.cr4 = state.cr4;
  r.special.efer = state.efer;
  for (std::size_t i = 0; i < 4; ++i) r.debug.db[i] = state.dr[i];
  r.debug.dr6 = state.dr[6];
  r.debug.dr7 = state.dr[7];
  r.xcr0 = state.vector.xcr0;
  put_vectors(state, layout, r.extended);
}

void get_state(const Registers& r, const XsaveLayout& layout, cpu::VcpuState& state) noexcept {
  for (std::size_t i = 0; i < kGeneral.size(); ++i) state.gpr[i] = r.general.*kGeneral[i];
  state.rip = r.general.rip;
  state.rflags = r.general.rflags;
  for (std::size_t i = 0; i < kSegments.size(); ++i) {
    state.segment[i] = from_kvm(r.special.*kSegments[i]);
  }
  state.ldtr = from_kvm(r.special.ldt);
  state.tr = from_kvm(r.special.tr);
  state.gdtr = {r.special.gdt.base, r.special.gdt.limit};
  state.idtr = {r.special.idt.base, r.special.idt.limit};
  state.cr0 = r.special.cr0;
  state.cr2 = r.special.cr2;
  state.cr3 = r.special.cr3;
  state.cr4 = r.special.cr4;
  state.efer = r.special.efer;
  for (std::size_t i = 0; i < 4; ++i) state.dr[i] = r.debug.db[i];
  state.dr[6] = r.debug.dr6;
  state.dr[7] = r.debug.dr7;
  state.vector.xcr0 = r.xcr0;
  get_vectors(r.extended, layout, state);
}

std::array<kvm_msr_entry, kStateMsrs> list_msrs(const cpu::Msrs& msrs) noexcept {
  std::array<kvm_msr_entry, kStateMsrs> list{};
  std::size_t n = 0;
  const auto add = [&](std::uint32_t index, std::uint64_t value) {
    list[n].index = index;
    list[n].data = value;
    ++n;
  };
  for (const MsrField& f : kMsrFields) add(f.index, msrs.*f.field);
  for (std::size_t i = 0; i < kFixedMtrrs.size(); ++i) add(kFixedMtrrs[i], msrs.mtrr_fixed[i]);
  for (std::uint32_t i = 0; i < 16; ++i) add(kFirstVariableMtrr + i, msrs.mtrr_variable[i]);
  return list;
}

void store_msr(cpu::Msrs& msrs, std::size_t position, std::uint64_t value) noexcept {
  if (position < kMsrFields.size()) {
    msrs.*kMsrFields[position].field = value;
    return;
  }
  position -= kMsrFields.size();
  if (position < kFixedMtrrs.size()) {
    msrs.mtrr_fixed[position] = value;
  } else {
    msrs.mtrr_variable[position - kFixedMtrrs.size()] = value;
  }
}

}  // namespace strata::kvm
