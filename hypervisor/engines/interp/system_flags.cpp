// PUSHF, POPF, CLI, STI, CLAC, STAC (SDM 2A, 2B).
#include "cpu/cpu_model.hpp"
#include "engines/interp/core.hpp"
#include "engines/interp/far_transfers.hpp"
#include "engines/interp/segments.hpp"
#include "engines/interp/system.hpp"
#include "engines/interp/vm86.hpp"

namespace strata::interp {

namespace rf = cpu::rflags;

namespace {

/// PUSHF and POPF are IOPL-sensitive in virtual-8086 mode (SDM 3A 20.2.7); with VME their 16-bit
/// forms work on VIF instead.
bool is_virtual(const Core& core) noexcept { return vm86(core) && iopl(core) < 3; }
bool refused_in_vm86(const Core& core, const Uop* u) noexcept {
  return is_virtual(core) && !(uses_virtual_if(core) && u->aux == 2);
}

const Uop* pushf(Core& core, const Uop* u) {
  if (refused_in_vm86(core, u)) return core.fault(u, cpu::GP, 0);
  Stack stack{core};
  const std::uint64_t flags = is_virtual(core) ? virtual_flags(core) : core.rflags();
  const std::uint64_t image = flags & ~(rf::RF | rf::VM);
  if (const Outcome o = stack.push(image, u->aux); !o.ok()) return give_up(core, u, o);
  core.r[cpu::RSP] = stack.pointer();
  return u + 1;
}

const Uop* popf(Core& core, const Uop* u) {
  if (refused_in_vm86(core, u)) return core.fault(u, cpu::GP, 0);
  Stack stack{core};
  std::uint64_t image = 0;
  if (const Outcome o = stack.pop(image, u->aux); !o.ok()) return give_up(core, u, o);
  const std::uint64_t before = core.rflags();
  std::uint64_t after = popped_flags(core, image, u->aux);
  if (is_virtual(core)) {
    if (const Outcome o = pop_virtual_flags(core, image, after); !o.ok()) {
      return give_up(core, u, o);
    }
  }
  core.r[cpu::RSP] = stack.pointer();
  if (((before ^ after) & (rf::IF | rf::TF | rf::AC)) == 0) {
    core.flags = from_rflags(after);
    core.rflags_other = (after & ~rf::ARITHMETIC) | rf::FIXED;
    return u + 1;
  }
  core.set_rflags(after);
  return core.finish(u);
}

bool may_change_if(const Core& core) noexcept {
  return !protected_mode(core) || core.cpl <= iopl(core);
}

const Uop* cli(Core& core, const Uop* u) {
  if (may_change_if(core)) {
    core.rflags_other &= ~rf::IF;
  } else if (uses_virtual_if(core)) {
    core.rflags_other &= ~rf::VIF;
  } else {
    return core.fault(u, cpu::GP, 0);
  }
  return u + 1;
}

const Uop* sti(Core& core, const Uop* u) {
  if (!may_change_if(core)) {
    const bool pending = (core.rflags_other & rf::VIP) != 0;
    if (!uses_virtual_if(core) || pending) return core.fault(u, cpu::GP, 0);
    core.rflags_other |= rf::VIF;
    return u + 1;
  }
  if ((core.rflags_other & rf::IF) != 0) return u + 1;
  core.rflags_other |= rf::IF;
  core.arch.interrupt_shadow = true;  // SDM 2B, STI: one more instruction first
  return core.finish(u);
}

template <bool Set>
const Uop* set_ac(Core& core, const Uop* u) {
  if (core.cpl != 0) return core.fault(u, cpu::UD);
  core.rflags_other = Set ? core.rflags_other | rf::AC : core.rflags_other & ~rf::AC;
  core.segments_changed();
  return u + 1;
}

bool lower_simple(Lowering& l, Handler fn) {
  Uop u = l.step(fn);
  u.aux = operand_bytes(l);
  l.emit(u);
  return true;
}

}  // namespace

bool lower_flags(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_PUSHF:
    case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_PUSHFQ:
      return lower_simple(l, &pushf);
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
      return lower_simple(l, &popf);
    case ZYDIS_MNEMONIC_CLI:
      return lower_simple(l, &cli);
    case ZYDIS_MNEMONIC_STI:
      return lower_simple(l, &sti);
    case ZYDIS_MNEMONIC_CLAC:
      return l.model.has(cpu::Feature::smap) && lower_simple(l, &set_ac<false>);
    case ZYDIS_MNEMONIC_STAC:
      return l.model.has(cpu::Feature::smap) && lower_simple(l, &set_ac<true>);
    default:
      return false;
  }
}

}  // namespace strata::interp
