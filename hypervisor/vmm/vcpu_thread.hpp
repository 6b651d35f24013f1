// One vCPU and the host thread that drives it: runs the engine, answers its exits, sleeps in HLT
// and while waiting for a start-up IPI.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "devices/clock.hpp"
#include "engines/engine.hpp"
#include "vmm/outcome.hpp"
#include "vmm/platform.hpp"

namespace strata::vmm {

/// Who hears that the VM has to end. Any thread; the first ending counts.
class EndingListener {
 public:
  EndingListener() = default;
  EndingListener(const EndingListener&) = delete;
  EndingListener& operator=(const EndingListener&) = delete;
  virtual ~EndingListener() = default;
  virtual void ended(Outcome outcome) = 0;
};

using ExitCounts = std::array<std::uint64_t, engine::kExitKinds>;

/// What one vCPU's thread counted.
struct VcpuThreadStats {
  ExitCounts exits{};
  devices::Nanoseconds halted_ns = 0;  ///< asleep in HLT or waiting for SIPI
  std::uint64_t inits = 0;             ///< INIT IPIs obeyed
  std::uint64_t startups = 0;          ///< start-up IPIs obeyed
};

class VcpuThread {
 public:
  /// Hooks itself up with APIC `id` of the platform, which must be destroyed before this object:
  /// its timers wake vCPUs. vCPU 0 is the bootstrap processor; the others wait for SIPI. Not
  /// running until start().
  VcpuThread(VcpuId id, std::unique_ptr<engine::Vcpu> vcpu, Platform& platform,
             devices::Clock& clock, const cpu::CpuModel& model, EndingListener& listener);
  ~VcpuThread();
  VcpuThread(const VcpuThread&) = delete;
  VcpuThread& operator=(const VcpuThread&) = delete;

  /// Starts the thread. Once. Throws std::system_error if the host has no thread left.
  void start();
  /// The thread ends at the next instruction boundary. Any thread.
  void request_stop() noexcept;
  /// Waits for it to have ended.
  void join();

  [[nodiscard]] engine::Vcpu& vcpu() noexcept { return *vcpu_; }
  [[nodiscard]] const engine::Vcpu& vcpu() const noexcept { return *vcpu_; }
  [[nodiscard]] VcpuId id() const noexcept { return id_; }
  /// After join().
  [[nodiscard]] const VcpuThreadStats& stats() const noexcept { return stats_; }

 private:
  /// What other threads have asked for since it was last looked at.
  struct Requests {
    bool woken = false;  ///< the interrupt source may have something
    bool stop = false;
    bool init = false;                    ///< comes before `startup`
    std::optional<std::uint8_t> startup;  ///< SIPI's vector
    [[nodiscard]] bool any() const noexcept { return woken || stop || init || startup; }
  };

  // From the local APIC. Any thread.
  void wake();
  void post_init();
  void post_startup(std::uint8_t vector);

  void work();
  bool take_requests();
  void reset_by_init();
  void sleep();
  void answer(const engine::Exit& exit);

  const VcpuId id_;
  const std::unique_ptr<engine::Vcpu> vcpu_;
  Platform& platform_;
  devices::Clock& clock_;
  const cpu::CpuModel& model_;
  EndingListener& listener_;
  VcpuThreadStats stats_;           ///< the thread's own while it runs
  bool waits_for_startup_ = false;  ///< the thread's own

  std::mutex lock_;  ///< guards requests_; nothing is called under it
  std::condition_variable changed_;
  Requests requests_;
  std::thread thread_;  ///< last: it uses all of the above
};

}  // namespace strata::vmm
