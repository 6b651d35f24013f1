// Guests of random bytes and random machine states: nothing they do may crash or hang the VMM,
// leave a vCPU in a state that no processor can be in, or reach memory that is not theirs. Every
// case follows from its seed, which is printed when it fails; `--seed N --cases 1` repeats it.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <exception>

#include "guest_run.hpp"
#include "invariants.hpp"
#include "isa/disassemble.hpp"

namespace strata::fuzz {
namespace {

struct Options {
  std::uint64_t seed = 1;
  std::uint64_t cases = 300;
  double seconds = 0;
  unsigned hang_seconds = 60;
  bool compare = false;
  bool verbose = false;
  bool self_modifying = false;
  std::uint64_t stride = 1;
  std::size_t code_cache_bytes = 0;
  std::vector<std::string> engines;
  std::string backend;
};

/// The case at work, for the handler of a crash. A signal handler has no other way to know.
std::atomic<std::uint64_t> current_seed{0};

/// Says which case it was with what is allowed in a signal handler, then lets the signal do its
/// work.
void on_crash(int number) {
  constexpr std::string_view kText = "\nrandom_guest: crash or hang; repeat with --cases 1 --seed ";
  char line[128];
  std::size_t length = kText.copy(line, kText.size());
  char digits[24];
  std::size_t count = 0;
  std::uint64_t seed = current_seed.load(std::memory_order_relaxed);
  do {
    digits[count++] = static_cast<char>('0' + seed % 10);
    seed /= 10;
  } while (seed != 0);
  while (count > 0) line[length++] = digits[--count];
  line[length++] = '\n';
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line, length);
  ::signal(number == SIGALRM ? SIGABRT : number, SIG_DFL);
  ::raise(number == SIGALRM ? SIGABRT : number);
}

void watch_for_crashes() {
  for (const int number : {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGALRM}) {
    struct sigaction before {};
    ::sigaction(number, nullptr, &before);
    // A sanitizer reports first; it ends in SIGABRT, which comes here.
    if (before.sa_handler == SIG_DFL) ::signal(number, on_crash);
  }
}

class Fuzzer {
 public:
  explicit Fuzzer(const Options& options)
      : options_{options}, model_{*cpu::CpuModel::by_name("default")}, catalogues_{model_} {
    std::vector<std::string_view> backends;
    for (const std::string_view name : conformance::backends()) {
      // The example knows two of the paging modes only.
      if (name == conformance::kTableless) continue;
      if (options.backend.empty() || options.backend == name) backends.push_back(name);
    }
    // The others are compared with the one that notices every store to a page table.
    const auto plain = std::ranges::find(backends, conformance::kPlainShadow);
    if (plain != backends.end()) std::rotate(backends.begin(), plain, std::next(plain));
    for (const std::string_view backend : backends) {
      for (const std::string_view engine : chosen_engines()) subjects_.push_back({engine, backend});
    }
  }

  /// False: a case failed; it has been reported.
  bool run() {
    if (subjects_.empty()) {
      fmt::print(stderr, "no such backend or engine\n");
      return false;
    }
    const auto start = std::chrono::steady_clock::now();
    std::uint64_t n = 0;
    const auto going = [&] {
      if (options_.seconds <= 0) return n < options_.cases;
      const std::chrono::duration<double> past = std::chrono::steady_clock::now() - start;
      return past.count() < options_.seconds;
    };
    for (; going(); ++n) {
      const std::uint64_t seed = options_.seed + n;
      current_seed.store(seed, std::memory_order_relaxed);
      ::alarm(options_.hang_seconds);
      const std::string why = one_case(seed);
      if (!why.empty()) {
        fmt::print(stderr, "seed {}: {}\nrepeat with --cases 1 --seed {}\n", seed, why, seed);
        return false;
      }
      if (options_.seconds > 0 && n % 10'000 == 9'999) report(n + 1);
    }
    ::alarm(0);
    report(n);
    if (options_.code_cache_bytes == 0 || totals_.code_evictions != 0) return true;
    fmt::print(stderr, "the code cache never ran full\n");
    return false;
  }

 private:
  /// Those asked for, or all, that this build has, in their own order.
  [[nodiscard]] std::vector<std::string_view> chosen_engines() const {
    std::vector<std::string_view> chosen;
    for (const conformance::EngineRow& row : conformance::engines()) {
      const auto& asked = options_.engines;
      if (asked.empty() || std::ranges::find(asked, row.name) != asked.end()) {
        chosen.push_back(row.name);
      }
    }
    return chosen.size() < options_.engines.size() ? std::vector<std::string_view>{} : chosen;
  }

  std::string one_case(std::uint64_t seed) {
    Random rng{seed};
    GuestPlan plan = make_plan(rng);
    plan.self_modifying = options_.self_modifying;
    const GuestImage image{rng, plan, model_, catalogues_};
    RunOptions run_options;
    run_options.seed = rng();
    run_options.comparable = options_.compare;
    run_options.stride = options_.stride;
    run_options.code_cache_bytes = options_.code_cache_bytes;
    run_options.vcpus = !options_.compare && rng.chance(25) ? 2 : 1;
    run_options.turns = options_.compare ? 300 : 20 + static_cast<unsigned>(rng.below(60));
    if (options_.verbose) {
      fmt::print("seed {}: mode {} paging {} cpl {}\n", seed, static_cast<int>(plan.mode),
                 static_cast<int>(plan.paging), plan.cpl);
    }
    if (!options_.compare) return run_all(image, run_options);
    return compare_all(image, run_options);
  }

  std::string run_all(const GuestImage& image, const RunOptions& options) {
    for (const Subject& subject : subjects_) {
      GuestRun guest{subject, image, model_, options};
      if (const auto why = guest.run(totals_); !why.empty()) return named(subject, why);
    }
    return {};
  }

  static std::string named(const Subject& subject, std::string_view why) {
    return fmt::format("{} on {}: {}", subject.engine, subject.backend, why);
  }

  std::string compare_all(const GuestImage& image, RunOptions options) {
    RunOptions scouting = options;
    scouting.scout = options.stride > 1;
    GuestRun scout{subjects_[0], image, model_, scouting};
    if (const auto why = scout.run(totals_); !why.empty()) return named(subjects_[0], why);
    if (!scouting.scout) return compare_others(image, options, scout);
    options.reference = &scout.steps();
    GuestRun first{subjects_[0], image, model_, options};
    const auto why = first.run(totals_);
    if (!why.empty() && !first.differs()) return named(subjects_[0], why);
    return compare_others(image, options, first);
  }

  std::string compare_others(const GuestImage& image, RunOptions options, GuestRun& first) {
    std::vector<Step> steps = first.steps();
    const bool whole = !first.differs() && !first.ended_early();
    if (!whole) steps.pop_back();
    options.reference = &steps;
    for (std::size_t i = 1; i < subjects_.size(); ++i) {
      GuestRun guest{subjects_[i], image, model_, options};
      ++comparisons_;
      std::string why = guest.run(totals_);
      if (guest.differs()) why += narrow(subjects_[i], image, options, guest.steps().size());
      if (guest.ended_early()) ++ended_early_;
      if (why.empty() && whole && !guest.ended_early()) {
        if (guest.steps().size() != steps.size()) why = "it stopped earlier";
        if (guest.memory_hash() != first.memory_hash()) why = "memory";
      }
      if (!why.empty()) return named(subjects_[i], why);
    }
    return {};
  }

  /// Where in the last of `steps` steps `subject` parts from the reference. A stop can hide a
  /// mistake that needs a whole block; then it shows at the block's end.
  std::string narrow(const Subject& subject, const GuestImage& image, RunOptions options,
                     std::size_t steps) {
    const std::vector<Step>& reference = *options.reference;
    const std::uint64_t end = reference[steps - 1].position.instructions;
    const std::uint64_t start = steps > 1 ? reference[steps - 2].position.instructions : 0;
    RunTotals ignored;
    const auto differs_after = [&](std::uint64_t instructions) {
      options.cut = {steps - 1, instructions};
      options.reference = nullptr;
      GuestRun first{subjects_[0], image, model_, options};
      static_cast<void>(first.run(ignored));
      options.reference = &first.steps();
      GuestRun other{subject, image, model_, options};
      return !other.run(ignored).empty();
    };
    std::uint64_t agree = 0;
    for (std::uint64_t differ = end - start; differ > agree + 1;) {
      const std::uint64_t middle = agree + (differ - agree) / 2;
      (differs_after(middle) ? differ : agree) = middle;
    }
    const std::string text = fmt::format("\nthey agree up to instruction {}", start + agree);
    if (steps == 1 && agree == 0) return text + ", the first";
    options.cut = {steps - 1, agree};
    if (agree == 0) options.cut = {steps - 2, ~0ULL};
    options.reference = nullptr;
    GuestRun first{subjects_[0], image, model_, options};
    static_cast<void>(first.run(ignored));
    const cpu::VcpuState& state = first.steps().back().state;
    return text + ", which is followed by (or by an event)\n" +
           isa::disassemble(first.code_at(state), isa::code_bits(state), state.rip, 1, model_);
  }

  void report(std::uint64_t cases) const {
    fmt::print("{} cases, {} runs, {} instructions, {} exceptions, {} interrupts; exits:", cases,
               totals_.runs, totals_.instructions, totals_.exceptions, totals_.interrupts);
    for (std::size_t i = 0; i < totals_.exits.size(); ++i) {
      fmt::print(" {} {}", name_of(static_cast<engine::ExitKind>(i)), totals_.exits[i]);
    }
    if (totals_.code_evictions != 0) fmt::print("; code evictions {}", totals_.code_evictions);
    if (options_.compare)
      fmt::print("; comparisons {}, ended early {}", comparisons_, ended_early_);
    fmt::print("\n");
    std::fflush(stdout);
  }

  const Options options_;
  const cpu::CpuModel model_;
  const Catalogues catalogues_;
  std::vector<Subject> subjects_;  ///< the first is the reference of comparisons
  RunTotals totals_;
  std::uint64_t comparisons_ = 0;
  std::uint64_t ended_early_ = 0;  ///< comparisons, at a difference that Step::may_differ allows
};

}  // namespace
}  // namespace strata::fuzz

int main(int argc, char** argv) {
  using strata::fuzz::Options;
  Options options;
  CLI::App app{"Random guests against the VMM; deterministic by seed."};
  app.add_option("--seed", options.seed, "seed of the first case; the others count up");
  app.add_option("--cases", options.cases, "how many");
  app.add_option("--seconds", options.seconds, "go on for so long instead");
  app.add_option("--backend", options.backend, "only this one; default: each");
  app.add_option("--hang", options.hang_seconds, "seconds after which a case counts as hung");
  app.add_flag("--compare", options.compare,
               "every engine on every backend must show the guest the same");
  app.add_option("--engines", options.engines, "only these; default: each")->delimiter(',');
  app.add_option("--stride", options.stride, "instructions of a compared step, at most")
      ->check(CLI::Range(1, 1'000'000));
  app.add_option("--code-cache", options.code_cache_bytes,
                 "bytes for translated code; it is an error if they are never used up");
  app.add_flag("--self-modifying", options.self_modifying, "guests that patch their own code");
  app.add_flag("--verbose", options.verbose, "a line for each case");
  CLI11_PARSE(app, argc, argv);
  strata::fuzz::watch_for_crashes();
  try {
    return strata::fuzz::Fuzzer{options}.run() ? 0 : 1;
  } catch (const std::exception& e) {
    fmt::print(stderr, "seed {}: exception: {}\n", strata::fuzz::current_seed.load(), e.what());
    return 1;
  }
}
