// Lock-step: a second VM, the follower, gets what the first one was given, runs to where that is,
// and has to be in the same state.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "cpu/vcpu_state.hpp"
#include "engines/interp/core.hpp"
#include "vmm/replay/event_queue.hpp"
#include "vmm/vm.hpp"

namespace strata::vmm {

struct Vm::Check {
  /// The follower's devices say nothing.
  class Silence final : public devices::CharSink {
   public:
    void put(std::span<const std::uint8_t>) override {}
  };
  replay::EventQueue inputs;
  Silence silence;
  std::unique_ptr<Vm> follower;
  std::vector<interp::Core*> cores;  ///< the first VM's
  bool by_blocks = false;            ///< the cores return after each block
  /// Where the last comparison was, and what both VMs were in.
  VcpuId vcpu = 0;
  engine::VcpuPosition position{};
  cpu::VcpuState state{};
  // Instructions of all vCPUs.
  std::uint64_t next_memory = 0;
  std::uint64_t memory_agreed = 0;
  std::uint64_t state_agreed = 0;
  CheckResult result;
};

}  // namespace strata::vmm
