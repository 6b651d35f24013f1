// Saved VMs, and the state a recording starts from: out of a Vm and into a new one.
#include <fmt/format.h>

#include "devices/device_state.hpp"
#include "vmm/engine_choice.hpp"
#include "vmm/replay/machine_state.hpp"
#include "vmm/vm_parts.hpp"

namespace strata::vmm {

namespace {

using nlohmann::json;
using replay::ChunkReader;
using replay::ChunkType;

Unexpected<ConfigError> bad(std::string message) { return {ConfigError{std::move(message)}}; }

/// A VM that was loaded can have run for a century at most: sums of its times do not overflow.
constexpr std::uint64_t kLongestNs = 4'000'000'000'000'000'000;

/// What of a VM's configuration its state depends on.
struct SavedConfig {
  std::uint64_t memory_bytes = 0;
  unsigned cpus = 0;
  std::optional<std::uint16_t> debug_exit_port;
  std::uint64_t clock_mhz = 0;
  std::uint64_t tsc_khz = 0;
  template <class Archive>
  void fields(Archive& a) {
    a("memory", memory_bytes);
    a("cpus", cpus, kMaxVcpus);
    a("debug_exit_port", debug_exit_port);
    a("clock_mhz", clock_mhz, 1'000'000);
    a("tsc_khz", tsc_khz, 0xFFFFFFFF);
    a.require("tsc_khz", tsc_khz != 0);
  }
};

/// The first chunk of a file, as JSON with the parts that it needs.
Expected<json, ConfigError> read_machine(ChunkReader& file) {
  const auto chunk = file.next();
  if (!chunk) return bad(chunk.error().message);
  if (chunk->type != ChunkType::machine) return bad(file.path() + ": does not begin with a VM");
  auto machine = replay::parse_cbor(chunk->bytes, file.path());
  if (!machine) return bad(machine.error().message);
  for (const char* part : {"config", "cpu_model", "clock", "turn", "vcpus", "devices"}) {
    if (!machine->is_object() || !machine->contains(part)) {
      return bad(fmt::format("{}: holds no {}", file.path(), part));
    }
  }
  if (!(*machine)["cpu_model"].is_string()) return bad(file.path() + ": holds no CPU model's name");
  return std::move(*machine);
}

/// The configuration to build the VM of `machine` from; what it leaves open is `config`'s.
Expected<VmConfig, ConfigError> merge(VmConfig config, const json& machine, SavedConfig& saved,
                                      const std::string& path) {
  devices::StateReader reader{machine["config"], path + ": config"};
  saved.fields(reader);
  if (const auto done = reader.result(); !done) return bad(done.error().message);
  config.memory_bytes = saved.memory_bytes;
  config.cpus = saved.cpus;
  config.debug_exit_port = saved.debug_exit_port;
  config.cpu_model = machine["cpu_model"].get<std::string>();
  config.clock = saved.clock_mhz == 0 ? "host" : fmt::format("instructions:{}", saved.clock_mhz);
  config.kernel.clear();
  config.load = path;
  if (const auto valid = validate(config); !valid) {
    return bad(fmt::format("{}: {}", path, valid.error().message));
  }
  return config;
}

struct ClockPart {
  std::uint64_t ticks = 0;  ///< of a clock that counts instructions
  std::uint64_t now = 0;    ///< ns, of the host's
  std::uint64_t tsc = 0;
  std::uint64_t draws = 0;  ///< random numbers drawn
  template <class Archive>
  void fields(Archive& a) {
    a("ticks", ticks, kLongestNs);
    a("now", now, kLongestNs);
    a("tsc", tsc, kLongestNs);
    a("draws", draws);
  }
};

struct VcpuPart {
  std::uint64_t instructions = 0;
  bool waits_for_startup = false;
  template <class Archive>
  void fields(Archive& a) {
    a("instructions", instructions, 1ULL << 62);
    a("waits_for_startup", waits_for_startup);
  }
};

struct TurnPart {
  std::uint64_t vcpu = 0;
  std::uint64_t left = 0;  ///< instructions
  template <class Archive>
  void fields(Archive& a) {
    a("vcpu", vcpu, kMaxVcpus - 1);
    a("left", left);
  }
};

template <class Part>
json fields_of(Part part) {
  devices::StateWriter writer;
  part.fields(writer);
  return std::move(writer).take();
}

}  // namespace

// ---- out ----------------------------------------------------------------------------------------

json Vm::machine_json() {
  json machine = json::object();
  machine["config"] = fields_of(SavedConfig{.memory_bytes = config_.memory_bytes,
                                            .cpus = config_.cpus,
                                            .debug_exit_port = config_.debug_exit_port,
                                            .clock_mhz = *parse_clock(config_.clock),
                                            .tsc_khz = clock_.tsc_khz()});
  machine["cpu_model"] = config_.cpu_model;
  ClockPart clock{.draws = exact_->seeded.draws()};
  if (clocks_->instructions) {
    clock.ticks = clocks_->instructions->ticks();
  } else {
    clock.now = clock_.now();
    clock.tsc = clock_.tsc();
  }
  machine["clock"] = fields_of(clock);
  machine["turn"] = fields_of(TurnPart{exact_->turn, exact_->slice_left});
  machine["vcpus"] = json::array();
  for (const auto& vcpu : vcpus_) {
    json one = fields_of(VcpuPart{vcpu->vcpu().position().instructions, vcpu->waits_for_startup()});
    one["state"] = replay::save_vcpu(vcpu->vcpu().state());
    machine["vcpus"].push_back(std::move(one));
  }
  machine["devices"] = platform_->save();
  return machine;
}

Expected<void, ConfigError> Vm::write_state(replay::ChunkWriter& file) {
  file.write_json(ChunkType::machine, machine_json());
  if (const auto done = replay::save_memory(*guest_memory_, map_.backed(), file); !done) {
    return bad(done.error().message);
  }
  file.write_json(ChunkType::machine, json::object());  // the memory is complete
  return {};
}

std::optional<std::uint64_t> Vm::memory_checksum() {
  return replay::memory_checksum(*guest_memory_, map_.backed());
}

/// How the VM stands: what a replay has to come to.
json Vm::end_json() {
  const auto sum = memory_checksum();
  json end = json::object();
  end["memory_checksum"] = sum ? fmt::format("{:016x}", *sum) : "none";
  end["vcpus"] = json::array();
  for (const auto& vcpu : vcpus_) {
    json one = replay::save_vcpu(vcpu->vcpu().state());
    one["instructions"] = vcpu->vcpu().position().instructions;
    end["vcpus"].push_back(std::move(one));
  }
  return end;
}

void Vm::request_save() noexcept {
  if (config_.save.empty() || !exact_) return;
  exact_->save_requested = true;
  for (const auto& vcpu : vcpus_) vcpu->vcpu().kick();
}

/// Before the VM runs, when the process can open files no more. What a file holds stays there until
/// the VM is saved: it may be the one that is loaded.
Expected<void, ConfigError> Vm::open_save_file() {
  if (config_.save.empty()) return {};
  auto file = host::OutputFile::open(config_.save);
  if (!file) return bad("--save: " + file.error().message);
  exact_->save_file = std::move(*file);
  return {};
}

/// All vCPUs stand between instructions. The VM ends: two that go on from one state would be one
/// machine twice.
void Vm::save_now() {
  exact_->save_requested = false;
  for (const auto& vcpu : vcpus_) {
    if (exact_->recorder) exact_->recorder->turn(vcpu->id());
    vcpu->obey();
  }
  const auto save = [this]() -> Expected<void, ConfigError> {
    auto file = replay::ChunkWriter::create(std::move(*exact_->save_file), replay::FileKind::state);
    if (!file) return bad("--save: " + file.error().message);
    if (auto done = write_state(**file); !done) return done;
    (*file)->write_json(ChunkType::end, json::object());
    if (const auto done = (*file)->finish(); !done) return bad("--save: " + done.error().message);
    return {};
  };
  if (const auto done = save(); !done) {
    ended({Ending::internal_error, 0, done.error().message});
  } else {
    ended({Ending::saved, 0, fmt::format("at instruction {}", instructions_retired())});
  }
}

// ---- in -----------------------------------------------------------------------------------------

Expected<void, ConfigError> Vm::take_machine(const json& machine, bool with_devices,
                                             const std::string& path) {
  const json& vcpus = machine["vcpus"];
  if (!vcpus.is_array() || vcpus.size() != vcpus_.size()) {
    return bad(path + ": does not hold its number of vCPUs");
  }
  for (std::size_t i = 0; i < vcpus_.size(); ++i) {
    VcpuPart part;
    devices::StateReader reader{vcpus[i], fmt::format("{}: vcpu {}", path, i)};
    part.fields(reader);
    if (const auto done = reader.result(); !done) return bad(done.error().message);
    const auto state = replay::load_vcpu(vcpus[i].value("state", json{}));
    if (!state) return bad(fmt::format("{}: {}", path, state.error().message));
    vcpus_[i]->vcpu().set_state(*state);
    vcpus_[i]->vcpu().set_instructions(part.instructions);
    vcpus_[i]->set_waits_for_startup(part.waits_for_startup);
  }
  TurnPart turn;
  devices::StateReader reader{machine["turn"], path + ": turn"};
  turn.fields(reader);
  reader.require("vcpu", turn.vcpu < vcpus_.size());
  if (const auto done = reader.result(); !done) return bad(done.error().message);
  exact_->turn = turn.vcpu;
  exact_->slice_left = turn.left;
  if (!with_devices) return {};
  if (const auto done = platform_->load(machine["devices"]); !done) {
    return bad(fmt::format("{}: {}", path, done.error().message));
  }
  return {};
}

namespace {

/// Takes the memory chunks that follow, up to the mark behind them.
Expected<void, ConfigError> read_memory(ChunkReader& file, machine::GuestMemory& memory) {
  for (;;) {
    const auto chunk = file.next();
    if (!chunk) return bad(chunk.error().message);
    if (chunk->type == ChunkType::machine) return {};
    if (chunk->type != ChunkType::memory) return bad(file.path() + ": holds no whole memory");
    if (const auto done = replay::load_memory(memory, chunk->bytes, file.path()); !done) {
      return bad(done.error().message);
    }
  }
}

Expected<cpu::CpuModel, ConfigError> model_of(const VmConfig& config, std::uint64_t tsc_khz,
                                              const std::string& path) {
  cpu::ModelOptions options;
  options.tsc_khz = static_cast<std::uint32_t>(tsc_khz);
  auto model = cpu::CpuModel::by_name(config.cpu_model, options);
  if (!model) return bad(fmt::format("{}: {}", path, model.error().message));
  return std::move(*model);
}

}  // namespace

Expected<std::unique_ptr<Vm>, ConfigError> Vm::create_loaded(const VmConfig& config,
                                                             devices::CharSink& sink) {
  auto file = ChunkReader::open(config.load, replay::FileKind::state);
  if (!file) return bad("--load: " + file.error().message);
  auto machine = read_machine(**file);
  if (!machine) return Unexpected{machine.error()};
  SavedConfig saved;
  auto merged = merge(config, *machine, saved, config.load);
  if (!merged) return Unexpected{merged.error()};
  auto map = boot::MemoryMap::make(merged->memory_bytes);
  if (!map) return bad(fmt::format("{}: {}", config.load, map.error().message));
  auto model = model_of(*merged, saved.tsc_khz, config.load);
  if (!model) return Unexpected{model.error()};
  ClockPart clock;
  devices::StateReader reader{(*machine)["clock"], config.load + ": clock"};
  clock.fields(reader);
  if (const auto done = reader.result(); !done) return bad(done.error().message);
  auto clocks = std::make_unique<Clocks>(saved.clock_mhz);
  if (clocks->instructions) clocks->instructions->set_ticks(clock.ticks);
  if (clocks->host) clocks->host->resume(clock.now, clock.tsc, saved.tsc_khz);
  std::unique_ptr<Vm> vm{new Vm{*merged, std::move(*map), std::move(clocks), std::move(*model)}};
  if (const auto done = vm->build(sink); !done) return Unexpected{done.error()};
  vm->exact_->seeded.set_draws(clock.draws);
  vm->kernel_description_ = "saved VM";
  if (const auto done = read_memory(**file, *vm->guest_memory_); !done) {
    return Unexpected{done.error()};
  }
  const auto end = (*file)->next();
  if (!end) return bad(end.error().message);
  if (end->type != ChunkType::end) return bad(config.load + ": has no end");
  if (const auto done = vm->take_machine(*machine, true, config.load); !done) {
    return Unexpected{done.error()};
  }
  return vm;
}

Expected<std::unique_ptr<Vm>, ConfigError> Vm::create_replay(const VmConfig& given,
                                                             const std::string& recording,
                                                             devices::CharSink& sink) {
  const auto config = settle_engine(given, "a replay");
  if (!config) return Unexpected{config.error()};
  auto file = ChunkReader::open(recording, replay::FileKind::recording);
  if (!file) return bad(file.error().message);
  auto machine = read_machine(**file);
  if (!machine) return Unexpected{machine.error()};
  SavedConfig saved;
  auto merged = merge(*config, *machine, saved, recording);
  if (!merged) return Unexpected{merged.error()};
  auto map = boot::MemoryMap::make(merged->memory_bytes);
  if (!map) return bad(fmt::format("{}: {}", recording, map.error().message));
  auto model = model_of(*merged, saved.tsc_khz, recording);
  if (!model) return Unexpected{model.error()};
  const std::uint32_t signature = model->cpuid(1, 0, {}).eax;
  // Nothing moves this clock: the devices behind it stay as they are made.
  auto clocks = std::make_unique<Clocks>(1);
  std::unique_ptr<Vm> vm{new Vm{*merged, std::move(*map), std::move(clocks), std::move(*model)}};
  vm->exact_ = std::make_unique<Exactness>();
  Exactness& exact = *vm->exact_;
  exact.replay_file = std::move(*file);
  exact.events = std::make_unique<replay::EventReader>(*exact.replay_file, merged->cpus);
  devices::MemoryWriter& memory = *vm;
  exact.player = std::make_unique<replay::Player>(*exact.events, merged->cpus, memory, signature);
  if (const auto done = vm->build(sink); !done) return Unexpected{done.error()};
  vm->kernel_description_ = "recording";
  if (const auto done = read_memory(*exact.replay_file, *vm->guest_memory_); !done) {
    return Unexpected{done.error()};
  }
  if (const auto done = vm->take_machine(*machine, false, recording); !done) {
    return Unexpected{done.error()};
  }
  return vm;
}

}  // namespace strata::vmm
