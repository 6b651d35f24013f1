// Parts of Vm that only its own files need to know.
#pragma once

#include <atomic>
#include <memory>
#include <optional>

#include "devices/instruction_clock.hpp"
#include "host/output_file.hpp"
#include "vmm/replay/chunk_file.hpp"
#include "vmm/replay/event.hpp"
#include "vmm/replay/player.hpp"
#include "vmm/replay/recorder.hpp"
#include "vmm/replay/seeded_random.hpp"
#include "vmm/vm.hpp"
#include "vmm/vm_check.hpp"

namespace strata::vmm {

/// Guest time of one kind, and timers on it.
struct Vm::Clocks {
  /// `mhz`: ticks a microsecond of a clock that counts instructions; 0: the host's clock.
  explicit Clocks(std::uint64_t mhz);
  [[nodiscard]] devices::Clock& clock() noexcept {
    return instructions ? static_cast<devices::Clock&>(*instructions) : *host;
  }
  [[nodiscard]] devices::Timers& timers() noexcept {
    return instructions ? static_cast<devices::Timers&>(*instructions) : *service;
  }
  std::unique_ptr<devices::InstructionClock> instructions;
  std::unique_ptr<devices::GuestClock> host;
  std::unique_ptr<devices::TimerService> service;
};

/// What makes a run exact: recording, replay, saving.
struct Vm::Exactness {
  replay::HostRandom host_random;
  replay::SeededRandom seeded;  ///< with a clock that counts instructions
  std::unique_ptr<replay::ChunkWriter> record_file;
  std::unique_ptr<replay::EventWriter> log;
  std::unique_ptr<Check> check;
  std::unique_ptr<replay::Recorder> recorder;
  std::optional<host::OutputFile> save_file;
  std::unique_ptr<replay::ChunkReader> replay_file;
  std::unique_ptr<replay::EventReader> events;
  std::unique_ptr<replay::Player> player;
  /// The host's time beside a guest clock that counts instructions: the user's seconds are those.
  std::unique_ptr<Clocks> wall;
  std::atomic<bool> save_requested{false};
  /// Whose turn is next, and what is left of a slice that a save cut short (0: a whole one).
  std::size_t turn = 0;
  std::uint64_t slice_left = 0;
};

}  // namespace strata::vmm
