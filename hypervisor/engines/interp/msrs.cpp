#include "engines/interp/msrs.hpp"

#include "cpu/cpu_model.hpp"
#include "engines/interp/segments.hpp"

namespace strata::interp {

using cpu::Feature;

namespace {

/// Numbers of SDM 4, chapter 2.
namespace msr {
constexpr std::uint32_t kTsc = 0x10, kTscAdjust = 0x3B, kSpecCtrl = 0x48, kPredCmd = 0x49,
                        kMicrocode = 0x8B, kPlatformInfo = 0xCE, kArchCapabilities = 0x10A,
                        kSysenterCs = 0x174, kSysenterEsp = 0x175, kSysenterEip = 0x176,
                        kMiscEnable = 0x1A0, kDebugCtl = 0x1D9, kEfer = 0xC0000080,
                        kStar = 0xC0000081, kLstar = 0xC0000082, kCstar = 0xC0000083,
                        kSfmask = 0xC0000084, kFsBase = 0xC0000100, kGsBase = 0xC0000101,
                        kKernelGsBase = 0xC0000102, kTscAux = 0xC0000103,
                        kK7EventSelect0 = 0xC0010000;
}

/// An interpreter does not speculate, so it has none of the flaws that IA32_ARCH_CAPABILITIES can
/// deny: RDCL_NO 0, SKIP_L1DFL 3, SSB_NO 4, MDS_NO 5, IF_PSCHANGE_MC_NO 6, TAA_NO 8, SBDR_SSDP_NO
/// 13, FBSDP_NO 14, PSDP_NO 15, PBRSB_NO 24, GDS_NO 26, RFDS_NO 27 (SDM 4 table 2-2).
constexpr std::uint64_t kArchCapabilitiesValue = 1ULL << 0 | 1ULL << 3 | 1ULL << 4 | 1ULL << 5 |
                                                 1ULL << 6 | 1ULL << 8 | 1ULL << 13 | 1ULL << 14 |
                                                 1ULL << 15 | 1ULL << 24 | 1ULL << 26 | 1ULL << 27;
/// IA32_SPEC_CTRL: IBRS 0, STIBP 1, SSBD 2.
constexpr std::uint64_t kSpecCtrlMask = 7;
/// IA32_MISC_ENABLE: fast strings 0, thermal 3, EIST 16, MONITOR 18, CPUID limit 22, xTPR 23 and XD
/// disable 34 can be written; performance monitoring 7, BTS and PEBS unavailable 11, 12 are
/// read-only.
constexpr std::uint64_t kMiscEnableWritable = 1ULL << 0 | 1ULL << 3 | 1ULL << 16 | 1ULL << 18 |
                                              1ULL << 22 | 1ULL << 23 | misc_enable::kXdDisable;
constexpr std::uint64_t kMiscEnableReadOnly = 1ULL << 7 | 1ULL << 11 | 1ULL << 12;
/// IA32_DEBUGCTL: LBR 0 and BTF 1 are kept; there are no branch records.
constexpr std::uint64_t kDebugCtlMask = 3;

/// The register behind an MSR that is nothing but storage holding a canonical address; or null.
std::uint64_t* address_msr(Core& core, std::uint32_t number) noexcept {
  cpu::Msrs& m = core.arch.msr;
  const bool lm = core.env.model->has(Feature::lm);
  switch (number) {
    case msr::kSysenterEsp:
      return &m.sysenter_esp;
    case msr::kSysenterEip:
      return &m.sysenter_eip;
    case msr::kLstar:
      return lm ? &m.lstar : nullptr;
    case msr::kCstar:
      return lm ? &m.cstar : nullptr;
    case msr::kFsBase:
      return lm ? &core.arch.segment[cpu::FS].base : nullptr;
    case msr::kGsBase:
      return lm ? &core.arch.segment[cpu::GS].base : nullptr;
    case msr::kKernelGsBase:
      return lm ? &m.kernel_gs_base : nullptr;
    default:
      return nullptr;
  }
}

/// The register behind an MSR of which `mask` can be written and the rest must be zero; or null.
struct Masked {
  std::uint64_t* where = nullptr;
  std::uint64_t mask = 0;
};
Masked masked_msr(Core& core, std::uint32_t number) noexcept {
  cpu::Msrs& m = core.arch.msr;
  const cpu::CpuModel& model = *core.env.model;
  switch (number) {
    case msr::kTscAdjust:
      return {model.has(Feature::tsc_adjust) ? &m.tsc_adjust : nullptr, ~0ULL};
    case msr::kSpecCtrl:
      return {model.has(Feature::spec_ctrl) ? &m.spec_ctrl : nullptr, kSpecCtrlMask};
    case msr::kSysenterCs:
      return {model.has(Feature::sysenter) ? &m.sysenter_cs : nullptr, ~0ULL};
    case msr::kDebugCtl:
      return {&m.debugctl, kDebugCtlMask};
    case msr::kStar:
      return {model.has(Feature::syscall) ? &m.star : nullptr, ~0ULL};
    case msr::kSfmask:
      return {model.has(Feature::syscall) ? &m.sfmask : nullptr, 0xFFFFFFFF};
    case msr::kK7EventSelect0:
    case msr::kK7EventSelect0 + 1:
    case msr::kK7EventSelect0 + 2:
    case msr::kK7EventSelect0 + 3:
    case msr::kK7EventSelect0 + 4:
    case msr::kK7EventSelect0 + 5:
    case msr::kK7EventSelect0 + 6:
    case msr::kK7EventSelect0 + 7:
      // Four event selects and four counters, which every AMD64 processor has (AMD APM 2 13.2.1):
      // kept, and counting nothing.
      return {model.is_amd() ? &m.k7_counters[number & 7] : nullptr, (1ULL << 48) - 1};
    case msr::kTscAux:
      return {model.has(Feature::rdtscp) || model.has(Feature::rdpid) ? &m.tsc_aux : nullptr,
              0xFFFFFFFF};
    default:
      return {};
  }
}

MsrAccess write_efer(Core& core, std::uint64_t value) {
  using namespace cpu::efer;
  const std::uint64_t old = core.arch.efer;
  value = (value & ~LMA) | (old & LMA);  // LMA is the processor's
  if ((value & ~(core.env.model->efer_mask() | LMA)) != 0) return MsrAccess::refused;
  const std::uint64_t changed = old ^ value;
  const bool paging = (core.arch.cr0 & cpu::cr0::PG) != 0;
  if ((changed & LME) != 0 && paging) return MsrAccess::refused;
  core.arch.efer = value;
  if ((changed & NXE) != 0) core.rights_changed();
  return MsrAccess::done;
}

MsrAccess write_misc_enable(Core& core, std::uint64_t value) {
  std::uint64_t& now = core.arch.msr.misc_enable;
  if ((value & ~(kMiscEnableWritable | kMiscEnableReadOnly)) != 0) return MsrAccess::refused;
  now = (now & kMiscEnableReadOnly) | (value & kMiscEnableWritable);
  return MsrAccess::done;
}

}  // namespace

std::uint64_t guest_tsc(Core& core) noexcept {
  return core.env.tsc->tsc() + core.arch.msr.tsc_adjust;
}

MsrAccess read_msr(Core& core, std::uint32_t number, std::uint64_t& value) {
  if (const std::uint64_t* where = address_msr(core, number)) {
    value = *where;
    return MsrAccess::done;
  }
  if (const Masked m = masked_msr(core, number); m.where != nullptr) {
    value = *m.where;
    return MsrAccess::done;
  }
  const cpu::CpuModel& model = *core.env.model;
  switch (number) {
    case msr::kTsc:
      value = guest_tsc(core);
      return MsrAccess::done;
    case msr::kPredCmd:  // write-only
      return model.has(Feature::spec_ctrl) ? MsrAccess::refused : MsrAccess::foreign;
    case msr::kMicrocode:
      value = model.microcode_revision();
      return MsrAccess::done;
    case msr::kPlatformInfo:
      value = std::uint64_t{model.tsc_khz() / 100'000} << 8;  // ratio to the 100 MHz bus clock
      return MsrAccess::done;
    case msr::kArchCapabilities:
      if (!model.has(Feature::arch_capabilities)) return MsrAccess::foreign;
      value = kArchCapabilitiesValue;
      return MsrAccess::done;
    case msr::kMiscEnable:
      value = core.arch.msr.misc_enable;
      return MsrAccess::done;
    case msr::kEfer:
      value = core.arch.efer;
      return MsrAccess::done;
    default:
      break;
  }
  const MsrAccess access = read_machine_check_msr(core, number, value);
  return access != MsrAccess::foreign ? access : read_memory_type_msr(core, number, value);
}

MsrAccess write_msr(Core& core, std::uint32_t number, std::uint64_t value) {
  if (std::uint64_t* where = address_msr(core, number)) {
    if (!canonical(value)) return MsrAccess::refused;
    *where = value;
    core.segments_changed();  // FS and GS bases
    return MsrAccess::done;
  }
  if (const Masked m = masked_msr(core, number); m.where != nullptr) {
    if ((value & ~m.mask) != 0) return MsrAccess::refused;
    *m.where = value;
    return MsrAccess::done;
  }
  const cpu::CpuModel& model = *core.env.model;
  switch (number) {
    case msr::kTsc:
      core.arch.msr.tsc_adjust = value - core.env.tsc->tsc();
      return MsrAccess::done;
    case msr::kPredCmd:
      if (!model.has(Feature::spec_ctrl)) return MsrAccess::foreign;
      return (value & ~1ULL) == 0 ? MsrAccess::done : MsrAccess::refused;
    case msr::kMicrocode:  // written with zero before CPUID fills it in (SDM 3A 10.11.7.1)
      return MsrAccess::done;
    case msr::kPlatformInfo:
      return MsrAccess::refused;
    case msr::kArchCapabilities:
      return model.has(Feature::arch_capabilities) ? MsrAccess::refused : MsrAccess::foreign;
    case msr::kMiscEnable:
      return write_misc_enable(core, value);
    case msr::kEfer:
      return write_efer(core, value);
    default:
      break;
  }
  const MsrAccess access = write_machine_check_msr(core, number, value);
  return access != MsrAccess::foreign ? access : write_memory_type_msr(core, number, value);
}

}  // namespace strata::interp
