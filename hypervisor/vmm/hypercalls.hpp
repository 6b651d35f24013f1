// KVM's hypercalls that this machine answers (Linux, Documentation/virt/kvm/x86/hypercalls.rst).
#pragma once

#include <cstdint>

#include "cpu/vcpu_state.hpp"
#include "devices/apic_bus.hpp"

namespace strata::vmm {

/// Carries out the hypercall that `state` makes and returns what goes to RAX: a count or a negative
/// error. Any thread.
[[nodiscard]] std::uint64_t answer_hypercall(const cpu::VcpuState& state, devices::ApicBus& bus);

}  // namespace strata::vmm
