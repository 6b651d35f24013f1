// Virtio over PCI, modern devices only (virtio 1.2, 4.1).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "devices/pci_device.hpp"
#include "devices/virtio/device.hpp"

namespace strata::devices::virtio {

/// One virtio device as a PCI function: capabilities, the common configuration, notifications and
/// interrupts. Any thread.
class PciTransport final : public PciDevice, public Transport {
 public:
  /// Bytes of BAR 0: common configuration, ISR, device configuration, notifications.
  static constexpr std::uint32_t kRegisterBytes = 0x4000;

  /// `device` and `memory` must outlive this object, which resets the device at its end.
  PciTransport(Device& device, machine::GuestMemory& memory, const PciSlot& slot);
  ~PciTransport() override;

  // Transport
  [[nodiscard]] Queue& queue(unsigned index) override { return queues_[index]->queue; }
  [[nodiscard]] machine::GuestMemory& memory() override { return memory_; }
  void interrupt(unsigned queue) override;
  void config_changed() override;
  void needs_reset() override;

  /// Quiet afterwards; see Device::quiesce().
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

 protected:
  std::uint32_t read_window(unsigned offset, unsigned size, std::uint32_t stored) override;
  void write_window(unsigned offset, unsigned size, std::uint32_t value) override;

 private:
  static constexpr std::uint16_t kNoVector = 0xFFFF;

  /// BAR 0.
  class Registers final : public devices::Device {
   public:
    explicit Registers(PciTransport& owner) noexcept : owner_{owner} {}
    [[nodiscard]] std::string_view name() const noexcept override { return owner_.device_.name(); }
    std::uint64_t read(std::uint64_t offset, unsigned size) override;
    void write(std::uint64_t offset, unsigned size, std::uint64_t value) override;

   private:
    PciTransport& owner_;
  };
  struct QueueState {
    explicit QueueState(machine::GuestMemory& memory) : queue{memory} {}
    QueueLayout wanted;    ///< as the driver has set it up so far
    bool enabled = false;  ///< ... and it is done
    std::atomic<std::uint16_t> vector{kNoVector};
    Queue queue;  ///< the device's while it is active
  };

  void add_capabilities();
  [[nodiscard]] std::uint64_t read_common(std::uint64_t offset);
  void write_common(std::uint64_t offset, unsigned size, std::uint64_t value);
  void write_queue(std::uint64_t offset, unsigned size, std::uint64_t value);
  void write_status(std::uint8_t value);
  [[nodiscard]] std::uint8_t read_isr();
  [[nodiscard]] std::uint64_t offered() const noexcept;
  [[nodiscard]] QueueState* selected() noexcept;
  [[nodiscard]] std::uint16_t usable_vector(std::uint64_t value) noexcept;
  [[nodiscard]] bool activate();
  void reset_device();
  void notify(std::uint64_t index);
  void raise(std::uint16_t vector, std::uint8_t isr_bit);
  struct Window {
    unsigned bar = 0;
    std::uint32_t offset = 0, length = 0;
  };
  [[nodiscard]] bool aims_at_registers(Window& window);
  template <class Archive>
  void fields(Archive& a);

  virtio::Device& device_;
  machine::GuestMemory& memory_;
  Registers registers_;
  unsigned window_capability_ = 0;
  std::vector<std::unique_ptr<QueueState>> queues_;  ///< as many as the device has
  std::atomic<std::uint8_t> status_{0};
  std::atomic<std::uint16_t> config_vector_{kNoVector};
  std::atomic<std::uint8_t> generation_{0};
  std::mutex isr_lock_;  ///< guards isr_ and the level that follows from it
  std::uint8_t isr_ = 0;
  /// Guards the rest; held while the device is activated and reset, not while it is notified.
  std::mutex mutex_;
  std::uint32_t feature_half_ = 0, driver_half_ = 0;
  std::uint64_t driver_features_ = 0;
  std::uint16_t selected_ = 0;
  bool active_ = false;
};

}  // namespace strata::devices::virtio
