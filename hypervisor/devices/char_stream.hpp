// Characters between a guest's console and the host's: one interface each way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace strata::devices {

/// Of a terminal, in characters.
struct TerminalSize {
  std::uint16_t columns = 80;
  std::uint16_t rows = 25;
};

/// Where a console device's output goes.
class CharSink {
 public:
  CharSink() = default;
  CharSink(const CharSink&) = delete;
  CharSink& operator=(const CharSink&) = delete;
  virtual ~CharSink() = default;
  /// Called from vCPU threads under the device's lock, so that bytes keep their order: must not
  /// call back into the device and should not block.
  virtual void put(std::span<const std::uint8_t> bytes) = 0;
  /// Of what is behind it, or what is as good as any.
  [[nodiscard]] virtual TerminalSize size() const noexcept { return {}; }
};

/// A console device that takes input. Any thread.
class CharInput {
 public:
  CharInput() = default;
  CharInput(const CharInput&) = delete;
  CharInput& operator=(const CharInput&) = delete;
  virtual ~CharInput() = default;
  /// Input from the host. Returns how many bytes were taken; the rest is the caller's to offer
  /// again when `room` was called.
  virtual std::size_t receive(std::span<const std::uint8_t> bytes) = 0;
  /// `room` is called (vCPU thread, no lock held) when the queue has room again after receive()
  /// took less than it was given. Set it before the guest runs.
  virtual void on_room(std::function<void()> room) = 0;
};

}  // namespace strata::devices
