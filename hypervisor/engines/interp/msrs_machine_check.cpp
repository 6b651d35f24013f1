// The machine-check MSRs (SDM 3B 16.3). Nothing here ever fails, so the banks stay empty.
#include "cpu/cpu_model.hpp"
#include "engines/interp/msrs.hpp"

namespace strata::interp {

namespace {

constexpr std::uint32_t kCap = 0x179, kStatus = 0x17A, kControl = 0x17B, kFirstBank = 0x400;
constexpr std::size_t kBanks = std::tuple_size_v<decltype(cpu::Msrs::mc_banks)>;
constexpr std::uint64_t kCapValue = kBanks | 1ULL << 8;  // MCG_CTL_P
/// IA32_MCG_STATUS: RIPV, EIPV, MCIP.
constexpr std::uint64_t kStatusMask = 7;

/// IA32_MCi_CTL, _STATUS, _ADDR, _MISC follow each other.
struct BankRegister {
  std::size_t bank;
  std::size_t which;
};
enum : std::size_t { bank_control, bank_status };

std::optional<BankRegister> bank_register(std::uint32_t msr) noexcept {
  if (msr < kFirstBank || msr >= kFirstBank + 4 * kBanks) return std::nullopt;
  return BankRegister{(msr - kFirstBank) / 4, (msr - kFirstBank) % 4};
}

}  // namespace

MsrAccess read_machine_check_msr(const Core& core, std::uint32_t msr,
                                 std::uint64_t& value) noexcept {
  if (!core.env.model->has(cpu::Feature::mca)) return MsrAccess::foreign;
  const cpu::Msrs& m = core.arch.msr;
  if (const auto at = bank_register(msr)) {
    value = m.mc_banks[at->bank][at->which];
    return MsrAccess::done;
  }
  switch (msr) {
    case kCap:
      value = kCapValue;
      return MsrAccess::done;
    case kStatus:
      value = m.mcg_status;
      return MsrAccess::done;
    case kControl:
      value = m.mcg_ctl;
      return MsrAccess::done;
    default:
      return MsrAccess::foreign;
  }
}

MsrAccess write_machine_check_msr(Core& core, std::uint32_t msr, std::uint64_t value) noexcept {
  if (!core.env.model->has(cpu::Feature::mca)) return MsrAccess::foreign;
  cpu::Msrs& m = core.arch.msr;
  const auto put = [value](std::uint64_t& where, bool valid) {
    if (!valid) return MsrAccess::refused;
    where = value;
    return MsrAccess::done;
  };
  const bool all_or_nothing = value == 0 || value == ~0ULL;
  if (const auto at = bank_register(msr)) {
    // Controls take all ones or all zeroes, a status register zero only (SDM 3B 16.3.2.1, .2).
    const bool valid = at->which == bank_control  ? all_or_nothing
                       : at->which == bank_status ? value == 0
                                                  : true;
    return put(m.mc_banks[at->bank][at->which], valid);
  }
  switch (msr) {
    case kCap:
      return MsrAccess::refused;
    case kStatus:
      return put(m.mcg_status, (value & ~kStatusMask) == 0);
    case kControl:
      return put(m.mcg_ctl, all_or_nothing);
    default:
      return MsrAccess::foreign;
  }
}

}  // namespace strata::interp
