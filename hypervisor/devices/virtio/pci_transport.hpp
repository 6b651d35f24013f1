// A virtio device as a PCI function (virtio 1.2, 4.1), of the modern kind only.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <vector>

#include "devices/apic_bus.hpp"
#include "devices/bus.hpp"
#include "devices/pci/pci_device.hpp"
#include "devices/virtio/device.hpp"
#include "machine/guest_memory.hpp"

namespace strata::devices::virtio {

namespace detail {

/// BAR 0, passed on; a base class, so that it is there before the PCI function is.
class RegisterBar {
 public:
  RegisterBar(const RegisterBar&) = delete;
  RegisterBar& operator=(const RegisterBar&) = delete;

 protected:
  RegisterBar(std::string_view name, ApicBus& apics, unsigned vectors);
  ~RegisterBar() = default;
  [[nodiscard]] std::array<pci::Bar, 2> bars() noexcept;
  virtual std::uint64_t read_bar(std::uint64_t offset, unsigned size) = 0;
  virtual void write_bar(std::uint64_t offset, unsigned size, std::uint64_t value) = 0;

  class Window final : public devices::Device {
   public:
    Window(RegisterBar& owner, std::string name) : owner_{owner}, name_{std::move(name)} {}
    [[nodiscard]] std::string_view name() const noexcept override { return name_; }
    std::uint64_t read(std::uint64_t offset, unsigned size) override {
      return owner_.read_bar(offset, size);
    }
    void write(std::uint64_t offset, unsigned size, std::uint64_t value) override {
      owner_.write_bar(offset, size, value);
    }

   private:
    RegisterBar& owner_;
    const std::string name_;
  };
  Window window_;
  pci::Msix interrupts_;
};

}  // namespace detail

/// Registers, negotiation and interrupts in front of a device's model. Configuration and registers:
/// any vCPU thread.
class PciTransport final : private detail::RegisterBar, public pci::PciDevice, private Transport {
 public:
  /// What it is connected to; all outlive it.
  struct Wiring {
    machine::GuestMemory& memory;
    Bus& mmio;
    ApicBus& apics;
    IrqLine& intx;
  };
  PciTransport(std::unique_ptr<virtio::Device> device, const Wiring& wiring);
  ~PciTransport() override;

  [[nodiscard]] virtio::Device& device() noexcept { return *device_; }

  /// Device::quiesce() and resume().
  void quiesce();
  void resume();
  /// Function, negotiation, queues and the device; no vCPU runs meanwhile, and the device is
  /// quiesced. load() into a transport whose driver has done nothing yet; checks what it is given,
  /// and after an error this must not be used.
  [[nodiscard]] nlohmann::json save();
  [[nodiscard]] StateResult load(const nlohmann::json& state);

 private:
  // The device status field (2.1).
  static constexpr std::uint8_t kDriverOk = 4, kFeaturesOk = 8, kNeedsReset = 64;
  static constexpr std::uint8_t kDriverBits = 1 | 2 | kDriverOk | kFeaturesOk | 128;

  struct QueueRegisters {
    std::uint16_t size = 0;
    bool enabled = false;
    std::uint64_t descriptors = 0;
    std::uint64_t driver = 0;
    std::uint64_t device = 0;
    template <class Archive>
    void fields(Archive& a);
  };

  // RegisterBar
  std::uint64_t read_bar(std::uint64_t offset, unsigned size) override;
  void write_bar(std::uint64_t offset, unsigned size, std::uint64_t value) override;
  // pci::PciDevice: the access capability (4.1.4.9)
  std::optional<std::uint32_t> read_register(unsigned offset, unsigned size) override;
  bool write_register(unsigned offset, unsigned size, std::uint32_t value) override;
  // Transport
  void used(unsigned index) noexcept override;
  void config_changed() noexcept override;
  void failed() noexcept override;

  template <class Archive>
  void fields(Archive& a);
  void add_capabilities();
  struct BarAccess {
    std::uint64_t offset = 0;
    unsigned size = 0;
  };
  [[nodiscard]] std::optional<BarAccess> window_access();

  [[nodiscard]] std::uint64_t offered() const noexcept;
  [[nodiscard]] bool features_fit() const noexcept;
  [[nodiscard]] std::uint8_t status() const noexcept;
  [[nodiscard]] std::uint64_t read_common(std::uint64_t offset, unsigned size);
  void write_common(std::uint64_t offset, unsigned size, std::uint64_t value);
  void write_queue(std::uint64_t offset, unsigned size, std::uint64_t value);
  void write_features(std::uint32_t value);
  void write_status(std::uint8_t value);
  [[nodiscard]] QueueConfig queue_config(unsigned index) const noexcept;
  void activate(std::span<const QueuePosition> positions);
  [[nodiscard]] StateResult resume_driver(std::span<const QueuePosition> positions);
  void reset();
  void notify(std::uint64_t offset);
  [[nodiscard]] std::uint64_t read_isr();
  [[nodiscard]] std::uint64_t read_device(std::uint64_t offset, unsigned size);
  void write_device(std::uint64_t offset, unsigned size, std::uint64_t value);
  void interrupt(std::uint16_t vector, std::uint8_t cause);
  [[nodiscard]] std::uint16_t checked_vector(std::uint64_t value) const noexcept;

  const std::unique_ptr<virtio::Device> device_;
  machine::GuestMemory& memory_;
  unsigned access_at_ = 0;  ///< the access capability

  /// Shared by notifications, exclusive for registers and what changes the device's life. Guards
  /// what follows; held while the device is called, which may call the Transport part back.
  std::shared_mutex lock_;
  std::uint8_t status_ = 0;
  std::uint32_t device_select_ = 0, driver_select_ = 0;
  std::uint64_t driver_features_ = 0;
  std::uint16_t queue_select_ = 0;
  std::vector<QueueRegisters> registers_;
  std::vector<std::unique_ptr<Queue>> queues_;  ///< while active

  // Read by devices' threads at any time.
  std::atomic<bool> failed_{false};
  std::atomic<std::uint8_t> generation_{0};
  std::atomic<std::uint16_t> config_vector_;
  std::vector<std::atomic<std::uint16_t>> vectors_;
  std::mutex isr_mutex_;  ///< guards isr_ and, with it, INTx
  std::uint8_t isr_ = 0;
};

}  // namespace strata::devices::virtio
