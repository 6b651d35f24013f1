// XCR0 and PKRU: the registers around the XSAVE area.
#include "engines/interp/x87_state.hpp"

namespace strata::interp {
namespace {

namespace xstate = cpu::xstate;

bool osxsave(const Core& core) noexcept { return (core.arch.cr4 & cpu::cr4::OSXSAVE) != 0; }

std::uint32_t low(const Core& core, cpu::Gpr reg) noexcept {
  return static_cast<std::uint32_t>(core.r[reg]);
}

void return_edx_eax(Core& core, std::uint64_t value) noexcept {
  core.r[cpu::RAX] = static_cast<std::uint32_t>(value);
  core.r[cpu::RDX] = value >> 32;
}

const Uop* xgetbv(Core& core, const Uop* u) {
  if (!osxsave(core)) return core.fault(u, cpu::UD);
  const std::uint64_t xcr0 = core.arch.vector.xcr0;
  switch (low(core, cpu::RCX)) {
    case 0:
      return_edx_eax(core, xcr0);
      return u + 1;
    case 1:
      // XCR0 and XINUSE (SDM 1 13.2), where CPUID.(0Dh,1):EAX[2] says so.
      if (!core.env.model->has(cpu::Feature::xgetbv1)) break;
      return_edx_eax(core, xcr0 & xstate_in_use(core));
      return u + 1;
    default:
      break;
  }
  return core.fault(u, cpu::GP, 0);
}

/// SDM 1 13.3: x87 is always on, AVX needs SSE.
bool valid_xcr0(const Core& core, std::uint64_t v) noexcept {
  const bool avx_without_sse = (v & (xstate::kSse | xstate::kAvx)) == xstate::kAvx;
  return (v & xstate::kX87) != 0 && !avx_without_sse && (v & ~core.env.model->xcr0_mask()) == 0;
}

const Uop* xsetbv(Core& core, const Uop* u) {
  if (!osxsave(core)) return core.fault(u, cpu::UD);
  const std::uint64_t v = low(core, cpu::RAX) | core.r[cpu::RDX] << 32;
  if (core.cpl != 0 || low(core, cpu::RCX) != 0 || !valid_xcr0(core, v)) {
    return core.fault(u, cpu::GP, 0);
  }
  core.arch.vector.xcr0 = v;
  return core.finish(u);
}

const Uop* rdpkru(Core& core, const Uop* u) {
  if ((core.arch.cr4 & cpu::cr4::PKE) == 0) return core.fault(u, cpu::UD);
  if (low(core, cpu::RCX) != 0) return core.fault(u, cpu::GP, 0);
  return_edx_eax(core, core.arch.pkru);
  return u + 1;
}

const Uop* wrpkru(Core& core, const Uop* u) {
  if ((core.arch.cr4 & cpu::cr4::PKE) == 0) return core.fault(u, cpu::UD);
  if (low(core, cpu::RCX) != 0 || low(core, cpu::RDX) != 0) return core.fault(u, cpu::GP, 0);
  // Linux writes what is there already with every signal.
  if (core.arch.pkru != low(core, cpu::RAX)) {
    core.arch.pkru = low(core, cpu::RAX);
    core.rights_changed();
  }
  return core.finish(u);
}

}  // namespace

bool lower_xcontrol(Lowering& l) {
  Handler fn = nullptr;
  switch (l.insn.mnemonic) {
    case ZYDIS_MNEMONIC_XGETBV:
      fn = xgetbv;
      break;
    case ZYDIS_MNEMONIC_XSETBV:
      fn = xsetbv;
      break;
    case ZYDIS_MNEMONIC_RDPKRU:
      fn = rdpkru;
      break;
    case ZYDIS_MNEMONIC_WRPKRU:
      fn = wrpkru;
      break;
    default:
      return false;
  }
  l.emit(l.step(fn));
  return true;
}

}  // namespace strata::interp
