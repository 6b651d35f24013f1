// MOV to and from control registers, LMSW, SMSW, CLTS (SDM 2B, MOV; SDM 3A 2.5, 4.10.4, 9.8.5).
#include "engines/interp/control_registers.hpp"

#include "cpu/cpu_model.hpp"
#include "engines/interp/core.hpp"
#include "engines/interp/segments.hpp"
#include "engines/interp/system.hpp"

namespace strata::interp {

namespace {

/// The control registers as an instruction would leave them.
struct Controls {
  std::uint64_t cr0, cr3, cr4, efer;
  explicit Controls(const Core& core) noexcept
      : cr0{core.arch.cr0}, cr3{core.arch.cr3}, cr4{core.arch.cr4}, efer{core.arch.efer} {}
};

bool pae_paging(const Controls& c) noexcept {
  return (c.cr0 & cpu::cr0::PG) != 0 && (c.cr4 & cpu::cr4::PAE) != 0 &&
         (c.efer & cpu::efer::LMA) == 0;
}

/// Loads the PDPTE registers for what `next` says. A present entry with reserved bits is #GP(0)
/// (SDM 3A 4.4.1).
Outcome load_pdptes(Core& core, const Controls& next) {
  std::array<std::uint64_t, 4> entries{};
  if (!core.read_pdptes(next.cr3, entries)) return aborted();
  const std::uint64_t beyond = ~((1ULL << core.env.model->maxphyaddr()) - 1);
  const std::uint64_t reserved = beyond | 0x1E6;
  for (const std::uint64_t e : entries) {
    if ((e & 1) != 0 && (e & reserved) != 0) return raised(cpu::GP, 0);
  }
  core.pdpte = entries;
  return done();
}

void flush_everything(Core& core) { core.flush_tlb(FlushScope::all, 0, VA{}); }

// ---- CR0 ----------------------------------------------------------------------------------------

Outcome check_paging_on(const Core& core, Controls& next) {
  const bool lme = (core.arch.efer & cpu::efer::LME) != 0;
  if (!lme) return done();
  const cpu::Segment& tr = core.arch.tr;
  const bool task16 = !tr.unusable() && (tr.type() & ~2U) == system_type::kTss16;
  const bool pae = (core.arch.cr4 & cpu::cr4::PAE) != 0;
  if (!pae || core.arch.segment[cpu::CS].long_mode() || task16) return raised(cpu::GP, 0);
  next.efer |= cpu::efer::LMA;
  return done();
}

Outcome check_paging_off(const Core& core, Controls& next) {
  // Only compatibility mode may leave IA-32e mode, and not with PCIDs on.
  if (core.long_mode() || (core.arch.cr4 & cpu::cr4::PCIDE) != 0) return raised(cpu::GP, 0);
  next.efer &= ~cpu::efer::LMA;
  return done();
}

}  // namespace

Outcome write_cr0(Core& core, std::uint64_t value) {
  using namespace cpu::cr0;
  constexpr std::uint64_t kKnown = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
  if (value >> 32 != 0) return raised(cpu::GP, 0);
  if ((value & PG) != 0 && (value & PE) == 0) return raised(cpu::GP, 0);
  if ((value & NW) != 0 && (value & CD) == 0) return raised(cpu::GP, 0);
  Controls next{core};
  next.cr0 = (value & kKnown) | ET;
  const std::uint64_t changed = core.arch.cr0 ^ next.cr0;
  if ((changed & PG) != 0) {
    const Outcome o =
        (value & PG) != 0 ? check_paging_on(core, next) : check_paging_off(core, next);
    if (!o.ok()) return o;
  }
  if ((changed & (PG | CD | NW)) != 0 && pae_paging(next)) {
    if (auto o = load_pdptes(core, next); !o.ok()) return o;
  }
  core.arch.cr0 = next.cr0;
  core.arch.efer = next.efer;
  // Enabling flushes too: this TLB has held linear = physical until now.
  if ((changed & PG) != 0) {
    core.update_derived();
    flush_everything(core);
  } else if ((changed & WP) != 0) {
    core.rights_changed();
  } else if ((changed & (PE | AM | CD | NW)) != 0) {
    core.update_derived();
  }
  return done();
}

Outcome write_cr3(Core& core, std::uint64_t value) {
  Controls next{core};
  const bool pcide = (core.arch.cr4 & cpu::cr4::PCIDE) != 0;
  const bool keep = pcide && (value >> 63) != 0;
  if (pcide) value &= ~(1ULL << 63);
  if (!ia32e(core)) value &= 0xFFFFFFFF;
  if (value >> core.env.model->maxphyaddr() != 0) return raised(cpu::GP, 0);
  next.cr3 = value;
  if (pae_paging(next)) {
    if (auto o = load_pdptes(core, next); !o.ok()) return o;
  }
  core.arch.cr3 = value;
  core.update_derived();
  if (!keep) core.flush_tlb(FlushScope::pcid, core.arch_pcid(), VA{});
  return done();
}

Outcome write_cr4(Core& core, std::uint64_t value) {
  using namespace cpu::cr4;
  const std::uint64_t old = core.arch.cr4;
  const std::uint64_t changed = old ^ value;
  const Outcome bad = raised(cpu::GP, 0);
  if ((value & ~core.env.model->cr4_mask()) != 0) return bad;
  if (ia32e(core) && ((value & PAE) == 0 || (changed & LA57) != 0)) return bad;
  if ((changed & value & PCIDE) != 0 && (!ia32e(core) || (core.arch.cr3 & 0xFFF) != 0)) return bad;
  Controls next{core};
  next.cr4 = value;
  if ((changed & (PAE | PGE | PSE | SMEP)) != 0 && pae_paging(next)) {
    if (auto o = load_pdptes(core, next); !o.ok()) return o;
  }
  core.arch.cr4 = value;
  if ((changed & DE) != 0) core.debug_registers_changed();
  if ((changed & (PAE | PGE | PSE | PCIDE | SMEP | LA57)) != 0) {
    core.update_derived();
    flush_everything(core);
  } else if ((changed & (SMAP | PKE)) != 0) {
    core.rights_changed();
  }
  return done();
}

namespace {

Outcome write_cr8(Core& core, std::uint64_t value) {
  if (value > 15) return raised(cpu::GP, 0);
  core.env.interrupts->set_cr8(value);
  return done();
}

std::uint64_t read_control(Core& core, unsigned number) {
  switch (number) {
    case 0:
      return core.arch.cr0;
    case 2:
      return core.arch.cr2;
    case 3:
      return core.arch.cr3;
    case 4:
      return core.arch.cr4;
    default:
      return core.env.interrupts->cr8();
  }
}

Outcome write_control(Core& core, unsigned number, std::uint64_t value) {
  switch (number) {
    case 0:
      return write_cr0(core, value);
    case 2:
      core.arch.cr2 = value;
      return done();
    case 3:
      return write_cr3(core, value);
    case 4:
      return write_cr4(core, value);
    default:
      return write_cr8(core, value);
  }
}

/// aux: which register. The operand is 64 bits wide in 64-bit mode and 32 elsewhere.
const Uop* mov_from_control(Core& core, const Uop* u) {
  if (core.cpl != 0) return core.fault(u, cpu::GP, 0);
  core.note_position(u);
  const std::uint64_t value = read_control(core, u->aux);
  if (core.long_mode()) {
    core.set_reg(u->dst, value);
  } else {
    core.set_reg(u->dst, static_cast<std::uint32_t>(value));
  }
  return u + 1;
}

const Uop* mov_to_control(Core& core, const Uop* u) {
  if (core.cpl != 0) return core.fault(u, cpu::GP, 0);
  const std::uint64_t value =
      core.long_mode() ? core.reg<std::uint64_t>(u->src) : core.reg<std::uint32_t>(u->src);
  core.note_position(u);
  const Outcome o = write_control(core, u->aux, value);
  return o.ok() ? core.finish(u) : give_up(core, u, o);
}

const Uop* clts(Core& core, const Uop* u) {
  if (core.cpl != 0) return core.fault(u, cpu::GP, 0);
  core.arch.cr0 &= ~cpu::cr0::TS;
  return u + 1;
}

/// LMSW can set PE and never clear it (SDM 2A, LMSW).
const Uop* lmsw(Core& core, const Uop* u) {
  if (core.cpl != 0) return core.fault(u, cpu::GP, 0);
  std::uint16_t word = 0;
  if (u->aux2 != 0) {
    word = core.reg<std::uint16_t>(u->src);
  } else if (!core.load(core.ea(u), word)) {
    return core.abort(u);
  }
  const std::uint64_t value = (core.arch.cr0 & ~0xEULL) | (word & 0xFU);
  const Outcome o = write_cr0(core, value);
  return o.ok() ? core.finish(u) : give_up(core, u, o);
}

const Uop* smsw(Core& core, const Uop* u) {
  if (core.cpl != 0 && (core.arch.cr4 & cpu::cr4::UMIP) != 0) return core.fault(u, cpu::GP, 0);
  const std::uint64_t value = core.arch.cr0;
  if (u->aux2 == 0) {
    return core.store(core.ea(u), static_cast<std::uint16_t>(value)) ? u + 1 : core.abort(u);
  }
  if (u->aux == 8) core.set_reg(u->dst, value);
  if (u->aux == 4) core.set_reg(u->dst, static_cast<std::uint32_t>(value));
  if (u->aux == 2) core.set_reg(u->dst, static_cast<std::uint16_t>(value));
  return u + 1;
}

// ---- lowering
// -------------------------------------------------------------------------------------

bool is_control(const ZydisDecodedOperand& op) {
  return is_register(op) && ZydisRegisterGetClass(op.reg.value) == ZYDIS_REGCLASS_CONTROL;
}

bool lower_mov(Lowering& l) {
  const bool to = is_control(l.ops[0]);
  if (!to && !is_control(l.ops[1])) return false;
  const unsigned number = Lowering::reg_number(l.ops[to ? 0 : 1].reg.value);
  const bool exists =
      number == 0 || (number >= 2 && number <= 4) || (number == 8 && l.mode.bits == 64);
  if (!exists) return false;
  Uop u = l.step(to ? &mov_to_control : &mov_from_control);
  u.aux = static_cast<std::uint8_t>(number);
  u.src = u.dst = Lowering::reg_offset(l.ops[to ? 1 : 0].reg.value);
  l.emit(u);
  if (to) l.end_block();
  return true;
}

bool lower_status_word(Lowering& l, Handler fn) {
  l.emit(rm_step(l, fn));
  if (fn == &lmsw) l.end_block();
  return true;
}

}  // namespace

bool lower_control_registers(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
      return lower_mov(l) || lower_debug_registers(l);
    case ZYDIS_MNEMONIC_CLTS:
      l.emit(l.step(&clts));
      return true;
    case ZYDIS_MNEMONIC_LMSW:
      return lower_status_word(l, &lmsw);
    case ZYDIS_MNEMONIC_SMSW:
      return lower_status_word(l, &smsw);
    default:
      return lower_tlb(l);
  }
}

}  // namespace strata::interp
