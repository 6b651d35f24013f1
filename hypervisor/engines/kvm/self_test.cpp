#include "engines/kvm/self_test.hpp"

#include <fmt/format.h>
#include <x86intrin.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <thread>

#include "engines/kvm/vcpu.hpp"
#include "machine/frame_allocator.hpp"
#include "machine/machine_memory.hpp"

namespace strata::kvm {

namespace {

using engine::Exit;
using engine::ExitKind;

/// Guest-physical layout of the test guests: 4 MiB of RAM, a device above.
constexpr std::uint64_t kRam = 4U << 20, kDevice = 5U << 20;
constexpr std::uint64_t kCode = 0x1000, kHandler = 0x1800, kIdt = 0x2000, kGdt = 0x3000,
                        kStack = 0x8000, kTables = 0x10000;
/// A second view of kData, to see whether paging happens.
constexpr std::uint64_t kData = 0x20'0000, kAlias = 0x4000'0000;

/// Longest that a part may take. The guests are a few instructions long.
constexpr std::chrono::seconds kPatience{5};

/// Offers one interrupt when told to.
class OneInterrupt final : public engine::InterruptSource {
 public:
  bool pending() override { return vector_.has_value(); }
  std::optional<std::uint8_t> acknowledge() override { return std::exchange(vector_, {}); }
  bool take_nmi() override { return false; }
  std::uint64_t cr8() override { return 0; }
  void set_cr8(std::uint64_t /*value*/) override {}
  void post(std::uint8_t vector) { vector_ = vector; }

 private:
  std::optional<std::uint8_t> vector_;
};

/// Starts at 0 with the VM.
class ProbeTsc final : public engine::TscSource {
 public:
  std::uint64_t tsc() noexcept override { return __rdtsc() - start_; }

 private:
  const std::uint64_t start_ = __rdtsc();
};

/// kick()s a vCPU that does not come back by itself.
class Watchdog {
 public:
  explicit Watchdog(engine::Vcpu& vcpu)
      : thread_{[this, &vcpu] {
          std::unique_lock guard{lock_};
          if (!ended_.wait_for(guard, kPatience, [this] { return over_; })) vcpu.kick();
        }} {}
  ~Watchdog() {
    {
      const std::lock_guard guard{lock_};
      over_ = true;
    }
    ended_.notify_all();
    thread_.join();
  }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  std::mutex lock_;  ///< guards over_
  std::condition_variable ended_;
  bool over_ = false;
  std::thread thread_;
};

/// A VM with one vCPU, for one part.
class ProbeVm {
 public:
  [[nodiscard]] static Expected<std::unique_ptr<ProbeVm>, KvmError> create() {
    auto model = cpu::CpuModel::by_name("default");
    if (!model) return Unexpected{KvmError{model.error().message}};
    std::unique_ptr<ProbeVm> vm{new ProbeVm{std::move(*model)}};
    if (!vm->build_memory()) return Unexpected{KvmError{"the host has no memory for a guest"}};
    auto made =
        Machine::create({.memory = vm->guest_.get(), .model = &vm->model_, .tsc = &vm->tsc_},
                        {{{PPN{0}, kRam >> kPageShift}}});
    if (!made) return Unexpected{made.error()};
    vm->kvm_ = std::move(*made);
    vm->kvm_->start();
    auto added = vm->kvm_->add_vcpu(0, vm->interrupts);
    if (!added) return Unexpected{added.error()};
    vm->vcpu = std::move(*added);
    return vm;
  }

  void write(std::uint64_t pa, std::initializer_list<std::uint8_t> bytes) {
    const std::vector<std::uint8_t> copy{bytes};
    (void)guest_->write(machine::kIdentitySpace, PA{pa}, std::as_bytes(std::span{copy}));
  }
  void store(std::uint64_t pa, std::uint64_t value) {
    (void)guest_->write(machine::kIdentitySpace, PA{pa}, std::as_bytes(std::span{&value, 1}));
  }

  [[nodiscard]] static cpu::VcpuState real_mode() {
    cpu::VcpuState s;
    s.segment.fill({0, 0xFFFF, 0, 0x93});
    s.segment[cpu::CS] = {0, 0xFFFF, 0, 0x9B};
    s.ldtr = {0, 0xFFFF, 0, 0x82};
    s.tr = {0, 0xFFFF, 0, 0x8B};
    s.idtr = {0, 0x3FF};
    s.cr0 = cpu::cr0::ET;
    s.rip = kCode;
    s.gpr[cpu::RSP] = kStack;
    cpu::reset_x87(s.vector);
    return s;
  }

  /// 64-bit, ring 0; the first 8 MiB mapped to themselves and kAlias to kData, open to ring 3.
  [[nodiscard]] cpu::VcpuState long_mode() {
    constexpr std::uint64_t kTable = 0x7, kPage = 0x87;
    store(kTables, (kTables + 0x1000) | kTable);
    store(kTables + 0x1000, (kTables + 0x2000) | kTable);
    store(kTables + 0x1008, (kTables + 0x3000) | kTable);
    for (std::uint64_t i = 0; i < 4; ++i) store(kTables + 0x2000 + 8 * i, i << 21 | kPage);
    store(kTables + 0x3000, kData | kPage);
    store(kGdt + 0x08, 0x00AF'9B00'0000'FFFF);  // code, ring 0
    store(kGdt + 0x10, 0x00CF'9300'0000'FFFF);  // data, ring 0
    store(kGdt + 0x20, 0x00CF'F300'0000'FFFF);  // data, ring 3
    store(kGdt + 0x28, 0x00AF'FB00'0000'FFFF);  // code, ring 3
    store(kIdt + 32 * 16, 0x0000'8E00'0008'0000 | kHandler);
    cpu::VcpuState s = cpu::flat_protected_mode(kCode);
    s.segment[cpu::CS].attributes = 0xA09B;
    s.cr0 |= cpu::cr0::PG | cpu::cr0::WP | cpu::cr0::MP;
    s.cr4 = cpu::cr4::PAE | cpu::cr4::OSFXSR;
    s.efer = cpu::efer::LME | cpu::efer::LMA | cpu::efer::SCE;
    s.cr3 = kTables;
    s.gpr[cpu::RSP] = kStack;
    s.gdtr = {kGdt, 0x2F};
    s.idtr = {kIdt, 33 * 16 - 1};
    s.msr.star = 0x0018'0008ULL << 32;  // SYSCALL's selectors; SYSRET's follow from 18h
    s.msr.lstar = kHandler;
    return s;
  }

  [[nodiscard]] const cpu::CpuModel& model() const noexcept { return model_; }

  OneInterrupt interrupts;

 private:
  explicit ProbeVm(cpu::CpuModel model) : model_{std::move(model)} {}

  bool build_memory() {
    machine::HostLayout layout;
    layout.window_base = 0;  // anywhere: the VM's own may be where it likes to be
    layout.window_bytes = 4ULL << 30;
    layout.system_pool_bytes = 1ULL << 30;
    auto memory = machine::MachineMemory::create(layout);
    if (!memory) return false;
    memory_ = std::move(*memory);
    auto segment = memory_->create_segment(kRam, "strata-kvm-probe");
    if (!segment) return false;
    frames_ = std::make_unique<machine::FrameAllocator>(*memory_);
    auto p2m = machine::P2mTable::create(*frames_, *segment, domain_);
    if (!p2m) return false;
    p2m_ = std::move(*p2m);
    if (!p2m_->add_ram({PPN{0}, kRam >> kPageShift})) return false;
    guest_ = std::make_unique<machine::GuestMemory>(*p2m_, memory_->window());
    return true;
  }

  const cpu::CpuModel model_;
  ProbeTsc tsc_;
  FlushDomain domain_;
  std::unique_ptr<machine::MachineMemory> memory_;
  std::unique_ptr<machine::FrameAllocator> frames_;
  std::unique_ptr<machine::P2mTable> p2m_;
  std::unique_ptr<machine::GuestMemory> guest_;
  std::unique_ptr<Machine> kvm_;

 public:
  std::unique_ptr<engine::Vcpu> vcpu;
};

/// Empty if `exit` is a write of `data` to `port`; otherwise what came instead.
std::string expect_port(const Exit& exit, std::uint16_t port, std::uint64_t data) {
  if (exit.kind == ExitKind::port_write && exit.port == port && exit.data == data) return {};
  if (exit.kind == ExitKind::internal_error) return exit.reason;
  if (exit.kind == ExitKind::interrupted) return "it does not come back";
  if (exit.kind == ExitKind::port_write) {
    return fmt::format("wrote {:#x} to port {:#x}, not {:#x} to {:#x}", exit.data, exit.port, data,
                       port);
  }
  return fmt::format("exit {} instead", engine::name_of(exit.kind));
}

std::string try_real_mode(ProbeVm& vm) {
  vm.write(kCode, {0xB0, 0x5A, 0xE6, 0x10});  // mov al, 5Ah; out 10h, al
  vm.vcpu->set_state(ProbeVm::real_mode());
  return expect_port(vm.vcpu->run(), 0x10, 0x5A);
}

std::string try_long_mode(ProbeVm& vm) {
  const cpu::VcpuState state = vm.long_mode();
  vm.store(kData, 0x1234);
  vm.write(kCode, {0x8B, 0x04, 0x25, 0x00, 0x00, 0x00, 0x40,  // mov eax, [kAlias]
                   0xFF, 0xC0,                                // inc eax
                   0x89, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00,  // mov [kData], eax
                   0x8B, 0x04, 0x25, 0x00, 0x00, 0x00, 0x40,  // mov eax, [kAlias]
                   0xE7, 0x10});                              // out 10h, eax
  vm.vcpu->set_state(state);
  return expect_port(vm.vcpu->run(), 0x10, 0x1235);
}

std::string try_device_memory(ProbeVm& vm) {
  const cpu::VcpuState state = vm.long_mode();
  static_assert(kDevice == 0x50'0000);
  vm.write(kCode, {0x8B, 0x04, 0x25, 0x00, 0x00, 0x50, 0x00, 0xE7, 0x10});  // mov; out 10h, eax
  vm.vcpu->set_state(state);
  const Exit exit = vm.vcpu->run();
  if (exit.kind != ExitKind::mmio_read || exit.pa != PA{kDevice}) {
    return expect_port(exit, 0x10, 0x4242);
  }
  vm.vcpu->complete(0x4242);
  return expect_port(vm.vcpu->run(), 0x10, 0x4242);
}

std::string try_interrupts(ProbeVm& vm) {
  const cpu::VcpuState state = vm.long_mode();
  // mov eax, 1; sti; hlt; out 11h, eax -- and in the handler: out 10h, eax; iretq
  vm.write(kCode, {0xB8, 0x01, 0x00, 0x00, 0x00, 0xFB, 0xF4, 0xE7, 0x11});
  vm.write(kHandler, {0xE7, 0x10, 0x48, 0xCF});
  vm.vcpu->set_state(state);
  const Exit halt = vm.vcpu->run();
  if (halt.kind != ExitKind::halt) return expect_port(halt, 0x10, 1);
  vm.interrupts.post(32);
  auto failure = expect_port(vm.vcpu->run(), 0x10, 1);
  return failure.empty() ? expect_port(vm.vcpu->run(), 0x11, 1) : failure;
}

std::string try_ring3(ProbeVm& vm) {
  cpu::VcpuState state = vm.long_mode();
  // Ring 3 has the page at kAlias; the supervisor's memory is closed to it, SYSCALL's target too.
  for (std::uint64_t i = 0; i < 4; ++i) vm.store(kTables + 0x2000 + 8 * i, i << 21 | 0x83);
  state.gpr[cpu::RCX] = kAlias;
  state.gpr[cpu::R11] = cpu::rflags::FIXED;
  vm.write(kCode, {0x48, 0x0F, 0x07});                          // sysretq
  vm.write(kData, {0xB8, 0x03, 0x00, 0x00, 0x00, 0x0F, 0x05});  // mov eax, 3; syscall
  vm.write(kHandler, {0xE7, 0x10});                             // out 10h, eax
  vm.vcpu->set_state(state);
  return expect_port(vm.vcpu->run(), 0x10, 3);
}

std::string try_cpuid(ProbeVm& vm) {
  const cpu::VcpuState state = vm.long_mode();
  // xor eax, eax; cpuid; mov eax, ebx; out 10h, eax: the first letters of the vendor
  vm.write(kCode, {0x31, 0xC0, 0x0F, 0xA2, 0x89, 0xD8, 0xE7, 0x10});
  vm.vcpu->set_state(state);
  const auto wanted = vm.model().cpuid(0, 0, {}).ebx;
  const Exit exit = vm.vcpu->run();
  if (exit.kind == ExitKind::port_write && exit.data != wanted) return "CPUID is the host's";
  return expect_port(exit, 0x10, wanted);
}

std::string try_vectors(ProbeVm& vm) {
  const cpu::VcpuState state = vm.long_mode();
  vm.write(kCode, {0xB8, 0x15, 0x00, 0x00, 0x00,  // mov eax, 15h
                   0x66, 0x0F, 0x6E, 0xC0,        // movd xmm0, eax
                   0x66, 0x0F, 0xFE, 0xC0,        // paddd xmm0, xmm0
                   0x66, 0x0F, 0x7E, 0xC0,        // movd eax, xmm0
                   0xE7, 0x10});                  // out 10h, eax
  vm.vcpu->set_state(state);
  return expect_port(vm.vcpu->run(), 0x10, 0x2A);
}

std::string try_narrow_window(ProbeVm& vm) {
  const cpu::VcpuState state = vm.long_mode();
  // mov eax, 2; sti; nop; nop; cli; out 11h, eax -- and in the handler: out 10h, eax
  vm.write(kCode, {0xB8, 0x02, 0x00, 0x00, 0x00, 0xFB, 0x90, 0x90, 0xFA, 0xE7, 0x11});
  vm.write(kHandler, {0xE7, 0x10});
  vm.vcpu->set_state(state);
  vm.interrupts.post(32);
  const Exit exit = vm.vcpu->run();
  if (exit.kind == ExitKind::port_write && exit.port == 0x11) return "executed past one";
  return expect_port(exit, 0x10, 2);
}

std::string try_tsc(ProbeVm& vm) {
  const cpu::VcpuState state = vm.long_mode();
  // rdtsc; mov eax, edx; out 10h, eax
  vm.write(kCode, {0x0F, 0x31, 0x89, 0xD0, 0xE7, 0x10});
  vm.vcpu->set_state(state);
  const Exit exit = vm.vcpu->run();
  // Seconds at most: a few units of the upper half. The host has been up for longer than that.
  const bool own = exit.kind == ExitKind::port_write && exit.data < 16;
  return own || __rdtsc() >> 32 < 16 ? std::string{} : "RDTSC reads the host's";
}

struct Part {
  std::string_view name;
  bool required;
  std::string (*attempt)(ProbeVm&);
};
constexpr std::array kParts{
    Part{"real mode", true, try_real_mode},
    Part{"long mode with paging", true, try_long_mode},
    Part{"device memory", true, try_device_memory},
    Part{"interrupts", true, try_interrupts},
    // Kernels that run nothing in ring 3, as test kernels do, run without the first; those that
    // keep to general registers without the second.
    Part{"ring 3 and SYSCALL", false, try_ring3},
    Part{"vector instructions in supervisor code", false, try_vectors},
    // Guests that only poll for interrupts wait for ever without it; most have more room.
    Part{"interrupts enabled for two instructions", false, try_narrow_window},
    // Guests that take their time from kvmclock or the deadline timer see it go wrong without it.
    Part{"a TSC that starts with the VM", false, try_tsc},
    Part{"a CPUID of the VM's own", false, try_cpuid},
};

/// Runs one part in a VM of its own. Error: there is no KVM to try.
Expected<SelfTestPart, KvmError> try_part(const Part& part) {
  auto vm = ProbeVm::create();
  if (!vm) return Unexpected{vm.error()};
  const Watchdog watchdog{*(*vm)->vcpu};
  return SelfTestPart{part.name, part.required, part.attempt(**vm)};
}

}  // namespace

Expected<std::vector<SelfTestPart>, KvmError> self_test() {
  std::vector<SelfTestPart> results;
  for (const Part& part : kParts) {
    auto result = try_part(part);
    if (!result) return Unexpected{result.error()};
    results.push_back(std::move(*result));
  }
  return results;
}

std::string first_lack() {
  for (const Part& part : kParts) {
    const auto result = try_part(part);
    if (!result) return result.error().message;
    if (!result->failure.empty()) return fmt::format("this host's /dev/kvm fails at {}", part.name);
  }
  return {};
}

Expected<std::string, KvmError> verdict(const std::vector<SelfTestPart>& parts) {
  std::string missing;
  std::string incomplete;
  for (const SelfTestPart& part : parts) {
    if (part.failure.empty()) continue;
    std::string& where = part.required ? missing : incomplete;
    where += fmt::format("{}{} ({})", where.empty() ? "" : "; ", part.name, part.failure);
  }
  if (!missing.empty()) {
    return Unexpected{KvmError{"this host's /dev/kvm cannot run guests: it fails at " + missing}};
  }
  if (incomplete.empty()) return std::string{};
  return "this host's /dev/kvm is incomplete; guests that need it will stop: " + incomplete;
}

Expected<std::string, KvmError> check_host() {
  const auto parts = self_test();
  if (!parts) return Unexpected{parts.error()};
  return verdict(*parts);
}

}  // namespace strata::kvm
