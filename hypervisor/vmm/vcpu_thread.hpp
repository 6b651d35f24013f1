// One vCPU and the host thread that drives it: runs the engine, answers its exits, sleeps in HLT
// and while waiting for a start-up IPI.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "devices/clock.hpp"
#include "engines/engine.hpp"
#include "vmm/exit_handler.hpp"
#include "vmm/outcome.hpp"
#include "vmm/platform.hpp"

namespace strata::replay {
class Recorder;
}

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
  VcpuThread(VcpuId id, std::unique_ptr<engine::Vcpu> vcpu, Platform& platform, ExitHandler& exits,
             devices::Clock& clock, const cpu::CpuModel& model, EndingListener& listener);
  ~VcpuThread();
  VcpuThread(const VcpuThread&) = delete;
  VcpuThread& operator=(const VcpuThread&) = delete;

  // Instead of start(): turns on the caller's thread, one vCPU at a time, so that a run is exact.
  enum class Turn : std::uint8_t {
    exited,    ///< an exit was answered; the instruction has still to finish
    boundary,  ///< between two instructions, at Vcpu::stop_at() or after a kick
    asleep,    ///< in HLT, or waits for SIPI, with nothing to wake it
    stopped    ///< the VM has ended
  };
  /// One run of the engine, and its exit answered; never sleeps.
  Turn take_turn();
  /// take_turn() would find something to do. Any thread.
  [[nodiscard]] bool wants_turn();
  /// `poke` is called after each request from outside: wants_turn() may be true now. Any thread
  /// calls it, with locks of devices held. Before the first turn.
  void on_request(std::function<void()> poke) { poke_ = std::move(poke); }
  /// INIT and SIPI are logged there. Before the first turn.
  void record(replay::Recorder& recorder) noexcept { recorder_ = &recorder; }
  /// Obeys INIT and SIPI that came in, so that nothing waits outside the vCPU's state.
  void obey() { (void)take_requests(); }
  /// See VcpuState for the rest. Not while it runs.
  [[nodiscard]] bool waits_for_startup() const noexcept { return waits_for_startup_; }
  void set_waits_for_startup(bool waits) noexcept { waits_for_startup_ = waits; }

  /// Starts the thread, which waits for release() before it runs the guest. Once. Throws
  /// std::system_error if the host has no thread left.
  void start();
  void release();
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

  /// change(requests_), and an end to the thread's sleep. Any thread.
  template <class Change>
  void post(Change change);
  // From the local APIC. Any thread.
  void wake();
  void post_init();
  void post_startup(std::uint8_t vector);

  void work();
  void wait_for_release();
  bool take_requests();
  void reset_by_init();
  void sleep();
  void answer(const engine::Exit& exit);

  const VcpuId id_;
  const std::unique_ptr<engine::Vcpu> vcpu_;
  ExitHandler& exits_;
  devices::Clock& clock_;
  const cpu::CpuModel& model_;
  EndingListener& listener_;
  VcpuThreadStats stats_;           ///< the thread's own while it runs
  bool waits_for_startup_ = false;  ///< the thread's own
  bool asleep_ = false;             ///< the last take_turn() ended so
  std::function<void()> poke_;
  replay::Recorder* recorder_ = nullptr;

  std::mutex lock_;  ///< guards requests_ and released_; nothing is called under it
  std::condition_variable changed_;
  Requests requests_;
  bool released_ = false;
  std::thread thread_;  ///< last: it uses all of the above
};

}  // namespace strata::vmm
