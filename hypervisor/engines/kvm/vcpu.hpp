// The engine that has guest instructions executed by the host's KVM.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "cpu/cpu_model.hpp"
#include "engines/engine.hpp"
#include "engines/kvm/host_kvm.hpp"
#include "engines/kvm/host_window.hpp"
#include "machine/guest_memory.hpp"

namespace strata::kvm {

/// What the vCPUs of one VM have in common. Everything outlives them.
struct VmEnvironment {
  machine::GuestMemory* memory = nullptr;
  const cpu::CpuModel* model = nullptr;
  engine::TscSource* tsc = nullptr;
  unsigned vcpus = 1;
};

/// One VM in the host's KVM: its slots lie in a window that follows the P2M. There is no Mmu: the
/// processor walks tables that the host kernel keeps.
class Machine {
 public:
  /// Opens /dev/kvm and lays out `slots`. Errors: one line that says what the host lacks.
  [[nodiscard]] static Expected<std::unique_ptr<Machine>, KvmError> create(
      const VmEnvironment& environment, std::vector<Slot> slots);

  /// Before a vCPU runs, once: starts the thread that gives the guest its pages.
  void start() { window_->start(); }

  /// The requests of ioctl() that its vCPUs and its window make once all of them are created.
  [[nodiscard]] static std::vector<unsigned long> ioctls();

  /// vCPU `id`, with the APIC id of that number. `interrupts` outlives it.
  [[nodiscard]] Expected<std::unique_ptr<engine::Vcpu>, KvmError> add_vcpu(
      unsigned id, engine::InterruptSource& interrupts);

  [[nodiscard]] HostWindow& window() noexcept { return *window_; }

 private:
  Machine(const VmEnvironment& environment, Device device, VmFile vm,
          std::unique_ptr<HostWindow> window);

  const VmEnvironment environment_;
  Device device_;
  std::unique_ptr<HostWindow> window_;  ///< goes after the VM whose slots lie in it
  VmFile vm_;
  std::uint64_t tsc_offset_ = 0;  ///< guest TSC minus host TSC
};

}  // namespace strata::kvm
