// Engine `kvm` as a VM is put together with it; see engines/kvm. In a build without it, create()
// says so.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "boot/memory_map.hpp"
#include "cpu/cpu_model.hpp"
#include "engines/engine.hpp"
#include "machine/guest_memory.hpp"
#include "mmu/expected.hpp"
#include "vmm/vm_config.hpp"

namespace strata::vmm {

/// What one VM's vCPUs under the host's KVM share. They go before it, and it before the P2M.
class HostEngine {
 public:
  /// Everything outlives the engine.
  struct Environment {
    machine::GuestMemory* memory = nullptr;
    const cpu::CpuModel* model = nullptr;
    engine::TscSource* tsc = nullptr;
    unsigned vcpus = 1;
  };
  HostEngine() = default;
  HostEngine(const HostEngine&) = delete;
  HostEngine& operator=(const HostEngine&) = delete;
  virtual ~HostEngine() = default;

  /// Tries the host's /dev/kvm on small guests and lays out the VM's memory slots. Error: one line
  /// that says what the host lacks.
  [[nodiscard]] static Expected<std::unique_ptr<HostEngine>, ConfigError> create(
      const Environment& environment, const boot::MemoryMap& map);

  /// Why the host's KVM is not for just any guest: the first thing that it lacks, in a few words.
  /// Empty: it runs whatever guests do.
  [[nodiscard]] static std::string lack();

  /// vCPU `id`, with the APIC id of that number.
  [[nodiscard]] virtual Expected<std::unique_ptr<engine::Vcpu>, ConfigError> make_vcpu(
      VcpuId id, engine::InterruptSource& interrupts) = 0;
  /// Starts its threads. Before a vCPU runs, once.
  virtual void start() = 0;
  /// The requests of ioctl() that it makes while a vCPU runs.
  [[nodiscard]] virtual std::vector<unsigned long> ioctls() const = 0;
  /// What works only in part on this host; empty: nothing.
  [[nodiscard]] virtual const std::string& remark() const noexcept = 0;
  /// What it counts, for --stats.
  [[nodiscard]] virtual nlohmann::json details() const = 0;
};

}  // namespace strata::vmm
