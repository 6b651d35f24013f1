// SYSCALL, SYSENTER, their returns, and SWAPGS (SDM 2B; SDM 3A 5.8.7, 5.8.8).
#include <utility>

#include "cpu/cpu_model.hpp"
#include "engines/interp/core.hpp"
#include "engines/interp/segments.hpp"
#include "engines/interp/system.hpp"

namespace strata::interp {

namespace rf = cpu::rflags;
using cpu::Segment;

namespace {

/// Attributes of the flat segments these instructions load without reading a table, DPL 0.
constexpr std::uint32_t kCode64 = 0xA09B, kCode32 = 0xC09B, kData = 0xC093;

Segment flat(std::uint32_t attributes, std::uint64_t selector, unsigned level) {
  return {0, 0xFFFFFFFF, static_cast<std::uint16_t>((selector & 0xFFFC) | level),
          attributes | level << 5};
}

void enter_level(Core& core, std::uint32_t code, std::uint64_t cs, std::uint64_t ss,
                 unsigned level) {
  put_segment(core, cpu::CS, flat(code, cs, level));
  put_segment(core, cpu::SS, flat(kData, ss, level));
}

const Uop* syscall(Core& core, const Uop* u) {
  // Intel's SYSCALL exists in 64-bit mode only; AMD's in compatibility mode too, where it goes to
  // CSTAR (AMD APM 3, SYSCALL).
  const bool compatible = ia32e(core) && !core.long_mode() && core.env.model->is_amd();
  const bool exists = core.long_mode() || compatible;
  if (!exists || (core.arch.efer & cpu::efer::SCE) == 0) return core.fault(u, cpu::UD);
  const cpu::Msrs& m = core.arch.msr;
  const std::uint64_t flags = core.rflags() & ~rf::RF;
  const std::uint64_t selector = m.star >> 32 & 0xFFFC;
  core.r[cpu::RCX] = core.next_pc(u);
  core.r[cpu::R11] = flags;
  enter_level(core, kCode64, selector, selector + 8, 0);
  core.set_rflags(flags & ~m.sfmask);
  core.step_trap_by_new_flags();
  return core.finish_at(u, compatible ? m.cstar : m.lstar);
}

/// aux: operand size; 8 returns to 64-bit mode, 4 to compatibility mode.
const Uop* sysret(Core& core, const Uop* u) {
  if (!core.long_mode() || (core.arch.efer & cpu::efer::SCE) == 0) return core.fault(u, cpu::UD);
  if (core.cpl != 0) return core.fault(u, cpu::GP, 0);
  const std::uint64_t target = core.r[cpu::RCX];
  const bool to_64bit = u->aux == 8;
  // Raised here, at CPL 0 and on the user's stack pointer: Intel's order of things.
  if (to_64bit && !canonical(target)) return core.fault(u, cpu::GP, 0);
  const std::uint64_t selector = core.arch.msr.star >> 48;
  enter_level(core, to_64bit ? kCode64 : kCode32, to_64bit ? selector + 16 : selector, selector + 8,
              3);
  constexpr std::uint64_t kKept = 0x3C7FD7;  // all but RF, VM and the reserved ones
  core.set_rflags(core.r[cpu::R11] & kKept);
  core.step_trap_by_new_flags();
  return core.finish_at(u, to_64bit ? target : static_cast<std::uint32_t>(target));
}

bool sysenter_allowed(const Core& core) {
  return protected_mode(core) && (core.arch.msr.sysenter_cs & 0xFFFC) != 0;
}

const Uop* sysenter(Core& core, const Uop* u) {
  if (!sysenter_allowed(core)) return core.fault(u, cpu::GP, 0);
  const cpu::Msrs& m = core.arch.msr;
  const std::uint64_t mask = ia32e(core) ? ~0ULL : 0xFFFFFFFFULL;
  enter_level(core, ia32e(core) ? kCode64 : kCode32, m.sysenter_cs, m.sysenter_cs + 8, 0);
  core.r[cpu::RSP] = m.sysenter_esp & mask;
  core.set_rflags(core.rflags() & ~(rf::IF | rf::VM | rf::RF));
  return core.finish_at(u, m.sysenter_eip & mask);
}

const Uop* sysexit(Core& core, const Uop* u) {
  if (!sysenter_allowed(core) || core.cpl != 0) return core.fault(u, cpu::GP, 0);
  const bool to_64bit = u->aux == 8;
  const std::uint64_t rsp = core.r[cpu::RCX];
  const std::uint64_t target = core.r[cpu::RDX];
  if (to_64bit && !(canonical(rsp) && canonical(target))) return core.fault(u, cpu::GP, 0);
  const std::uint64_t mask = to_64bit ? ~0ULL : 0xFFFFFFFFULL;
  const std::uint64_t cs = core.arch.msr.sysenter_cs + (to_64bit ? 32 : 16);
  enter_level(core, to_64bit ? kCode64 : kCode32, cs, cs + 8, 3);
  core.r[cpu::RSP] = rsp & mask;
  core.segments_changed();
  return core.finish_at(u, target & mask);
}

const Uop* swapgs(Core& core, const Uop* u) {
  if (core.cpl != 0) return core.fault(u, cpu::GP, 0);
  std::swap(core.arch.segment[cpu::GS].base, core.arch.msr.kernel_gs_base);
  core.segment_base[cpu::GS] = core.arch.segment[cpu::GS].base;
  return u + 1;
}

bool lower_one(Lowering& l, Handler fn, bool exists) {
  if (!exists) return false;
  Uop u = l.step(fn);
  u.aux = operand_bytes(l);
  return emit_last(l, u);
}

}  // namespace

bool lower_syscalls(Lowering& l) {
  using cpu::Feature;
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_SYSCALL:
      return lower_one(l, &syscall, l.model.has(Feature::syscall));
    case ZYDIS_MNEMONIC_SYSRET:
      return lower_one(l, &sysret, l.model.has(Feature::syscall));
    case ZYDIS_MNEMONIC_SYSENTER:
      return lower_one(l, &sysenter, l.model.has(Feature::sysenter));
    case ZYDIS_MNEMONIC_SYSEXIT:
      return lower_one(l, &sysexit, l.model.has(Feature::sysenter));
    case ZYDIS_MNEMONIC_SWAPGS:
      if (l.mode.bits != 64) return false;
      l.emit(l.step(&swapgs));
      return true;
    default:
      return false;
  }
}

}  // namespace strata::interp
