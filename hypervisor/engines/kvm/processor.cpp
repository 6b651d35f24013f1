#include "engines/kvm/processor.hpp"

#include <fmt/format.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "engines/kvm/cpuid.hpp"

namespace strata::kvm {

namespace {

/// Interrupts KVM_RUN; does nothing by itself. The first real-time signal that the C library leaves
/// to programs.
int leave_signal() noexcept { return SIGRTMIN; }

/// The signal needs a handler to interrupt system calls. Once per process.
bool install_leave_signal() noexcept {
  static const bool kInstalled = [] {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    sigemptyset(&action.sa_mask);
    return ::sigaction(leave_signal(), &action, nullptr) == 0;
  }();
  return kInstalled;
}

/// KVM writes and reads the byte while we do.
std::atomic_ref<std::uint8_t> immediate_exit(kvm_run& run) noexcept {
  return std::atomic_ref<std::uint8_t>{run.immediate_exit};
}

/// See ListHeader: struct kvm_xsave has C's size in C only.
constexpr unsigned long kGetXsave = _IOR(KVMIO, 0xa4, Xsave);
constexpr unsigned long kSetXsave = _IOW(KVMIO, 0xa5, Xsave);

}  // namespace

std::span<const unsigned long> Processor::ioctls() noexcept {
  static constexpr std::array<unsigned long, 18> kRequests{KVM_RUN,
                                                           KVM_INTERRUPT,
                                                           KVM_NMI,
                                                           KVM_GET_REGS,
                                                           KVM_SET_REGS,
                                                           KVM_GET_SREGS,
                                                           KVM_SET_SREGS,
                                                           kGetXsave,
                                                           kSetXsave,
                                                           KVM_GET_XCRS,
                                                           KVM_SET_XCRS,
                                                           KVM_GET_DEBUGREGS,
                                                           KVM_SET_DEBUGREGS,
                                                           KVM_GET_VCPU_EVENTS,
                                                           KVM_SET_VCPU_EVENTS,
                                                           kGetMsrs,
                                                           kSetMsrs,
                                                           KVM_SET_DEVICE_ATTR};
  return kRequests;
}

Expected<std::unique_ptr<Processor>, KvmError> Processor::create(
    const Device& device, const VmFile& vm, unsigned id,
    const std::vector<kvm_cpuid_entry2>& cpuid) {
  if (!install_leave_signal()) return Unexpected{host_error("sigaction")};
  std::unique_ptr<Processor> p{new Processor};
  auto fd = vm.add_vcpu(id);
  if (!fd) return Unexpected{fd.error()};
  p->fd_ = std::move(*fd);
  void* page =
      ::mmap(nullptr, device.run_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, p->fd_.get(), 0);
  if (page == MAP_FAILED) return Unexpected{host_error("mapping kvm_run")};
  p->page_ = machine::HostMapping{static_cast<std::byte*>(page), device.run_bytes()};
  p->layout_ = xsave_layout(device.supported_cpuid());
  List<kvm_cpuid_entry2> list{cpuid.size()};
  std::copy(cpuid.begin(), cpuid.end(), list.entries());
  if (!p->control(kSetCpuid2, list.header(), "KVM_SET_CPUID2")) {
    return Unexpected{KvmError{p->error_}};
  }
  return p;
}

bool Processor::control(unsigned long request, const void* argument, const char* name) {
  return query(request, const_cast<void*>(argument), name);
}

bool Processor::query(unsigned long request, void* argument, const char* name) {
  if (::ioctl(fd_.get(), request, argument) >= 0) return true;
  error_ = host_error(name).message;
  return false;
}

// ---- running ----------------------------------------------------------------------------------

void Processor::listen() noexcept { immediate_exit(run()).exchange(0); }

void Processor::leave() noexcept {
  immediate_exit(run()).exchange(1);
  // If the owner has passed the check of immediate_exit, the signal gets it out of the guest; if
  // it has not, the byte does.
  const std::lock_guard guard{thread_lock_};
  if (running_) (void)pthread_kill(thread_, leave_signal());
}

Processor::Entry Processor::enter() {
  {
    const std::lock_guard guard{thread_lock_};
    thread_ = pthread_self();
    running_ = true;
  }
  const Entry how = enter_once();
  const std::lock_guard guard{thread_lock_};
  running_ = false;
  return how;
}

Processor::Entry Processor::enter_once() {
  if (::ioctl(fd_.get(), KVM_RUN, 0) == 0) return Entry::exited;
  switch (errno) {
    case EINTR:
    case EAGAIN:
      return Entry::left;
    case EFAULT:
      return Entry::fault;
    default:
      error_ = host_error("KVM_RUN").message;
      return Entry::failed;
  }
}

Processor::Entry Processor::finish_instruction() {
  immediate_exit(run()).exchange(1);
  return enter_once();
}

bool Processor::inject(std::uint8_t vector) noexcept {
  kvm_interrupt interrupt{};
  interrupt.irq = vector;
  return ::ioctl(fd_.get(), KVM_INTERRUPT, &interrupt) == 0;
}

bool Processor::inject_nmi() noexcept { return ::ioctl(fd_.get(), KVM_NMI, 0) == 0; }

// ---- state ------------------------------------------------------------------------------------

Expected<void, KvmError> Processor::load(const cpu::VcpuState& state) {
  Registers r;
  kvm_vcpu_events events{};
  kvm_xcrs xcrs{};
  if (!query(KVM_GET_SREGS, &r.special, "KVM_GET_SREGS") ||
      !query(KVM_GET_DEBUGREGS, &r.debug, "KVM_GET_DEBUGREGS")) {
    return Unexpected{KvmError{error_}};
  }
  put_state(state, layout_, r);
  std::memset(r.special.interrupt_bitmap, 0, sizeof r.special.interrupt_bitmap);
  xcrs.nr_xcrs = 1;
  xcrs.xcrs[0].value = r.xcr0;
  // Nothing half delivered: the state is one between instructions.
  events.flags = KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING;
  if (state.interrupt_shadow) {
    events.interrupt.shadow =
        state.debug_shadow ? KVM_X86_SHADOW_INT_MOV_SS : KVM_X86_SHADOW_INT_STI;
  }
  events.nmi.masked = state.nmi_blocked ? 1 : 0;
  // XCR0 says which components XSAVE's area has; with 1 there may be no XSAVE to say it with.
  const bool xcrs_done = control(KVM_SET_XCRS, &xcrs, "KVM_SET_XCRS") || r.xcr0 == 1;
  if (!control(KVM_SET_SREGS, &r.special, "KVM_SET_SREGS") ||
      !control(KVM_SET_REGS, &r.general, "KVM_SET_REGS") || !xcrs_done ||
      !control(kSetXsave, r.extended.data(), "KVM_SET_XSAVE") ||
      !control(KVM_SET_DEBUGREGS, &r.debug, "KVM_SET_DEBUGREGS") || !load_msrs(state.msr) ||
      !control(KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS")) {
    return Unexpected{KvmError{error_}};
  }
  return {};
}

/// An MSR that this host's KVM does not have is no loss while it holds its power-on value.
bool Processor::load_msrs(const cpu::Msrs& msrs) {
  const auto wanted = list_msrs(msrs);
  const auto power_on = list_msrs(cpu::Msrs{});
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (set_msr(wanted[i].index, wanted[i].data)) continue;
    if (wanted[i].data == power_on[i].data) continue;
    error_ = fmt::format("the host's KVM does not take MSR {:#x} = {:#x}",
                         std::uint32_t{wanted[i].index}, std::uint64_t{wanted[i].data});
    return false;
  }
  return true;
}

bool Processor::set_msr(std::uint32_t index, std::uint64_t value) noexcept {
  List<kvm_msr_entry> list{1};
  list.entries()->index = index;
  list.entries()->data = value;
  return ::ioctl(fd_.get(), kSetMsrs, list.header()) == 1;
}

Expected<cpu::VcpuState, KvmError> Processor::save() {
  Registers r;
  kvm_vcpu_events events{};
  kvm_xcrs xcrs{};
  if (!query(KVM_GET_REGS, &r.general, "KVM_GET_REGS") ||
      !query(KVM_GET_SREGS, &r.special, "KVM_GET_SREGS") ||
      !query(kGetXsave, r.extended.data(), "KVM_GET_XSAVE") ||
      !query(KVM_GET_XCRS, &xcrs, "KVM_GET_XCRS") ||
      !query(KVM_GET_DEBUGREGS, &r.debug, "KVM_GET_DEBUGREGS") ||
      !query(KVM_GET_VCPU_EVENTS, &events, "KVM_GET_VCPU_EVENTS")) {
    return Unexpected{KvmError{error_}};
  }
  for (std::uint32_t i = 0; i < xcrs.nr_xcrs && i < KVM_MAX_XCRS; ++i) {
    if (xcrs.xcrs[i].xcr == 0) r.xcr0 = xcrs.xcrs[i].value;
  }
  cpu::VcpuState state;
  get_state(r, layout_, state);
  state.interrupt_shadow = events.interrupt.shadow != 0;
  state.debug_shadow = (events.interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS) != 0;
  state.nmi_blocked = events.nmi.masked != 0;
  save_msrs(state.msr);
  return state;
}

void Processor::save_msrs(cpu::Msrs& msrs) {
  const auto wanted = list_msrs(msrs);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    List<kvm_msr_entry> list{1};
    list.entries()->index = wanted[i].index;
    if (::ioctl(fd_.get(), kGetMsrs, list.header()) != 1) continue;
    store_msr(msrs, i, list.entries()->data);
  }
}

Expected<void, KvmError> Processor::set_tsc_offset(std::uint64_t offset) {
  kvm_device_attr attribute{};
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  attribute.addr = reinterpret_cast<std::uintptr_t>(&offset);
  if (!control(KVM_SET_DEVICE_ATTR, &attribute, "KVM_VCPU_TSC_OFFSET")) {
    return Unexpected{KvmError{error_}};
  }
  return {};
}

}  // namespace strata::kvm
