// An entropy device (virtio 1.2, 5.4): random bytes for whoever asks.
#pragma once

#include <array>
#include <mutex>

#include "devices/random_bytes.hpp"
#include "devices/virtio/device.hpp"

namespace strata::devices::virtio {

class Entropy final : public Device {
 public:
  /// Bytes a request gets at most. A device may give less than was asked for, but not nothing
  /// (5.4.6.2).
  static constexpr std::size_t kMostBytes = 4096;

  /// `random` outlives the device, which is its only user.
  explicit Entropy(RandomBytes& random) noexcept : random_{random} {}

  [[nodiscard]] std::string_view name() const noexcept override { return "virtio-rng"; }
  [[nodiscard]] DeviceType type() const noexcept override { return DeviceType::entropy; }
  [[nodiscard]] std::uint64_t features() const noexcept override { return 0; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const noexcept override {
    return kQueueSizes;
  }
  void read_config(unsigned offset, std::span<std::byte> out) override;
  void activate(Transport& transport, std::uint64_t features,
                std::span<Queue* const> queues) override;
  void notify(unsigned index) override;
  void reset() override;
  /// Requests are over when notify() returns.
  void quiesce() override {}

  [[nodiscard]] nlohmann::json save() override;
  [[nodiscard]] StateResult load(const nlohmann::json& state) override;

 private:
  static constexpr std::array<std::uint16_t, 1> kQueueSizes{64};

  [[nodiscard]] std::uint32_t answer(const Chain& chain, machine::GuestMemory& memory);

  RandomBytes& random_;
  std::mutex mutex_;  ///< guards the rest and random_; held while guest memory is accessed
  Transport* transport_ = nullptr;
  Queue* requests_ = nullptr;
  Chain chain_;
  std::array<std::byte, kMostBytes> bytes_{};
};

}  // namespace strata::devices::virtio
