// A hostile guest on one engine and backend, with the VMM's side of it: exits answered, time and
// instructions limited, and what is not the guest's looked after.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "engines.hpp"
#include "guest.hpp"
#include "small_vm.hpp"

namespace strata::hostile {

/// How a run has to end.
enum class End : std::uint8_t {
  halt,
  triple_fault,
  count,    ///< the guest goes on for ever: stopped at a number of instructions
  kicked,   ///< it retires no instructions: only a kick from another thread ends run()
  exits,    ///< it keeps the VMM busy: stopped at a number of exits
  refused,  ///< internal_error with a limit of the engine that is documented
};
[[nodiscard]] std::string_view name_of(End end) noexcept;

struct Case {
  const char* name;
  void (*build)(Guest&);
  End end = End::halt;
  unsigned bits = 64;
  /// Whether every engine and backend has to show the same: not where the guest asks for what the
  /// architecture leaves open.
  bool compared = true;
  /// Also for the example backend, which knows less of where page tables may be and how they look.
  bool example = true;
  std::uint64_t instructions = 200'000;
  std::size_t code_cache_bytes = 8U << 20;
  bool floods = false;  ///< the code cache of an engine that has one has to be flushed
};
inline void PrintTo(const Case& c, std::ostream* os) { *os << c.name; }

struct Outcome {
  End end = End::halt;
  cpu::VcpuState state;
  engine::VcpuPosition position{};
  std::uint64_t exits = 0;
  std::uint64_t memory_hash = 0;
  engine::VcpuStats stats{};
  std::string wrong;  ///< empty, or which rule was broken
};

[[nodiscard]] Outcome run(const Case& c, const conformance::Subject& subject);

/// Memory of a VM with ROM, MMIO and a neighbour's segment beside it.
class World {
 public:
  explicit World(const Guest& guest, std::string_view backend);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  [[nodiscard]] interp::CoreEnvironment environment();
  /// Cores that hear of stores that are not theirs.
  std::vector<interp::Core*> cores;
  /// Empty, or what has changed outside the guest's memory.
  [[nodiscard]] std::string damage();
  [[nodiscard]] std::uint64_t memory_hash();

  machine::test::TestMachine machine;
  std::unique_ptr<Mmu> mmu;
  conformance::NoInterrupts interrupts;
  conformance::CountingTsc tsc;
  cpu::CpuModel model;

 private:
  class Listener;
  machine::SegmentRef neighbour_;
  std::vector<std::byte> rom_;
  std::unique_ptr<Listener> listener_;
};

/// Calls `act` after a time, on a thread of its own, unless it is destroyed before. Where the
/// process is still at it long afterwards, it aborts: run() can not be ended.
class Watchdog {
 public:
  Watchdog(std::chrono::milliseconds after, std::function<void()> act);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  [[nodiscard]] bool barked() const noexcept { return barked_; }

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  bool over_ = false;
  std::atomic<bool> barked_ = false;
  std::thread thread_;
};

}  // namespace strata::hostile
