// strata replay: a recording, run again.
#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <optional>

#include "cli/commands.hpp"
#include "cli/confinement.hpp"
#include "vmm/state_dump.hpp"
#include "vmm/vm.hpp"

namespace strata::cli {

namespace {

/// A replay that came to something else than what was recorded.
constexpr int kDiverged = 8;

struct ReplayOptions {
  std::string file, engine = "interp", mmu = "auto";
  std::optional<std::uint64_t> until;
  std::uint64_t step = 0;
  bool dump_state = false;
  bool sandbox = true;
};

/// The devices behind a replay say nothing.
class Silence final : public devices::CharSink {
 public:
  void put(std::span<const std::uint8_t>) override {}
};

/// One line per instruction: what two replays are compared by.
void print_step(const engine::Vcpu& vcpu) {
  const cpu::VcpuState s = vcpu.state();
  std::cout << fmt::format("{} rip={:x} rflags={:x}", vcpu.position().instructions, s.rip,
                           s.rflags);
  for (std::size_t i = 0; i < s.gpr.size(); ++i) std::cout << fmt::format(" r{}={:x}", i, s.gpr[i]);
  std::cout << '\n';
}

int usage_error(const std::string& message) {
  std::cerr << "strata replay: " << message << '\n';
  return kUsageError;
}

/// A recording is as hostile as the guest that it holds. Everything runs on this thread.
Expected<void, host::HostError> confine(bool wanted) {
  Confinement confinement{wanted};
  if (const auto remark = confinement.remark(); !remark.empty()) {
    std::cerr << "strata replay: note: " << remark << '\n';
  }
  if (auto done = confinement.enter(); !done) return done;
  return confinement.filter_system_calls({});
}

int replay(const ReplayOptions& o) {
  vmm::VmConfig config;
  config.engine = o.engine;
  config.mmu = o.mmu;
  Silence sink;
  auto vm = vmm::Vm::create_replay(config, o.file, sink);
  if (!vm) return usage_error(vm.error().message);
  if (const auto done = confine(o.sandbox); !done) return usage_error(done.error().message);
  std::optional<std::uint64_t> until = o.until;
  if (!until && o.step != 0) until = (*vm)->replaying_vcpu().position().instructions;
  vmm::ReplayResult result = (*vm)->replay(until);
  for (std::uint64_t i = 0; i < o.step && !result.ended; ++i) {
    print_step((*vm)->replaying_vcpu());
    const std::uint64_t here = (*vm)->replaying_vcpu().position().instructions;
    result = (*vm)->replay(here + 1);
    if (!result.stopped) break;
  }
  if (o.dump_state) std::cout << (*vm)->vcpu_state();
  const char* how = result.ended ? "ended as recorded: " : "";
  std::cerr << fmt::format("strata replay: {}{} ({} events, {})\n", how, result.message,
                           result.events, (*vm)->mmu_name());
  return result.ended || result.stopped ? 0 : kDiverged;
}

constexpr std::string_view kFooter = R"(
Examples:
  strata run --kernel vmlinuz --append "console=ttyS0" --record boot.rec
  strata replay boot.rec --mmu shadow
  strata replay boot.rec --until 1000000 --step 20 --dump-state

Exit codes:
  0 ended as recorded, or stopped at --until
  2 wrong option, or no recording
  8 the run came to something else than what was recorded, or the file is damaged)";

}  // namespace

void add_replay_command(CLI::App& app, int& exit_code) {
  auto* command = app.add_subcommand("replay", "Run a recording again, exactly");
  auto options = std::make_shared<ReplayOptions>();
  command->add_option("file", options->file, "Made by strata run --record")->required();
  command->add_option("--engine", options->engine, "Engine: interp or bt [interp]");
  command->add_option("--mmu", options->mmu, "Memory backend: shadow, ept, npt or auto [auto]");
  command->add_option("--until", options->until, "Stop at this instruction count");
  command->add_option("--step", options->step,
                      "From there on (or the start) print this many instructions' registers");
  add_sandbox_option(*command, options->sandbox);
  command->add_flag("--dump-state", options->dump_state, "Print the vCPUs as they stopped");
  command->footer(std::string{kFooter});
  command->callback([options, &exit_code] { exit_code = replay(*options); });
}

}  // namespace strata::cli
