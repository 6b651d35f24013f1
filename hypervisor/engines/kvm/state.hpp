// cpu::VcpuState and the structures in which KVM takes and gives it. Pure conversions.
#pragma once

#include <linux/kvm.h>

#include <array>
#include <cstdint>

#include "cpu/vcpu_state.hpp"

namespace strata::kvm {

/// What KVM_GET_XSAVE fills: struct kvm_xsave without the tail that guests with AMX tiles have.
using Xsave = std::array<std::uint32_t, 1024>;

/// The parts of a vCPU that have an ioctl each; MSRs apart.
struct Registers {
  kvm_regs general{};
  kvm_sregs special{};  ///< apic_base, cr8 and interrupt_bitmap are not VcpuState's: left alone
  Xsave extended{};
  kvm_debugregs debug{};
  std::uint64_t xcr0 = 1;
};

/// Where the host's XSAVE areas have what VcpuState knows (SDM 1 13.4; CPUID.D on the host).
struct XsaveLayout {
  std::uint64_t components = 3;   ///< XCR0 bits that the host lets guests have
  std::uint32_t avx_offset = 0;   ///< upper halves of YMM; meaningful with bit 2
  std::uint32_t pkru_offset = 0;  ///< meaningful with bit 9
};

[[nodiscard]] kvm_segment to_kvm(const cpu::Segment& segment) noexcept;
[[nodiscard]] cpu::Segment from_kvm(const kvm_segment& segment) noexcept;

/// Writes `state` over `registers`.
void put_state(const cpu::VcpuState& state, const XsaveLayout& layout,
               Registers& registers) noexcept;
/// Reads everything but MSRs and event marks.
void get_state(const Registers& registers, const XsaveLayout& layout,
               cpu::VcpuState& state) noexcept;

/// An MSR that is part of VcpuState.
struct MsrField {
  std::uint32_t index;
  std::uint64_t cpu::Msrs::*field;
};
/// All but the MTRR arrays.
inline constexpr std::array kMsrFields{
    MsrField{0xC000'0081, &cpu::Msrs::star},
    MsrField{0xC000'0082, &cpu::Msrs::lstar},
    MsrField{0xC000'0083, &cpu::Msrs::cstar},
    MsrField{0xC000'0084, &cpu::Msrs::sfmask},
    MsrField{0xC000'0102, &cpu::Msrs::kernel_gs_base},
    MsrField{0x174, &cpu::Msrs::sysenter_cs},
    MsrField{0x175, &cpu::Msrs::sysenter_esp},
    MsrField{0x176, &cpu::Msrs::sysenter_eip},
    MsrField{0x277, &cpu::Msrs::pat},
    MsrField{0xC000'0103, &cpu::Msrs::tsc_aux},
    MsrField{0x3B, &cpu::Msrs::tsc_adjust},
    MsrField{0x1A0, &cpu::Msrs::misc_enable},
    MsrField{0x1D9, &cpu::Msrs::debugctl},
    MsrField{0x48, &cpu::Msrs::spec_ctrl},
    MsrField{0x2FF, &cpu::Msrs::mtrr_def_type},
};
/// IA32_MTRR_FIX64K_00000, FIX16K, FIX4K (SDM 3A 12.11.2.2), in the order of Msrs::mtrr_fixed.
inline constexpr std::array<std::uint32_t, 11> kFixedMtrrs{0x250, 0x258, 0x259, 0x268, 0x269, 0x26A,
                                                           0x26B, 0x26C, 0x26D, 0x26E, 0x26F};
inline constexpr std::uint32_t kFirstVariableMtrr = 0x200;
inline constexpr std::size_t kStateMsrs = kMsrFields.size() + kFixedMtrrs.size() + 16;

/// Every MSR of `msrs` with its number, in one order.
[[nodiscard]] std::array<kvm_msr_entry, kStateMsrs> list_msrs(const cpu::Msrs& msrs) noexcept;
/// The MSR at `position` of that order gets `value`.
void store_msr(cpu::Msrs& msrs, std::size_t position, std::uint64_t value) noexcept;

}  // namespace strata::kvm
