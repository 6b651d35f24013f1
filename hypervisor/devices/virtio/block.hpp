// A virtio block device (virtio 1.2, 5.2) in front of a storage::Disk.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <list>
#include <mutex>
#include <string>
#include <vector>

#include "devices/virtio/device.hpp"
#include "storage/disk.hpp"

namespace strata::devices::virtio {

/// Requests are submitted on the vCPU thread that notifies, and what the disk completes at once is
/// given back there with one interrupt; the rest comes on the disk's thread. Data is transferred
/// from and to guest memory itself, which is pinned meanwhile.
class Block final : public Device {
 public:
  /// At most this many bytes are told to the driver with GET_ID (5.2.6).
  static constexpr std::size_t kSerialBytes = 20;
  static constexpr std::uint16_t kQueueSize = 256;

  /// `disk` must outlive this object, which drains it.
  Block(storage::Disk& disk, std::string serial);
  ~Block() override;

  [[nodiscard]] std::string_view name() const noexcept override { return "virtio-blk"; }
  [[nodiscard]] const Traits& traits() const noexcept override { return traits_; }
  void read_config(std::uint64_t offset, std::span<std::byte> out) override;
  void activate(Transport& transport, std::uint64_t features) override;
  void notify(unsigned queue) override;
  void reset() override;
  void start() override { disk_.start(); }
  void quiesce() override;
  /// What the driver knows of the disk: one that is loaded must be such a disk.
  [[nodiscard]] nlohmann::json save() override;
  [[nodiscard]] StateResult load(const nlohmann::json& state) override;

 private:
  class Request;
  using Requests = std::list<Request>;

  /// The next request, listed and ready to be submitted or answered. Null: there is none.
  Request* next();
  void submit(Request& request);
  void finish(Request& request, std::uint8_t status);
  void give_back(Request& request, std::uint8_t status, Requests& done);
  /// `lock` holds mutex_. Nothing new begins meanwhile.
  void wait_until_quiet(std::unique_lock<std::mutex>& lock);

  storage::Disk& disk_;
  const std::string serial_;
  const Traits traits_;
  std::array<std::byte, 64> config_{};
  std::mutex mutex_;  ///< guards the rest; held while queues and guest memory are used
  std::condition_variable quiet_;
  Transport* transport_ = nullptr;  ///< while active
  Requests requests_;               ///< under way
  bool pausing_ = false;            ///< somebody waits for `requests_` to be empty
  unsigned notifiers_ = 0;          ///< vCPUs inside notify(), which will raise the interrupt
  bool interrupt_due_ = false;
};

}  // namespace strata::devices::virtio
