// SIGUSR1: the user wants the VM saved.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

namespace strata::cli {

/// Blocks SIGUSR1 for this thread and those it starts from here on, and waits for it on a thread of
/// its own: what the signal does runs outside any signal handler.
class SaveSignal {
 public:
  SaveSignal();
  ~SaveSignal() { stop(); }
  SaveSignal(const SaveSignal&) = delete;
  SaveSignal& operator=(const SaveSignal&) = delete;
  /// `save` is called once per signal, until stop().
  void start(std::function<void()> save);
  void stop();

 private:
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace strata::cli
