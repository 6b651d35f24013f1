// The entry to everything system-level, and the instructions that have no better place.
#include "engines/interp/system.hpp"

#include "engines/interp/core.hpp"
#include "engines/interp/segments.hpp"

namespace strata::interp {

namespace {

const Uop* hlt(Core& core, const Uop* u) {
  if (core.cpl != 0) return core.fault(u, cpu::GP, 0);
  // The run loop exits to the VMM unless something deliverable waits already.
  core.arch.halted = true;
  return core.finish(u);
}

/// WBINVD, INVD: caches are not modelled, privilege is.
const Uop* cache_maintenance(Core& core, const Uop* u) {
  return core.cpl == 0 ? u + 1 : core.fault(u, cpu::GP, 0);
}

/// Who may call is the VMM's decision: as under VMX, the CPL is not checked here (SDM 3C 31.3).
const Uop* hypercall(Core& core, const Uop* u) {
  if (!core.completion.ready) {
    return core.leave_for(u, {.kind = engine::ExitKind::hypercall, .data = core.r[cpu::RAX]});
  }
  core.r[cpu::RAX] =
      core.long_mode() ? core.completion.value : static_cast<std::uint32_t>(core.completion.value);
  return core.finish(u);
}

}  // namespace

bool lower_processor(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_HLT:
      return emit_last(l, l.step(&hlt));
    case ZYDIS_MNEMONIC_WBINVD:
    case ZYDIS_MNEMONIC_INVD:
      l.emit(l.step(&cache_maintenance));
      return true;
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_VMMCALL:
      return emit_last(l, l.step(&hypercall));
    default:
      return false;
  }
}

bool lower_system(Lowering& l) {
  return lower_flags(l) || lower_segments(l) || lower_ports(l) || lower_syscalls(l) ||
         lower_far_transfers(l) || lower_msrs(l) || lower_control_registers(l) ||
         lower_descriptor_tables(l) || lower_processor(l);
}

}  // namespace strata::interp
