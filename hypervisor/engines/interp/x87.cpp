// x87 instructions. Arithmetic runs on the host's x87 unit around a load and a save of the whole
// register state; control-word and status-word instructions, which context switches and library
// code execute all the time, work on the saved image directly. Environments are in x87_env.cpp.
#include <algorithm>

#include "engines/interp/vector_thunk.hpp"
#include "engines/interp/x87_env.hpp"
#include "engines/interp/x87_state.hpp"

namespace strata::interp {
namespace {

inline constexpr std::uint16_t kMaskedPrecision = 0x20;

/// The area that FXRSTOR and FXSAVE of a thunk work on. XMM registers pass through it unused.
struct alignas(16) WorkArea : FxBytes<512> {
  explicit WorkArea(const Core& core) noexcept {
    std::memcpy(bytes.data(), core.arch.vector.legacy.data(), kX87Bytes);
    // Nothing pending (checked before), whatever the summary bits of a loaded state claim.
    set<std::uint16_t>(fx::kFsw, static_cast<std::uint16_t>(get<std::uint16_t>(fx::kFsw) & 0x7F7F));
    set(fx::kMxcsr, host_mxcsr());
  }
  /// Flags that the control word does not mask: all of them new.
  [[nodiscard]] unsigned unmasked() const noexcept {
    return get<std::uint16_t>(fx::kFsw) & ~unsigned{get<std::uint16_t>(fx::kFcw)} & 0x3FU;
  }
  /// Registers and control words, but not the pointers, which are the host's.
  void commit(Core& core) const noexcept {
    std::byte* legacy = core.arch.vector.legacy.data();
    std::memcpy(legacy, bytes.data(), fx::kFop);
    std::memcpy(legacy + fx::kSt, bytes.data() + fx::kSt, kX87Bytes - fx::kSt);
  }
};

/// Opcode and addresses of the last non-control instruction (SDM 1 8.1.8, 8.1.9).
template <bool Memory>
void set_pointers(Core& core, const Uop* u) noexcept {
  const std::uint64_t ip = core.wrap_ip(core.pc_of(u) - core.segment_base[cpu::CS]);
  fx_set(core, fx::kFop, static_cast<std::uint16_t>(u->dst | u->src << 8));
  fx_set(core, fx::kFip, ip);
  if constexpr (Memory) fx_set(core, fx::kFdp, core.offset_of(u));
}

template <ThunkMemory Memory>
const Uop* run_x87(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::x87_waiting>(core); why != 0) return core.fault(u, why);
  const auto& t = *reinterpret_cast<const HostThunk*>(u->imm);
  std::array<std::byte, 16> buffer;
  void* memory = buffer.data();
  const unsigned size = t.form.memory_bytes;
  const std::uint64_t va = Memory == ThunkMemory::none ? 0 : core.ea(u);
  if constexpr (Memory == ThunkMemory::read) {
    memory = thunk_source(core, va, size, buffer.data());
    if (memory == nullptr) return refuse(core, u);
  }
  WorkArea area{core};
  ThunkFrame frame;
  frame.flags = core.flags;
  t.x87()(area.bytes.data(), &frame, memory);
  if constexpr (Memory == ThunkMemory::write) {
    // An unmasked exception other than inexactness keeps the result from being stored, but not the
    // address from being checked (SDM 1 8.5).
    const bool stored = (area.unmasked() & ~unsigned{kMaskedPrecision}) == 0;
    const bool done =
        stored ? core.store_bytes(va, buffer.data(), size) : core.check_store(va, size);
    if (!done) return refuse(core, u);
  }
  area.commit(core);
  core.flags = frame.flags;
  set_pointers<Memory != ThunkMemory::none>(core, u);
  return u + 1;
}

const Uop* fninit(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::x87>(core); why != 0) return core.fault(u, why);
  // The registers keep their contents and become empty (SDM 2A, FINIT).
  X87Image image = get_x87(core);
  image.set_top(0);
  const X87Image initial = initial_x87();
  std::copy_n(initial.bytes.begin(), fx::kSt, image.bytes.begin());
  set_x87(core, image);
  return u + 1;
}

const Uop* fnclex(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::x87>(core); why != 0) return core.fault(u, why);
  // Flags, SF, ES and B (SDM 2A, FCLEX).
  const auto fsw = fx_get<std::uint16_t>(core, fx::kFsw);
  fx_set(core, fx::kFsw, static_cast<std::uint16_t>(fsw & 0x7F00));
  return u + 1;
}

const Uop* fnstsw_ax(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::x87>(core); why != 0) return core.fault(u, why);
  core.set_reg(cpu::RAX * 8, fx_get<std::uint16_t>(core, fx::kFsw));
  return u + 1;
}

/// FNSTSW and FNSTCW to memory; `aux` is the field.
const Uop* store_word(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::x87>(core); why != 0) return core.fault(u, why);
  if (!core.store(core.ea(u), fx_get<std::uint16_t>(core, u->aux))) return refuse(core, u);
  return u + 1;
}

const Uop* fldcw(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::x87_waiting>(core); why != 0) return core.fault(u, why);
  std::uint16_t fcw = 0;
  if (!core.load(core.ea(u), fcw)) return refuse(core, u);
  fcw = canonical_fcw(fcw);
  // ES and B follow: flags may have become unmasked (SDM 1 8.1.3.3).
  unsigned fsw = fx_get<std::uint16_t>(core, fx::kFsw) & ~0x8080U;
  if ((fsw & ~unsigned{fcw} & 0x3FU) != 0) fsw |= 0x8080U;
  fx_set(core, fx::kFcw, fcw);
  fx_set(core, fx::kFsw, static_cast<std::uint16_t>(fsw));
  return u + 1;
}

/// WAIT minds TS only together with MP (SDM 3A 2.5).
const Uop* fwait(Core& core, const Uop* u) {
  constexpr std::uint64_t kBoth = cpu::cr0::TS | cpu::cr0::MP;
  if ((core.arch.cr0 & kBoth) == kBoth) return core.fault(u, cpu::NM);
  if (x87_exception_pending(core)) return core.fault(u, cpu::MF);
  return u + 1;
}

/// FENI, FDISI and FSETPM of the 8087 and 287 do nothing.
const Uop* obsolete(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::x87>(core); why != 0) return core.fault(u, why);
  return u + 1;
}

Handler control_handler(const Lowering& l, std::uint8_t& aux) {
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_FNINIT:
      return fninit;
    case ZYDIS_MNEMONIC_FNCLEX:
      return fnclex;
    case ZYDIS_MNEMONIC_FLDCW:
      return fldcw;
    case ZYDIS_MNEMONIC_FWAIT:
      return fwait;
    case ZYDIS_MNEMONIC_FENI8087_NOP:
    case ZYDIS_MNEMONIC_FDISI8087_NOP:
    case ZYDIS_MNEMONIC_FSETPM287_NOP:
      return obsolete;
    case ZYDIS_MNEMONIC_FNSTCW:
      aux = fx::kFcw;
      return store_word;
    case ZYDIS_MNEMONIC_FNSTSW:
      aux = fx::kFsw;
      return l.ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY ? store_word : fnstsw_ax;
    default:
      return nullptr;
  }
}

/// The form of an arithmetic or data instruction: two opcode bytes, memory renamed to [RDX].
std::optional<ThunkForm> x87_form(const Lowering& l) {
  if (l.insn.opcode < 0xD8 || l.insn.opcode > 0xDF) return std::nullopt;
  ThunkForm form;
  form.kind = ThunkKind::x87;
  form.size = 2;
  form.bytes[0] = l.insn.opcode;
  const auto& modrm = l.insn.raw.modrm;
  unsigned low = 0xC0U | modrm.rm;
  for (unsigned i = 0; i < l.insn.operand_count; ++i) {
    const ZydisDecodedOperand& op = l.ops[i];
    if (op.type == ZYDIS_OPERAND_TYPE_REGISTER &&
        ZydisRegisterGetClass(op.reg.value) == ZYDIS_REGCLASS_FLAGS) {
      form.flags_written = true;
    }
    if (op.type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
    const bool write = (op.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
    form.memory = write ? ThunkMemory::write : ThunkMemory::read;
    form.memory_bytes = static_cast<std::uint8_t>(op.size / 8);
    low = 2;
  }
  if (form.memory_bytes > 10) return std::nullopt;  // an environment
  form.bytes[1] = static_cast<std::uint8_t>(static_cast<unsigned>(modrm.reg) << 3 | low);
  return form;
}

bool lower_x87_thunk(Lowering& l) {
  const auto form = x87_form(l);
  if (!form) return false;
  const HostThunk* thunk = thunk_cache().find(*form);
  if (thunk == nullptr) return false;
  Uop u = l.step(form->memory == ThunkMemory::none   ? run_x87<ThunkMemory::none>
                 : form->memory == ThunkMemory::read ? run_x87<ThunkMemory::read>
                                                     : run_x87<ThunkMemory::write>);
  u.imm = reinterpret_cast<std::uint64_t>(thunk);
  // FOP: the low three bits of the first opcode byte, and the second as the guest has it.
  u.dst = l.d.bytes[l.insn.raw.modrm.offset];
  u.src = l.insn.opcode & 7;
  l.emit(u);
  return true;
}

}  // namespace

bool lower_x87(Lowering& l) {
  if (l.insn.meta.category != ZYDIS_CATEGORY_X87_ALU &&
      l.insn.meta.category != ZYDIS_CATEGORY_FCMOV) {
    return false;
  }
  std::uint8_t aux = 0;
  if (const Handler fn = control_handler(l, aux); fn != nullptr) {
    Uop u = l.step(fn);
    u.aux = aux;
    l.emit(u);
    return true;
  }
  return lower_x87_environment(l) || lower_x87_thunk(l);
}

}  // namespace strata::interp
