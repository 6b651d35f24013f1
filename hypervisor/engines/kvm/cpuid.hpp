// What the guest's CPUID says under KVM: the model, limited to what the host's KVM can run.
#pragma once

#include <linux/kvm.h>

#include <vector>

#include "cpu/cpu_model.hpp"
#include "engines/kvm/state.hpp"

namespace strata::kvm {

/// The table for KVM_SET_CPUID2. Feature bits are the model's and the host's both, apart from those
/// the VMM provides itself (APIC, x2APIC, TSC deadline, hypervisor). The XSAVE layout is the
/// host's: guest code runs XSAVE on its processor. OSXSAVE and OSPKE are kept up to date by KVM.
[[nodiscard]] std::vector<kvm_cpuid_entry2> guest_cpuid(
    const cpu::CpuModel& model, const cpu::DynamicState& state,
    const std::vector<kvm_cpuid_entry2>& supported);

/// Where the host has the XSAVE components that guests can have.
[[nodiscard]] XsaveLayout xsave_layout(const std::vector<kvm_cpuid_entry2>& supported) noexcept;

}  // namespace strata::kvm
