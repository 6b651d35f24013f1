// IA32_PAT and the MTRRs (SDM 3A 12.11, 12.12).
#include "cpu/cpu_model.hpp"
#include "engines/interp/msrs.hpp"

namespace strata::interp {

namespace {

constexpr std::uint32_t kMtrrCap = 0xFE, kVariableFirst = 0x200, kVariableCount = 16, kPat = 0x277,
                        kDefType = 0x2FF;
/// Eight variable ranges, fixed ranges, write combining.
constexpr std::uint64_t kMtrrCapValue = 8 | 1 << 8 | 1 << 10;

/// UC, WC, WT, WP, WB; the PAT also has UC- (7).
constexpr bool valid_type(std::uint64_t type, bool pat) {
  return type <= 1 || (type >= 4 && type <= 6) || (pat && type == 7);
}

constexpr bool valid_types(std::uint64_t eight, bool pat) {
  for (unsigned i = 0; i < 8; ++i) {
    if (!valid_type(eight >> (8 * i) & 0xFF, pat)) return false;
  }
  return true;
}

/// Index into Msrs::mtrr_fixed, or -1.
constexpr int fixed_index(std::uint32_t msr) {
  if (msr == 0x250) return 0;
  if (msr == 0x258 || msr == 0x259) return static_cast<int>(msr - 0x258) + 1;
  if (msr >= 0x268 && msr <= 0x26F) return static_cast<int>(msr - 0x268) + 3;
  return -1;
}

constexpr bool is_variable(std::uint32_t msr) {
  return msr >= kVariableFirst && msr < kVariableFirst + kVariableCount;
}

bool valid_variable(std::uint32_t msr, std::uint64_t value, unsigned maxphyaddr) {
  if (value >> maxphyaddr != 0) return false;
  const bool mask = (msr & 1) != 0;
  return mask ? (value & 0x7FF) == 0 : (value & 0xF00) == 0 && valid_type(value & 0xFF, false);
}

}  // namespace

MsrAccess read_memory_type_msr(const Core& core, std::uint32_t msr, std::uint64_t& value) noexcept {
  const cpu::Msrs& m = core.arch.msr;
  if (msr == kPat && core.env.model->has(cpu::Feature::pat)) {
    value = m.pat;
    return MsrAccess::done;
  }
  if (!core.env.model->has(cpu::Feature::mtrr)) return MsrAccess::foreign;
  const int fixed = fixed_index(msr);
  if (msr == kMtrrCap) {
    value = kMtrrCapValue;
  } else if (msr == kDefType) {
    value = m.mtrr_def_type;
  } else if (is_variable(msr)) {
    value = m.mtrr_variable[msr - kVariableFirst];
  } else if (fixed >= 0) {
    value = m.mtrr_fixed[static_cast<std::size_t>(fixed)];
  } else {
    return MsrAccess::foreign;
  }
  return MsrAccess::done;
}

MsrAccess write_memory_type_msr(Core& core, std::uint32_t msr, std::uint64_t value) noexcept {
  cpu::Msrs& m = core.arch.msr;
  const auto put = [value](std::uint64_t& where, bool valid) {
    if (!valid) return MsrAccess::refused;
    where = value;
    return MsrAccess::done;
  };
  if (msr == kPat && core.env.model->has(cpu::Feature::pat)) {
    return put(m.pat, valid_types(value, true));
  }
  if (!core.env.model->has(cpu::Feature::mtrr)) return MsrAccess::foreign;
  const int fixed = fixed_index(msr);
  if (msr == kMtrrCap) return MsrAccess::refused;
  if (msr == kDefType) {
    return put(m.mtrr_def_type, (value & ~0xCFFULL) == 0 && valid_type(value & 0xFF, false));
  }
  if (is_variable(msr)) {
    return put(m.mtrr_variable[msr - kVariableFirst],
               valid_variable(msr, value, core.env.model->maxphyaddr()));
  }
  if (fixed >= 0) {
    return put(m.mtrr_fixed[static_cast<std::size_t>(fixed)], valid_types(value, false));
  }
  return MsrAccess::foreign;
}

}  // namespace strata::interp
