// A vCPU's exits answered by the machine's devices.
#pragma once

#include "vmm/exit_handler.hpp"
#include "vmm/hypercalls.hpp"
#include "vmm/platform.hpp"

namespace strata::vmm {

/// Any vCPU thread; each for its own vCPU.
class PlatformExits final : public ExitHandler {
 public:
  /// `platform` must outlive this object.
  explicit PlatformExits(Platform& platform) noexcept : platform_{platform} {}
  std::uint64_t port_read(VcpuId, std::uint16_t port, unsigned size) override {
    return platform_.port_read(port, size);
  }
  void port_write(VcpuId, std::uint16_t port, unsigned size, std::uint64_t value) override {
    platform_.port_write(port, size, value);
  }
  std::uint64_t mmio_read(VcpuId vcpu, PA pa, unsigned size) override {
    return platform_.mmio_read(vcpu, pa, size);
  }
  void mmio_write(VcpuId vcpu, PA pa, unsigned size, std::uint64_t value) override {
    platform_.mmio_write(vcpu, pa, size, value);
  }
  std::optional<std::uint64_t> msr_read(VcpuId vcpu, std::uint32_t msr) override {
    return platform_.msr_read(vcpu, msr);
  }
  bool msr_write(VcpuId vcpu, std::uint32_t msr, std::uint64_t value) override {
    return platform_.msr_write(vcpu, msr, value);
  }
  std::uint64_t hypercall(VcpuId, const cpu::VcpuState& state) override {
    return answer_hypercall(state, platform_.apic_bus());
  }

 private:
  Platform& platform_;
};

}  // namespace strata::vmm
