#include "vmm/vm.hpp"

#include <fmt/format.h>

#include <filesystem>

#include "boot/loader.hpp"
#include "boot/machine_layout.hpp"
#ifdef STRATA_HAS_BT
#include "engines/bt/translator.hpp"
#endif
#include "devices/virtio/block.hpp"
#include "devices/virtio/console.hpp"
#include "devices/virtio/entropy.hpp"
#include "engines/interp/core.hpp"
#include "storage/open_disk.hpp"
#include "vmm/engine_choice.hpp"
#include "vmm/state_dump.hpp"
#include "vmm/vm_parts.hpp"

namespace strata::vmm {

namespace {

Unexpected<ConfigError> bad(std::string message) { return {ConfigError{std::move(message)}}; }

Expected<cpu::CpuModel, ConfigError> load_model(const VmConfig& config,
                                                const devices::Clock& clock) {
  cpu::ModelOptions options;
  options.tsc_khz = static_cast<std::uint32_t>(clock.tsc_khz());
  auto model = cpu::CpuModel::by_name(config.cpu_model, options);
  if (!model) return bad(fmt::format("--cpu-model: {}", model.error().message));
  return std::move(*model);
}

/// As validate() has found it.
interp::WindowUse window_use(std::string_view name) {
  if (name == "never") return interp::WindowUse::never;
  return name == "always" ? interp::WindowUse::always : interp::WindowUse::automatic;
}

}  // namespace

/// The loader's way into guest memory.
class Vm::Sink final : public boot::MemorySink {
 public:
  explicit Sink(machine::GuestMemory& memory) : memory_{memory} {}
  boot::Result<void> write(PA pa, std::span<const std::byte> bytes) override {
    return check(memory_.write(machine::kIdentitySpace, pa, bytes));
  }
  boot::Result<void> zero(PA pa, std::uint64_t length) override {
    return check(memory_.fill(machine::kIdentitySpace, pa, length, std::byte{0}));
  }

 private:
  static boot::Result<void> check(const Expected<void, Fault>& done) {
    if (done) return {};
    const Fault& f = done.error();
    if (f.kind == FaultKind::out_of_memory) {
      return boot::fail(
          fmt::format("the host has no memory for guest address {:#x}", f.pa.value()));
    }
    return boot::fail(fmt::format("guest address {:#x} is not memory", f.pa.value()));
  }
  machine::GuestMemory& memory_;
};

/// Devices' and the loader's stores, passed on to whoever keeps derived copies.
class Vm::Listener final : public machine::WriteListener {
 public:
  /// `mmu`: null where the host kernel translates.
  Listener(Mmu* mmu, const std::vector<std::unique_ptr<VcpuThread>>& vcpus)
      : mmu_{mmu}, vcpus_{vcpus} {}
  void memory_written(PA pa, std::uint64_t length) override {
    if (mmu_ != nullptr) mmu_->guest_wrote(pa, length);
    for (const auto& vcpu : vcpus_) vcpu->vcpu().memory_written(pa, length);
  }

 private:
  Mmu* mmu_;
  const std::vector<std::unique_ptr<VcpuThread>>& vcpus_;
};

Vm::Clocks::Clocks(std::uint64_t mhz) {
  if (mhz != 0) {
    instructions = std::make_unique<devices::InstructionClock>(mhz);
  } else {
    host = std::make_unique<devices::GuestClock>();
    service = std::make_unique<devices::TimerService>(*host);
  }
}

Vm::Vm(const VmConfig& config, boot::MemoryMap map, std::unique_ptr<Clocks> clocks,
       cpu::CpuModel model)
    : config_{config},
      map_{std::move(map)},
      mmu_name_{resolve_mmu(config.engine, config.mmu)},
      clocks_{std::move(clocks)},
      clock_{clocks_->clock()},
      model_{std::move(model)} {}

Vm::~Vm() {
  // Only an error on the way leaves threads running here; they use the platform.
  for (const auto& vcpu : vcpus_) vcpu->request_stop();
  for (const auto& vcpu : vcpus_) vcpu->join();
  // Frees that waited for a vCPU's next look: now, while those they belong to are there.
  domain_.collect();
  if (guest_memory_ && listener_) guest_memory_->remove_listener(*listener_);
}

Expected<std::unique_ptr<Vm>, ConfigError> Vm::create(const VmConfig& given,
                                                      devices::CharSink& sink) {
  if (const auto valid = validate(given); !valid) return Unexpected{valid.error()};
  const auto settled = settle_engine(given);
  if (!settled) return Unexpected{settled.error()};
  const VmConfig& config = *settled;
  if (!config.load.empty()) return create_loaded(config, sink);
  auto map = boot::MemoryMap::make(config.memory_bytes);
  if (!map) return bad(fmt::format("--memory: {}", map.error().message));
  auto clocks = std::make_unique<Clocks>(*parse_clock(config.clock));
  auto model = load_model(config, clocks->clock());
  if (!model) return Unexpected{model.error()};
  std::unique_ptr<Vm> vm{new Vm{config, std::move(*map), std::move(clocks), std::move(*model)}};
  if (const auto done = vm->build(sink); !done) return Unexpected{done.error()};
  if (const auto done = vm->load_guest(); !done) return Unexpected{done.error()};
  return vm;
}

Expected<void, ConfigError> Vm::build(devices::CharSink& sink) {
  if (!exact_) exact_ = std::make_unique<Exactness>();
  if (auto done = open_save_file(); !done) return done;
  if (auto done = build_memory(); !done) return done;
  return build_engine(sink);
}

Expected<void, ConfigError> Vm::build_memory() {
  auto memory = machine::MachineMemory::create();
  if (!memory) return bad("the host refuses to reserve address space for machine memory");
  memory_ = std::move(*memory);
  auto segment = memory_->create_segment(map_.end().value(), "strata-vm");
  if (!segment) {
    return bad(
        fmt::format("--memory: the host refuses a segment of {} MiB", map_.end().value() >> 20));
  }
  segment_ = std::move(*segment);
  frames_ = std::make_unique<machine::FrameAllocator>(*memory_);
  auto p2m = machine::P2mTable::create(*frames_, segment_, domain_);
  if (!p2m) return bad("the host has no memory for the P2M");
  p2m_ = std::move(*p2m);
  for (const boot::Region& region : map_.backed()) {
    const PpnRange range{page_of(region.start), region.bytes >> kPageShift};
    if (!p2m_->add_ram(range)) return bad("the host has no memory for the P2M");
  }
  guest_memory_ = std::make_unique<machine::GuestMemory>(*p2m_, memory_->window());
  return {};
}

Platform::Config Vm::platform_config() {
  Platform::Config config{.vcpus = config_.cpus, .debug_exit_port = config_.debug_exit_port};
  if (!config_.test_devices) return config;
  config.test_devices = true;
  config.debug_exit_port = config_.debug_exit_port.value_or(boot::layout::kDebugExitPort);
  config.ram_bytes = config_.memory_bytes;
  config.flush_page = [this](PA pa) {
    Flush flush{domain_};
    // The mark of dirty logging takes the permission away, and with it every derived entry.
    (void)p2m_->log_dirty(PpnRange{page_of(pa), 1}, flush);
    flush.commit();
  };
  return config;
}

Expected<void, ConfigError> Vm::build_engine(devices::CharSink& sink) {
  if (auto done = build_translation(); !done) return done;
  if (!config_.record.empty()) {
    if (auto done = start_recording(); !done) return done;
  }
  if (!config_.check.target.empty()) prepare_check();
  devices::MemoryWriter& own = *this;
  devices::MemoryWriter& memory = exact_->recorder ? *exact_->recorder : own;
  platform_ = std::make_unique<Platform>(platform_config(), clock_, clocks_->timers(), model_, sink,
                                         static_cast<devices::MachineControl&>(*this), memory);
  if (auto done = add_virtio(sink); !done) return done;
  exits_ = std::make_unique<PlatformExits>(*platform_);
  if (exact_->recorder) exact_->recorder->connect(*exits_, own);
  ExitHandler& exits = exact_->recorder ? static_cast<ExitHandler&>(*exact_->recorder) : *exits_;
  group_ = std::make_unique<interp::VcpuGroup>(map_.end().value() >> kPageShift);
  EndingListener& listener = *this;
  for (VcpuId id = 0; id < config_.cpus; ++id) {
    auto made = make_vcpu(id);
    if (!made) return Unexpected{made.error()};
    vcpus_.push_back(std::make_unique<VcpuThread>(id, std::move(*made), *platform_, exits, clock_,
                                                  model_, listener));
    engine::Vcpu& vcpu = vcpus_.back()->vcpu();
    if (exact_->recorder) {
      exact_->recorder->connect(id, vcpu);
      vcpus_.back()->record(*exact_->recorder);
    }
    if (exact_->player) exact_->player->connect(id, vcpu);
    vcpus_.back()->on_request([this] { poke(); });
  }
  listener_ = std::make_unique<Listener>(mmu_.mmu.get(), vcpus_);
  guest_memory_->add_listener(*listener_);
  return {};
}

/// Disks first, so that what else there is moves none of them to another slot.
Expected<void, ConfigError> Vm::add_virtio(devices::CharSink& sink) {
  if (auto done = add_disks(); !done) return done;
  namespace virtio = devices::virtio;
  if (config_.console == "virtio") {
    auto console = std::make_unique<virtio::Console>(sink);
    virtio_console_ = console.get();
    if (!platform_->add(std::move(console), *guest_memory_)) {
      return bad("--console: the machine has no PCI slot left for virtio");
    }
  }
  // Guests that boot from an initial RAM disk alone are done before they would look for one.
  if (!config_.rng || config_.disks.empty()) return {};
  if (clocks_->instructions) {
    device_random_ = std::make_unique<devices::SeededRandomBytes>();
  } else {
    device_random_ = std::make_unique<devices::HostRandomBytes>();
  }
  if (platform_->add(std::make_unique<virtio::Entropy>(*device_random_), *guest_memory_)) return {};
  return bad("--no-rng: the machine has no PCI slot left for an entropy device");
}

Expected<void, ConfigError> Vm::add_disks() {
  const auto engine = takes_turns() ? storage::Engine::synchronous : storage::Engine::asynchronous;
  unsigned number = 1;
  for (const DiskConfig& d : config_.disks) {
    auto disk = storage::open_disk(
        {.path = d.path, .read_only = d.read_only, .overlay = d.overlay, .engine = engine});
    if (!disk) return bad(fmt::format("--disk: {}", disk.error().message));
    auto block = std::make_unique<devices::virtio::Block>(std::move(*disk),
                                                          fmt::format("strata-{}", number++));
    if (!platform_->add(std::move(block), *guest_memory_)) {
      return bad("--disk: the machine has no PCI slot left");
    }
  }
  return {};
}

/// The backend, or, where the host kernel keeps the tables, the engine that has it do so.
Expected<void, ConfigError> Vm::build_translation() {
  if (mmu_name_ == kHostMmu) {
    auto host = HostEngine::create(
        {.memory = guest_memory_.get(), .model = &model_, .tsc = &clock_, .vcpus = config_.cpus},
        map_);
    if (!host) return Unexpected{host.error()};
    host_engine_ = std::move(*host);
    return {};
  }
  mmu_ = make_mmu(mmu_name_, *p2m_, *frames_, domain_, config_.cpus, config_.memory_bytes);
  if (!mmu_.mmu) return bad("the host has no memory for the backend's root table");
  return {};
}

Expected<std::unique_ptr<engine::Vcpu>, ConfigError> Vm::make_vcpu(VcpuId id) {
  if (host_engine_) return host_engine_->make_vcpu(id, platform_->apic(id));
  interp::CoreEnvironment environment;
  environment.id = id;
  environment.mmu = mmu_.mmu.get();
  environment.window = memory_->window();
  environment.flush_domain = &domain_;
  environment.interrupts = &platform_->apic(id);
  environment.tsc = &clock_;
  environment.random = clocks_->instructions ? &exact_->seeded : nullptr;
  if (exact_->recorder) {
    environment.interrupts = &exact_->recorder->interrupts(id, platform_->apic(id));
    environment.tsc = exact_->recorder.get();
    environment.random = exact_->recorder.get();
  }
  if (exact_->player) {
    environment.interrupts = &exact_->player->interrupts(id);
    environment.tsc = exact_->player.get();
    environment.random = exact_->player.get();
  }
  // Positions are places where another engine must find the same state.
  environment.exact_state =
      clocks_->instructions || exact_->recorder || exact_->player || !config_.save.empty();
  environment.windows = window_use(config_.windows);
  environment.code_cache_bytes = config_.code_cache_bytes;
  environment.model = &model_;
  environment.vcpus = config_.cpus;
  environment.group = group_.get();
  std::unique_ptr<interp::Core> core;
#ifdef STRATA_HAS_BT
  if (config_.engine == "bt") {
    core = bt::make_core(environment);
    if (!core)
      return bad("--engine: bt needs executable memory below 2 GiB, which the host refuses");
  }
#endif
  if (!core) core = std::make_unique<interp::Core>(environment);
  if (exact_->check) exact_->check->cores.push_back(core.get());
  return std::unique_ptr<engine::Vcpu>{std::move(core)};
}

Expected<void, ConfigError> Vm::load_guest() {
  const auto kernel = boot::KernelImage::read(config_.kernel);
  if (!kernel) return bad(fmt::format("--kernel: {}", kernel.error().message));
  std::vector<std::byte> initrd;
  if (!config_.initrd.empty()) {
    auto file = boot::read_file(config_.initrd, config_.memory_bytes);
    if (!file) return bad(fmt::format("--initrd: {}", file.error().message));
    initrd = std::move(*file);
    if (initrd.empty()) return bad(fmt::format("--initrd: {} is empty", config_.initrd));
  }
  kernel_description_ = kernel->description();
  Sink sink{*guest_memory_};
  const std::string kernel_name = std::filesystem::path{config_.kernel}.filename();
  const boot::LoadRequest request{.kernel = *kernel,
                                  .memory = map_,
                                  .initrd = initrd,
                                  .cmdline = config_.append,
                                  .kernel_name = kernel_name,
                                  .cpus = config_.cpus,
                                  .pci = platform_->has_virtio()};
  const auto state = boot::load(request, sink);
  if (!state) return bad(state.error().message);
  vcpus_[0]->vcpu().set_state(*state);
  if (kernel->entry_kind() == boot::EntryKind::multiboot) platform_->enter_bios_state();
  return {};
}

bool Vm::write(PA pa, std::span<const std::byte> bytes) {
  return guest_memory_->write(machine::kIdentitySpace, pa, bytes).has_value();
}

// ---- running ----------------------------------------------------------------------------------

void Vm::start() {
  if (clocks_->instructions) exact_->wall = std::make_unique<Clocks>(0);
  Clocks& host = exact_->wall ? *exact_->wall : *clocks_;
  host.service->start();
  platform_->start();
  if (host_engine_) host_engine_->start();
  if (takes_turns()) return;
  for (const auto& vcpu : vcpus_) vcpu->start();
}

Outcome Vm::run() {
  const devices::Nanoseconds start = clock_.now();
  Clocks& host = exact_->wall ? *exact_->wall : *clocks_;
  devices::Timer deadline{host.timers(), [this] { stop(Ending::timeout); }};
  if (config_.timeout_seconds > 0) {
    deadline.arm(host.clock().now() +
                 static_cast<devices::Nanoseconds>(config_.timeout_seconds * 1e9));
  }
  if (takes_turns()) {
    run_turns();
  } else {
    for (const auto& vcpu : vcpus_) vcpu->release();
    std::unique_lock guard{lock_};
    changed_.wait(guard, [this] { return outcome_.has_value(); });
  }
  for (const auto& vcpu : vcpus_) vcpu->join();
  ran_ns_ = clock_.now() - start;
  const std::lock_guard guard{lock_};
  return *outcome_;
}

void Vm::stop(Ending ending, std::uint32_t debug_value) { ended({ending, debug_value, {}}); }

/// The vCPUs are told from here, not from run(): the one that ended the VM must not go on.
void Vm::ended(Outcome outcome) {
  {
    const std::lock_guard guard{lock_};
    if (!outcome_) outcome_ = std::move(outcome);
  }
  for (const auto& vcpu : vcpus_) vcpu->request_stop();
  changed_.notify_all();
}

std::string Vm::vcpu_state() const {
  std::string text;
  for (const auto& vcpu : vcpus_) {
    if (vcpus_.size() > 1) text += fmt::format("vCPU {}\n", vcpu->id());
    text += describe(vcpu->vcpu().state());
  }
  return text;
}

}  // namespace strata::vmm
