// Recording: stands between the vCPUs and everything outside them, and logs what passes.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

#include "devices/kvmclock.hpp"
#include "engines/engine.hpp"
#include "machine/guest_memory.hpp"
#include "vmm/exit_handler.hpp"
#include "vmm/replay/event.hpp"

namespace strata::replay {

/// Wraps a VM's sources of input. vCPUs take turns on one thread, the recording thread, which calls
/// everything but write() (as MemoryWriter: any thread).
class Recorder final : public vmm::ExitHandler,
                       public engine::TscSource,
                       public engine::RandomSource,
                       public devices::MemoryWriter,
                       private machine::WriteListener {
 public:
  /// `tsc` and `random` are the real ones, as are those that connect() gets; all must outlive the
  /// recorder. The constructing thread records.
  Recorder(EventSink& log, unsigned vcpus, engine::TscSource& tsc, engine::RandomSource& random);
  ~Recorder() override;
  void connect(vmm::ExitHandler& exits, devices::MemoryWriter& memory);

  /// What vCPU `vcpu` gets instead of its APIC.
  [[nodiscard]] engine::InterruptSource& interrupts(VcpuId vcpu, engine::InterruptSource& real);
  /// Whose positions to log; once per vCPU, before it runs.
  void connect(VcpuId vcpu, engine::Vcpu& engine);

  /// From here on `vcpu` runs.
  void turn(VcpuId vcpu);
  /// The vCPU whose turn it is was reset or started.
  void init();
  void startup(std::uint8_t vector);
  /// A stop that nothing happens at: bounds how far a reader has to look ahead, and is where a
  /// player that follows live stops.
  void mark() { turn(current_); }
  /// The last event, where the current vCPU stands now.
  void end();
  /// Stores what devices wrote on threads of their own since. Between instructions.
  void drain();

  // vmm::ExitHandler
  std::uint64_t port_read(VcpuId vcpu, std::uint16_t port, unsigned size) override;
  void port_write(VcpuId vcpu, std::uint16_t port, unsigned size, std::uint64_t value) override;
  std::uint64_t mmio_read(VcpuId vcpu, PA pa, unsigned size) override;
  void mmio_write(VcpuId vcpu, PA pa, unsigned size, std::uint64_t value) override;
  std::optional<std::uint64_t> msr_read(VcpuId vcpu, std::uint32_t msr) override;
  bool msr_write(VcpuId vcpu, std::uint32_t msr, std::uint64_t value) override;
  std::uint64_t hypercall(VcpuId vcpu, const cpu::VcpuState& state) override;
  // engine::TscSource, engine::RandomSource
  std::uint64_t tsc() noexcept override;
  std::optional<std::uint64_t> random(bool seed, unsigned bytes) noexcept override;
  // devices::MemoryWriter
  bool write(PA pa, std::span<const std::byte> bytes) override;
  /// From here on what devices store in `memory` themselves, on the recording thread, is logged as
  /// well. `memory` outlives the recorder.
  void watch(machine::GuestMemory& memory);

 private:
  // machine::WriteListener
  void memory_written(PA pa, std::uint64_t length) override;
  /// A store of write()'s or drain()'s, which log it themselves.
  bool store(PA pa, std::span<const std::byte> bytes);
  class Interrupts;
  void log(Event event);
  /// Calls ask() as the answer to a vCPU's request.
  template <class Ask>
  auto answering(Ask&& ask) {
    answering_ = true;
    if constexpr (std::is_void_v<decltype(ask())>) {
      ask();
      answering_ = false;
    } else {
      const auto value = ask();
      answering_ = false;
      return value;
    }
  }

  EventSink& log_;
  engine::TscSource& tsc_;
  engine::RandomSource& random_;
  vmm::ExitHandler* exits_ = nullptr;
  devices::MemoryWriter* memory_ = nullptr;
  std::vector<engine::Vcpu*> vcpus_;
  std::vector<std::unique_ptr<Interrupts>> interrupts_;
  VcpuId current_ = 0;
  machine::GuestMemory* watched_ = nullptr;
  bool storing_ = false;    ///< inside store()
  bool answering_ = false;  ///< what devices write now is part of an answer
  const std::thread::id thread_;

  struct Posted {
    PA pa;
    std::vector<std::byte> bytes;
  };
  std::atomic<bool> any_posted_{false};
  std::mutex posted_lock_;  ///< guards posted_; nothing is called under it
  std::vector<Posted> posted_;
};

/// RDRAND and RDSEED of the host. Any thread.
class HostRandom final : public engine::RandomSource {
 public:
  std::optional<std::uint64_t> random(bool seed, unsigned bytes) noexcept override;
};

}  // namespace strata::replay
