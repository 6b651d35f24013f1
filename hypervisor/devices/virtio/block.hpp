// virtio-blk (virtio 1.2, 5.2) in front of a storage::Disk.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "devices/virtio/device.hpp"
#include "storage/disk.hpp"

namespace strata::devices::virtio {

/// One queue. Requests go to the disk on the thread that notifies, and their data straight between
/// guest memory and the disk; those that are over by then share one interrupt, others have theirs
/// from the disk's thread.
class Block final : public Device {
 public:
  /// What a request may transfer; longer ones end with an I/O error.
  static constexpr std::uint64_t kMostBytes = machine::GuestMemory::kMaxPinBytes;
  static constexpr std::size_t kIdBytes = 20;

  /// `id`: what GET_ID answers, cut off after kIdBytes.
  Block(std::unique_ptr<storage::Disk> disk, std::string id);
  ~Block() override;

  [[nodiscard]] std::string_view name() const noexcept override { return "virtio-blk"; }
  [[nodiscard]] DeviceType type() const noexcept override { return DeviceType::block; }
  [[nodiscard]] std::uint64_t features() const noexcept override { return features_; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const noexcept override;
  void read_config(unsigned offset, std::span<std::byte> out) override;
  void start() override { disk_->start(); }
  void activate(Transport& transport, std::uint64_t features,
                std::span<Queue* const> queues) override;
  void notify(unsigned index) override;
  void reset() override;
  void quiesce() override;
  /// The disk's size has to be what it was.
  [[nodiscard]] nlohmann::json save() override;
  [[nodiscard]] StateResult load(const nlohmann::json& state) override;

 private:
  class Request;
  [[nodiscard]] Request* take_request();
  void give_back(Request& request);
  /// False: it is no request at all.
  [[nodiscard]] bool begin(Request& request);
  void transfer(Request& request, bool in, std::uint64_t sector);
  [[nodiscard]] bool copy(Request& request, bool in, std::uint64_t length);
  void change_range(Request& request, bool discard);
  void answer_id(Request& request);
  void finish(Request& request, std::uint8_t status);
  void announce();
  template <class Archive>
  void fields(Archive& a);

  const std::unique_ptr<storage::Disk> disk_;
  const std::string id_;
  const std::uint64_t features_;
  std::vector<std::byte> config_;

  Transport* transport_ = nullptr;  ///< these while active
  Queue* queue_ = nullptr;
  std::uint64_t negotiated_ = 0;
  std::atomic<std::uint64_t> copied_{0};  ///< bytes in copies of requests in flight
  std::atomic<bool> unannounced_{false};  ///< pushed by a thread that is inside notify()

  std::mutex mutex_;  ///< guards free_; a leaf
  std::vector<std::unique_ptr<Request>> requests_;
  std::vector<Request*> free_;
};

}  // namespace strata::devices::virtio
