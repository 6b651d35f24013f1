// One VM: memory, backend, engine and platform put together, and their threads.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "boot/kernel_image.hpp"
#include "boot/memory_map.hpp"
#include "devices/machine_control.hpp"
#include "devices/random_bytes.hpp"
#include "devices/serial8250.hpp"
#include "engines/engine.hpp"
#include "engines/interp/vcpu_group.hpp"
#include "host/own_memory.hpp"
#include "machine/frame_allocator.hpp"
#include "machine/guest_memory.hpp"
#include "machine/machine_memory.hpp"
#include "machine/p2m.hpp"
#include "vmm/capabilities.hpp"
#include "vmm/host_engine.hpp"
#include "vmm/outcome.hpp"
#include "vmm/platform.hpp"
#include "vmm/platform_exits.hpp"
#include "vmm/replay/chunk_file.hpp"
#include "vmm/replay/event.hpp"
#include "vmm/vcpu_thread.hpp"
#include "vmm/vm_config.hpp"

namespace strata::vmm {

/// Overhead memory of the VMM process now, in bytes (design: everything beyond the guest's pages).
struct Overhead {
  std::uint64_t resident = 0;      ///< VmRSS
  std::uint64_t guest_mapped = 0;  ///< of that, pages of the VM's own segment
  std::uint64_t guest_pages = 0;   ///< host memory the VM's segment holds
  std::uint64_t page_tables = 0;   ///< VmPTE: the host kernel's tables for this process
  std::uint64_t binary = 0;        ///< of `resident`, text and libraries that may be shared
  [[nodiscard]] std::uint64_t vmm_resident() const noexcept { return resident - guest_mapped; }
};

/// What a replay came to.
struct ReplayResult {
  bool ended = false;        ///< the recording's end was reached and everything compared equal
  bool stopped = false;      ///< `until` was reached
  std::string message;       ///< one line for the user
  std::uint64_t events = 0;  ///< replayed
};

/// What lock-step came to.
struct CheckResult {
  std::uint64_t states = 0;           ///< compared
  std::uint64_t memories = 0;         ///< compared, whole
  std::uint64_t agreed = 0;           ///< instructions of all vCPUs when all was equal last
  std::uint64_t found = 0;            ///< ... and when the difference was seen
  std::optional<std::uint64_t> page;  ///< memory differs there
  std::string report;                 ///< lines for the user; empty: no difference
};

class Vm final : private devices::MachineControl,
                 private devices::MemoryWriter,
                 private EndingListener {
 public:
  /// Builds the VM and loads the guest. `sink` gets the serial output and must outlive the VM.
  /// Errors: anything wrong with the configuration or its files, in one line.
  [[nodiscard]] static Expected<std::unique_ptr<Vm>, ConfigError> create(const VmConfig& given,
                                                                         devices::CharSink& sink);
  ~Vm() override;

  /// Builds a VM that runs() a recording: its memory and vCPUs, no living devices. Of `given` only
  /// engine and MMU count. Errors: as create(), and a file that is no whole recording's start.
  [[nodiscard]] static Expected<std::unique_ptr<Vm>, ConfigError> create_replay(
      const VmConfig& given, const std::string& recording, devices::CharSink& sink);
  /// Replays to the end, or to instruction `until` of the vCPU whose turn it is. Can be called
  /// again after `until` was reached.
  ReplayResult replay(std::optional<std::uint64_t> until);
  /// The vCPU whose turn it is in a replay.
  [[nodiscard]] const engine::Vcpu& replaying_vcpu() const;

  /// Saves the VM to config's file at the next instruction boundary and goes on. Any thread, and
  /// signal handlers.
  void request_save() noexcept;
  /// XXH3 over the guest's memory; only after run(). Nothing: a page cannot be read.
  [[nodiscard]] std::optional<std::uint64_t> memory_checksum();

  /// Starts every thread that the VM will have; none runs guest code before run(). Threads take
  /// over what their creator may do, so that the process gives up privileges before this and
  /// system calls, clone() among them, after it. Once. Throws std::system_error if the host has no
  /// thread left.
  void start();
  /// The requests of ioctl() that it makes from then on, consoles apart.
  [[nodiscard]] std::vector<unsigned long> ioctls() const {
    return host_engine_ ? host_engine_->ioctls() : std::vector<unsigned long>{};
  }
  /// Runs until the guest or somebody else ends it. Once, after start().
  Outcome run();
  /// Ends run() with `ending`; the first one wins. Any thread.
  void stop(Ending ending, std::uint32_t debug_value = 0);

  /// The device that takes the user's input.
  [[nodiscard]] devices::CharInput& console_input() noexcept {
    return virtio_console_ != nullptr ? *virtio_console_ : platform_->serial();
  }

  /// After run(); nothing where the configuration asks for no lock-step.
  [[nodiscard]] std::optional<CheckResult> check_result() const;

  /// Everything counted, for --stats. After run().
  [[nodiscard]] nlohmann::json stats() const;
  [[nodiscard]] Overhead overhead() const;
  /// The vCPUs as they stopped, as text. After run().
  [[nodiscard]] std::string vcpu_state() const;
  [[nodiscard]] std::string_view mmu_name() const noexcept { return mmu_name_; }
  /// As named by the user, or chosen for --engine auto, and why it is that one.
  [[nodiscard]] std::string_view engine_name() const noexcept { return config_.engine; }
  [[nodiscard]] std::string_view engine_reason() const noexcept { return config_.engine_reason; }
  /// A line about what the engine can do only in part on this host; empty: nothing.
  [[nodiscard]] std::string_view remark() const noexcept {
    return host_engine_ ? std::string_view{host_engine_->remark()} : std::string_view{};
  }

 private:
  class Sink;
  class Listener;
  struct Clocks;
  struct Exactness;
  struct Check;
  Vm(const VmConfig& config, boot::MemoryMap map, std::unique_ptr<Clocks> clocks,
     cpu::CpuModel model);
  Expected<void, ConfigError> build(devices::CharSink& sink);
  Expected<void, ConfigError> build_memory();
  Expected<void, ConfigError> build_engine(devices::CharSink& sink);
  Expected<void, ConfigError> load_guest();
  Expected<void, ConfigError> add_virtio(devices::CharSink& sink);
  Expected<void, ConfigError> add_disks();
  Platform::Config platform_config();

  // devices::MachineControl
  void power_off() override { stop(Ending::power_off); }
  void reset() override { stop(Ending::reset); }
  void debug_exit(std::uint32_t value) override { stop(Ending::debug_exit, value); }
  // devices::MemoryWriter
  bool write(PA pa, std::span<const std::byte> bytes) override;

  // EndingListener
  void ended(Outcome outcome) override;

  Expected<void, ConfigError> build_translation();
  Expected<std::unique_ptr<engine::Vcpu>, ConfigError> make_vcpu(VcpuId id);

  // vm_exact.cpp: turns on one thread
  void run_turns();
  void run_slice(VcpuThread& vcpu);
  [[nodiscard]] std::uint64_t next_stop(std::uint64_t here, std::uint64_t end);
  void wait_for_request();
  void poke();
  /// All vCPUs take turns on the thread that calls run().
  [[nodiscard]] bool takes_turns() const;
  [[nodiscard]] bool has_ended() const;
  [[nodiscard]] std::uint64_t instructions_retired() const;
  Expected<void, ConfigError> start_recording();
  void record_to(replay::EventSink& log);
  Expected<void, ConfigError> finish_recording();

  // vm_check.cpp: lock-step
  void prepare_check();
  /// The second VM, as this one stands.
  Expected<void, ConfigError> start_follower();
  /// Where the next comparison is due, if that is before `stop`.
  [[nodiscard]] std::uint64_t next_check(std::uint64_t here, std::uint64_t stop);
  /// `vcpu` came to a boundary that a second run can stop at.
  [[nodiscard]] bool can_check(const VcpuThread& vcpu) const;
  void check_here(const VcpuThread& vcpu);
  void check_memory();
  void finish_check();
  void diverged(const std::string& what, const std::string& details);

  // vm_state.cpp: saved VMs
  static Expected<std::unique_ptr<Vm>, ConfigError> create_loaded(const VmConfig& config,
                                                                  devices::CharSink& sink);
  [[nodiscard]] nlohmann::json machine_json();
  [[nodiscard]] nlohmann::json end_json();
  Expected<void, ConfigError> write_state(replay::ChunkWriter& file);
  Expected<void, ConfigError> take_machine(const nlohmann::json& machine, bool with_devices,
                                           const std::string& path);
  Expected<void, ConfigError> open_save_file();
  void save_now();

  const VmConfig config_;
  const boot::MemoryMap map_;
  const host::OwnMemory own_memory_;
  std::string mmu_name_;
  std::unique_ptr<Clocks> clocks_;
  devices::Clock& clock_;
  cpu::CpuModel model_;
  FlushDomain domain_;
  std::unique_ptr<machine::MachineMemory> memory_;
  machine::SegmentRef segment_;
  std::unique_ptr<machine::FrameAllocator> frames_;
  std::unique_ptr<machine::P2mTable> p2m_;
  std::unique_ptr<machine::GuestMemory> guest_memory_;
  BuiltMmu mmu_;  ///< nothing in it where host_engine_ is
  std::unique_ptr<HostEngine> host_engine_;
  std::unique_ptr<interp::VcpuGroup> group_;
  /// Guards outcome_ and poked_.
  mutable std::mutex lock_;
  std::condition_variable changed_;
  std::optional<Outcome> outcome_;
  bool poked_ = false;  ///< somebody asked a vCPU for something

  std::unique_ptr<Exactness> exact_;  ///< before the vCPUs, which use what is in it
  /// Outlive the platform, whose timers wake them. Constant once built.
  std::vector<std::unique_ptr<VcpuThread>> vcpus_;
  std::unique_ptr<devices::RandomBytes> device_random_;  ///< of the platform's entropy device
  std::unique_ptr<Platform> platform_;
  devices::CharInput* virtio_console_ = nullptr;  ///< one of the platform's; null: there is none
  std::unique_ptr<PlatformExits> exits_;
  std::unique_ptr<Listener> listener_;
  std::string kernel_description_;
  devices::Nanoseconds ran_ns_ = 0;
};

}  // namespace strata::vmm
