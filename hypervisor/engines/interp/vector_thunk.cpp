#include "engines/interp/vector_thunk.hpp"

#include <algorithm>

namespace strata::interp {

std::uint32_t call_thunk(const HostThunk& t, const Uop* u, const std::array<void*, 4>& v,
                         ThunkFrame* frame, void* memory) {
  if (t.immediate_at != 0) [[unlikely]] {
    // Forms with an immediate have at most three registers, and the fourth place holds it.
    const bool general = t.form.gpr_read || t.form.gpr_write;
    return thunk_cache().run_patched(t, general ? u->aux : u->aux2, v, frame, memory);
  }
  return t.vector()(v[0], v[1], v[3], v[2], frame, memory);
}

void prepare_floating(const Core& core, ThunkFrame& frame) noexcept {
  const std::uint32_t guest = core.arch.vector.mxcsr;
  frame.mxcsr_in = (guest & (mxcsr::kRounding | mxcsr::kFtz | mxcsr::kDaz)) | mxcsr::kMasks;
  frame.unmasked = ~guest >> 7 & mxcsr::kFlags;
  // Unmasked underflow is raised for exact tiny results as well, which masked operation does not
  // flag (SDM 1 4.9.1.5). Flushing to zero does flag them; without a tiny result it changes
  // nothing, and with one the result is dropped.
  if ((frame.unmasked & mxcsr::kUnderflow) != 0) frame.mxcsr_in |= mxcsr::kFtz;
}

std::uint32_t flags_of_exception(const HostThunk& t, const Uop* u, const ThunkFrame& frame,
                                 std::uint32_t raised, const std::array<void*, 4>& v,
                                 void* memory) {
  constexpr std::uint32_t kBefore = mxcsr::kInvalid | mxcsr::kDenormal | mxcsr::kDivideByZero;
  // An unmasked pre-computation exception keeps the operation from being carried out, so nothing
  // is known of its result (SDM 1 11.5.3, E.4.2).
  if ((raised & frame.unmasked & kBefore) != 0) return raised & kBefore;
  if ((raised & frame.unmasked & mxcsr::kUnderflow) == 0) return raised;
  // Flushing always flags inexactness; only a run without it tells. (Where a result would be exact
  // with an unbounded exponent, PE is set here and not by a processor.)
  std::array<VectorRegister, 4> copies{};
  std::array<void*, 4> pointers{};
  for (unsigned i = 0; i < t.form.slot_count; ++i) {
    const std::size_t size = t.form.slots[i].mmx ? 8 : sizeof(VectorRegister);
    std::memcpy(copies[i].data(), v[i], size);
    pointers[i] = copies[i].data();
  }
  alignas(32) std::array<std::byte, 32> result;
  ThunkFrame again = frame;
  again.mxcsr_in &= ~mxcsr::kFtz;
  const std::uint32_t host = host_mxcsr();
  const bool writes = t.form.memory == ThunkMemory::write;
  const std::uint32_t unflushed =
      call_thunk(t, u, pointers, &again, writes ? result.data() : memory) & mxcsr::kFlags;
  set_host_mxcsr(host);
  return (raised & ~mxcsr::kPrecision) | (unflushed & mxcsr::kPrecision);
}

const Uop* raise_simd(Core& core, const Uop* u, std::uint32_t flags) noexcept {
  core.arch.vector.mxcsr |= flags;
  const bool handled = (core.arch.cr4 & cpu::cr4::OSXMMEXCPT) != 0;
  return core.fault(u, handled ? cpu::XM : cpu::UD);
}

namespace {

std::array<void*, 4> slot_pointers(Core& core, const Uop* u) noexcept {
  auto& y = core.arch.vector.ymm;
  // Places that hold a general register or an immediate instead are not used by the thunk.
  return {y[u->dst & 15].data(), y[u->src & 15].data(), y[u->aux & 15].data(),
          y[u->aux2 & 15].data()};
}

/// General-register inputs. The form says which matter; the others are harmless.
inline void general_inputs(const Core& core, const Uop* u, const HostThunk& t,
                           ThunkFrame& frame) noexcept {
  if (t.form.gpr_read) frame.gpr = core.reg<std::uint64_t>(u->aux2);
  if (t.form.length_inputs) {
    frame.rax = core.r[cpu::RAX];
    frame.rdx = core.r[cpu::RDX];
  }
}

/// A 32-bit result was zero-extended by the host already.
inline void general_outputs(Core& core, const Uop* u, const HostThunk& t,
                            const ThunkFrame& frame) noexcept {
  if (t.form.gpr_write) core.set_reg(u->aux2, frame.gpr);
  if (t.form.index_output) core.r[cpu::RCX] = frame.rcx;
  if (t.form.flags_written) core.flags = frame.flags;
}

/// Where a thunk reaches its memory operand: in the guest's page, or in `buffer`.
struct ThunkOperand {
  alignas(32) std::array<std::byte, 32> buffer;
  void* memory = buffer.data();
  std::uint64_t va = 0;
};

/// Aligned as the form asks, and for reads loaded. False: left through the Core.
template <ThunkMemory Memory>
[[gnu::always_inline]] inline bool find_operand(Core& core, const Uop* u, const HostThunk& t,
                                                ThunkOperand& o) {
  if constexpr (Memory != ThunkMemory::none) {
    o.va = core.ea(u);
    if ((o.va & (t.form.alignment - 1U)) != 0) [[unlikely]] {
      core.fault(u, cpu::GP, 0);
      return false;
    }
  }
  if constexpr (Memory == ThunkMemory::read) {
    o.memory = thunk_source(core, o.va, t.form.memory_bytes, o.buffer.data());
    if (o.memory == nullptr) {
      refuse(core, u);
      return false;
    }
  }
  return true;
}

template <Unit Which, ThunkMemory Memory, bool General>
const Uop* run_integer(Core& core, const Uop* u) {
  if (const auto why = refusal<Which>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  const auto& t = *reinterpret_cast<const HostThunk*>(u->imm);
  ThunkFrame frame;
  ThunkOperand operand;
  if (!find_operand<Memory>(core, u, t, operand)) return nullptr;
  if constexpr (General) general_inputs(core, u, t, frame);
  call_thunk(t, u, slot_pointers(core, u), &frame, operand.memory);
  if constexpr (Memory == ThunkMemory::write) {
    if (!core.store_bytes(operand.va, operand.buffer.data(), t.form.memory_bytes))
      return refuse(core, u);
  }
  if constexpr (General) general_outputs(core, u, t, frame);
  return u + 1;
}

/// Calls a floating-point thunk; the flags it raised. Afterwards the controls of MXCSR, which
/// compiled code depends on, are the host's again; its sticky flags are nobody's.
inline std::uint32_t call_floating(const HostThunk& t, const Uop* u,
                                   const std::array<void*, 4>& slots, ThunkFrame& frame,
                                   void* memory) {
  // The usual case leaves what the psABI has processes run with, and saves a slow STMXCSR.
  if (frame.mxcsr_in == mxcsr::kMasks) [[likely]] {
    return call_thunk(t, u, slots, &frame, memory) & mxcsr::kFlags;
  }
  const std::uint32_t host = host_mxcsr();
  const std::uint32_t raised = call_thunk(t, u, slots, &frame, memory) & mxcsr::kFlags;
  set_host_mxcsr(host);
  return raised;
}

template <Unit Which, ThunkMemory Memory>
const Uop* run_floating(Core& core, const Uop* u) {
  if (const auto why = refusal<Which>(core); why != 0) [[unlikely]]
    return core.fault(u, why);
  const auto& t = *reinterpret_cast<const HostThunk*>(u->imm);
  ThunkFrame frame;
  ThunkOperand operand;
  if (!find_operand<Memory>(core, u, t, operand)) return nullptr;
  general_inputs(core, u, t, frame);
  prepare_floating(core, frame);
  const std::array<void*, 4> slots = slot_pointers(core, u);
  const std::uint32_t raised = call_floating(t, u, slots, frame, operand.memory);
  if ((raised & frame.unmasked) != 0) [[unlikely]] {
    // The address comes first (VCVTPS2PH).
    if constexpr (Memory == ThunkMemory::write) {
      if (!core.check_store(operand.va, t.form.memory_bytes)) return refuse(core, u);
    }
    return raise_simd(core, u, flags_of_exception(t, u, frame, raised, slots, operand.memory));
  }
  if constexpr (Memory == ThunkMemory::write) {
    if (!core.store_bytes(operand.va, operand.buffer.data(), t.form.memory_bytes))
      return refuse(core, u);
  }
  core.arch.vector.mxcsr |= raised;
  general_outputs(core, u, t, frame);
  return u + 1;
}

template <Unit Which, bool General>
Handler integer_handler(ThunkMemory memory) {
  switch (memory) {
    case ThunkMemory::read:
      return run_integer<Which, ThunkMemory::read, General>;
    case ThunkMemory::write:
      return run_integer<Which, ThunkMemory::write, General>;
    default:
      return run_integer<Which, ThunkMemory::none, General>;
  }
}

template <Unit Which>
Handler handler_of(const ThunkForm& form) {
  if (form.floating) {
    switch (form.memory) {
      case ThunkMemory::read:
        return run_floating<Which, ThunkMemory::read>;
      case ThunkMemory::write:
        return run_floating<Which, ThunkMemory::write>;
      default:
        return run_floating<Which, ThunkMemory::none>;
    }
  }
  const bool general = form.gpr_read || form.gpr_write || form.length_inputs || form.index_output ||
                       form.flags_written;
  return general ? integer_handler<Which, true>(form.memory)
                 : integer_handler<Which, false>(form.memory);
}

/// Register numbers in operand order; a general register goes to the last place, the immediate to
/// the place before it or to the last one.
void fill_registers(const Lowering& l, const ThunkForm& form, Uop& u) {
  std::array<std::uint8_t, 4> place{};
  unsigned next = 0;
  for (unsigned i = 0; i < l.insn.operand_count_visible; ++i) {
    const ZydisDecodedOperand& op = l.ops[i];
    if (op.type != ZYDIS_OPERAND_TYPE_REGISTER) continue;
    const ZydisRegisterClass c = ZydisRegisterGetClass(op.reg.value);
    if (c == ZYDIS_REGCLASS_GPR32 || c == ZYDIS_REGCLASS_GPR64) {
      place[3] = Lowering::reg_offset(op.reg.value);
    } else if (next < place.size()) {
      place[next++] = Lowering::reg_number(op.reg.value);
    }
  }
  if (form.immediate_at != 0) {
    place[form.gpr_read || form.gpr_write ? 2 : 3] = form.immediate();
  }
  u.dst = place[0];
  u.src = place[1];
  u.aux = place[2];
  u.aux2 = place[3];
}

}  // namespace

bool lower_thunk(Lowering& l) {
  const auto form = normal_form(l);
  if (!form) return false;
  const HostThunk* thunk = thunk_cache().find(*form);
  if (thunk == nullptr) return false;
  Uop u = l.step(form->kind == ThunkKind::avx ? handler_of<Unit::avx>(*form)
                                              : handler_of<Unit::sse>(*form));
  u.imm = reinterpret_cast<std::uint64_t>(thunk);
  fill_registers(l, *form, u);
  if (form->uses_mmx) {
    emit_mmx_thunk(l, u);
  } else {
    l.emit(u);
  }
  return true;
}

}  // namespace strata::interp
