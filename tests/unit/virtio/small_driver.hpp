// A driver of one device without a transport between them: queues in guest memory, and what the
// device said.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "devices/virtio/device.hpp"
#include "machine/test_support.hpp"

namespace strata::devices::virtio::test {

class RecordingTransport final : public Transport {
 public:
  void used(unsigned index) noexcept override { ++interrupts[index]; }
  void config_changed() noexcept override {}
  void failed() noexcept override { ++failures; }
  std::array<int, 4> interrupts{};
  int failures = 0;
};

struct Buffer {
  PA pa{};
  std::uint32_t length = 0;
  bool writable = false;
};

struct Used {
  std::uint32_t head = 0;
  std::uint32_t written = 0;
};

/// One queue of 8 descriptors; a chain takes free ones in order.
class DriverQueue {
 public:
  static constexpr std::uint16_t kSize = 8;

  DriverQueue(machine::test::TestMachine& machine, PA base)
      : machine_{machine},
        base_{base},
        queue_{machine.guest, QueueConfig{.size = kSize,
                                          .max_size = kSize,
                                          .descriptors = base,
                                          .available = base + 0x100,
                                          .used = base + 0x200}} {}

  void add(const std::vector<Buffer>& buffers) {
    const std::uint16_t head = next_;
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      const bool last = i + 1 == buffers.size();
      const auto following = static_cast<std::uint16_t>((next_ + 1) % kSize);
      const auto flags = static_cast<std::uint16_t>((last ? 0 : 1) | (buffers[i].writable ? 2 : 0));
      const PA at = base_ + next_ * 16ULL;
      store<std::uint64_t>(at, buffers[i].pa.value());
      store<std::uint32_t>(at + 8, buffers[i].length);
      store<std::uint16_t>(at + 12, flags);
      store<std::uint16_t>(at + 14, following);
      next_ = following;
    }
    make_available(head);
  }
  void make_available(std::uint16_t head) {
    store<std::uint16_t>(base_ + 0x104 + 2ULL * (available_ % kSize), head);
    store<std::uint16_t>(base_ + 0x102, ++available_);
  }
  /// What the device has given back since the last call.
  [[nodiscard]] std::vector<Used> take_used() {
    std::vector<Used> taken;
    for (; taken_ != load<std::uint16_t>(base_ + 0x202); ++taken_) {
      const PA at = base_ + 0x204 + 8ULL * (taken_ % kSize);
      taken.push_back({load<std::uint32_t>(at), load<std::uint32_t>(at + 4)});
    }
    return taken;
  }
  [[nodiscard]] Queue* device_side() noexcept { return &queue_; }

 private:
  template <class T>
  void store(PA pa, T value) {
    machine::test::must(
        machine_.guest.write(machine::kIdentitySpace, pa, std::as_bytes(std::span{&value, 1})));
  }
  template <class T>
  T load(PA pa) {
    return machine_.load<T>(pa);
  }

  machine::test::TestMachine& machine_;
  const PA base_;
  Queue queue_;
  std::uint16_t next_ = 0;
  std::uint16_t available_ = 0;
  std::uint16_t taken_ = 0;
};

inline void put_text(machine::test::TestMachine& machine, PA pa, std::string_view text) {
  machine::test::must(machine.guest.write(machine::kIdentitySpace, pa,
                                          std::as_bytes(std::span{text.data(), text.size()})));
}

inline std::string text_at(machine::test::TestMachine& machine, PA pa, std::size_t length) {
  std::string text(length, '\0');
  machine::test::must(machine.guest.read(machine::kIdentitySpace, pa,
                                         std::as_writable_bytes(std::span{text.data(), length})));
  return text;
}

}  // namespace strata::devices::virtio::test
