// Who answers a vCPU's exits: the platform's devices, a recorder in front of them, or a recording.
#pragma once

#include <cstdint>
#include <optional>

#include "cpu/vcpu_state.hpp"
#include "mmu/mmu.hpp"

namespace strata::vmm {

/// Called by the vCPU's thread for its own vCPU. See engine::ExitKind.
class ExitHandler {
 public:
  ExitHandler() = default;
  ExitHandler(const ExitHandler&) = delete;
  ExitHandler& operator=(const ExitHandler&) = delete;
  virtual ~ExitHandler() = default;
  virtual std::uint64_t port_read(VcpuId vcpu, std::uint16_t port, unsigned size) = 0;
  virtual void port_write(VcpuId vcpu, std::uint16_t port, unsigned size, std::uint64_t value) = 0;
  virtual std::uint64_t mmio_read(VcpuId vcpu, PA pa, unsigned size) = 0;
  virtual void mmio_write(VcpuId vcpu, PA pa, unsigned size, std::uint64_t value) = 0;
  /// Nothing (false): #GP(0).
  virtual std::optional<std::uint64_t> msr_read(VcpuId vcpu, std::uint32_t msr) = 0;
  virtual bool msr_write(VcpuId vcpu, std::uint32_t msr, std::uint64_t value) = 0;
  /// What RAX gets. `state`: the caller's registers.
  virtual std::uint64_t hypercall(VcpuId vcpu, const cpu::VcpuState& state) = 0;
};

}  // namespace strata::vmm
