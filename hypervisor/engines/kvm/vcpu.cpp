#include "engines/kvm/vcpu.hpp"

#include <fmt/format.h>
#include <x86intrin.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <limits>
#include <thread>

#include "engines/kvm/cpuid.hpp"
#include "engines/kvm/processor.hpp"

namespace strata::kvm {

namespace {

using engine::Exit;
using engine::ExitKind;

/// KVM_RUN may fail on guest memory a few times in a row while P2M edits and other vCPUs take pages
/// away again; more in a row than this is not that.
constexpr unsigned kMostFaults = 10'000;

constexpr std::uint32_t kMicrocodeMsr = 0x8B;

Exit internal_error(std::string reason) {
  return {.kind = ExitKind::internal_error, .reason = std::move(reason)};
}

/// KVM's tables are the host kernel's, and HostWindow ends what they hold within p2m_changed().
class NothingHeld final : public TranslationHolder {
 public:
  void invalidate(const Invalidation& /*what*/, Epoch /*epoch*/) noexcept override {}
  [[nodiscard]] Epoch passed() const noexcept override { return std::numeric_limits<Epoch>::max(); }
};

std::string describe_internal_error(const kvm_run& run) {
  const std::uint32_t kind = run.internal.suberror;
  if (kind == KVM_INTERNAL_ERROR_EMULATION) {
    const auto& failure = run.emulation_failure;
    constexpr std::uint64_t kBytesGiven = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
    std::string bytes;
    if (failure.ndata >= 3 && (failure.flags & kBytesGiven) != 0) {
      const std::size_t n = std::min<std::size_t>(failure.insn_size, sizeof failure.insn_bytes);
      for (std::size_t i = 0; i < n; ++i) bytes += fmt::format(" {:02x}", failure.insn_bytes[i]);
    }
    return fmt::format("the host's KVM cannot emulate the instruction at RIP{}{}",
                       bytes.empty() ? "" : ", one of", bytes);
  }
  std::string data;
  const std::uint32_t n = std::min<std::uint32_t>(run.internal.ndata, 16);
  for (std::uint32_t i = 0; i < n; ++i) {
    data += fmt::format(" {:#x}", std::uint64_t{run.internal.data[i]});
  }
  return fmt::format("KVM_EXIT_INTERNAL_ERROR {}{}", kind, data);
}

class KvmVcpu final : public engine::Vcpu {
 public:
  KvmVcpu(std::unique_ptr<Processor> processor, HostWindow& window, machine::GuestMemory& memory,
          engine::InterruptSource& interrupts, std::uint64_t tsc_offset)
      : processor_{std::move(processor)},
        window_{window},
        memory_{memory},
        interrupts_{interrupts},
        tsc_offset_{tsc_offset} {}

  Exit run() override;
  void complete(std::uint64_t value) override;
  void fail() override { processor_->run().msr.error = 1; }
  void interrupt() noexcept override { processor_->leave(); }
  void kick() noexcept override {
    kicked_.store(true);
    processor_->leave();
  }
  [[nodiscard]] cpu::VcpuState state() const override;
  void set_state(const cpu::VcpuState& state) override;
  /// The processor's caches and KVM's follow memory by themselves.
  void memory_written(PA /*pa*/, std::uint64_t /*length*/) noexcept override {}
  [[nodiscard]] TranslationHolder& holder() noexcept override { return holder_; }
  [[nodiscard]] engine::VcpuStats stats() const noexcept override;

 private:
  /// An access of the guest that KVM hands out, answered piece by piece: a string instruction's
  /// elements, or an MMIO access that is no power of two long.
  struct Access {
    enum class Kind : std::uint8_t { none, port, memory } kind = Kind::none;
    bool write = false;
    std::uint32_t size = 0;   ///< bytes of a port element
    std::uint32_t done = 0;   ///< bytes
    std::uint32_t total = 0;  ///< bytes
    std::byte* data = nullptr;
    std::uint16_t port = 0;
    PA pa{};
  };

  std::optional<Exit> deliver_events();
  std::optional<Exit> next_piece();
  std::optional<Exit> next_port_piece();
  std::optional<Exit> next_memory_piece();
  [[nodiscard]] std::uint32_t memory_piece() const noexcept;
  std::optional<Exit> enter();
  std::optional<Exit> decode();
  std::optional<Exit> failed_on_memory();
  std::optional<Exit> fault_exit(const Fault& fault);
  bool settle() const;
  void abandon();

  std::unique_ptr<Processor> processor_;
  HostWindow& window_;
  machine::GuestMemory& memory_;
  engine::InterruptSource& interrupts_;
  const std::uint64_t tsc_offset_;
  NothingHeld holder_;

  Access access_;
  // state() finishes the instruction, and may find that KVM does not let itself be asked.
  mutable std::string broken_;       ///< not empty: state that KVM would not take or give
  mutable bool unfinished_ = false;  ///< the last exit's instruction completes at the next KVM_RUN
  mutable bool undecoded_ = false;   ///< finishing it made another exit
  bool halted_ = false;
  bool ready_ = false;  ///< an interrupt can be injected now
  unsigned faults_ = 0;

  std::atomic<bool> kicked_{false};
  std::atomic<std::uint64_t> injected_{0};
};

// ---- the run loop -----------------------------------------------------------------------------

Exit KvmVcpu::run() {
  if (!broken_.empty()) return internal_error(broken_);
  for (;;) {
    processor_->listen();
    if (kicked_.exchange(false)) return {.kind = ExitKind::interrupted};
    if (auto exit = next_piece()) return *exit;
    if (undecoded_) {
      undecoded_ = false;
      if (auto exit = decode()) return *exit;
      continue;
    }
    if (auto exit = deliver_events()) return *exit;
    if (auto exit = enter()) return *exit;
  }
}

std::optional<Exit> KvmVcpu::deliver_events() {
  kvm_run& run = processor_->run();
  run.cr8 = interrupts_.cr8();
  if (interrupts_.take_nmi()) {
    // KVM holds it back while NMIs are blocked.
    if (!processor_->inject_nmi()) return internal_error("KVM_NMI failed");
    halted_ = false;
  }
  bool waiting = interrupts_.pending();
  if (waiting && ready_) {
    if (const auto vector = interrupts_.acknowledge()) {
      if (!processor_->inject(*vector)) return internal_error("KVM_INTERRUPT failed");
      injected_.fetch_add(1, std::memory_order_relaxed);
      halted_ = false;
      ready_ = false;  // one at a time
    }
    waiting = interrupts_.pending();
  }
  run.request_interrupt_window = waiting ? 1 : 0;
  if (halted_) return Exit{.kind = ExitKind::halt};
  return std::nullopt;
}

/// KVM_RUN. Nothing: run again.
std::optional<Exit> KvmVcpu::enter() {
  const Processor::Entry how = processor_->enter();
  kvm_run& run = processor_->run();
  unfinished_ = false;
  ready_ = run.ready_for_interrupt_injection != 0;
  if (run.cr8 != interrupts_.cr8()) interrupts_.set_cr8(run.cr8);
  if (how != Processor::Entry::fault) faults_ = 0;
  switch (how) {
    case Processor::Entry::exited:
      return decode();
    case Processor::Entry::left:
      return std::nullopt;
    case Processor::Entry::fault:
      return failed_on_memory();
    case Processor::Entry::failed:
      break;
  }
  return internal_error(processor_->error());
}

std::optional<Exit> KvmVcpu::failed_on_memory() {
  if (const auto fault = window_.after_fault()) return fault_exit(*fault);
  if (++faults_ < kMostFaults) return std::nullopt;
  return internal_error("KVM_RUN: the guest uses memory that the host cannot give it");
}

/// The exit for a page that the P2M cannot give. Nothing: try again.
std::optional<Exit> KvmVcpu::fault_exit(const Fault& fault) {
  switch (fault.kind) {
    case FaultKind::retry:
      std::this_thread::yield();
      return std::nullopt;
    case FaultKind::paused:
      return Exit{.kind = ExitKind::paused, .pa = fault.pa};
    case FaultKind::out_of_memory:
      return Exit{.kind = ExitKind::out_of_memory, .pa = fault.pa};
    case FaultKind::poisoned:
      return internal_error(
          fmt::format("the host lost the page at {:#x}", fault.pa.page_base().value()));
    default:
      // A slot is for good; memory taken out of the P2M under it has no exit in KVM.
      return internal_error(
          fmt::format("{:#x} is no memory any more", fault.pa.page_base().value()));
  }
}

// ---- exits ------------------------------------------------------------------------------------

std::optional<Exit> KvmVcpu::decode() {
  kvm_run& run = processor_->run();
  switch (run.exit_reason) {
    case KVM_EXIT_IO:
      unfinished_ = true;
      access_ = {.kind = Access::Kind::port,
                 .write = run.io.direction == KVM_EXIT_IO_OUT,
                 .size = run.io.size,
                 .total = run.io.size * run.io.count,
                 .data = reinterpret_cast<std::byte*>(&run) + run.io.data_offset,
                 .port = run.io.port};
      return next_piece();
    case KVM_EXIT_MMIO:
      unfinished_ = true;
      access_ = {.kind = Access::Kind::memory,
                 .write = run.mmio.is_write != 0,
                 .total = std::min<std::uint32_t>(run.mmio.len, sizeof run.mmio.data),
                 .data = reinterpret_cast<std::byte*>(run.mmio.data),
                 .pa = PA{run.mmio.phys_addr}};
      return next_piece();
    case KVM_EXIT_X86_RDMSR:
      unfinished_ = true;
      run.msr.error = 0;
      return Exit{.kind = ExitKind::msr_read, .size = 8, .msr = run.msr.index};
    case KVM_EXIT_X86_WRMSR:
      unfinished_ = true;
      run.msr.error = 0;
      return Exit{
          .kind = ExitKind::msr_write, .size = 8, .msr = run.msr.index, .data = run.msr.data};
    case KVM_EXIT_HLT:
      halted_ = true;
      return std::nullopt;  // unless something has come meanwhile, deliver_events() says halt
    case KVM_EXIT_SHUTDOWN:
      return Exit{.kind = ExitKind::triple_fault};
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_SET_TPR:
      return std::nullopt;
    case KVM_EXIT_FAIL_ENTRY:
      return internal_error(
          fmt::format("the processor refuses the guest's state (reason {:#x})",
                      std::uint64_t{run.fail_entry.hardware_entry_failure_reason}));
    case KVM_EXIT_INTERNAL_ERROR:
      return internal_error(describe_internal_error(run));
    default:
      return internal_error(
          fmt::format("KVM exit {} has no meaning here", std::uint32_t{run.exit_reason}));
  }
}

/// The next part of an access that is not answered yet. Nothing: all of it is.
std::optional<Exit> KvmVcpu::next_piece() {
  while (access_.done < access_.total) {
    auto exit = access_.kind == Access::Kind::port ? next_port_piece() : next_memory_piece();
    if (exit) return exit;
  }
  access_ = {};
  return std::nullopt;
}

std::optional<Exit> KvmVcpu::next_port_piece() {
  Exit exit{.kind = access_.write ? ExitKind::port_write : ExitKind::port_read,
            .size = static_cast<std::uint8_t>(access_.size),
            .port = access_.port};
  if (access_.write) {
    std::memcpy(&exit.data, access_.data + access_.done, access_.size);
    access_.done += access_.size;
  }
  return exit;
}

/// Bytes of the next piece: devices know accesses of 1, 2, 4 and 8.
std::uint32_t KvmVcpu::memory_piece() const noexcept {
  std::uint32_t bytes = 8;
  while (bytes > access_.total - access_.done) bytes /= 2;
  return bytes;
}

/// KVM calls everything MMIO that it could not reach: also a store to ROM, and, where it emulates
/// instructions, memory that P2M edits had just taken out of the window. The P2M knows.
std::optional<Exit> KvmVcpu::next_memory_piece() {
  const std::uint32_t bytes = memory_piece();
  const PA pa = access_.pa + access_.done;
  const std::span<std::byte> data{access_.data + access_.done, bytes};
  const auto reached = access_.write ? memory_.write(machine::kIdentitySpace, pa, data)
                                     : memory_.read(machine::kIdentitySpace, pa, data);
  if (reached || reached.error().kind == FaultKind::rom_write) {
    access_.done += bytes;
    return std::nullopt;
  }
  if (reached.error().kind != FaultKind::mmio) return fault_exit(reached.error());
  Exit exit{.kind = access_.write ? ExitKind::mmio_write : ExitKind::mmio_read,
            .size = static_cast<std::uint8_t>(bytes),
            .pa = pa};
  if (access_.write) {
    std::memcpy(&exit.data, data.data(), bytes);
    access_.done += bytes;
  }
  return exit;
}

void KvmVcpu::complete(std::uint64_t value) {
  kvm_run& run = processor_->run();
  if (access_.kind == Access::Kind::none) {
    if (run.exit_reason == KVM_EXIT_X86_RDMSR) run.msr.data = value;
    return;
  }
  const std::uint32_t bytes = access_.kind == Access::Kind::port ? access_.size : memory_piece();
  std::memcpy(access_.data + access_.done, &value, bytes);
  access_.done += bytes;
}

// ---- state ------------------------------------------------------------------------------------

/// Has KVM complete an instruction whose exit is answered, so that its registers are those of an
/// instruction boundary. False: it waits for an answer; the registers are those before it.
bool KvmVcpu::settle() const {
  if (!unfinished_ || undecoded_) return true;
  if (access_.done < access_.total) return false;
  unfinished_ = false;
  undecoded_ = processor_->finish_instruction() == Processor::Entry::exited;
  return true;
}

/// Ends an access that nobody will answer any more: what it reads goes with the old state. Each
/// element of a string instruction is an exit of its own; KVM makes at most 1024 of one entry.
void KvmVcpu::abandon() {
  access_ = {};
  for (unsigned i = 0; i < 2048 && unfinished_; ++i) {
    undecoded_ = false;
    settle();
    unfinished_ = undecoded_;
  }
  undecoded_ = false;
}

cpu::VcpuState KvmVcpu::state() const {
  settle();
  auto state = processor_->save();
  if (!state) {
    broken_ = state.error().message;
    return {};
  }
  state->halted = halted_;
  return *state;
}

void KvmVcpu::set_state(const cpu::VcpuState& state) {
  abandon();
  halted_ = state.halted;
  ready_ = (state.rflags & cpu::rflags::IF) != 0 && !state.interrupt_shadow;
  broken_.clear();
  if (const auto done = processor_->load(state); !done) broken_ = done.error().message;
  const auto tsc = processor_->set_tsc_offset(tsc_offset_ + state.msr.tsc_adjust);
  if (!tsc && broken_.empty()) broken_ = tsc.error().message;
}

engine::VcpuStats KvmVcpu::stats() const noexcept {
  engine::VcpuStats s;
  s.interrupts = injected_.load(std::memory_order_relaxed);
  return s;
}

/// The guest's TSC minus the host's, from readings as close together as a few tries give.
std::uint64_t measure_tsc_offset(engine::TscSource& tsc) noexcept {
  std::uint64_t offset = 0;
  std::uint64_t closest = std::numeric_limits<std::uint64_t>::max();
  for (int i = 0; i < 8; ++i) {
    const std::uint64_t before = __rdtsc();
    const std::uint64_t guest = tsc.tsc();
    const std::uint64_t gap = __rdtsc() - before;
    if (gap >= closest) continue;
    closest = gap;
    offset = guest - (before + gap / 2);
  }
  return offset;
}

}  // namespace

// ---- Machine ----------------------------------------------------------------------------------

Machine::Machine(const VmEnvironment& environment, Device device, VmFile vm,
                 std::unique_ptr<HostWindow> window)
    : environment_{environment},
      device_{std::move(device)},
      window_{std::move(window)},
      vm_{std::move(vm)},
      tsc_offset_{measure_tsc_offset(*environment.tsc)} {}

Expected<std::unique_ptr<Machine>, KvmError> Machine::create(const VmEnvironment& environment,
                                                             std::vector<Slot> slots) {
  auto device = Device::open();
  if (!device) return Unexpected{device.error()};
  auto vm = VmFile::create(*device);
  if (!vm) return Unexpected{vm.error()};
  auto window =
      HostWindow::create(environment.memory->p2m(), environment.memory->window(), std::move(slots));
  if (!window) return Unexpected{window.error()};
  for (const Slot& slot : (*window)->slots()) {
    const PA pa = address_of(slot.range.first);
    const auto added =
        vm->add_slot(pa, (*window)->host(pa), slot.range.count << kPageShift, slot.read_only);
    if (!added) return Unexpected{added.error()};
  }
  return std::unique_ptr<Machine>{
      new Machine{environment, std::move(*device), std::move(*vm), std::move(*window)}};
}

std::vector<unsigned long> Machine::ioctls() {
  std::vector<unsigned long> requests;
  for (const auto part : {Processor::ioctls(), HostWindow::ioctls()}) {
    requests.insert(requests.end(), part.begin(), part.end());
  }
  return requests;
}

Expected<std::unique_ptr<engine::Vcpu>, KvmError> Machine::add_vcpu(
    unsigned id, engine::InterruptSource& interrupts) {
  const cpu::DynamicState dynamic{.apic_id = id, .cpus = environment_.vcpus};
  auto processor = Processor::create(
      device_, vm_, id, guest_cpuid(*environment_.model, dynamic, device_.supported_cpuid()));
  if (!processor) return Unexpected{processor.error()};
  (*processor)->set_msr(kMicrocodeMsr, environment_.model->microcode_revision());
  return std::unique_ptr<engine::Vcpu>{std::make_unique<KvmVcpu>(
      std::move(*processor), *window_, *environment_.memory, interrupts, tsc_offset_)};
}

}  // namespace strata::kvm
