// One vCPU of the host's KVM: its descriptor, its kvm_run page, its registers, and the way to get
// it out of KVM_RUN. What the exits mean is vcpu.cpp's.
#pragma once

#include <linux/kvm.h>
#include <pthread.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "cpu/vcpu_state.hpp"
#include "engines/kvm/host_kvm.hpp"
#include "engines/kvm/state.hpp"

namespace strata::kvm {

class Processor {
 public:
  /// Requests of ioctl() that are made once created.
  [[nodiscard]] static std::span<const unsigned long> ioctls() noexcept;

  [[nodiscard]] static Expected<std::unique_ptr<Processor>, KvmError> create(
      const Device& device, const VmFile& vm, unsigned id,
      const std::vector<kvm_cpuid_entry2>& cpuid);

  [[nodiscard]] kvm_run& run() noexcept { return *reinterpret_cast<kvm_run*>(page_.base()); }

  enum class Entry : std::uint8_t {
    exited,  ///< run() says why
    left,    ///< leave() or a signal
    fault,   ///< EFAULT: guest memory that could not be reached
    failed,  ///< see error()
  };
  /// KVM_RUN. The owner's thread.
  Entry enter();
  /// Completes the instruction whose exit has been answered, and executes nothing after it.
  Entry finish_instruction();
  /// What enter() has failed with, for the log.
  [[nodiscard]] const std::string& error() const noexcept { return error_; }

  /// From now on a leave() ends the next enter(). The owner calls it, then looks at why it might
  /// have been told to leave, then enters: whoever tells it changes something first, then calls
  /// leave(), so that one of the two sees the other.
  void listen() noexcept;
  /// The running or next enter() returns. Any thread.
  void leave() noexcept;

  /// KVM_INTERRUPT, KVM_NMI: the event is delivered at the next enter().
  bool inject(std::uint8_t vector) noexcept;
  bool inject_nmi() noexcept;

  /// Between entries, finish_instruction() done. State that the host's KVM cannot hold: an error
  /// that names it.
  [[nodiscard]] Expected<void, KvmError> load(const cpu::VcpuState& state);
  [[nodiscard]] Expected<cpu::VcpuState, KvmError> save();
  /// The guest's TSC reads the host's plus `offset` from here on. Relative: other vCPUs and the
  /// VMM's clock see the same.
  Expected<void, KvmError> set_tsc_offset(std::uint64_t offset);
  /// Sets one MSR; false where the host's KVM has none such.
  bool set_msr(std::uint32_t index, std::uint64_t value) noexcept;

 private:
  Processor() = default;
  Entry enter_once();
  [[nodiscard]] bool control(unsigned long request, const void* argument, const char* name);
  [[nodiscard]] bool query(unsigned long request, void* argument, const char* name);
  bool load_msrs(const cpu::Msrs& msrs);
  void save_msrs(cpu::Msrs& msrs);

  machine::FileDescriptor fd_;
  machine::HostMapping page_;
  XsaveLayout layout_;
  std::string error_;

  /// Guards running_ and thread_. A leaf.
  std::mutex thread_lock_;
  bool running_ = false;
  pthread_t thread_{};
};

}  // namespace strata::kvm
