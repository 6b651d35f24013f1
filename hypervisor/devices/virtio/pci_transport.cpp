#include "devices/virtio/pci_transport.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "devices/device_state.hpp"

namespace strata::devices::virtio {

namespace {

constexpr std::uint16_t kVirtioVendor = 0x1AF4, kModernDevices = 0x1040;

// Where the parts are in BAR 0, each 4 KiB.
constexpr std::uint32_t kCommon = 0x0000, kIsr = 0x1000, kConfig = 0x2000, kNotify = 0x3000,
                        kPartBytes = 0x1000;
constexpr std::uint32_t kNotifyMultiplier = 4;

// The common configuration (virtio 1.2, 4.1.4.3).
enum Common : std::uint64_t {
  kDeviceFeatureSelect = 0,
  kDeviceFeature = 4,
  kDriverFeatureSelect = 8,
  kDriverFeature = 12,
  kConfigVector = 16,
  kNumQueues = 18,
  kDeviceStatus = 20,
  kGeneration = 21,
  kQueueSelect = 22,
  kQueueSize = 24,
  kQueueVector = 26,
  kQueueEnable = 28,
  kQueueNotifyOff = 30,
  kQueueDescriptors = 32,
  kQueueDriver = 40,
  kQueueDevice = 48,
};
constexpr std::uint64_t kCommonBytes = 56;

// Device status (2.1).
constexpr std::uint8_t kDriverOk = 4, kFeaturesOk = 8, kNeedsReset = 0x40;
constexpr std::uint8_t kIsrQueue = 1, kIsrConfig = 2;

// Capabilities (4.1.4).
constexpr std::uint8_t kVendorCapability = 0x09;
constexpr std::uint8_t kTypeCommon = 1, kTypeNotify = 2, kTypeIsr = 3, kTypeDevice = 4,
                       kTypeWindow = 5;
constexpr unsigned kCapabilityBytes = 16, kWindowDataOffset = 16;

PciIdentity identity_of(const Device& device) {
  const auto id = static_cast<std::uint16_t>(kModernDevices + device.traits().type);
  return {.vendor = kVirtioVendor,
          .device = id,
          .revision = 1,
          .class_code = device.traits().class_code,
          .subsystem_vendor = kVirtioVendor,
          .subsystem = id};
}

/// One for each queue, one for changes of the configuration.
unsigned vectors_of(const Device& device) {
  return static_cast<unsigned>(device.traits().queue_sizes.size()) + 1;
}

constexpr std::uint64_t with_half(std::uint64_t whole, bool upper, std::uint64_t half) noexcept {
  const unsigned shift = upper ? 32 : 0;
  return (whole & ~(0xFFFFFFFFULL << shift)) | (half & 0xFFFFFFFF) << shift;
}

/// A 64-bit register that is written as a whole or by halves.
void write_wide(std::uint64_t& to, std::uint64_t offset, unsigned size, std::uint64_t value) {
  if (size == 8) {
    to = value;
  } else if (size == 4) {
    to = with_half(to, (offset & 4) != 0, value);
  }
}

}  // namespace

PciTransport::PciTransport(virtio::Device& device, machine::GuestMemory& memory,
                           const PciSlot& slot)
    : PciDevice{identity_of(device), slot, registers_, kRegisterBytes, vectors_of(device)},
      device_{device},
      memory_{memory},
      registers_{*this} {
  for (const std::uint16_t size : device.traits().queue_sizes) {
    queues_.push_back(std::make_unique<QueueState>(memory));
    queues_.back()->wanted.size = size;
  }
  add_capabilities();
}

PciTransport::~PciTransport() {
  const std::lock_guard lock{mutex_};
  reset_device();
}

void PciTransport::add_capabilities() {
  const auto add = [this](std::uint8_t type, std::uint32_t offset, std::uint32_t length,
                          std::uint32_t extra, unsigned extra_bytes) {
    // Length, type, BAR, id, padding of two, offset, length, and what the type adds.
    std::array<std::uint8_t, 18> body{static_cast<std::uint8_t>(kCapabilityBytes + extra_bytes),
                                      type};
    std::memcpy(&body[6], &offset, 4);
    std::memcpy(&body[10], &length, 4);
    std::memcpy(&body[14], &extra, 4);
    return add_capability(kVendorCapability, std::span{body}.first(14 + extra_bytes));
  };
  add(kTypeCommon, kCommon, kCommonBytes, 0, 0);
  add(kTypeIsr, kIsr, 4, 0, 0);
  add(kTypeDevice, kConfig, kPartBytes, 0, 0);
  add(kTypeNotify, kNotify, kPartBytes, kNotifyMultiplier, 4);
  window_capability_ = add(kTypeWindow, 0, 0, 0, 4);
  allow_writes(window_capability_ + 4, 1);   // BAR
  allow_writes(window_capability_ + 8, 12);  // offset, length, data
}

// ---- the window in configuration space (4.1.4.9) ------------------------------------------------

/// The driver's access through the window is one that BAR 0 can answer.
bool PciTransport::aims_at_registers(Window& window) {
  window.bar = stored(window_capability_ + 4, 1);
  window.offset = stored(window_capability_ + 8, 4);
  window.length = stored(window_capability_ + 12, 4);
  const std::uint32_t n = window.length;
  return window.bar == 0 && (n == 1 || n == 2 || n == 4) && window.offset % n == 0 &&
         window.offset < kRegisterBytes;
}

std::uint32_t PciTransport::read_window(unsigned offset, unsigned size, std::uint32_t stored) {
  Window window;
  if (offset != window_capability_ + kWindowDataOffset || !aims_at_registers(window)) return stored;
  (void)size;
  return static_cast<std::uint32_t>(registers_.read(window.offset, window.length));
}

void PciTransport::write_window(unsigned offset, unsigned size, std::uint32_t value) {
  Window window;
  if (offset != window_capability_ + kWindowDataOffset || !aims_at_registers(window)) return;
  if (size >= window.length) registers_.write(window.offset, window.length, value);
}

// ---- registers ----------------------------------------------------------------------------------

std::uint64_t PciTransport::Registers::read(std::uint64_t offset, unsigned size) {
  const std::uint64_t part = offset & ~std::uint64_t{kPartBytes - 1}, at = offset - part;
  std::array<std::byte, 8> bytes{};
  const auto out = std::span{bytes}.first(std::min(size, 8U));
  if (part == kCommon) {
    // Wider and narrower reads than the registers': byte by byte of them.
    for (unsigned i = 0; i < out.size(); ++i) {
      const std::uint64_t word = (at + i) & ~3ULL;
      const std::uint64_t value = word < kCommonBytes ? owner_.read_common(word) : 0;
      out[i] = static_cast<std::byte>(value >> (8 * ((at + i) & 3)));
    }
  } else if (part == kIsr) {
    out[0] = static_cast<std::byte>(at == 0 ? owner_.read_isr() : 0);
  } else if (part == kConfig) {
    owner_.device_.read_config(at, out);
  }
  std::uint64_t value = 0;
  std::memcpy(&value, bytes.data(), 8);
  return value;
}

void PciTransport::Registers::write(std::uint64_t offset, unsigned size, std::uint64_t value) {
  const std::uint64_t part = offset & ~std::uint64_t{kPartBytes - 1}, at = offset - part;
  if (part == kCommon) {
    owner_.write_common(at, size, value);
  } else if (part == kConfig) {
    std::array<std::byte, 8> bytes{};
    std::memcpy(bytes.data(), &value, 8);
    owner_.device_.write_config(at, std::span{bytes}.first(std::min(size, 8U)));
  } else if (part == kNotify) {
    owner_.notify(at / kNotifyMultiplier);
  }
}

std::uint64_t PciTransport::offered() const noexcept {
  return device_.traits().features | kVersion1 | kRingIndirectDesc | kRingEventIdx;
}

PciTransport::QueueState* PciTransport::selected() noexcept {
  return selected_ < queues_.size() ? queues_[selected_].get() : nullptr;
}

/// The aligned double word at `offset`.
std::uint64_t PciTransport::read_common(std::uint64_t offset) {
  const std::lock_guard lock{mutex_};
  QueueState* const q = selected();
  const QueueLayout layout = q != nullptr ? q->wanted : QueueLayout{};
  const auto pair = [](std::uint64_t low, std::uint64_t high) { return low | high << 16; };
  switch (offset) {
    case kDeviceFeatureSelect:
      return feature_half_;
    case kDeviceFeature:
      return feature_half_ < 2 ? offered() >> (32 * feature_half_) : 0;
    case kDriverFeatureSelect:
      return driver_half_;
    case kDriverFeature:
      return driver_half_ < 2 ? driver_features_ >> (32 * driver_half_) : 0;
    case kConfigVector:
      return pair(config_vector_.load(), queues_.size());
    case kDeviceStatus:
      return pair(status_.load() | std::uint64_t{generation_.load()} << 8, selected_);
    case kQueueSize:
      return pair(layout.size, q != nullptr ? q->vector.load() : kNoVector);
    case kQueueEnable:
      return pair(q != nullptr && q->enabled, q != nullptr ? selected_ : 0U);
    case kQueueDescriptors:
    case kQueueDescriptors + 4:
      return layout.descriptors >> (8 * (offset & 4));
    case kQueueDriver:
    case kQueueDriver + 4:
      return layout.available >> (8 * (offset & 4));
    case kQueueDevice:
    case kQueueDevice + 4:
      return layout.used >> (8 * (offset & 4));
    default:
      return 0;
  }
}

std::uint16_t PciTransport::usable_vector(std::uint64_t value) noexcept {
  // A vector that is not there reads back as none (4.1.5.1.2.2).
  return value < msix().vectors() ? static_cast<std::uint16_t>(value) : kNoVector;
}

/// Drivers access a register with its own width, 64-bit ones also by halves (4.1.3.1).
void PciTransport::write_common(std::uint64_t offset, unsigned size, std::uint64_t value) {
  const std::lock_guard lock{mutex_};
  switch (offset) {
    case kDeviceFeatureSelect:
      feature_half_ = static_cast<std::uint32_t>(value);
      break;
    case kDriverFeatureSelect:
      driver_half_ = static_cast<std::uint32_t>(value);
      break;
    case kDriverFeature:
      if (driver_half_ < 2 && (status_ & kFeaturesOk) == 0) {
        driver_features_ = with_half(driver_features_, driver_half_ == 1, value);
      }
      break;
    case kConfigVector:
      config_vector_ = usable_vector(value & 0xFFFF);
      break;
    case kDeviceStatus:
      write_status(static_cast<std::uint8_t>(value));
      break;
    case kQueueSelect:
      selected_ = static_cast<std::uint16_t>(value);
      break;
    default:
      write_queue(offset, size, value);
  }
}

void PciTransport::write_queue(std::uint64_t offset, unsigned size, std::uint64_t value) {
  QueueState* const q = selected();
  if (q == nullptr) return;
  if (offset == kQueueVector) {
    q->vector = usable_vector(value & 0xFFFF);
    return;
  }
  if (q->enabled) return;  // not to be changed any more (4.1.4.3.2)
  switch (offset) {
    case kQueueSize: {
      const std::uint16_t most = device_.traits().queue_sizes[selected_];
      if ((value & 0xFFFF) <= most) q->wanted.size = static_cast<std::uint16_t>(value);
      break;
    }
    case kQueueEnable:
      if ((value & 0xFFFF) != 1) break;
      q->enabled = Queue::valid(q->wanted);
      if (!q->enabled) needs_reset();
      break;
    case kQueueDescriptors:
    case kQueueDescriptors + 4:
      write_wide(q->wanted.descriptors, offset, size, value);
      break;
    case kQueueDriver:
    case kQueueDriver + 4:
      write_wide(q->wanted.available, offset, size, value);
      break;
    case kQueueDevice:
    case kQueueDevice + 4:
      write_wide(q->wanted.used, offset, size, value);
      break;
    default:
      break;
  }
}

/// The driver sets bits one after the other, and 0 to reset (2.1).
void PciTransport::write_status(std::uint8_t value) {
  if (value == 0) return reset_device();
  const std::uint8_t before = status_.load();
  auto added = static_cast<std::uint8_t>(value & ~before & ~kNeedsReset);
  if ((added & kFeaturesOk) != 0) {
    const bool fine = (driver_features_ & ~offered()) == 0 && (driver_features_ & kVersion1) != 0;
    if (!fine) added = static_cast<std::uint8_t>(added & ~kFeaturesOk);
  }
  const bool starts = (added & kDriverOk) != 0;
  if (starts && ((before | added) & kFeaturesOk) == 0) {
    added = static_cast<std::uint8_t>(added & ~kDriverOk);
    needs_reset();
  } else if (starts && !activate()) {
    needs_reset();
  }
  status_.fetch_or(added);
}

/// False: a queue is not where memory can be.
bool PciTransport::activate() {
  for (const auto& q : queues_) {
    if (q->enabled && !q->queue.enable(q->wanted, driver_features_)) return false;
  }
  device_.activate(*this, driver_features_);
  active_ = true;
  return true;
}

void PciTransport::reset_device() {
  if (std::exchange(active_, false)) device_.reset();
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    QueueState& q = *queues_[i];
    q.queue.disable();
    q.wanted = {.size = device_.traits().queue_sizes[i]};
    q.enabled = false;
    q.vector = kNoVector;
  }
  config_vector_ = kNoVector;
  driver_features_ = 0;
  feature_half_ = driver_half_ = 0;
  selected_ = 0;
  status_ = 0;
  const std::lock_guard lock{isr_lock_};
  isr_ = 0;
  set_intx(false);
}

void PciTransport::notify(std::uint64_t index) {
  if (index >= queues_.size() || (status_ & kDriverOk) == 0 || (status_ & kNeedsReset) != 0) return;
  if (bus_master()) device_.notify(static_cast<unsigned>(index));
}

// ---- interrupts ---------------------------------------------------------------------------------

std::uint8_t PciTransport::read_isr() {
  const std::lock_guard lock{isr_lock_};
  set_intx(false);
  return std::exchange(isr_, std::uint8_t{0});
}

void PciTransport::raise(std::uint16_t vector, std::uint8_t isr_bit) {
  if (msix().enabled()) {
    if (vector != kNoVector) msix().raise(vector);
    return;
  }
  const std::lock_guard lock{isr_lock_};
  isr_ |= isr_bit;
  set_intx(true);
}

void PciTransport::interrupt(unsigned queue) { raise(queues_[queue]->vector.load(), kIsrQueue); }

void PciTransport::config_changed() {
  generation_.fetch_add(1);
  raise(config_vector_.load(), kIsrConfig);
}

void PciTransport::needs_reset() {
  const std::uint8_t before = status_.fetch_or(kNeedsReset);
  // Only a driver that is at work is told (2.1.2).
  if ((before & (kDriverOk | kNeedsReset)) == kDriverOk) raise(config_vector_.load(), kIsrConfig);
}

// ---- saved state --------------------------------------------------------------------------------

template <class Archive>
void PciTransport::fields(Archive& a) {
  const auto through_copy = [&a](const char* key, auto& atomic) {
    auto copy = atomic.load();
    a(key, copy);
    atomic = copy;
  };
  through_copy("status", status_);
  through_copy("config_vector", config_vector_);
  through_copy("generation", generation_);
  a("isr", isr_);
  a("feature_half", feature_half_);
  a("driver_half", driver_half_);
  a("driver_features", driver_features_);
  a("selected", selected_);
  a("active", active_);
}

namespace {

/// Of one queue: how the driver set it up, and how far it has come.
struct SavedQueue {
  QueueLayout& wanted;
  bool& enabled;
  std::uint16_t& vector;
  Queue& queue;
  template <class Archive>
  void fields(Archive& a) {
    a("wanted_size", wanted.size);
    a("wanted_descriptors", wanted.descriptors);
    a("wanted_available", wanted.available);
    a("wanted_used", wanted.used);
    a("enabled", enabled);
    a("vector", vector);
    a.part("queue", queue);
  }
};

}  // namespace

nlohmann::json PciTransport::save() {
  device_.quiesce();
  const std::lock_guard lock{mutex_};
  StateWriter writer;
  {
    const std::lock_guard isr{isr_lock_};
    fields(writer);
  }
  nlohmann::json state = std::move(writer).take();
  state["queues"] = nlohmann::json::array();
  for (const auto& q : queues_) {
    StateWriter one;
    std::uint16_t vector = q->vector.load();
    SavedQueue{q->wanted, q->enabled, vector, q->queue}.fields(one);
    state["queues"].push_back(std::move(one).take());
  }
  state["pci"] = save_pci();
  state["device"] = device_.save();
  return state;
}

StateResult PciTransport::load(const nlohmann::json& state) {
  const std::string where{device_.name()};
  for (const char* part : {"queues", "pci", "device"}) {
    if (!state.is_object() || !state.contains(part)) {
      return Unexpected{StateError{where + "." + part + " is missing"}};
    }
  }
  const std::lock_guard lock{mutex_};
  StateReader reader{state, where};
  fields(reader);
  reader.require("driver_features", (driver_features_ & ~offered()) == 0);
  reader.require("queues", state["queues"].is_array() && state["queues"].size() == queues_.size());
  if (auto done = reader.result(); !done) return done;
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    QueueState& q = *queues_[i];
    StateReader one{state["queues"][i], where + ".queue"};
    std::uint16_t vector = kNoVector;
    SavedQueue{q.wanted, q.enabled, vector, q.queue}.fields(one);
    one.require("wanted_size", q.wanted.size <= device_.traits().queue_sizes[i]);
    if (auto done = one.result(); !done) return done;
    q.vector = usable_vector(vector);
  }
  if (auto done = load_pci(state["pci"]); !done) return done;
  if (auto done = device_.load(state["device"]); !done) return done;
  if (active_) device_.activate(*this, driver_features_);
  return {};
}

}  // namespace strata::devices::virtio
