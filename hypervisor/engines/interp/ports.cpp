// IN, OUT, INS, OUTS: permission, exits, repetition (SDM 1 chapter 19; SDM 2A, IN, INS).
#include "cpu/cpu_model.hpp"
#include "engines/interp/core.hpp"
#include "engines/interp/segment_checks.hpp"
#include "engines/interp/segments.hpp"
#include "engines/interp/system.hpp"
#include "engines/interp/vmware.hpp"

namespace strata::interp {

namespace {

constexpr std::uint64_t kIoMapBase = 102;  ///< in a 32-bit or 64-bit TSS (SDM 3A 7.2.1, 7.7)

/// CPL <= IOPL, or all the ports' bits clear in the TSS (SDM 1 19.5.2).
Outcome check_port(Core& core, std::uint16_t port, unsigned size) {
  if (!protected_mode(core) || (core.cpl <= iopl(core) && !vm86(core))) return done();
  const cpu::Segment& tr = core.arch.tr;
  const Outcome refused = raised(cpu::GP, 0);
  const bool has_map = (tr.type() & 8) != 0 && kIoMapBase + 1 <= tr.limit;
  if (!has_map) return refused;
  std::uint16_t map = 0;
  if (!core.system_load(system_va(core, tr.base + kIoMapBase), map)) return aborted();
  // Two bytes are read whatever the port, so the map needs one behind its last.
  const std::uint64_t at = std::uint64_t{map} + port / 8U;
  if (at + 1 > tr.limit) return refused;
  std::uint16_t bits = 0;
  if (!core.system_load(system_va(core, tr.base + at), bits)) return aborted();
  const unsigned wanted = ((1U << size) - 1) << (port & 7U);
  return (bits & wanted) == 0 ? done() : refused;
}

std::uint16_t port_of(const Core& core, const Uop* u) {
  return u->aux2 != 0 ? core.reg<std::uint16_t>(cpu::RDX * 8) : static_cast<std::uint16_t>(u->imm);
}

/// A read of VMware's port with its magic in EAX is a call, whatever IOPL and the map say. Unknown
/// commands change EAX only.
template <class T>
bool vmware_call(Core& core, std::uint16_t port) {
  if constexpr (sizeof(T) == 4) {
    if (port != vmware::kPort || !core.env.model->vmware_backdoor()) return false;
    if (core.reg<std::uint32_t>(cpu::RAX * 8) != vmware::kMagic) return false;
    const bool version = core.reg<std::uint16_t>(cpu::RCX * 8) == vmware::kGetVersion;
    core.set_reg(cpu::RAX * 8, version ? vmware::kVersion : ~0U);
    if (version) core.set_reg(cpu::RBX * 8, vmware::kMagic);
    return true;
  }
  return false;
}

/// Breakpoints on ports are traps (SDM 3B 18.3.1.3).
void note_port(Core& core, std::uint16_t port, unsigned size) noexcept {
  if (core.breakpoints.io) core.note_access(port, size, true, true);
}

/// aux2: the port is DX, else imm.
template <class T>
const Uop* in(Core& core, const Uop* u) {
  const std::uint16_t port = port_of(core, u);
  if (vmware_call<T>(core, port)) return core.finish(u);
  if (!core.completion.ready) {
    if (const Outcome o = check_port(core, port, sizeof(T)); !o.ok()) return give_up(core, u, o);
    return core.leave_for(u,
                          {.kind = engine::ExitKind::port_read, .size = sizeof(T), .port = port});
  }
  core.set_reg(cpu::RAX * 8, static_cast<T>(core.completion.value));
  note_port(core, port, sizeof(T));
  return core.finish(u);
}

template <class T>
const Uop* out(Core& core, const Uop* u) {
  const std::uint16_t port = port_of(core, u);
  if (!core.completion.ready) {
    if (const Outcome o = check_port(core, port, sizeof(T)); !o.ok()) return give_up(core, u, o);
    return core.leave_for(u, {.kind = engine::ExitKind::port_write,
                              .size = sizeof(T),
                              .port = port,
                              .data = core.reg<T>(cpu::RAX * 8)});
  }
  note_port(core, port, sizeof(T));
  return core.finish(u);
}

// ---- strings ------------------------------------------------------------------------------------

/// RCX, RSI or RDI in the instruction's address size.
std::uint64_t counter(const Core& core, const Uop* u, cpu::Gpr reg) {
  switch (u->aux) {
    case 8:
      return core.r[reg];
    case 4:
      return core.reg<std::uint32_t>(static_cast<std::uint8_t>(reg * 8));
    default:
      return core.reg<std::uint16_t>(static_cast<std::uint8_t>(reg * 8));
  }
}

void add_to(Core& core, const Uop* u, cpu::Gpr reg, std::uint64_t by) {
  const std::uint64_t v = counter(core, u, reg) + by;
  const auto offset = static_cast<std::uint8_t>(reg * 8);
  if (u->aux == 8) core.set_reg(offset, v);
  if (u->aux == 4) core.set_reg(offset, static_cast<std::uint32_t>(v));
  if (u->aux == 2) core.set_reg(offset, static_cast<std::uint16_t>(v));
}

/// One element into memory. False: the handler returns `next`.
template <class T>
bool in_element(Core& core, const Uop* u, std::uint16_t port, const Uop*& next) {
  const std::uint64_t offset = core.offset_of(u);
  if (u->imm != 0 && !check_implicit(core, u->segment, offset, sizeof(T), true)) {
    next = core.abort(u);
    return false;
  }
  const std::uint64_t va = core.linear(u, offset);
  // The destination is checked before the device is asked: reading a port can not be undone.
  if (!core.check_store(va, sizeof(T))) {
    next = core.abort(u);
    return false;
  }
  if (!core.completion.ready) {
    next =
        core.leave_for(u, {.kind = engine::ExitKind::port_read, .size = sizeof(T), .port = port});
    return false;
  }
  if (!core.store(va, static_cast<T>(core.completion.value))) {
    next = core.abort(u);
    return false;
  }
  return true;
}

template <class T>
bool out_element(Core& core, const Uop* u, std::uint16_t port, const Uop*& next) {
  if (core.completion.ready) return true;
  T value{};
  const std::uint64_t offset = core.offset_of(u);
  const bool allowed = u->imm == 0 || check_implicit(core, u->segment, offset, sizeof(T), false);
  if (!allowed || !core.load(core.linear(u, offset), value)) {
    next = core.abort(u);
    return false;
  }
  next = core.leave_for(
      u, {.kind = engine::ExitKind::port_write, .size = sizeof(T), .port = port, .data = value});
  return false;
}

/// INS, OUTS. aux: bytes of the address size; aux2: repeated.
template <class T, bool Read>
const Uop* port_string(Core& core, const Uop* u) {
  const auto port = core.reg<std::uint16_t>(cpu::RDX * 8);
  const bool repeated = u->aux2 != 0;
  if (repeated && counter(core, u, cpu::RCX) == 0) return core.finish(u);
  if (const Outcome o = check_port(core, port, sizeof(T)); !o.ok()) return give_up(core, u, o);
  const std::uint64_t step =
      (core.rflags_other & cpu::rflags::DF) != 0 ? 0ULL - sizeof(T) : sizeof(T);
  for (;;) {
    const Uop* next = nullptr;
    if (!(Read ? in_element<T>(core, u, port, next) : out_element<T>(core, u, port, next))) {
      return next;
    }
    note_port(core, port, sizeof(T));
    add_to(core, u, Read ? cpu::RDI : cpu::RSI, step);
    if (!repeated) return core.finish(u);
    add_to(core, u, cpu::RCX, ~0ULL);
    core.iteration_done();
    const std::uint64_t left = counter(core, u, cpu::RCX);
    if (left == 0) return core.finish(u);
    if (core.should_pause() || left == core.rep_floor) return core.pause(u, left);
  }
}

template <class T>
Handler choose(ZydisMnemonic mnemonic) {
  switch (mnemonic) {
    case ZYDIS_MNEMONIC_IN:
      return &in<T>;
    case ZYDIS_MNEMONIC_OUT:
      return &out<T>;
    case ZYDIS_MNEMONIC_INSB:
    case ZYDIS_MNEMONIC_INSW:
    case ZYDIS_MNEMONIC_INSD:
      return &port_string<T, true>;
    default:
      return &port_string<T, false>;
  }
}

Handler choose(ZydisMnemonic mnemonic, unsigned bits) {
  switch (bits) {
    case 8:
      return choose<std::uint8_t>(mnemonic);
    case 16:
      return choose<std::uint16_t>(mnemonic);
    default:
      return choose<std::uint32_t>(mnemonic);
  }
}

bool lower_port(Lowering& l, unsigned port_operand) {
  Uop u = l.step(choose(l.insn.mnemonic, l.insn.operand_width));
  const ZydisDecodedOperand& port = l.ops[port_operand];
  u.aux2 = is_register(port) ? 1 : 0;
  if (!is_register(port)) u.imm = port.imm.value.u & 0xFF;
  return emit_last(l, u);
}

bool lower_string(Lowering& l, ZydisRegister pointer, ZydisRegister default_segment) {
  Uop u = l.step(choose(l.insn.mnemonic, l.insn.operand_width));
  ZydisRegister segment = default_segment;
  for (unsigned i = 0; i < l.insn.operand_count; ++i) {
    if (is_memory(l.ops[i])) segment = l.ops[i].mem.segment;  // DS:rSI may be overridden
  }
  l.implicit_memory(u, segment);
  u.base = Lowering::reg_offset(pointer);
  u.aux = static_cast<std::uint8_t>(l.insn.address_width / 8);
  constexpr ZydisInstructionAttributes kRepeated =
      ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE;
  u.aux2 = (l.insn.attributes & kRepeated) != 0 ? 1 : 0;
  u.imm = needs_checks(l.mode, u.segment) ? 1 : 0;
  return emit_last(l, u);
}

}  // namespace

bool lower_ports(Lowering& l) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_IN:
      return lower_port(l, 1);
    case ZYDIS_MNEMONIC_OUT:
      return lower_port(l, 0);
    case ZYDIS_MNEMONIC_INSB:
    case ZYDIS_MNEMONIC_INSW:
    case ZYDIS_MNEMONIC_INSD:
      return lower_string(l, ZYDIS_REGISTER_RDI, ZYDIS_REGISTER_ES);
    case ZYDIS_MNEMONIC_OUTSB:
    case ZYDIS_MNEMONIC_OUTSW:
    case ZYDIS_MNEMONIC_OUTSD:
      return lower_string(l, ZYDIS_REGISTER_RSI, ZYDIS_REGISTER_DS);
    default:
      return false;
  }
}

}  // namespace strata::interp
