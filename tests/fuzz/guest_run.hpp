// One random guest under one backend, run for a bounded number of steps and checked on the way.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engines.hpp"
#include "guest_image.hpp"
#include "small_vm.hpp"

namespace strata::fuzz {

/// Interrupts and NMIs that the fuzzer asserts. Driven by the fuzzer's thread alone.
class FuzzInterrupts final : public engine::InterruptSource {
 public:
  void assert_interrupt(std::uint8_t vector) { vector_ = vector; }
  void assert_nmi() { nmi_ = true; }
  [[nodiscard]] bool waiting() const noexcept { return vector_.has_value() || nmi_; }
  bool pending() override { return vector_.has_value(); }
  std::optional<std::uint8_t> acknowledge() override { return std::exchange(vector_, {}); }
  bool take_nmi() override { return std::exchange(nmi_, false); }
  std::uint64_t cr8() override { return cr8_; }
  void set_cr8(std::uint64_t value) override { cr8_ = value; }

 private:
  std::optional<std::uint8_t> vector_;
  bool nmi_ = false;
  std::uint64_t cr8_ = 0;
};

/// What RDRAND and RDSEED give: the same in every run of a case.
class FuzzRandomness final : public engine::RandomSource {
 public:
  explicit FuzzRandomness(std::uint64_t seed) : rng_{seed} {}
  std::optional<std::uint64_t> random(bool /*seed*/, unsigned /*bytes*/) noexcept override {
    if (rng_.chance(10)) return std::nullopt;
    return rng_();
  }

 private:
  Random rng_;
};

using conformance::Subject;

/// One step of a comparable run.
struct Step {
  engine::ExitKind kind = engine::ExitKind::interrupted;
  std::uint64_t data = 0;
  cpu::VcpuState state;
  /// Backends may differ here. Either the guest stored to a page table that this one shadows: what
  /// the rest of the step saw of the old entries is up to the backend (SDM 3A 4.10.2.3). Or nothing
  /// was retired: the run ended between two exceptions or two iterations of a string instruction.
  bool may_differ = false;
  std::uint64_t memory_hash = 0;  ///< of long steps, and where it, or the reference, may differ
  engine::VcpuPosition position{};
};

/// A step to end a run in, and how long it is: to find where in it two runs part.
struct Cut {
  std::size_t step = 0;
  std::uint64_t instructions = 0;
};

struct RunOptions {
  std::uint64_t seed = 0;
  unsigned vcpus = 1;
  unsigned turns = 40;  ///< run() calls, all vCPUs together
  /// Steps of a known number of instructions, with every cached translation dropped between them,
  /// and a record of each: so that runs can be compared.
  bool comparable = false;
  /// Instructions of a comparable step, at most. With more than one, blocks are whole and an engine
  /// that translates code can chain its translations.
  std::uint64_t stride = 1;
  /// Steps of the run that this one is compared with: it ends at the first difference.
  const std::vector<Step>* reference = nullptr;
  /// A run that only finds out how far long steps have an end: the others are no longer. What ends
  /// the others, Core::limit_run(), makes an engine come out of every block and every iteration of
  /// REP, which code that overwrites itself notices.
  bool scout = false;
  std::size_t code_cache_bytes = 0;  ///< of an engine that translates; 0: its default
  std::optional<Cut> cut{};
};

/// Counts over all runs.
struct RunTotals {
  std::uint64_t runs = 0;
  std::uint64_t instructions = 0;
  std::uint64_t exceptions = 0;
  std::uint64_t interrupts = 0;
  std::uint64_t code_evictions = 0;
  std::array<std::uint64_t, engine::kExitKinds> exits{};
};

/// A VM of a few MiB with the image loaded. Everything it does follows from the image and the
/// options' seed.
class GuestRun {
 public:
  /// `subject` has to be in this build.
  GuestRun(const Subject& subject, const GuestImage& image, const cpu::CpuModel& model,
           const RunOptions& options);
  ~GuestRun();
  GuestRun(const GuestRun&) = delete;
  GuestRun& operator=(const GuestRun&) = delete;

  /// Empty, or what went wrong, in one line.
  [[nodiscard]] std::string run(RunTotals& totals);
  /// Of a comparable run.
  [[nodiscard]] const std::vector<Step>& steps() const noexcept { return steps_; }
  /// It differs from the reference where it may, and the comparison went no further.
  [[nodiscard]] bool ended_early() const noexcept { return ended_early_; }
  /// It differs from the reference where it must not: run() has said how.
  [[nodiscard]] bool differs() const noexcept { return differs_; }
  /// The bytes at the instruction pointer of a state; none if they are not mapped.
  [[nodiscard]] std::vector<std::byte> code_at(const cpu::VcpuState& state);
  /// A hash of guest memory up to `end`.
  [[nodiscard]] std::uint64_t memory_hash(std::uint64_t end = layout::kRamEnd);

 private:
  struct VirtualCpu {
    FuzzInterrupts interrupts;
    std::unique_ptr<interp::Core> core;
    bool stopped = false;
  };
  class Listener;

  void build_memory(const GuestImage& image);
  [[nodiscard]] std::string turn(VirtualCpu& cpu, RunTotals& totals);
  std::uint64_t limit(VirtualCpu& cpu);
  /// Records a comparable step that ended at `exit` and compares it. `end`: where it should have.
  [[nodiscard]] std::string note_step(VirtualCpu& cpu, const engine::Exit& exit,
                                      const cpu::VcpuState& state, std::uint64_t end);
  [[nodiscard]] std::string answer(VirtualCpu& cpu, const engine::Exit& exit);
  void disturb(VirtualCpu& cpu);
  void interfere_with_memory();
  [[nodiscard]] std::string check_host();

  const cpu::CpuModel& model_;
  RunOptions options_;
  Random rng_;
  machine::test::TestMachine machine_;
  machine::SegmentRef neighbour_;  ///< another VM's memory, which nothing here may touch
  std::vector<std::byte> rom_;
  std::unique_ptr<Mmu> mmu_;
  conformance::CountingTsc tsc_;
  FuzzRandomness randomness_;
  std::vector<std::unique_ptr<VirtualCpu>> cpus_;
  std::unique_ptr<Listener> listener_;
  std::vector<Step> steps_;
  bool over_ = false;  ///< there is nothing more to run or to compare
  bool ended_early_ = false;
  bool differs_ = false;
  std::uint64_t edits_ = 0;     ///< traced writes when the step began
  std::uint64_t retired_ = 0;   ///< instructions when the step began
  bool tables_edited_ = false;  ///< since translations were dropped
};

}  // namespace strata::fuzz
