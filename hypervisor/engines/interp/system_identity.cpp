// RDMSR, WRMSR, RDTSC, RDTSCP, RDPID, RDPMC, CPUID (SDM 2A, 2B).
#include "cpu/cpu_model.hpp"
#include "engines/interp/core.hpp"
#include "engines/interp/msrs.hpp"
#include "engines/interp/segments.hpp"
#include "engines/interp/system.hpp"
#include "engines/interp/vmware.hpp"

namespace strata::interp {

namespace {

void set_edx_eax(Core& core, std::uint64_t value) noexcept {
  core.set_reg(cpu::RAX * 8, static_cast<std::uint32_t>(value));
  core.set_reg(cpu::RDX * 8, static_cast<std::uint32_t>(value >> 32));
}

/// The VMM's answer, in place of MsrAccess::foreign.
MsrAccess answer(const Core& core) noexcept {
  return core.completion.failed ? MsrAccess::refused : MsrAccess::done;
}

const Uop* rdmsr(Core& core, const Uop* u) {
  if (core.cpl != 0) return core.fault(u, cpu::GP, 0);
  const auto number = core.reg<std::uint32_t>(cpu::RCX * 8);
  std::uint64_t value = 0;
  core.note_position(u);
  MsrAccess access = read_msr(core, number, value);
  if (access == MsrAccess::foreign) {
    if (!core.completion.ready) {
      return core.leave_for(u, {.kind = engine::ExitKind::msr_read, .msr = number});
    }
    access = answer(core);
    value = core.completion.value;
  }
  if (access == MsrAccess::refused) return core.fault(u, cpu::GP, 0);
  set_edx_eax(core, value);
  return core.finish(u);
}

const Uop* wrmsr(Core& core, const Uop* u) {
  if (core.cpl != 0) return core.fault(u, cpu::GP, 0);
  const auto number = core.reg<std::uint32_t>(cpu::RCX * 8);
  const std::uint64_t value = std::uint64_t{core.reg<std::uint32_t>(cpu::RDX * 8)} << 32 |
                              core.reg<std::uint32_t>(cpu::RAX * 8);
  core.note_position(u);
  MsrAccess access = write_msr(core, number, value);
  if (access == MsrAccess::foreign) {
    if (!core.completion.ready) {
      return core.leave_for(u, {.kind = engine::ExitKind::msr_write, .msr = number, .data = value});
    }
    access = answer(core);
  }
  if (access == MsrAccess::refused) return core.fault(u, cpu::GP, 0);
  return core.finish(u);
}

bool tsc_refused(const Core& core) noexcept {
  return core.cpl != 0 && (core.arch.cr4 & cpu::cr4::TSD) != 0;
}

const Uop* rdtsc(Core& core, const Uop* u) {
  if (tsc_refused(core)) return core.fault(u, cpu::GP, 0);
  core.note_position(u);
  set_edx_eax(core, guest_tsc(core));
  return u + 1;
}

const Uop* rdtscp(Core& core, const Uop* u) {
  if (tsc_refused(core)) return core.fault(u, cpu::GP, 0);
  core.note_position(u);
  set_edx_eax(core, guest_tsc(core));
  core.set_reg(cpu::RCX * 8, static_cast<std::uint32_t>(core.arch.msr.tsc_aux));
  return u + 1;
}

const Uop* rdpid(Core& core, const Uop* u) {
  core.r[u->dst / 8U] = core.arch.msr.tsc_aux & 0xFFFFFFFF;
  return u + 1;
}

/// No counters are offered: every index is out of range, whoever asks, but for VMware's.
const Uop* rdpmc(Core& core, const Uop* u) {
  const auto khz = core.env.model->tsc_khz();
  const auto index = core.reg<std::uint32_t>(cpu::RCX * 8);
  const bool offered = core.env.model->vmware_backdoor() && index >= vmware::kHostTsc &&
                       index <= vmware::kApparentTime && (index == vmware::kHostTsc || khz != 0);
  if (!offered) return core.fault(u, cpu::GP, 0);
  core.note_position(u);
  const std::uint64_t tsc = core.env.tsc->tsc();
  // Real and apparent time are nanoseconds, and here the same.
  set_edx_eax(core, index == vmware::kHostTsc
                        ? tsc
                        : static_cast<std::uint64_t>(static_cast<unsigned __int128>(tsc) *
                                                     1'000'000U / khz));
  return core.finish(u);
}

const Uop* cpuid(Core& core, const Uop* u) {
  core.note_position(u);
  cpu::DynamicState state;
  state.osxsave = (core.arch.cr4 & cpu::cr4::OSXSAVE) != 0;
  state.pke = (core.arch.cr4 & cpu::cr4::PKE) != 0;
  state.apic = core.env.interrupts->present();
  state.nx = (core.arch.msr.misc_enable & misc_enable::kXdDisable) == 0;
  state.xcr0 = core.arch.vector.xcr0;
  state.apic_id = core.env.id;
  state.cpus = core.env.vcpus;
  const cpu::CpuidResult result = core.env.model->cpuid(
      core.reg<std::uint32_t>(cpu::RAX * 8), core.reg<std::uint32_t>(cpu::RCX * 8), state);
  core.set_reg(cpu::RAX * 8, result.eax);
  core.set_reg(cpu::RBX * 8, result.ebx);
  core.set_reg(cpu::RCX * 8, result.ecx);
  core.set_reg(cpu::RDX * 8, result.edx);
  return u + 1;
}

bool lower_if(Lowering& l, Handler fn, cpu::Feature feature) {
  if (!l.model.has(feature)) return false;
  l.emit(l.step(fn));
  return true;
}

}  // namespace

bool lower_msrs(Lowering& l) {
  using cpu::Feature;
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_RDMSR:
      return l.model.has(Feature::msr) && emit_last(l, l.step(&rdmsr));
    case ZYDIS_MNEMONIC_WRMSR:
      return l.model.has(Feature::msr) && emit_last(l, l.step(&wrmsr));
    case ZYDIS_MNEMONIC_RDTSC:
      return lower_if(l, &rdtsc, Feature::tsc);
    case ZYDIS_MNEMONIC_RDTSCP:
      return lower_if(l, &rdtscp, Feature::rdtscp);
    case ZYDIS_MNEMONIC_RDPID: {
      if (!l.model.has(Feature::rdpid)) return false;
      Uop u = l.step(&rdpid);
      u.dst = Lowering::reg_offset(l.ops[0].reg.value);
      l.emit(u);
      return true;
    }
    case ZYDIS_MNEMONIC_RDPMC:
      return emit_last(l, l.step(&rdpmc));
    case ZYDIS_MNEMONIC_CPUID:
      l.emit(l.step(&cpuid));
      return true;
    default:
      return false;
  }
}

}  // namespace strata::interp
