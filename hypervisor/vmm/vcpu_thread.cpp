#include "vmm/vcpu_thread.hpp"

#include <exception>
#include <utility>

#include "cpu/cpu_model.hpp"
#include "vmm/replay/recorder.hpp"

namespace strata::vmm {

VcpuThread::VcpuThread(VcpuId id, std::unique_ptr<engine::Vcpu> vcpu, Platform& platform,
                       ExitHandler& exits, devices::Clock& clock, const cpu::CpuModel& model,
                       EndingListener& listener)
    : id_{id},
      vcpu_{std::move(vcpu)},
      exits_{exits},
      clock_{clock},
      model_{model},
      listener_{listener} {
  if (id_ != 0) reset_by_init();
  platform.apic(id_).set_callbacks(
      {.wake = [this] { wake(); },
       .init = [this] { post_init(); },
       .startup = [this](std::uint8_t vector) { post_startup(vector); }});
}

VcpuThread::~VcpuThread() {
  request_stop();
  join();
}

void VcpuThread::start() {
  thread_ = std::thread{[this] { work(); }};
}

void VcpuThread::release() {
  {
    const std::lock_guard guard{lock_};
    released_ = true;
  }
  changed_.notify_all();
}

void VcpuThread::join() {
  if (thread_.joinable()) thread_.join();
}

// ---- from other threads -------------------------------------------------------------------------

template <class Change>
void VcpuThread::post(Change change) {
  {
    const std::lock_guard guard{lock_};
    change(requests_);
  }
  changed_.notify_all();
  if (poke_) poke_();
}

void VcpuThread::request_stop() noexcept {
  post([](Requests& r) { r.stop = true; });
  vcpu_->kick();
}

void VcpuThread::wake() {
  post([](Requests& r) { r.woken = true; });
  vcpu_->interrupt();
}

void VcpuThread::post_init() {
  post([](Requests& r) {
    r.init = true;
    r.startup.reset();  // of the time before
  });
  vcpu_->kick();
}

void VcpuThread::post_startup(std::uint8_t vector) {
  post([vector](Requests& r) { r.startup = vector; });
  vcpu_->kick();
}

// ---- the vCPU's thread --------------------------------------------------------------------------

void VcpuThread::wait_for_release() {
  std::unique_lock guard{lock_};
  changed_.wait(guard, [this] { return released_ || requests_.stop; });
}

void VcpuThread::work() {
  wait_for_release();
  try {
    while (take_requests()) {
      if (waits_for_startup_) {
        sleep();
        continue;
      }
      const engine::Exit exit = vcpu_->run();
      ++stats_.exits[static_cast<std::size_t>(exit.kind)];
      answer(exit);
    }
  } catch (const std::exception& e) {
    listener_.ended({Ending::internal_error, 0, e.what()});
  }
}

/// Obeys INIT and SIPI. False: the VM has ended.
bool VcpuThread::take_requests() {
  Requests asked;
  {
    const std::lock_guard guard{lock_};
    if (requests_.stop) return false;
    asked = std::exchange(requests_, {});
    // A wake-up that came before run() looked is not lost on sleep().
    requests_.woken = asked.woken;
  }
  if (asked.init) {
    ++stats_.inits;
    if (id_ == 0) {
      // The bootstrap processor goes to FFFFFFF0h, where firmware would restart the machine.
      listener_.ended({Ending::reset, 0, {}});
      return false;
    }
    if (recorder_ != nullptr) recorder_->init();
    reset_by_init();
  }
  if (asked.startup && waits_for_startup_) {
    if (recorder_ != nullptr) recorder_->startup(*asked.startup);
    ++stats_.startups;
    cpu::VcpuState state = vcpu_->state();
    cpu::start_up(state, *asked.startup);
    vcpu_->set_state(state);
    waits_for_startup_ = false;
  }
  return true;
}

bool VcpuThread::wants_turn() {
  const std::lock_guard guard{lock_};
  return !asleep_ || requests_.any();
}

VcpuThread::Turn VcpuThread::take_turn() {
  if (!take_requests()) return Turn::stopped;
  {
    const std::lock_guard guard{lock_};
    requests_.woken = false;
  }
  asleep_ = waits_for_startup_;
  if (asleep_) return Turn::asleep;
  const engine::Exit exit = vcpu_->run();
  ++stats_.exits[static_cast<std::size_t>(exit.kind)];
  if (exit.kind == engine::ExitKind::halt) {
    asleep_ = true;
    return Turn::asleep;
  }
  if (exit.kind == engine::ExitKind::interrupted) return Turn::boundary;
  answer(exit);
  return Turn::exited;
}

void VcpuThread::reset_by_init() {
  vcpu_->set_state(cpu::after_init(vcpu_->state(), model_.cpuid(1, 0, {}).eax));
  waits_for_startup_ = true;
}

/// Until anything is asked for. Interrupts do not end the wait for SIPI (SDM 3A 9.4.2), so a
/// wake-up then only goes round the loop.
void VcpuThread::sleep() {
  const devices::Nanoseconds start = clock_.now();
  {
    std::unique_lock guard{lock_};
    changed_.wait(guard, [this] { return requests_.any(); });
    requests_.woken = false;
  }
  stats_.halted_ns += clock_.now() - start;
}

void VcpuThread::answer(const engine::Exit& exit) {
  using engine::ExitKind;
  switch (exit.kind) {
    case ExitKind::interrupted:
      break;
    case ExitKind::halt:
      sleep();
      break;
    case ExitKind::port_read:
      vcpu_->complete(exits_.port_read(id_, exit.port, exit.size));
      break;
    case ExitKind::port_write:
      exits_.port_write(id_, exit.port, exit.size, exit.data);
      break;
    case ExitKind::mmio_read:
      vcpu_->complete(exits_.mmio_read(id_, exit.pa, exit.size));
      break;
    case ExitKind::mmio_write:
      exits_.mmio_write(id_, exit.pa, exit.size, exit.data);
      break;
    case ExitKind::msr_read:
      if (const auto value = exits_.msr_read(id_, exit.msr)) {
        vcpu_->complete(*value);
      } else {
        vcpu_->fail();
      }
      break;
    case ExitKind::msr_write:
      if (!exits_.msr_write(id_, exit.msr, exit.data)) vcpu_->fail();
      break;
    case ExitKind::hypercall:
      vcpu_->complete(exits_.hypercall(id_, vcpu_->state()));
      break;
    case ExitKind::paused:
      // Nothing swaps pages out in this build, so nothing can bring one back.
      listener_.ended({Ending::internal_error, 0, "a page is away that nothing brings back"});
      break;
    case ExitKind::triple_fault:
      listener_.ended({Ending::triple_fault, 0, {}});
      break;
    case ExitKind::out_of_memory:
      listener_.ended({Ending::out_of_memory, 0, {}});
      break;
    case ExitKind::internal_error:
      listener_.ended({Ending::internal_error, 0, exit.reason});
      break;
  }
}

}  // namespace strata::vmm
