// One random guest under one backend, run for a bounded number of steps and checked on the way.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "guest_image.hpp"
#include "small_vm.hpp"

namespace strata::fuzz {

/// Interrupts and NMIs that the fuzzer asserts. Driven by the fuzzer's thread alone.
class FuzzInterrupts final : public engine::InterruptSource {
 public:
  void assert_interrupt(std::uint8_t vector) { vector_ = vector; }
  void assert_nmi() { nmi_ = true; }
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

/// One step of a comparable run.
struct Step {
  engine::ExitKind kind = engine::ExitKind::interrupted;
  std::uint64_t data = 0;
  cpu::VcpuState state;
  /// Backends may differ here. Either the guest stored to a page table that this one shadows: what
  /// the rest of the step saw of the old entries is up to the backend (SDM 3A 4.10.2.3). Or nothing
  /// was retired: the run ended between two exceptions or two iterations of a string instruction.
  bool may_differ = false;
  std::uint64_t memory_hash = 0;  ///< where it, or the reference, may differ
};

struct RunOptions {
  std::uint64_t seed = 0;
  unsigned vcpus = 1;
  unsigned turns = 40;  ///< run() calls, all vCPUs together
  /// Steps of one instruction, with every cached translation dropped between them, and a record of
  /// each: so that backends can be compared.
  bool comparable = false;
  /// Steps of the run that this one is compared with.
  const std::vector<Step>* reference = nullptr;
};

/// Counts over all runs.
struct RunTotals {
  std::uint64_t runs = 0;
  std::uint64_t instructions = 0;
  std::uint64_t exceptions = 0;
  std::uint64_t interrupts = 0;
  std::array<std::uint64_t, engine::kExitKinds> exits{};
};

/// A VM of a few MiB with the image loaded. Everything it does follows from the image and the
/// options' seed.
class GuestRun {
 public:
  GuestRun(std::string_view backend, const GuestImage& image, const cpu::CpuModel& model,
           const RunOptions& options);
  ~GuestRun();
  GuestRun(const GuestRun&) = delete;
  GuestRun& operator=(const GuestRun&) = delete;

  /// Empty, or what went wrong, in one line.
  [[nodiscard]] std::string run(RunTotals& totals);
  /// Of a comparable run.
  [[nodiscard]] const std::vector<Step>& steps() const noexcept { return steps_; }
  /// A hash of guest memory.
  [[nodiscard]] std::uint64_t memory_hash();

 private:
  struct VirtualCpu {
    FuzzInterrupts interrupts;
    std::unique_ptr<interp::Core> core;
    bool stopped = false;
  };
  class Listener;

  void build_memory(const GuestImage& image);
  [[nodiscard]] std::string turn(VirtualCpu& cpu, RunTotals& totals);
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
  bool tables_edited_ = false;  ///< since translations were dropped
};

}  // namespace strata::fuzz
