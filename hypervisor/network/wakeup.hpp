// Wakes a thread that waits in poll(2).
#pragma once

#include "machine/machine_memory.hpp"

namespace strata::network {

class Wakeup {
 public:
  /// Throws std::system_error if the host has no descriptor left.
  Wakeup();
  /// Readable after signal(), until clear().
  [[nodiscard]] int fd() const noexcept { return event_.get(); }
  /// Any thread. Never blocks.
  void signal() noexcept;
  void clear() noexcept;

 private:
  machine::FileDescriptor event_;
};

}  // namespace strata::network
