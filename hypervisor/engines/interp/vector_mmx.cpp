// MMX: the registers are the mantissas of the physical x87 registers R0-R7, while the FXSAVE image
// keeps them in stack order (SDM 1 9.5, 10.5.1).
#include "engines/interp/vector_thunk.hpp"

namespace strata::interp {
namespace {

/// The MMX registers, taken out of the image in physical order.
struct MmxFile {
  std::array<std::uint64_t, 8> mantissa{};
  std::array<std::uint16_t, 8> exponent{};

  void take(const Core& core) noexcept {
    const unsigned top = fx_get<std::uint16_t>(core, fx::kFsw) >> 11 & 7U;
    for (unsigned i = 0; i < 8; ++i) {
      const std::size_t at = fx::kSt + fx::kStStride * ((i - top) & 7U);
      mantissa[i] = fx_get<std::uint64_t>(core, at);
      exponent[i] = fx_get<std::uint16_t>(core, at + 8);
    }
  }

  /// An MMX instruction other than EMMS leaves TOP 0 and every register tagged as valid
  /// (SDM 3A table 12-2).
  void put(Core& core) const noexcept {
    for (unsigned i = 0; i < 8; ++i) {
      const std::size_t at = fx::kSt + fx::kStStride * i;
      fx_set(core, at, mantissa[i]);
      fx_set(core, at + 8, exponent[i]);
    }
    const unsigned fsw = fx_get<std::uint16_t>(core, fx::kFsw);
    fx_set(core, fx::kFsw, static_cast<std::uint16_t>(fsw & ~0x3800U));
    fx_set(core, fx::kFtw, std::uint8_t{0xFF});
  }
};

bool uses_xmm(const ThunkForm& form) noexcept {
  for (unsigned i = 0; i < form.slot_count; ++i) {
    if (!form.slots[i].mmx) return true;
  }
  return false;
}

/// Why it may not run: forms that touch XMM registers need them enabled as well.
std::uint8_t mmx_refusal(const Core& core, const ThunkForm& form) noexcept {
  if (uses_xmm(form)) {
    if (const auto why = refusal<Unit::sse>(core); why != 0) return why;
  }
  return refusal<Unit::mmx>(core);
}

const Uop* run_mmx(Core& core, const Uop* u) {
  const auto& t = *reinterpret_cast<const HostThunk*>(u->imm);
  const ThunkForm& form = t.form;
  if (const auto why = mmx_refusal(core, form); why != 0) return core.fault(u, why);
  alignas(32) std::array<std::byte, 32> buffer;
  void* memory = buffer.data();
  const std::uint64_t va = form.memory == ThunkMemory::none ? 0 : core.ea(u);
  if ((va & (form.alignment - 1U)) != 0) return core.fault(u, cpu::GP, 0);
  if (form.memory == ThunkMemory::read) {
    memory = thunk_source(core, va, form.memory_bytes, buffer.data());
    if (memory == nullptr) return refuse(core, u);
  }
  MmxFile file;
  file.take(core);
  const std::array<std::uint8_t, 4> number{u->dst, u->src, u->aux, u->aux2};
  std::array<void*, 4> v{};
  for (unsigned i = 0; i < form.slot_count; ++i) {
    v[i] = form.slots[i].mmx ? static_cast<void*>(&file.mantissa[number[i]])
                             : core.arch.vector.ymm[number[i]].data();
    if (form.slots[i].mmx && form.slots[i].written) file.exponent[number[i]] = 0xFFFF;
  }
  ThunkFrame frame;
  if (form.gpr_read) frame.gpr = core.reg<std::uint64_t>(u->aux2);
  prepare_floating(core, frame);
  const std::uint32_t host = host_mxcsr();
  const std::uint32_t result = call_thunk(t, u, v, &frame, memory);
  std::uint32_t raised = 0;
  if (form.floating) {
    set_host_mxcsr(host);
    raised = result & mxcsr::kFlags;
    if ((raised & frame.unmasked) != 0) {
      return raise_simd(core, u, flags_of_exception(t, u, frame, raised, v, memory));
    }
  }
  if (form.memory == ThunkMemory::write &&
      !core.store_bytes(va, buffer.data(), form.memory_bytes)) {
    return refuse(core, u);
  }
  core.arch.vector.mxcsr |= raised;
  if (form.gpr_write) core.set_reg(u->aux2, frame.gpr);
  file.put(core);
  return u + 1;
}

/// MASKMOVQ mm, mm to DS:rDI: all enabled bytes or none.
const Uop* maskmovq(Core& core, const Uop* u) {
  if (const auto why = refusal<Unit::mmx>(core); why != 0) return core.fault(u, why);
  MmxFile file;
  file.take(core);
  std::array<std::uint8_t, 8> data;
  std::memcpy(data.data(), &file.mantissa[u->dst], sizeof data);
  const std::uint64_t mask = file.mantissa[u->src] & 0x8080808080808080ULL;
  const std::uint64_t va = core.ea(u);
  for (unsigned i = 0; i < 8; ++i) {
    if ((mask >> (8 * i) & 0x80) != 0 && !core.check_store(va + i, 1)) {
      return refuse(core, u);
    }
  }
  for (unsigned i = 0; i < 8; ++i) {
    if ((mask >> (8 * i) & 0x80) != 0 && !core.store(va + i, data[i])) return refuse(core, u);
  }
  file.put(core);
  return u + 1;
}

}  // namespace

void emit_mmx_thunk(Lowering& l, Uop u) {
  u.fn = run_mmx;
  l.emit(u);
}

bool lower_maskmovq(Lowering& l) { return lower_maskmov(l, maskmovq); }

}  // namespace strata::interp
