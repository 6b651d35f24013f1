// strata run: one VM in this process.
#include <fmt/format.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <optional>
#include <span>

#include "cli/commands.hpp"
#include "cli/confinement.hpp"
#include "cli/save_signal.hpp"
#include "host/output_file.hpp"
#include "vmm/capabilities.hpp"
#include "vmm/console.hpp"
#include "vmm/vm.hpp"

namespace strata::cli {

namespace {

/// Options as given; empty where the user said nothing, so that a config file keeps its value.
struct RunOptions {
  std::string config;
  std::optional<std::string> kernel, initrd, append, memory, engine, mmu, cpu_model, serial, stats;
  std::optional<std::string> console, windows, code_cache, clock, record, load, save;
  std::optional<std::uint64_t> save_at, check_every, check_from;
  std::optional<std::string> check;
  std::vector<std::string> disks;
  std::optional<unsigned> cpus;
  std::optional<double> timeout;
  std::optional<std::uint16_t> debug_exit_port;
  bool test_devices = false;
  bool no_rng = false;
  bool sandbox = true;
};

void merge_check(const RunOptions& o, vmm::VmConfig& config) {
  if (o.check) config.check.target = o.check->empty() ? "interp" : *o.check;
  if (o.check_every) config.check.every = *o.check_every;
  if (o.check_from) config.check.from = *o.check_from;
  // Only a run that repeats exactly can be looked at a second time.
  if (!config.check.target.empty() && !o.clock && config.clock == "host") {
    config.clock = "instructions";
  }
}

Expected<vmm::VmConfig, vmm::ConfigError> merge(const RunOptions& o) {
  vmm::VmConfig config;
  if (!o.config.empty()) {
    const auto text = boot::read_file(o.config, 1U << 20);
    if (!text) return Unexpected{vmm::ConfigError{"--config: " + text.error().message}};
    const std::string_view view{reinterpret_cast<const char*>(text->data()), text->size()};
    if (const auto done = vmm::apply_json(view, o.config, config); !done) {
      return Unexpected{done.error()};
    }
  }
  if (o.kernel) config.kernel = *o.kernel;
  if (o.initrd) config.initrd = *o.initrd;
  if (o.append) config.append = *o.append;
  if (o.engine) config.engine = *o.engine;
  if (o.mmu) config.mmu = *o.mmu;
  if (o.windows) config.windows = *o.windows;
  if (o.cpu_model) config.cpu_model = *o.cpu_model;
  if (o.serial) config.serial = *o.serial;
  if (o.console) config.console = *o.console;
  if (o.no_rng) config.rng = false;
  if (o.stats) config.stats = *o.stats;
  if (o.clock) config.clock = *o.clock;
  if (o.record) config.record = *o.record;
  if (o.load) config.load = *o.load;
  if (o.save) config.save = *o.save;
  if (o.save_at) config.save_at = *o.save_at;
  if (o.cpus) config.cpus = *o.cpus;
  if (!o.disks.empty()) config.disks.clear();
  for (const std::string& text : o.disks) {
    auto disk = vmm::parse_disk(text);
    if (!disk) return Unexpected{disk.error()};
    config.disks.push_back(std::move(*disk));
  }
  if (o.timeout) config.timeout_seconds = *o.timeout;
  merge_check(o, config);
  if (o.test_devices) config.test_devices = true;
  if (o.debug_exit_port) config.debug_exit_port = *o.debug_exit_port;
  if (o.code_cache) {
    const auto bytes = vmm::parse_memory(*o.code_cache, "--code-cache");
    if (!bytes) return Unexpected{bytes.error()};
    config.code_cache_bytes = *bytes;
  }
  if (o.memory) {
    const auto bytes = vmm::parse_memory(*o.memory);
    if (!bytes) return Unexpected{bytes.error()};
    config.memory_bytes = *bytes;
  }
  return config;
}

int usage_error(const std::string& message) {
  std::cerr << "strata run: " << message << '\n';
  return kUsageError;
}

void note(std::string_view remark) {
  if (!remark.empty()) std::cerr << "strata run: note: " << remark << '\n';
}

/// Which engine a user got who named none.
void note_engine(const vmm::VmConfig& asked, const vmm::Vm& vm) {
  if (asked.engine != vmm::kAutoEngine) return;
  note(fmt::format("engine {}, {}", vm.engine_name(), vm.engine_reason()));
}

/// Now: when they are written, the process can open files no more.
Expected<std::optional<host::OutputFile>, host::HostError> open_stats(const std::string& path) {
  if (path.empty()) return std::optional<host::OutputFile>{};
  auto file = host::OutputFile::open(path);
  if (!file) return Unexpected{file.error()};
  return std::optional{std::move(*file)};
}

bool write_stats(vmm::Vm& vm, const vmm::VmConfig& config, const Confinement& confinement,
                 host::OutputFile file) {
  nlohmann::json stats = vm.stats();
  stats["sandbox"] = confinement.report();
  if (config.clock != "host" || !config.record.empty() || !config.load.empty()) {
    // What two exact runs have in common.
    const auto sum = vm.memory_checksum();
    stats["memory_checksum"] = sum ? fmt::format("{:016x}", *sum) : "none";
  }
  const std::string text = stats.dump(2) + '\n';
  file.restart();
  file.write(std::as_bytes(std::span{text}));
  if (file.finish()) return true;
  std::cerr << "strata run: --stats: cannot write " << file.path() << '\n';
  return false;
}

/// How it ended, where that is not as the guest wished.
void report(const vmm::Outcome& outcome, const vmm::Vm& vm) {
  if (outcome.ending != vmm::Ending::power_off) {
    std::cerr << fmt::format("strata run: the VM ended by {}{}{}\n", name_of(outcome.ending),
                             outcome.detail.empty() ? "" : ": ", outcome.detail);
  }
  if (outcome.ending == vmm::Ending::triple_fault ||
      outcome.ending == vmm::Ending::internal_error) {
    std::cerr << vm.vcpu_state();
  }
}

/// The same run with comparisons as in `config`. Nothing: it showed no difference.
std::optional<vmm::CheckResult> check_again(const vmm::VmConfig& config) {
  auto silence = vmm::Console::open("null");
  if (!silence) return std::nullopt;
  auto vm = vmm::Vm::create(config, **silence);
  if (!vm) return std::nullopt;
  (*vm)->start();
  (void)(*vm)->run();
  auto result = (*vm)->check_result();
  return result && !result->report.empty() ? result : std::nullopt;
}

/// Finds a difference again, between where all was equal and where it was seen: after which block,
/// or, where it needs several on end, in ever smaller steps. Each try is the first run over again,
/// exactly unless somebody typed.
void narrow(vmm::VmConfig config, vmm::CheckResult result) {
  std::uint64_t step = std::max<std::uint64_t>(config.check.every, 1000);
  config.check.every = 0;
  for (;;) {
    config.check.from = result.agreed;
    config.check.until = result.found;
    config.check.page = result.page;
    std::cerr << fmt::format("strata run: once more from instruction {}, {}\n", result.agreed,
                             config.check.every == 0
                                 ? "block by block"
                                 : fmt::format("in steps of {}", config.check.every));
    const auto closer = check_again(config);
    std::cerr << (closer ? closer->report : "no difference that way\n");
    if (closer) result = *closer;
    if ((closer && config.check.every == 0) || step == 1) return;
    step = std::max<std::uint64_t>(step / 10, 1);
    config.check.every = step;
  }
}

/// Says what lock-step came to.
void report_check(const vmm::Vm& vm, const vmm::VmConfig& config) {
  const auto result = vm.check_result();
  if (!result) return;
  if (result->report.empty()) {
    std::cerr << fmt::format(
        "strata run: lock-step: {} states and {} memories compared, all equal\n", result->states,
        result->memories);
    return;
  }
  std::cerr << "strata run: lock-step: " << result->report;
  const bool coarse = config.check.every != 0 || result->page;
  if (coarse && config.clock != "host") narrow(config, *result);
}

int run(const RunOptions& options) {
  const auto config = merge(options);
  if (!config) return usage_error(config.error().message);
  auto console = vmm::Console::open(config->serial);
  if (!console) return usage_error(console.error().message);
  auto stats = open_stats(config->stats);
  if (!stats) return usage_error("--stats: " + stats.error().message);
  SaveSignal signal;  // before the VM's threads, which inherit what it blocks
  auto vm = vmm::Vm::create(*config, **console);
  if (!vm) return usage_error(vm.error().message);
  note_engine(*config, **vm);
  note((*vm)->remark());
  // Lock-step may have to make these VMs once more, with all that a sandbox takes away.
  Confinement confinement{options.sandbox && config->check.target.empty()};
  if (!options.sandbox) note(confinement.remark());
  // Privileges go before the VM's threads are made, which inherit them; system calls after.
  if (const auto done = confinement.enter(); !done) return usage_error(done.error().message);
  (*vm)->start();
  (*console)->start_input((*vm)->console_input(), [&] { (*vm)->stop(vmm::Ending::quit); });
  if (!config->save.empty()) signal.start([&] { (*vm)->request_save(); });
  if (const auto done = confinement.filter_system_calls((*vm)->ioctls()); !done) {
    return usage_error(done.error().message);
  }
  const vmm::Outcome outcome = (*vm)->run();
  signal.stop();
  (*console)->stop_input();
  report(outcome, **vm);
  report_check(**vm, *config);
  const bool written = !*stats || write_stats(**vm, *config, confinement, std::move(**stats));
  return written ? vmm::exit_code(outcome) : 1;
}

constexpr std::string_view kFooter = R"(
Examples:
  strata run --kernel vmlinuz --initrd initramfs.gz --append "console=ttyS0"
  strata run --config vm.json --mmu shadow --stats run.json
  A config file holds the same keys: {"kernel": "vmlinuz", "memory": "256M", "mmu": "ept"}

Engine auto passes kvm by where the host's KVM cannot run everything, for a --mmu other than host,
and for --clock, --record, --save, --load and --check, which need exact instruction counts.

In the console, Ctrl-A x quits and Ctrl-A h lists the other escapes.

Exit codes:
  0 guest powered off,    4 triple fault        7 host out of memory
    or was saved
  1 error inside strata   5 --timeout reached   64-127 debug-exit port: 64 + (value & 63)
  2 wrong option or file  6 quit from console
  3 guest reset           8 --check found a difference)";

void add_exact_options(CLI::App& command, RunOptions& options) {
  command.add_option("--clock", options.clock,
                     "Guest time: host, or instructions[:MHZ], which makes a run without input "
                     "repeat exactly [host]");
  command.add_option("--record", options.record,
                     "Log all that reaches the vCPUs to this file, for strata replay");
  command.add_option("--save", options.save,
                     "Save the VM to this file and end: at --save-at, or on SIGUSR1");
  command.add_option("--save-at", options.save_at, "Instruction count at which to save");
  command.add_option("--load", options.load, "Go on with a saved VM instead of a kernel");
  command
      .add_option("--check", options.check,
                  "Run a second VM in lock-step, on ENGINE[,MMU] [interp, same MMU], and compare")
      ->expected(0, 1);
  command.add_option("--check-every", options.check_every,
                     "Instructions between two comparisons; 0: after each block [0]");
  command.add_option("--check-from", options.check_from,
                     "Instruction count at which comparisons begin [0]");
}

}  // namespace

void add_run_command(CLI::App& app, int& exit_code) {
  auto* command = app.add_subcommand("run", "Run one VM in this process");
  auto options = std::make_shared<RunOptions>();
  command->add_option("--config", options->config, "JSON file with these options as keys");
  command->add_option("--kernel", options->kernel,
                      "Kernel: bzImage (vmlinuz), or an ELF vmlinux with a PVH entry");
  command->add_option("--initrd", options->initrd, "Initial RAM disk");
  command->add_option("--append", options->append, "Kernel command line");
  command->add_option("--memory", options->memory, "Guest memory, e.g. 512M or 2G [512M]");
  command->add_option("--cpus", options->cpus, "Number of vCPUs, 1 to 8 [1]");
  command->add_option(
      "--engine", options->engine,
      "Engine: kvm (the host's /dev/kvm), bt (binary translation), interp, or auto: "
      "the first of these that the host and the build have and that does what the "
      "run asks for; a note says which it is and why [auto]");
  command->add_option(
      "--mmu", options->mmu,
      "Memory backend: shadow, ept, npt, host (engine kvm) or auto [auto]" + vmm::mmu_words_help());
  command->add_option("--windows", options->windows,
                      "Engine bt: map the memory of guest programs into the host's own page "
                      "tables, so that their accesses need no checks. auto: of programs that run "
                      "long enough to pay for it; never: check each access; always: of the kernel "
                      "too, for tests, slower [auto]");
  command->add_option("--code-cache", options->code_cache,
                      "Engine bt: room for translated code, for each vCPU. A guest that runs many "
                      "programs, as Debian does when it boots, is faster with 32M [8M]");
  command->add_option("--cpu-model", options->cpu_model,
                      "CPU model: default or mitigation-free, and changes to it: "
                      "default,-pcid,+rdpid,vendor=AuthenticAMD [default]");
  command->add_option("--serial", options->serial,
                      "First serial port: stdio, null, or a file for its output [stdio]");
  command
      ->add_option("--disk", options->disks,
                   "Disk from a raw file or block device: PATH[,ro][,overlay=FILE]; with overlay "
                   "changes go to that file. Guests see /dev/vda, /dev/vdb, ... in this order")
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_option("--console", options->console,
                      "Device that takes what is typed: serial, or virtio, a console that guests "
                      "see as hvc0 beside the serial port [serial]");
  command->add_flag("--no-rng", options->no_rng,
                    "No virtio entropy device, which VMs with a disk have");
  add_sandbox_option(*command, options->sandbox);
  command->add_option("--stats", options->stats, "Write counters and overhead to this JSON file");
  command->add_option("--timeout", options->timeout, "Stop after this many seconds [none]");
  command->add_option("--debug-exit-port", options->debug_exit_port,
                      "A write to this port ends the VM (0xf4 for test kernels) [none]");
  command->add_flag("--test-devices", options->test_devices,
                    "fw_cfg, pc-testdev and debug exit at 0xf4, as kvm-unit-tests expect them");
  add_exact_options(*command, *options);
  command->footer(std::string{kFooter});
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace strata::cli
