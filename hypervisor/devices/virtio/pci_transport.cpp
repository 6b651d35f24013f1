#include "devices/virtio/pci_transport.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace strata::devices::virtio {

namespace {

// BAR 0. Each structure has a page of its own, so that drivers can map them apart.
constexpr std::uint64_t kPage = 0x1000;
enum Structure : std::uint8_t { kCommon = 0, kIsr = 1, kDeviceConfig = 2, kNotify = 3 };
constexpr std::uint32_t kBarBytes = 4 * kPage;
constexpr std::uint64_t kCommonBytes = 0x38;
constexpr std::uint32_t kNotifyMultiplier = 4;
constexpr unsigned kMsixBar = 1;

// Interrupt causes (4.1.4.5).
constexpr std::uint8_t kQueueCause = 1, kConfigCause = 2;
constexpr std::uint16_t kNoVector = 0xFFFF;

// struct virtio_pci_cap, after `next` (4.1.4); capability ids and types.
constexpr std::uint8_t kVendorSpecific = 9;
enum CapabilityType : std::uint8_t {
  kCommonCap = 1,
  kNotifyCap = 2,
  kIsrCap = 3,
  kDeviceCap = 4,
  kAccessCap = 5
};
constexpr unsigned kCapBytes = 16, kAccessData = 16;

constexpr std::uint16_t kVendor = 0x1AF4, kFirstDevice = 0x1040;

/// Base class, subclass and interface that drivers of other systems look at.
constexpr std::uint32_t class_of(DeviceType type) noexcept {
  switch (type) {
    case DeviceType::network:
      return 0x020000;
    case DeviceType::block:
      return 0x010000;
    case DeviceType::console:
      return 0x078000;
    case DeviceType::entropy:
      break;
  }
  return 0x00FF00;
}

pci::Identity identity_of(DeviceType type) noexcept {
  const auto id = static_cast<std::uint16_t>(kFirstDevice + static_cast<unsigned>(type));
  return {.vendor = kVendor,
          .device = id,
          .class_code = class_of(type),
          .revision = 1,
          .subsystem_vendor = kVendor,
          .subsystem = id};
}

void put(std::span<std::uint8_t> bytes, std::size_t at, std::uint64_t value, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    bytes[at + i] = static_cast<std::uint8_t>(value >> (8 * i));
  }
}

std::uint64_t get(std::span<const std::uint8_t> bytes, std::uint64_t at, unsigned count) {
  std::uint64_t value = 0;
  for (unsigned i = 0; i < count && at + i < bytes.size(); ++i) {
    value |= std::uint64_t{bytes[at + i]} << (8 * i);
  }
  return value;
}

/// Replaces half of `target`, or all of it. False: no such part.
bool set_part(std::uint64_t& target, std::uint64_t offset, unsigned size, std::uint64_t value) {
  if (size == 8 && offset == 0) {
    target = value;
  } else if (size == 4 && offset % 4 == 0) {
    const auto shift = static_cast<unsigned>(8 * offset);
    target = (target & ~(0xFFFFFFFFULL << shift)) | (value & 0xFFFFFFFF) << shift;
  } else {
    return false;
  }
  return true;
}

}  // namespace

detail::RegisterBar::RegisterBar(std::string_view name, ApicBus& apics, unsigned vectors)
    : window_{*this, std::string{name}}, interrupts_{std::string{name} + "-msix", apics, vectors} {}

std::array<pci::Bar, 2> detail::RegisterBar::bars() noexcept {
  return {{{kBarBytes, &window_}, {pci::Msix::kBytes, &interrupts_}}};
}

/// One vector for each queue, one for the configuration.
PciTransport::PciTransport(std::unique_ptr<virtio::Device> device, const Wiring& wiring)
    : RegisterBar{device->name(), wiring.apics,
                  static_cast<unsigned>(device->queue_sizes().size()) + 1},
      PciDevice{identity_of(device->type()), bars(), wiring.mmio, wiring.intx},
      device_{std::move(device)},
      memory_{wiring.memory},
      registers_(device_->queue_sizes().size()),
      config_vector_{kNoVector},
      vectors_(device_->queue_sizes().size()) {
  add_msix(interrupts_, kMsixBar);
  add_capabilities();
  reset();
}

/// The window goes off the bus first: nobody is inside when the device ends.
PciTransport::~PciTransport() {
  unmap();
  device_->reset();
}

void PciTransport::add_capabilities() {
  const auto add = [this](CapabilityType type, Structure where, std::uint32_t length,
                          std::size_t extra) {
    std::vector<std::uint8_t> body(kCapBytes - 2 + extra);
    body[0] = static_cast<std::uint8_t>(kCapBytes + extra);
    body[1] = type;
    put(body, 6, where * kPage, 4);
    put(body, 10, length, 4);
    if (type == kNotifyCap) put(body, 14, kNotifyMultiplier, 4);
    return add_capability(kVendorSpecific, body);
  };
  const auto queues = static_cast<std::uint32_t>(registers_.size());
  add(kCommonCap, kCommon, kCommonBytes, 0);
  add(kNotifyCap, kNotify, queues * kNotifyMultiplier, 4);
  add(kIsrCap, kIsr, 1, 0);
  add(kDeviceCap, kDeviceConfig, kPage, 0);
  access_at_ = add(kAccessCap, kCommon, 0, 4);
  make_writable(access_at_ + 4, 1);  // BAR
  make_writable(access_at_ + 8, 8);  // offset and length
}

// ---- the way through configuration space --------------------------------------------------------

/// What the access capability points to: only BAR 0, aligned, 1, 2 or 4 bytes.
std::optional<PciTransport::BarAccess> PciTransport::window_access() {
  const std::uint32_t bar = config_word(access_at_ + 4) & 0xFF;
  const std::uint64_t offset = config_word(access_at_ + 8);
  const std::uint32_t size = config_word(access_at_ + 12);
  if (bar != 0 || (size != 1 && size != 2 && size != 4)) return std::nullopt;
  if (offset % size != 0 || offset + size > kBarBytes) return std::nullopt;
  return BarAccess{offset, size};
}

std::optional<std::uint32_t> PciTransport::read_register(unsigned offset, unsigned size) {
  if (offset != access_at_ + kAccessData) return std::nullopt;
  const auto access = window_access();
  if (!access || access->size != size) return 0;
  return static_cast<std::uint32_t>(read_bar(access->offset, access->size));
}

bool PciTransport::write_register(unsigned offset, unsigned size, std::uint32_t value) {
  if (offset != access_at_ + kAccessData) return false;
  const auto access = window_access();
  if (access && access->size == size) write_bar(access->offset, access->size, value);
  return true;
}

// ---- registers ----------------------------------------------------------------------------------

std::uint64_t PciTransport::read_bar(std::uint64_t offset, unsigned size) {
  switch (offset / kPage) {
    case kCommon:
      return read_common(offset, size);
    case kIsr:
      return offset % kPage == 0 ? read_isr() : 0;
    case kDeviceConfig:
      return read_device(offset % kPage, size);
    default:
      return 0;
  }
}

void PciTransport::write_bar(std::uint64_t offset, unsigned size, std::uint64_t value) {
  switch (offset / kPage) {
    case kCommon:
      return write_common(offset, size, value);
    case kDeviceConfig:
      return write_device(offset % kPage, size, value);
    case kNotify:
      return notify(offset % kPage);
    default:
      return;
  }
}

std::uint64_t PciTransport::offered() const noexcept {
  return device_->features() | kVersion1 | kRingIndirectDesc | kRingEventIdx;
}

bool PciTransport::features_fit() const noexcept {
  return (driver_features_ & ~offered()) == 0 && (driver_features_ & kVersion1) != 0;
}

std::uint8_t PciTransport::status() const noexcept {
  return static_cast<std::uint8_t>(status_ | (failed_.load() ? kNeedsReset : 0));
}

/// struct virtio_pci_common_cfg (4.1.4.3), as bytes.
std::uint64_t PciTransport::read_common(std::uint64_t offset, unsigned size) {
  const std::shared_lock lock{lock_};
  std::array<std::uint8_t, kCommonBytes> image{};
  const auto part = [](std::uint64_t features, std::uint32_t select) {
    return select < 2 ? features >> (32 * select) & 0xFFFFFFFF : 0;
  };
  put(image, 0x00, device_select_, 4);
  put(image, 0x04, part(offered(), device_select_), 4);
  put(image, 0x08, driver_select_, 4);
  put(image, 0x0C, part(driver_features_, driver_select_), 4);
  put(image, 0x10, config_vector_.load(), 2);
  put(image, 0x12, registers_.size(), 2);
  put(image, 0x14, status(), 1);
  put(image, 0x15, generation_.load(), 1);
  put(image, 0x16, queue_select_, 2);
  if (queue_select_ < registers_.size()) {
    const QueueRegisters& queue = registers_[queue_select_];
    put(image, 0x18, queue.size, 2);
    put(image, 0x1A, vectors_[queue_select_].load(), 2);
    put(image, 0x1C, queue.enabled ? 1 : 0, 2);
    put(image, 0x1E, queue_select_, 2);
    put(image, 0x20, queue.descriptors, 8);
    put(image, 0x28, queue.driver, 8);
    put(image, 0x30, queue.device, 8);
  }
  return get(image, offset, size);
}

/// An access that is not one of a whole field (4.1.3.1) changes nothing.
void PciTransport::write_common(std::uint64_t offset, unsigned size, std::uint64_t value) {
  const std::unique_lock lock{lock_};
  if (offset == 0x00 && size == 4) {
    device_select_ = static_cast<std::uint32_t>(value);
  } else if (offset == 0x08 && size == 4) {
    driver_select_ = static_cast<std::uint32_t>(value);
  } else if (offset == 0x0C && size == 4) {
    write_features(static_cast<std::uint32_t>(value));
  } else if (offset == 0x10 && size == 2) {
    config_vector_ = checked_vector(value);
  } else if (offset == 0x14 && size == 1) {
    write_status(static_cast<std::uint8_t>(value));
  } else if (offset == 0x16 && size == 2) {
    queue_select_ = static_cast<std::uint16_t>(value);
  } else if (offset >= 0x18 && queue_select_ < registers_.size()) {
    write_queue(offset, size, value);
  }
}

std::uint16_t PciTransport::checked_vector(std::uint64_t value) const noexcept {
  return value < interrupts_.vectors() ? static_cast<std::uint16_t>(value) : kNoVector;
}

/// What a queue is made of stays once the driver has enabled it, or the device.
void PciTransport::write_queue(std::uint64_t offset, unsigned size, std::uint64_t value) {
  if (offset == 0x1A && size == 2) {
    vectors_[queue_select_] = checked_vector(value);
    return;
  }
  QueueRegisters& queue = registers_[queue_select_];
  if (queue.enabled || (status_ & kDriverOk) != 0) return;
  if (offset == 0x18 && size == 2) {
    const auto entries = static_cast<std::uint16_t>(value);
    if (entries <= device_->queue_sizes()[queue_select_]) queue.size = entries;
  } else if (offset == 0x1C && size == 2) {
    if (value != 1) return;
    queue.enabled = queue_config(queue_select_).valid();
    if (!queue.enabled) failed();
  } else if (offset >= 0x20 && offset < kCommonBytes) {
    std::uint64_t& address = offset < 0x28   ? queue.descriptors
                             : offset < 0x30 ? queue.driver
                                             : queue.device;
    (void)set_part(address, offset % 8, size, value);
  }
}

void PciTransport::write_features(std::uint32_t value) {
  if ((status_ & kFeaturesOk) != 0 || driver_select_ > 1) return;
  (void)set_part(driver_features_, 4ULL * driver_select_, 4, value);
}

/// Bits are only ever added, until a 0 resets (2.1.1). The driver reads FEATURES_OK back to learn
/// whether its choice is possible (3.1.1).
void PciTransport::write_status(std::uint8_t value) {
  if (value == 0) {
    reset();
    return;
  }
  const std::uint8_t before = status_;
  std::uint8_t added = value & kDriverBits;
  if (!features_fit()) added &= static_cast<std::uint8_t>(~kFeaturesOk);
  if (((before | added) & kFeaturesOk) == 0) added &= static_cast<std::uint8_t>(~kDriverOk);
  status_ = before | added;
  if ((before & kDriverOk) == 0 && (status_ & kDriverOk) != 0) {
    activate(std::vector<QueuePosition>(registers_.size()));
  }
}

std::uint64_t PciTransport::read_device(std::uint64_t offset, unsigned size) {
  std::array<std::byte, 8> bytes{};
  device_->read_config(static_cast<unsigned>(offset), std::span{bytes}.first(size));
  std::uint64_t value = 0;
  std::memcpy(&value, bytes.data(), sizeof(value));
  return value;
}

void PciTransport::write_device(std::uint64_t offset, unsigned size, std::uint64_t value) {
  std::array<std::byte, 8> bytes{};
  std::memcpy(bytes.data(), &value, sizeof(value));
  device_->write_config(static_cast<unsigned>(offset), std::span{bytes}.first(size));
}

// ---- the device's life --------------------------------------------------------------------------

QueueConfig PciTransport::queue_config(unsigned index) const noexcept {
  const QueueRegisters& queue = registers_[index];
  return {.size = queue.size,
          .max_size = device_->queue_sizes()[index],
          .descriptors = PA{queue.descriptors},
          .available = PA{queue.driver},
          .used = PA{queue.device},
          .indirect = (driver_features_ & kRingIndirectDesc) != 0,
          .event_idx = (driver_features_ & kRingEventIdx) != 0};
}

/// Queues that are enabled have been found valid.
void PciTransport::activate(std::span<const QueuePosition> positions) {
  std::vector<Queue*> queues;
  for (unsigned i = 0; i < registers_.size(); ++i) {
    queues_.push_back(registers_[i].enabled
                          ? std::make_unique<Queue>(memory_, queue_config(i), positions[i])
                          : nullptr);
    queues.push_back(queues_.back().get());
  }
  device_->activate(*this, driver_features_, queues);
}

void PciTransport::reset() {
  device_->reset();
  queues_.clear();
  status_ = 0;
  failed_ = false;
  driver_features_ = 0;
  device_select_ = driver_select_ = 0;
  queue_select_ = 0;
  config_vector_ = kNoVector;
  for (auto& vector : vectors_) vector = kNoVector;
  for (std::size_t i = 0; i < registers_.size(); ++i) {
    registers_[i] = {.size = device_->queue_sizes()[i]};
  }
  (void)read_isr();
}

void PciTransport::notify(std::uint64_t offset) {
  const std::shared_lock lock{lock_};
  const std::uint64_t index = offset / kNotifyMultiplier;
  if ((status_ & kDriverOk) == 0 || failed_.load() || index >= queues_.size()) return;
  if (queues_[index]) device_->notify(static_cast<unsigned>(index));
}

// ---- interrupts ---------------------------------------------------------------------------------

/// 4.1.5.3 and 4.1.5.4: by MSI-X where the driver enabled it, else ISR and INTA#.
void PciTransport::interrupt(std::uint16_t vector, std::uint8_t cause) {
  if (interrupts_.enabled()) {
    interrupts_.signal(vector);
    return;
  }
  const std::lock_guard lock{isr_mutex_};
  isr_ |= cause;
  set_intx(true);
}

void PciTransport::used(unsigned index) noexcept { interrupt(vectors_[index].load(), kQueueCause); }

void PciTransport::config_changed() noexcept {
  ++generation_;
  interrupt(config_vector_.load(), kConfigCause);
}

void PciTransport::failed() noexcept {
  if (!failed_.exchange(true)) config_changed();
}

/// Reading takes the causes and the interrupt back (4.1.4.5).
std::uint64_t PciTransport::read_isr() {
  const std::lock_guard lock{isr_mutex_};
  set_intx(false);
  return std::exchange(isr_, std::uint8_t{0});
}

}  // namespace strata::devices::virtio
