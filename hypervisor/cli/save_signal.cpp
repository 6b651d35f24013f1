#include "cli/save_signal.hpp"

#include <csignal>
#include <ctime>
#include <utility>

namespace strata::cli {

namespace {

sigset_t the_signal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  return set;
}

}  // namespace

SaveSignal::SaveSignal() {
  const sigset_t set = the_signal();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

void SaveSignal::start(std::function<void()> save) {
  thread_ = std::thread{[this, save = std::move(save)] {
    const sigset_t set = the_signal();
    const timespec look{0, 100'000'000};  // how late stop() may be noticed
    while (!stop_) {
      if (sigtimedwait(&set, nullptr, &look) == SIGUSR1) save();
    }
  }};
}

void SaveSignal::stop() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

}  // namespace strata::cli
