// MXCSR, zeroing of the upper halves, EMMS.
#include "engines/interp/vector_thunk.hpp"
#include "engines/interp/x87_state.hpp"

namespace strata::interp {
namespace {

template <Unit Which>
const Uop* load_mxcsr(Core& core, const Uop* u) {
  if (const auto why = refusal<Which>(core); why != 0) return core.fault(u, why);
  std::uint32_t v = 0;
  if (!core.load(core.ea(u), v)) return refuse(core, u);
  // Bits 31:16 are reserved (SDM 1 10.2.3).
  if ((v & ~0xFFFFU) != 0) return core.fault(u, cpu::GP, 0);
  core.arch.vector.mxcsr = v;
  return u + 1;
}

template <Unit Which>
const Uop* store_mxcsr(Core& core, const Uop* u) {
  if (const auto why = refusal<Which>(core); why != 0) return core.fault(u, why);
  if (!core.store(core.ea(u), core.arch.vector.mxcsr)) return refuse(core, u);
  return u + 1;
}

/// VZEROALL with `aux` set, else VZEROUPPER; YMM8-15 exist in 64-bit mode only.
const Uop* zero_registers(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::avx>(core); why != 0) return core.fault(u, why);
  const std::size_t count = core.long_mode() ? 16 : 8;
  for (std::size_t i = 0; i < count; ++i) {
    VectorRegister& r = core.arch.vector.ymm[i];
    if (u->aux != 0) r[0] = r[1] = 0;
    r[2] = r[3] = 0;
  }
  return u + 1;
}

/// Every register empty, TOP 0 (SDM 3A table 12-2).
const Uop* emms(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::mmx>(core); why != 0) return core.fault(u, why);
  X87Image image = get_x87(core);
  image.set_top(0);
  image.set<std::uint8_t>(fx::kFtw, 0);
  set_x87(core, image);
  return u + 1;
}

}  // namespace

bool lower_vector_control(Lowering& l) {
  Handler fn = nullptr;
  std::uint8_t aux = 0;
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_LDMXCSR:
      fn = load_mxcsr<Unit::sse>;
      break;
    case ZYDIS_MNEMONIC_VLDMXCSR:
      fn = load_mxcsr<Unit::avx>;
      break;
    case ZYDIS_MNEMONIC_STMXCSR:
      fn = store_mxcsr<Unit::sse>;
      break;
    case ZYDIS_MNEMONIC_VSTMXCSR:
      fn = store_mxcsr<Unit::avx>;
      break;
    case ZYDIS_MNEMONIC_VZEROALL:
      aux = 1;
      [[fallthrough]];
    case ZYDIS_MNEMONIC_VZEROUPPER:
      fn = zero_registers;
      break;
    case ZYDIS_MNEMONIC_EMMS:
      fn = emms;
      break;
    default:
      return false;
  }
  Uop u = l.step(fn);
  u.aux = aux;
  l.emit(u);
  return true;
}

}  // namespace strata::interp
