// virtio-net (virtio 1.2, 5.1) in front of a network::Link.
#pragma once

#include <array>
#include <memory>
#include <mutex>

#include "devices/virtio/device.hpp"
#include "network/link.hpp"
#include "network/mac_address.hpp"

namespace strata::devices::virtio {

/// One pair of queues, whole frames. No offloads: what the links of hypervisor/network take and
/// give are frames as they are on a wire, so that checksums and segments are the driver's. Without
/// them no frame is longer than one buffer, and MRG_RXBUF has nothing to merge.
class Net final : public Device, private network::Receiver {
 public:
  static constexpr unsigned kReceive = 0, kTransmit = 1;  ///< queues

  /// `keep_mac`: load() leaves `mac` alone instead of taking the saved VM's.
  Net(std::unique_ptr<network::Link> link, const network::MacAddress& mac, bool keep_mac);
  ~Net() override;

  [[nodiscard]] const network::MacAddress& mac() const noexcept { return mac_; }

  [[nodiscard]] std::string_view name() const noexcept override { return "virtio-net"; }
  [[nodiscard]] DeviceType type() const noexcept override { return DeviceType::network; }
  [[nodiscard]] std::uint64_t features() const noexcept override;
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const noexcept override {
    return kQueueSizes;
  }
  void read_config(unsigned offset, std::span<std::byte> out) override;
  void start() override { link_->start(*this); }
  void activate(Transport& transport, std::uint64_t features,
                std::span<Queue* const> queues) override;
  void notify(unsigned index) override;
  void reset() override;
  void quiesce() override;
  void resume() override;
  /// Of the network itself nothing is kept: connections end, as those of a machine that moved.
  [[nodiscard]] nlohmann::json save() override;
  [[nodiscard]] StateResult load(const nlohmann::json& state) override;

 private:
  static constexpr std::array<std::uint16_t, 2> kQueueSizes{256, 256};

  bool receive(std::span<const std::byte> frame) noexcept override;
  [[nodiscard]] static std::uint32_t fill(const Chain& chain, machine::GuestMemory& memory,
                                          std::span<const std::byte> frame);
  void transmit();
  void send(const Chain& chain, machine::GuestMemory& memory);

  network::MacAddress mac_;
  const bool keep_mac_;

  /// One direction; the driver's vCPUs and the link's thread do not wait for each other.
  struct Direction {
    std::mutex mutex;  ///< guards the rest; held while guest memory is used
    Transport* transport = nullptr;
    Queue* queue = nullptr;
    Chain chain;
  };
  Direction receive_;
  Direction transmit_;
  bool quiet_ = false;  ///< from quiesce() to resume(); under receive_.mutex

  const std::unique_ptr<network::Link> link_;  ///< last: its threads end before the rest does
};

}  // namespace strata::devices::virtio
