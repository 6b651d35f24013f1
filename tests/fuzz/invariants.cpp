#include "invariants.hpp"

#include <fmt/format.h>

#include <array>
#include <bit>

#include "guest_layout.hpp"

namespace strata::fuzz {
namespace {

namespace cr0 = cpu::cr0;
namespace cr4 = cpu::cr4;
namespace efer = cpu::efer;
namespace rf = cpu::rflags;
using cpu::VcpuState;

bool canonical(std::uint64_t va) {
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(va << 16) >> 16) == va;
}

/// SDM 3A 2.5, 2.2.1, 4.1: reserved bits and combinations that loads refuse.
std::string broken_controls(const VcpuState& s, const cpu::CpuModel& model) {
  constexpr std::uint64_t kCr0 = cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE |
                                 cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
  const bool pe = (s.cr0 & cr0::PE) != 0, pg = (s.cr0 & cr0::PG) != 0;
  const bool lma = (s.efer & efer::LMA) != 0, lme = (s.efer & efer::LME) != 0;
  if ((s.cr0 & ~kCr0) != 0) return fmt::format("CR0 has reserved bits: {:#x}", s.cr0);
  if (pg && !pe) return "CR0.PG without PE";
  if ((s.cr0 & cr0::NW) != 0 && (s.cr0 & cr0::CD) == 0) return "CR0.NW without CD";
  if (lma != (lme && pg)) return fmt::format("EFER {:#x} with CR0 {:#x}", s.efer, s.cr0);
  if ((s.efer & ~(model.efer_mask() | efer::LMA)) != 0) {
    return fmt::format("EFER has reserved bits: {:#x}", s.efer);
  }
  if ((s.cr4 & ~model.cr4_mask()) != 0) return fmt::format("CR4 has reserved bits: {:#x}", s.cr4);
  if (lma && (s.cr4 & cr4::PAE) == 0) return "IA-32e mode without CR4.PAE";
  if ((s.cr4 & cr4::PCIDE) != 0 && !lma) return "CR4.PCIDE outside IA-32e mode";
  if (s.cr3 >> model.maxphyaddr() != 0) return fmt::format("CR3 beyond memory: {:#x}", s.cr3);
  return {};
}

std::string broken_flags(const VcpuState& s) {
  constexpr std::uint64_t kKnown = rf::ARITHMETIC | rf::FIXED | rf::TF | rf::IF | rf::DF |
                                   rf::IOPL | rf::NT | rf::RF | rf::VM | rf::AC | rf::VIF |
                                   rf::VIP | rf::ID;
  if ((s.rflags & ~kKnown) != 0 || (s.rflags & rf::FIXED) == 0) {
    return fmt::format("RFLAGS {:#x}", s.rflags);
  }
  if ((s.rflags & rf::VM) != 0 && ((s.efer & efer::LMA) != 0 || (s.cr0 & cr0::PE) == 0)) {
    return "RFLAGS.VM outside protected mode";
  }
  return {};
}

std::string broken_addresses(const VcpuState& s) {
  const bool wide = (s.efer & efer::LMA) != 0 && s.segment[cpu::CS].long_mode();
  if (!wide && s.rip >> 32 != 0) return fmt::format("RIP {:#x} in 32-bit code", s.rip);
  // The end of the last canonical instruction may be the first address that is not.
  if (wide && !canonical(s.rip) && !canonical(s.rip - 15)) {
    return fmt::format("RIP {:#x} is not canonical", s.rip);
  }
  const std::array<std::uint64_t, 6> addresses = {s.msr.lstar,          s.msr.cstar,
                                                  s.msr.sysenter_eip,   s.msr.sysenter_esp,
                                                  s.msr.kernel_gs_base, s.segment[cpu::GS].base};
  for (const std::uint64_t a : addresses) {
    if (!canonical(a)) return fmt::format("a base of {:#x} is not canonical", a);
  }
  return {};
}

std::string broken_segments(const VcpuState& s) {
  for (std::size_t i = 0; i < s.segment.size(); ++i) {
    const cpu::Segment& g = s.segment[i];
    if (g.attributes >> 17 != 0) return fmt::format("segment attributes {:#x}", g.attributes);
    // FS and GS have MSRs of 64 bits in every mode (SDM 3A 3.4.4).
    if ((s.efer & efer::LMA) == 0 && i < cpu::FS && g.base >> 32 != 0) {
      return fmt::format("segment base {:#x} outside IA-32e mode", g.base);
    }
  }
  if (s.segment[cpu::CS].unusable()) return "CS is unusable";
  return {};
}

std::string broken_units(const VcpuState& s, const cpu::CpuModel& model) {
  const std::uint64_t xcr0 = s.vector.xcr0;
  if ((xcr0 & 1) == 0 || (xcr0 & ~model.xcr0_mask()) != 0 || (xcr0 & 6) == 4) {
    return fmt::format("XCR0 {:#x}", xcr0);
  }
  if (s.vector.mxcsr >> 16 != 0) return fmt::format("MXCSR {:#x}", s.vector.mxcsr);
  if (s.dr[6] >> 32 != 0 || s.dr[7] >> 32 != 0 || (s.dr[7] & 0x400) == 0) {
    return fmt::format("DR6 {:#x} DR7 {:#x}", s.dr[6], s.dr[7]);
  }
  return {};
}

}  // namespace

std::string broken_rule(const VcpuState& s, const cpu::CpuModel& model) {
  if (auto why = broken_controls(s, model); !why.empty()) return why;
  if (auto why = broken_flags(s); !why.empty()) return why;
  if (auto why = broken_addresses(s); !why.empty()) return why;
  if (auto why = broken_segments(s); !why.empty()) return why;
  return broken_units(s, model);
}

std::string broken_exit(const engine::Exit& e, const cpu::CpuModel& model) {
  using engine::ExitKind;
  const bool port = e.kind == ExitKind::port_read || e.kind == ExitKind::port_write;
  const bool mmio = e.kind == ExitKind::mmio_read || e.kind == ExitKind::mmio_write;
  if (port || mmio) {
    if (!std::has_single_bit(e.size) || e.size > (port ? 4 : 8)) {
      return fmt::format("{} of {} bytes", name_of(e.kind), e.size);
    }
    const unsigned bits = e.size * 8U;
    if (bits < 64 && e.data >> bits != 0) {
      return fmt::format("{} of {} bytes with data {:#x}", name_of(e.kind), e.size, e.data);
    }
  }
  if (mmio && e.pa.value() >> model.maxphyaddr() != 0) {
    return fmt::format("MMIO at {:#x}", e.pa.value());
  }
  if (mmio && e.pa.value() < layout::kRamEnd) {
    return fmt::format("MMIO exit for memory at {:#x}", e.pa.value());
  }
  return {};
}

namespace {

/// Of what is not in every report: x87 and vector registers, debug registers, events held off.
std::string rest_of_difference(const VcpuState& a, const VcpuState& b) {
  const cpu::VectorState& v = a.vector;
  const cpu::VectorState& w = b.vector;
  for (std::size_t i = 0; i < 160; ++i) {
    // MXCSR is elsewhere, and six bytes of each register's slot are reserved.
    const bool nothing = i >= 24 && (i < 32 || i % 16 >= 10);
    if (nothing || v.legacy[i] == w.legacy[i]) continue;
    return fmt::format("FXSAVE image byte {}: {:#x} {:#x}", i, static_cast<unsigned>(v.legacy[i]),
                       static_cast<unsigned>(w.legacy[i]));
  }
  for (std::size_t i = 0; i < v.ymm.size(); ++i) {
    for (std::size_t j = 0; j < 4; ++j) {
      if (v.ymm[i][j] == w.ymm[i][j]) continue;
      return fmt::format("ymm{}[{}]: {:#x} {:#x}", i, j, v.ymm[i][j], w.ymm[i][j]);
    }
  }
  if (v.mxcsr != w.mxcsr) return fmt::format("mxcsr: {:#x} {:#x}", v.mxcsr, w.mxcsr);
  for (std::size_t i = 0; i < a.dr.size(); ++i) {
    if (a.dr[i] != b.dr[i]) return fmt::format("dr{}: {:#x} {:#x}", i, a.dr[i], b.dr[i]);
  }
  if (a.halted != b.halted) return fmt::format("halted: {} {}", a.halted, b.halted);
  if (a.interrupt_shadow != b.interrupt_shadow || a.debug_shadow != b.debug_shadow ||
      a.nmi_blocked != b.nmi_blocked || a.pending_debug != b.pending_debug) {
    return fmt::format("shadows: {} {} {} {:#x} against {} {} {} {:#x}", a.interrupt_shadow,
                       a.debug_shadow, a.nmi_blocked, a.pending_debug, b.interrupt_shadow,
                       b.debug_shadow, b.nmi_blocked, b.pending_debug);
  }
  if (a.msr != b.msr) return "an MSR";
  return a == b ? std::string{} : std::string{"another part of the state"};
}

}  // namespace

std::string difference(const VcpuState& a, const VcpuState& b) {
  for (std::size_t i = 0; i < a.gpr.size(); ++i) {
    if (a.gpr[i] != b.gpr[i]) return fmt::format("r{}: {:#x} {:#x}", i, a.gpr[i], b.gpr[i]);
  }
  if (a.rip != b.rip) return fmt::format("rip: {:#x} {:#x}", a.rip, b.rip);
  if (a.rflags != b.rflags) return fmt::format("rflags: {:#x} {:#x}", a.rflags, b.rflags);
  for (std::size_t i = 0; i < a.segment.size(); ++i) {
    if (a.segment[i] != b.segment[i]) {
      return fmt::format("segment {}: {:#x} {:#x}", i, a.segment[i].selector,
                         b.segment[i].selector);
    }
  }
  if (a.cr0 != b.cr0 || a.cr2 != b.cr2 || a.cr3 != b.cr3 || a.cr4 != b.cr4 || a.efer != b.efer) {
    return fmt::format("cr0 {:#x} {:#x} cr2 {:#x} {:#x} cr3 {:#x} {:#x} cr4 {:#x} {:#x}", a.cr0,
                       b.cr0, a.cr2, b.cr2, a.cr3, b.cr3, a.cr4, b.cr4);
  }
  return rest_of_difference(a, b);
}

}  // namespace strata::fuzz
