#include "vmm/vcpu_thread.hpp"

#include <exception>
#include <utility>

#include "cpu/cpu_model.hpp"
#include "vmm/hypercalls.hpp"

namespace strata::vmm {

VcpuThread::VcpuThread(VcpuId id, std::unique_ptr<engine::Vcpu> vcpu, Platform& platform,
                       devices::Clock& clock, const cpu::CpuModel& model, EndingListener& listener)
    : id_{id},
      vcpu_{std::move(vcpu)},
      platform_{platform},
      clock_{clock},
      model_{model},
      listener_{listener} {
  if (id_ != 0) reset_by_init();
  platform_.apic(id_).set_callbacks(
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

void VcpuThread::join() {
  if (thread_.joinable()) thread_.join();
}

// ---- from other threads -------------------------------------------------------------------------

void VcpuThread::request_stop() noexcept {
  {
    const std::lock_guard guard{lock_};
    requests_.stop = true;
  }
  changed_.notify_all();
  vcpu_->kick();
}

void VcpuThread::wake() {
  {
    const std::lock_guard guard{lock_};
    requests_.woken = true;
  }
  changed_.notify_all();
  vcpu_->interrupt();
}

void VcpuThread::post_init() {
  {
    const std::lock_guard guard{lock_};
    requests_.init = true;
    requests_.startup.reset();  // of the time before
  }
  changed_.notify_all();
  vcpu_->kick();
}

void VcpuThread::post_startup(std::uint8_t vector) {
  {
    const std::lock_guard guard{lock_};
    requests_.startup = vector;
  }
  changed_.notify_all();
  vcpu_->kick();
}

// ---- the vCPU's thread --------------------------------------------------------------------------

void VcpuThread::work() {
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
    reset_by_init();
  }
  if (asked.startup && waits_for_startup_) {
    ++stats_.startups;
    cpu::VcpuState state = vcpu_->state();
    cpu::start_up(state, *asked.startup);
    vcpu_->set_state(state);
    waits_for_startup_ = false;
  }
  return true;
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
      vcpu_->complete(platform_.port_read(exit.port, exit.size));
      break;
    case ExitKind::port_write:
      platform_.port_write(exit.port, exit.size, exit.data);
      break;
    case ExitKind::mmio_read:
      vcpu_->complete(platform_.mmio_read(id_, exit.pa, exit.size));
      break;
    case ExitKind::mmio_write:
      platform_.mmio_write(id_, exit.pa, exit.size, exit.data);
      break;
    case ExitKind::msr_read:
      if (const auto value = platform_.msr_read(id_, exit.msr)) {
        vcpu_->complete(*value);
      } else {
        vcpu_->fail();
      }
      break;
    case ExitKind::msr_write:
      if (!platform_.msr_write(id_, exit.msr, exit.data)) vcpu_->fail();
      break;
    case ExitKind::hypercall:
      vcpu_->complete(answer_hypercall(vcpu_->state(), platform_.apic_bus()));
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
