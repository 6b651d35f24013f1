// The interpreter against processors that somebody else made: the host's own, and QEMU's emulation
// where the interpreter runs the host's instructions itself. Every case follows from the seed and
// its number; a difference prints both.
#include <fmt/format.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>

#include "compare.hpp"
#include "generator.hpp"
#include "interp_side.hpp"
#include "oracle.hpp"

namespace strata::differential {
namespace {

struct Options {
  std::vector<std::uint64_t> seeds;
  std::string seed_file;
  std::uint64_t cases = 100'000;
  double seconds = 0;
  std::string executor;
  std::string qemu;  ///< the emulator; empty: the host
  unsigned show = 20;
  bool coverage = false;
};

class Fuzzer {
 public:
  explicit Fuzzer(const Options& options)
      : options_{options},
        kind_{options.qemu.empty() ? OracleKind::host : OracleKind::qemu},
        model_{*cpu::CpuModel::by_name("default")},
        generator_{model_} {}

  /// The number of differences.
  std::uint64_t run() {
    start_ = std::chrono::steady_clock::now();
    for (std::size_t i = 0; going() && failures_ < options_.show; ++i) {
      const std::uint64_t round = i / options_.seeds.size();
      one_seed(options_.seeds[i % options_.seeds.size()] + round * 1'000'003,
               options_.cases / options_.seeds.size() + 1);
      if (options_.seconds <= 0 && i + 1 == options_.seeds.size()) break;
    }
    report();
    return failures_ + missing();
  }

 private:
  [[nodiscard]] bool going() const {
    if (options_.seconds <= 0) return true;
    const std::chrono::duration<double> past = std::chrono::steady_clock::now() - start_;
    return past.count() < options_.seconds;
  }

  void one_seed(std::uint64_t seed, std::uint64_t cases) {
    fuzz::Random rng{seed};
    const auto pattern = Generator::make_pattern(rng);
    InterpSide interp{pattern};
    std::vector<std::string> command;
    if (!options_.qemu.empty()) command.push_back(options_.qemu);
    command.push_back(options_.executor);
    Oracle oracle{std::move(command), pattern};
    seed_ = seed;
    for (std::uint64_t done = 0; done < cases && failures_ < options_.show && going();) {
      const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(kBatch, cases - done));
      for (std::uint32_t i = 0; i < count; ++i) {
        // 32-bit code runs through a code segment that only a real kernel has set up.
        const bool narrow = kind_ == OracleKind::host && rng.chance(25);
        do {
          oracle.batch().cases[i] = generator_.make(rng, narrow ? 32 : 64);
        } while (!can_judge(*generator_.decode(oracle.batch().cases[i]), kind_));
      }
      run_batch(interp, oracle, count, done);
      done += count;
    }
  }

  void run_batch(InterpSide& interp, Oracle& oracle, std::uint32_t count, std::uint64_t first) {
    Batch& batch = oracle.batch();
    batch.count = count;
    oracle.start();
    guest_.resize(count);
    for (std::uint32_t i = 0; i < count; ++i) interp.run(batch.cases[i], guest_[i]);
    if (!oracle.finish()) {
      ++failures_;
      fmt::print("seed {} case {}: the executor died\n{}\n", seed_, first + batch.current,
                 describe(batch.cases[batch.current]));
      return;
    }
    for (std::uint32_t i = 0; i < count; ++i) {
      judge(batch.cases[i], guest_[i], batch.results[i], first + i);
    }
  }

  void judge(const Case& c, const Result& guest, const Result& oracle, std::uint64_t number) {
    ++cases_;
    const auto d = generator_.decode(c);
    if (!d) return;
    ++seen_[d->insn.mnemonic];
    if (guest.vector != cpu::BP) ++faults_[guest.vector];
    std::string text = differences(c, *d, guest, oracle, kind_);
    if (text.empty()) return;
    if (!deviation(*d, guest, oracle, kind_).empty()) {
      ++deviations_;
      return;
    }
    ++failures_;
    // Of one instruction the first few say enough.
    if (++shown_[d->insn.mnemonic] > 3) return;
    fmt::print("seed {} case {}: {}\n{}", seed_, number, describe(c), text);
  }

  /// Instructions of the table that no case had. Few cases need not reach all.
  [[nodiscard]] std::uint64_t missing() const {
    std::uint64_t count = 0;
    for (const unsigned bits : {64U, 32U}) {
      if (bits == 32 && kind_ == OracleKind::qemu) continue;
      for (const ZydisMnemonic m : generator_.instructions(bits)) {
        if (seen_.contains(m)) continue;
        if (options_.coverage) fmt::print("no case of {}\n", ZydisMnemonicGetString(m));
        ++count;
      }
    }
    return options_.coverage ? count : 0;
  }

  void report() const {
    const std::chrono::duration<double> past = std::chrono::steady_clock::now() - start_;
    fmt::print(
        "{} cases of {} instructions in {:.1f} s; {} differences, {} known deviations; "
        "faults:",
        cases_, seen_.size(), past.count(), failures_, deviations_);
    for (const auto& [vector, count] : faults_) fmt::print(" {}: {}", vector, count);
    fmt::print("\n");
  }

  const Options options_;
  const OracleKind kind_;
  const cpu::CpuModel model_;
  const Generator generator_;
  std::chrono::steady_clock::time_point start_;
  std::uint64_t seed_ = 0;
  std::vector<Result> guest_;
  std::uint64_t cases_ = 0, failures_ = 0, deviations_ = 0;
  std::map<ZydisMnemonic, std::uint64_t> seen_;
  std::map<ZydisMnemonic, unsigned> shown_;
  std::map<std::uint32_t, std::uint64_t> faults_;
};

/// One number a line; the rest of a line after '#' says what the seed found.
std::vector<std::uint64_t> read_seeds(const std::string& path) {
  std::vector<std::uint64_t> out;
  std::ifstream file{path};
  for (std::string line; std::getline(file, line);) {
    line.erase(std::min(line.find('#'), line.size()));
    if (line.find_first_of("0123456789") != std::string::npos) out.push_back(std::stoull(line));
  }
  return out;
}

}  // namespace
}  // namespace strata::differential

int main(int argc, char** argv) {
  using namespace strata::differential;
  Options options;
  options.executor =
      (std::filesystem::read_symlink("/proc/self/exe").parent_path() / "differential_executor")
          .string();
  CLI::App app{"The interpreter against the host's processor or QEMU, instruction by instruction."};
  app.add_option("--seed", options.seeds, "seeds; each gets its share of the cases");
  app.add_option("--seeds", options.seed_file, "a file of seeds");
  app.add_option("--cases", options.cases, "how many in all");
  app.add_option("--seconds", options.seconds, "go on for so long instead, with further seeds");
  app.add_option("--executor", options.executor, "the executor's program");
  app.add_option("--qemu", options.qemu, "run the executor under this emulator");
  app.add_option("--show", options.show, "stop after so many differences");
  app.add_flag("--coverage", options.coverage, "fail where an instruction was never chosen");
  CLI11_PARSE(app, argc, argv);
  if (!options.seed_file.empty()) options.seeds = read_seeds(options.seed_file);
  if (options.seeds.empty()) options.seeds = {1};
  if (options.seconds > 0) options.cases = 1ULL << 22;
  try {
    return Fuzzer{options}.run() == 0 ? 0 : 1;
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}\n", e.what());
    return 2;
  }
}
