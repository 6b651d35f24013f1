#include "vmm/replay/recorder.hpp"

#include <algorithm>
#include <utility>

namespace strata::replay {

/// In front of one local APIC: what the vCPU takes is logged where it takes it.
class Recorder::Interrupts final : public engine::InterruptSource {
 public:
  Interrupts(Recorder& recorder, engine::InterruptSource& real)
      : recorder_{recorder}, real_{real} {}
  bool pending() override {
    // A device's data has to be in memory before its interrupt is taken.
    if (recorder_.any_posted_.load(std::memory_order_acquire)) recorder_.drain();
    return real_.pending();
  }
  std::optional<std::uint8_t> acknowledge() override {
    const auto vector = real_.acknowledge();
    if (vector) recorder_.log({.kind = EventKind::interrupt, .value = *vector});
    return vector;
  }
  bool take_nmi() override {
    const bool taken = real_.take_nmi();
    if (taken) recorder_.log({.kind = EventKind::nmi});
    return taken;
  }
  std::uint64_t cr8() override {
    const std::uint64_t value = real_.cr8();
    recorder_.log({.kind = EventKind::cr8, .value = value});
    return value;
  }
  void set_cr8(std::uint64_t value) override { real_.set_cr8(value); }
  bool present() override {
    const bool value = real_.present();
    recorder_.log({.kind = EventKind::apic, .value = value ? 1U : 0U});
    return value;
  }

 private:
  Recorder& recorder_;
  engine::InterruptSource& real_;
};

Recorder::Recorder(EventSink& log, unsigned vcpus, engine::TscSource& tsc,
                   engine::RandomSource& random)
    : log_{log},
      tsc_{tsc},
      random_{random},
      vcpus_(vcpus, nullptr),
      interrupts_(vcpus),
      thread_{std::this_thread::get_id()} {}

Recorder::~Recorder() {
  if (watched_ != nullptr) watched_->remove_listener(*this);
}

void Recorder::watch(machine::GuestMemory& memory) {
  watched_ = &memory;
  memory.add_listener(*this);
}

void Recorder::connect(vmm::ExitHandler& exits, devices::MemoryWriter& memory) {
  exits_ = &exits;
  memory_ = &memory;
}

engine::InterruptSource& Recorder::interrupts(VcpuId vcpu, engine::InterruptSource& real) {
  interrupts_[vcpu] = std::make_unique<Interrupts>(*this, real);
  return *interrupts_[vcpu];
}

void Recorder::connect(VcpuId vcpu, engine::Vcpu& engine) { vcpus_[vcpu] = &engine; }

/// Only boundaries have a REP's remainder; a request comes from inside an instruction.
void Recorder::log(Event event) {
  event.vcpu = current_;
  event.position = vcpus_[current_]->position();
  if (!between_instructions(event.kind)) event.position.rep_remaining = 0;
  log_.write(event);
}

void Recorder::turn(VcpuId vcpu) {
  log({.kind = EventKind::turn, .value = vcpu});
  current_ = vcpu;
}

void Recorder::init() { log({.kind = EventKind::init}); }

void Recorder::startup(std::uint8_t vector) { log({.kind = EventKind::startup, .value = vector}); }

void Recorder::end() {
  log({.kind = EventKind::end});
  log_.flush();
}

void Recorder::drain() {
  std::vector<Posted> posted;
  {
    const std::lock_guard guard{posted_lock_};
    posted.swap(posted_);
    any_posted_.store(false, std::memory_order_release);
  }
  for (Posted& p : posted) {
    (void)store(p.pa, p.bytes);
    log({.kind = EventKind::dma, .address = p.pa.value(), .bytes = std::move(p.bytes)});
  }
}

// ---- exits --------------------------------------------------------------------------------------

namespace {

Event access(EventKind kind, std::uint64_t address, unsigned size, std::uint64_t value) {
  Event e;
  e.kind = kind;
  e.size = static_cast<std::uint8_t>(size);
  e.address = address;
  e.value = value;
  return e;
}

}  // namespace

std::uint64_t Recorder::port_read(VcpuId vcpu, std::uint16_t port, unsigned size) {
  const std::uint64_t value = answering([&] { return exits_->port_read(vcpu, port, size); });
  log(access(EventKind::port_read, port, size, value));
  return value;
}

void Recorder::port_write(VcpuId vcpu, std::uint16_t port, unsigned size, std::uint64_t value) {
  answering([&] { exits_->port_write(vcpu, port, size, value); });
  log(access(EventKind::port_write, port, size, value));
}

std::uint64_t Recorder::mmio_read(VcpuId vcpu, PA pa, unsigned size) {
  const std::uint64_t value = answering([&] { return exits_->mmio_read(vcpu, pa, size); });
  log(access(EventKind::mmio_read, pa.value(), size, value));
  return value;
}

void Recorder::mmio_write(VcpuId vcpu, PA pa, unsigned size, std::uint64_t value) {
  answering([&] { exits_->mmio_write(vcpu, pa, size, value); });
  log(access(EventKind::mmio_write, pa.value(), size, value));
}

std::optional<std::uint64_t> Recorder::msr_read(VcpuId vcpu, std::uint32_t msr) {
  const auto value = answering([&] { return exits_->msr_read(vcpu, msr); });
  log({.kind = EventKind::msr_read,
       .failed = !value.has_value(),
       .address = msr,
       .value = value.value_or(0)});
  return value;
}

bool Recorder::msr_write(VcpuId vcpu, std::uint32_t msr, std::uint64_t value) {
  const bool done = answering([&] { return exits_->msr_write(vcpu, msr, value); });
  log({.kind = EventKind::msr_write, .failed = !done, .address = msr, .value = value});
  return done;
}

std::uint64_t Recorder::hypercall(VcpuId vcpu, const cpu::VcpuState& state) {
  const std::uint64_t value = answering([&] { return exits_->hypercall(vcpu, state); });
  log({.kind = EventKind::hypercall, .value = value});
  return value;
}

// ---- values -------------------------------------------------------------------------------------

std::uint64_t Recorder::tsc() noexcept {
  const std::uint64_t value = tsc_.tsc();
  log({.kind = EventKind::tsc, .value = value});
  return value;
}

std::optional<std::uint64_t> HostRandom::random(bool seed, unsigned /*bytes*/) noexcept {
  std::uint64_t v = 0;
  bool valid = false;
  if (seed) {
    asm volatile("rdseed %[v]" : [v] "=r"(v), "=@ccc"(valid));
  } else {
    asm volatile("rdrand %[v]" : [v] "=r"(v), "=@ccc"(valid));
  }
  return valid ? std::optional{v} : std::nullopt;
}

std::optional<std::uint64_t> Recorder::random(bool seed, unsigned bytes) noexcept {
  const auto value = random_.random(seed, bytes);
  log({.kind = EventKind::random,
       .size = static_cast<std::uint8_t>(bytes),
       .flag = seed,
       .failed = !value.has_value(),
       .value = value.value_or(0)});
  return value;
}

bool Recorder::store(PA pa, std::span<const std::byte> bytes) {
  storing_ = true;
  const bool done = memory_->write(pa, bytes);
  storing_ = false;
  return done;
}

/// Devices that reach memory without a MemoryWriter: in exact runs they do so while they answer,
/// and what they stored is there to be read. In pieces: a disk may have read megabytes.
void Recorder::memory_written(PA pa, std::uint64_t length) {
  if (std::this_thread::get_id() != thread_ || storing_) return;
  constexpr std::uint64_t kPiece = 64 * 1024;
  for (std::uint64_t done = 0; done < length; done += kPiece) {
    std::vector<std::byte> bytes(std::min(kPiece, length - done));
    if (!watched_->read(machine::kIdentitySpace, pa + done, bytes)) return;
    log({.kind = answering_ ? EventKind::memory : EventKind::dma,
         .address = (pa + done).value(),
         .bytes = std::move(bytes)});
  }
}

bool Recorder::write(PA pa, std::span<const std::byte> bytes) {
  if (std::this_thread::get_id() == thread_) {
    if (!store(pa, bytes)) return false;
    log({.kind = answering_ ? EventKind::memory : EventKind::dma,
         .address = pa.value(),
         .bytes = {bytes.begin(), bytes.end()}});
    return true;
  }
  // A vCPU may be in the middle of a block: the bytes wait for its next boundary.
  {
    const std::lock_guard guard{posted_lock_};
    posted_.push_back({pa, {bytes.begin(), bytes.end()}});
    any_posted_.store(true, std::memory_order_release);
  }
  for (engine::Vcpu* vcpu : vcpus_) {
    if (vcpu != nullptr) vcpu->kick();
  }
  return true;
}

}  // namespace strata::replay
