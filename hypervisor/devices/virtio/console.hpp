// A console device (virtio 1.2, 5.3) with one port: Linux's hvc0.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <mutex>

#include "devices/char_stream.hpp"
#include "devices/virtio/device.hpp"

namespace strata::devices::virtio {

/// CharInput's functions: any thread, at any time.
class Console final : public Device, public CharInput {
 public:
  static constexpr unsigned kReceive = 0, kTransmit = 1;  ///< queues
  static constexpr std::size_t kInputQueue = 4096;
  /// Bytes of one request that are put out; what is beyond is lost. Drivers send some thousands,
  /// and a guest that names the same page again and again should not keep its vCPU for minutes.
  static constexpr std::uint64_t kMostOutput = 1 << 20;

  /// `sink` outlives the device. Its size is the guest's to know, as it is now.
  explicit Console(CharSink& sink) noexcept : sink_{sink}, size_{sink.size()} {}

  std::size_t receive(std::span<const std::uint8_t> bytes) override;
  void on_room(std::function<void()> room) override;

  [[nodiscard]] std::string_view name() const noexcept override { return "virtio-console"; }
  [[nodiscard]] DeviceType type() const noexcept override { return DeviceType::console; }
  [[nodiscard]] std::uint64_t features() const noexcept override;
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const noexcept override {
    return kQueueSizes;
  }
  void read_config(unsigned offset, std::span<std::byte> out) override;
  void activate(Transport& transport, std::uint64_t features,
                std::span<Queue* const> queues) override;
  void notify(unsigned index) override;
  void reset() override;
  void quiesce() override;
  void resume() override;

  /// Input that the guest has not taken.
  [[nodiscard]] nlohmann::json save() override;
  [[nodiscard]] StateResult load(const nlohmann::json& state) override;

 private:
  static constexpr std::array<std::uint16_t, 2> kQueueSizes{128, 128};

  template <class Archive>
  void fields(Archive& a);
  void transmit();
  void put_out(const Chain& chain, machine::GuestMemory& memory);
  void deliver();
  [[nodiscard]] std::uint32_t fill(const Chain& chain, machine::GuestMemory& memory);
  void settle(Queue& queue, unsigned index, Queue::Popped last);
  [[nodiscard]] bool take_room_notice();

  CharSink& sink_;
  const TerminalSize size_;
  std::function<void()> room_;

  std::mutex mutex_;  ///< guards the rest; held while guest memory and sink_ are used
  Transport* transport_ = nullptr;
  std::array<Queue*, 2> queues_{};
  bool quiet_ = false;  ///< from quiesce() to resume()
  std::deque<std::uint8_t> input_;
  bool refused_ = false;
  Chain chain_;
};

}  // namespace strata::devices::virtio
