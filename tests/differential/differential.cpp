// The interpreter against processors that somebody else made: the host's own, and QEMU's emulation
// where the interpreter runs the host's instructions itself. Every case follows from the seed and
// its number; a difference prints both.
#include <fmt/format.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <sstream>

#include "compare.hpp"
#include "generator.hpp"
#include "interp/signal_frame.hpp"
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
  bool list = false;
};

/// Forms of an instruction that an interpreter may execute in different ways.
struct Form {
  ZydisMnemonic mnemonic;
  bool memory, mmx;
  auto operator<=>(const Form&) const = default;
};

Form form_of(const DecodedCase& d) {
  const auto* end = d.ops.data() + d.insn.operand_count;
  const bool mmx = std::any_of(d.ops.data(), end, [](const ZydisDecodedOperand& o) {
    return o.type == ZYDIS_OPERAND_TYPE_REGISTER &&
           ZydisRegisterGetClass(o.reg.value) == ZYDIS_REGCLASS_MMX;
  });
  return {d.insn.mnemonic, d.memory() != nullptr, mmx};
}

/// What is known of one form at the end.
struct Tally {
  std::uint64_t cases = 0, compared = 0, shown = 0;
  std::uint64_t completed = 0;  ///< compared, and without a fault
  bool on_host = false;         ///< the interpreter executes it by the host's own instruction
};

class Fuzzer {
 public:
  explicit Fuzzer(const Options& options)
      : options_{options},
        qemu_{!options.qemu.empty()},
        narrow_{!qemu_ && interp::test::has_user32()},
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
    pattern_ = Generator::make_pattern(rng);
    InterpSide interp{pattern_};
    std::vector<std::string> command;
    if (qemu_) command.push_back(options_.qemu);
    command.push_back(options_.executor);
    Oracle oracle{std::move(command), pattern_};
    seed_ = seed;
    for (std::uint64_t done = 0; done < cases && failures_ < options_.show && going();) {
      const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(kBatch, cases - done));
      cases_of_batch_.clear();
      while (cases_of_batch_.size() < count) {
        if (qemu_) {
          add_for_qemu(rng);
        } else {
          cases_of_batch_.push_back(generator_.make(rng, narrow_ && rng.chance(25) ? 32 : 64));
        }
      }
      run_batch(interp, oracle, done);
      done += count;
    }
  }

  void add_for_qemu(fuzz::Random& rng) {
    Case c = generator_.make(rng, 64);
    const auto d = generator_.decode(c);
    if (!d) return;
    // Most of what the interpreter has the host execute is in the units.
    const bool unit = d->cls == isa::OpcodeClass::vector || d->cls == isa::OpcodeClass::x87;
    if (!unit && rng.chance(60)) return;
    if (!beyond_qemu(*d).empty()) {
      ++kept_from_qemu_[beyond_qemu(*d)];
      return;
    }
    fit_for_qemu(c, *d);
    cases_of_batch_.push_back(c);
  }

  void run_batch(InterpSide& interp, Oracle& oracle, std::uint64_t first) {
    Batch& batch = oracle.batch();
    batch.count = static_cast<std::uint32_t>(cases_of_batch_.size());
    for (std::size_t i = 0; i < cases_of_batch_.size(); ++i) {
      const Case& c = cases_of_batch_[i];
      batch.cases[i] = qemu_ ? stand_in(c, *generator_.decode(c)) : c;
    }
    oracle.start();
    guest_.resize(cases_of_batch_.size());
    for (std::size_t i = 0; i < guest_.size(); ++i) interp.run(cases_of_batch_[i], guest_[i]);
    if (!oracle.finish()) {
      ++failures_;
      fmt::print("seed {} case {}: the executor died\n{}\n", seed_, first + batch.current,
                 describe(cases_of_batch_[batch.current]));
      return;
    }
    for (std::size_t i = 0; i < guest_.size(); ++i) {
      judge(cases_of_batch_[i], guest_[i], batch.results[i], first + i);
    }
  }

  void judge(const Case& c, const Result& guest, const Result& oracle, std::uint64_t number) {
    ++cases_;
    const auto d = generator_.decode(c);
    if (!d) return;
    Tally& tally = seen_[form_of(*d)];
    if (tally.cases++ == 0) tally.on_host = InterpSide::runs_on_host(c, model_);
    if (guest.vector != cpu::BP) ++faults_[guest.vector];
    const Expected expected = qemu_ ? expected_by_qemu(c, *d, guest, oracle)
                                    : Expected{oracle, host_omission(*d, guest, oracle)};
    if (!expected.omitted.everything) {
      ++tally.compared;
      if (guest.vector == cpu::BP) ++tally.completed;
    }
    const std::string text = differences(c, guest, expected);
    if (text.empty()) return;
    if (!qemu_ && !deviation(*d, guest, oracle).empty()) {
      ++deviations_;
      return;
    }
    ++failures_;
    // Of one instruction the first few say enough.
    if (++tally.shown > (options_.list ? 100 : 3)) return;
    fmt::print("seed {} case {}: {}\n{}{}", seed_, number, describe(c),
               CaseOperands{c, *d, pattern_}.describe(), text);
  }

  /// QEMU's result with its known deviations put right.
  Expected expected_by_qemu(const Case& c, const DecodedCase& d, const Result& guest,
                            const Result& oracle) {
    Expected out{oracle, {}};
    const CaseOperands operands{c, d, pattern_};
    const QemuCase q{c, d, operands, guest.vector, guest.cr2};
    for (const auto part :
         {general_deviations(), vector_deviations(), trigonometry_deviations(), x87_deviations()}) {
      for (const QemuDeviation& known : part) {
        if (known.amend(q, out)) ++amended_[&known];
      }
    }
    return out;
  }

  /// Instructions of the table that were never compared; of those that the host executes, every
  /// form, without a fault. Few cases need not reach all.
  [[nodiscard]] std::uint64_t missing() const {
    if (!options_.coverage) return 0;
    std::set<ZydisMnemonic> todo;
    for (const unsigned bits : {64U, 32U}) {
      if (bits == 32 && !narrow_) continue;
      for (const ZydisMnemonic m : generator_.instructions(bits)) todo.insert(m);
    }
    for (const Exclusion& e : never_for_qemu()) {
      if (qemu_) todo.erase(e.mnemonic);
    }
    std::uint64_t count = 0;
    for (const auto& [form, tally] : seen_) {
      if (tally.compared != 0) todo.erase(form.mnemonic);
      if (!tally.on_host || tally.completed != 0) continue;
      fmt::print("{} {} was never compared\n", ZydisMnemonicGetString(form.mnemonic),
                 form.memory ? "with memory" : "with registers");
      ++count;
    }
    for (const ZydisMnemonic m : todo) {
      fmt::print("{} was never compared\n", ZydisMnemonicGetString(m));
    }
    return count + todo.size();
  }

  void report() const {
    const std::chrono::duration<double> past = std::chrono::steady_clock::now() - start_;
    fmt::print(
        "{} cases of {} instructions in {:.1f} s; {} differences, {} known deviations; "
        "faults:",
        cases_, instructions(), past.count(), failures_, deviations_);
    for (const auto& [vector, count] : faults_) fmt::print(" {}: {}", vector, count);
    fmt::print("\n");
    if (!qemu_ && !narrow_) fmt::print("no 32-bit code: this host executes none\n");
    if (qemu_) report_qemu();
  }

  [[nodiscard]] std::size_t instructions() const {
    std::set<ZydisMnemonic> out;
    for (const auto& [form, tally] : seen_) out.insert(form.mnemonic);
    return out.size();
  }

  /// How much of what the interpreter leaves to the host has been compared with something else.
  void report_qemu() const {
    std::map<ZydisMnemonic, std::uint64_t> on_host;
    std::uint64_t compared = 0, forms = 0, fewest = ~0ULL;
    for (const auto& [form, tally] : seen_) {
      if (!tally.on_host) continue;
      on_host[form.mnemonic] += tally.completed;
      compared += tally.completed;
      fewest = std::min(fewest, tally.completed);
      ++forms;
    }
    for (const auto& [mnemonic, cases] : on_host) {
      if (options_.list) fmt::print("{:6} {}\n", cases, ZydisMnemonicGetString(mnemonic));
    }
    fmt::print(
        "the interpreter has the host execute {} of these in {} forms: {} cases without a fault "
        "compared, of every form {} at least\n",
        on_host.size(), forms, compared, fewest);
    if (options_.list) report_deviations();
  }

  void report_deviations() const {
    for (const auto part :
         {general_deviations(), vector_deviations(), trigonometry_deviations(), x87_deviations()}) {
      for (const QemuDeviation& known : part) {
        const auto it = amended_.find(&known);
        fmt::print("{:6} {}: {}\n", it == amended_.end() ? 0 : it->second, known.instructions,
                   known.why);
      }
    }
    for (const auto& [why, count] : kept_from_qemu_) fmt::print("{:6} not run: {}\n", count, why);
  }

  const Options options_;
  const bool qemu_;
  const bool narrow_;  ///< 32-bit code too
  const cpu::CpuModel model_;
  const Generator generator_;
  std::chrono::steady_clock::time_point start_;
  std::uint64_t seed_ = 0;
  std::array<std::uint8_t, kPatternBytes> pattern_{};
  std::vector<Case> cases_of_batch_;
  std::vector<Result> guest_;
  std::uint64_t cases_ = 0, failures_ = 0, deviations_ = 0;
  std::map<Form, Tally> seen_;
  std::map<std::uint32_t, std::uint64_t> faults_;
  std::map<const QemuDeviation*, std::uint64_t> amended_;
  std::map<std::string_view, std::uint64_t> kept_from_qemu_;
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

namespace {

bool in_path(const std::string& program) {
  if (program.find('/') != program.npos) return std::filesystem::exists(program);
  const char* path = std::getenv("PATH");
  std::istringstream folders{path == nullptr ? "" : path};
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (std::filesystem::exists(std::filesystem::path{folder} / program)) return true;
  }
  return false;
}

}  // namespace

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
  app.add_flag("--coverage", options.coverage, "fail where an instruction was never compared");
  app.add_flag("--list", options.list,
               "with --qemu: cases of each instruction run on the host, and of each deviation");
  CLI11_PARSE(app, argc, argv);
  if (!options.qemu.empty() && !in_path(options.qemu)) {
    fmt::print("skipped: no {} here (Debian: qemu-user)\n", options.qemu);
    return 77;
  }
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
