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

namespace strata::fuzz {
namespace {

struct Options {
  std::uint64_t seed = 1;
  std::uint64_t cases = 300;
  double seconds = 0;
  unsigned hang_seconds = 60;
  bool compare = false;
  bool verbose = false;
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
    for (const std::string_view name : conformance::backends()) {
      // The example knows two of the paging modes only.
      if (name == conformance::kTableless) continue;
      if (options.backend.empty() || options.backend == name) backends_.push_back(name);
    }
    // The others are compared with the one that notices every store to a page table.
    const auto plain = std::ranges::find(backends_, conformance::kPlainShadow);
    if (plain != backends_.end()) std::rotate(backends_.begin(), plain, std::next(plain));
  }

  /// False: a case failed; it has been reported.
  bool run() {
    if (backends_.empty()) {
      fmt::print(stderr, "no backend {}\n", options_.backend);
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
    return true;
  }

 private:
  std::string one_case(std::uint64_t seed) {
    Random rng{seed};
    const GuestPlan plan = make_plan(rng);
    const GuestImage image{rng, plan, model_, catalogues_};
    RunOptions run_options;
    run_options.seed = rng();
    run_options.comparable = options_.compare;
    run_options.vcpus = !options_.compare && rng.chance(25) ? 2 : 1;
    run_options.turns = options_.compare ? 300 : 20 + static_cast<unsigned>(rng.below(60));
    if (options_.verbose) {
      fmt::print("seed {}: mode {} paging {} cpl {}\n", seed, static_cast<int>(plan.mode),
                 static_cast<int>(plan.paging), plan.cpl);
    }
    std::unique_ptr<GuestRun> first;
    for (const std::string_view backend : backends_) {
      auto guest = std::make_unique<GuestRun>(backend, image, model_, run_options);
      const std::string why = guest->run(totals_);
      if (!why.empty()) return fmt::format("{}: {}", backend, why);
      if (!options_.compare) continue;
      if (first == nullptr) {
        first = std::move(guest);
        run_options.reference = &first->steps();
        continue;
      }
      const std::string differs = compare(*first, *guest);
      if (!differs.empty()) return fmt::format("{} and {}: {}", backends_[0], backend, differs);
    }
    return {};
  }

  std::string compare(GuestRun& a, GuestRun& b) {
    ++comparisons_;
    const std::size_t common = std::min(a.steps().size(), b.steps().size());
    for (std::size_t i = 0; i < common; ++i) {
      const Step& x = a.steps()[i];
      const Step& y = b.steps()[i];
      const std::string why = compare(x, y);
      if (why.empty() && x.memory_hash == y.memory_hash) continue;
      if (x.may_differ || y.may_differ) {
        ++ended_early_;
        return {};
      }
      return fmt::format("step {}: {}", i, why);
    }
    if (a.steps().size() != b.steps().size()) return "one stopped earlier";
    return a.memory_hash() == b.memory_hash() ? std::string{} : "memory";
  }

  static std::string compare(const Step& x, const Step& y) {
    if (x.kind != y.kind || x.data != y.data) {
      return fmt::format("{} {:#x} against {} {:#x}", name_of(x.kind), x.data, name_of(y.kind),
                         y.data);
    }
    return x.state == y.state ? std::string{} : difference(x.state, y.state);
  }

  void report(std::uint64_t cases) const {
    fmt::print("{} cases, {} runs, {} instructions, {} exceptions, {} interrupts; exits:", cases,
               totals_.runs, totals_.instructions, totals_.exceptions, totals_.interrupts);
    for (std::size_t i = 0; i < totals_.exits.size(); ++i) {
      fmt::print(" {} {}", name_of(static_cast<engine::ExitKind>(i)), totals_.exits[i]);
    }
    if (options_.compare)
      fmt::print("; comparisons {}, ended early {}", comparisons_, ended_early_);
    fmt::print("\n");
    std::fflush(stdout);
  }

  const Options options_;
  const cpu::CpuModel model_;
  const Catalogues catalogues_;
  std::vector<std::string_view> backends_;
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
  app.add_flag("--compare", options.compare, "every backend must show the guest the same");
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
