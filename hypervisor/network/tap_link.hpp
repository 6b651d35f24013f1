// A TAP interface of the host (Linux, Documentation/networking/tuntap.rst).
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "machine/machine_memory.hpp"
#include "mmu/expected.hpp"
#include "network/link.hpp"
#include "network/link_error.hpp"
#include "network/wakeup.hpp"

namespace strata::network {

/// Frames go to the host on the sender's thread; a thread of its own reads those that come. While
/// the receiver has no room it reads none: the host's queue is the one that is bounded.
class TapLink final : public Link {
 public:
  /// Errors: the interface is not there, not a TAP interface, in use, or not this user's.
  [[nodiscard]] static Expected<std::unique_ptr<TapLink>, LinkError> open(
      const std::string& interface);
  ~TapLink() override;

  void start(Receiver& receiver) override;
  void send(std::span<const iovec> frame) noexcept override;
  void resume() noexcept override;

 private:
  explicit TapLink(machine::FileDescriptor tap) : tap_{std::move(tap)} {}
  void run(Receiver& receiver);
  void read_frames(Receiver& receiver, std::span<std::byte> frame, std::size_t& held);

  const machine::FileDescriptor tap_;
  Wakeup wakeup_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace strata::network
