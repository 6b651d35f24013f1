// MOV DR, INVLPG and INVPCID (SDM 2A, 2B; SDM 3B 18.2; SDM 3A 4.10.4).
#include "cpu/cpu_model.hpp"
#include "engines/interp/control_registers.hpp"
#include "engines/interp/core.hpp"
#include "engines/interp/segments.hpp"
#include "engines/interp/system.hpp"

namespace strata::interp {

namespace {

// ---- debug registers ----------------------------------------------------------------------------

constexpr std::uint64_t kGeneralDetect = 1ULL << 13;  ///< DR7.GD and DR6.BD alike
constexpr std::uint64_t kDr6Writable = 0xE00F, kDr6Set = 0xFFFF0FF0;
constexpr std::uint64_t kDr7Reserved = 0xD800, kDr7Set = 0x400;

/// DR4 and DR5 stand for DR6 and DR7 unless CR4.DE makes them undefined (SDM 3B 18.2.2). False:
/// `next` is what the handler returns.
bool may_access(Core& core, const Uop* u, unsigned& number, const Uop*& next) {
  number = u->aux;
  if (number == 4 || number == 5) {
    if ((core.arch.cr4 & cpu::cr4::DE) != 0) {
      next = core.fault(u, cpu::UD);
      return false;
    }
    number += 2;
  }
  if (core.cpl != 0) {
    next = core.fault(u, cpu::GP, 0);
    return false;
  }
  if ((core.arch.dr[7] & kGeneralDetect) != 0) {
    next = core.fault(u, cpu::DB);
    core.exception.dr6 = kGeneralDetect;
    return false;
  }
  return true;
}

const Uop* mov_from_debug(Core& core, const Uop* u) {
  unsigned number = 0;
  const Uop* next = nullptr;
  if (!may_access(core, u, number, next)) return next;
  if (core.long_mode()) {
    core.set_reg(u->dst, core.arch.dr[number]);
  } else {
    core.set_reg(u->dst, static_cast<std::uint32_t>(core.arch.dr[number]));
  }
  return u + 1;
}

const Uop* mov_to_debug(Core& core, const Uop* u) {
  unsigned number = 0;
  const Uop* next = nullptr;
  if (!may_access(core, u, number, next)) return next;
  std::uint64_t value =
      core.long_mode() ? core.reg<std::uint64_t>(u->src) : core.reg<std::uint32_t>(u->src);
  if (number >= 6 && value >> 32 != 0) return core.fault(u, cpu::GP, 0);
  if (number == 6) value = (value & kDr6Writable) | kDr6Set;
  if (number == 7) value = (value & ~kDr7Reserved) | kDr7Set;
  core.arch.dr[number] = value;
  core.debug_registers_changed();
  return core.finish(u);
}

// ---- TLB ----------------------------------------------------------------------------------------

const Uop* invlpg(Core& core, const Uop* u) {
  if (core.cpl != 0) return core.fault(u, cpu::GP, 0);
  const std::uint64_t va = core.ea(u);
  if (!core.long_mode()) {
    core.flush_page(VA{static_cast<std::uint32_t>(va)});
  } else if (canonical(va)) {  // otherwise a no-operation (SDM 2A, INVLPG)
    core.flush_page(VA{va});
  }
  return core.finish(u);
}

Outcome invalidate_pcid(Core& core, std::uint64_t type, std::uint64_t pcid, std::uint64_t va) {
  const Outcome bad = raised(cpu::GP, 0);
  if (type > 3 || pcid >> 12 != 0) return bad;
  const bool pcide = (core.arch.cr4 & cpu::cr4::PCIDE) != 0;
  if (type < 2 && !pcide && pcid != 0) return bad;
  if (type == 0 && !canonical(va)) return bad;
  constexpr std::array kScopes{FlushScope::address, FlushScope::pcid, FlushScope::all,
                               FlushScope::all_non_global};
  core.flush_tlb(kScopes[type], static_cast<std::uint16_t>(pcid), VA{va});
  return done();
}

const Uop* invpcid(Core& core, const Uop* u) {
  if (core.cpl != 0) return core.fault(u, cpu::GP, 0);
  std::array<std::uint64_t, 2> descriptor{};
  if (!core.load_bytes(core.ea(u), descriptor.data(), sizeof descriptor)) return core.abort(u);
  const std::uint64_t type =
      core.long_mode() ? core.reg<std::uint64_t>(u->src) : core.reg<std::uint32_t>(u->src);
  const Outcome o = invalidate_pcid(core, type, descriptor[0], descriptor[1]);
  return o.ok() ? core.finish(u) : give_up(core, u, o);
}

bool is_debug(const ZydisDecodedOperand& op) {
  return is_register(op) && ZydisRegisterGetClass(op.reg.value) == ZYDIS_REGCLASS_DEBUG;
}

}  // namespace

bool lower_debug_registers(Lowering& l) {
  const bool to = is_debug(l.ops[0]);
  if (!to && !is_debug(l.ops[1])) return false;
  const unsigned number = Lowering::reg_number(l.ops[to ? 0 : 1].reg.value);
  if (number > 7) return false;
  Uop u = l.step(to ? &mov_to_debug : &mov_from_debug);
  u.aux = static_cast<std::uint8_t>(number);
  u.src = u.dst = Lowering::reg_offset(l.ops[to ? 1 : 0].reg.value);
  l.emit(u);
  if (to) l.end_block();
  return true;
}

bool lower_tlb(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_INVLPG:
      return emit_last(l, l.step(&invlpg));
    case ZYDIS_MNEMONIC_INVPCID: {
      if (!l.model.has(cpu::Feature::invpcid)) return false;
      Uop u = l.step(&invpcid);
      u.src = Lowering::reg_offset(l.ops[0].reg.value);
      return emit_last(l, u);
    }
    default:
      return false;
  }
}

}  // namespace strata::interp
