#include "devices/pci/pci_device.hpp"

#include <bit>
#include <cstdlib>
#include <utility>

#include "devices/device_state.hpp"

namespace strata::devices::pci {

namespace {

// Offsets of the type 0 header (6.1).
constexpr unsigned kId = 0x00, kCommand = 0x04, kStatus = 0x06, kClass = 0x08, kBar0 = 0x10,
                   kSubsystem = 0x2C, kCapabilities = 0x34, kInterruptLine = 0x3C,
                   kInterruptPin = 0x3D;
// Command (6.2.2) and status (6.2.3).
constexpr std::uint16_t kMemory = 1U << 1, kBusMaster = 1U << 2, kIntxDisable = 1U << 10;
constexpr std::uint8_t kInterruptStatus = 1U << 3, kHasCapabilities = 1U << 4;
// MSI-X message control (6.8.2.3).
constexpr std::uint8_t kMsixId = 0x11;
constexpr std::uint16_t kMsixEnable = 1U << 15, kMsixMask = 1U << 14;

}  // namespace

PciDevice::PciDevice(const Identity& identity, std::span<const Bar> bars, Bus& mmio, IrqLine& intx)
    : mmio_{mmio}, intx_{intx} {
  if (bars.size() > 6) std::abort();
  set_word(kId, std::uint32_t{identity.device} << 16 | identity.vendor);
  set_word(kClass, identity.class_code << 8 | identity.revision);
  set_word(kSubsystem, std::uint32_t{identity.subsystem} << 16 | identity.subsystem_vendor);
  bytes_[kInterruptPin] = 1;  // INTA#
  writable_[kInterruptLine] = 0xFF;
  constexpr std::uint16_t kWritable = kMemory | kBusMaster | kIntxDisable;
  writable_[kCommand] = kWritable & 0xFF;
  writable_[kCommand + 1] = kWritable >> 8;
  for (const Bar& bar : bars) {
    if (!std::has_single_bit(bar.bytes) || bar.bytes < 16 || bar.device == nullptr) std::abort();
    const auto at = kBar0 + 4 * static_cast<unsigned>(bars_.size());
    // The low bits stay 0: 32-bit memory, not prefetchable (6.2.5.1).
    const std::uint32_t mask = ~(bar.bytes - 1);
    for (unsigned i = 0; i < 4; ++i) writable_[at + i] = static_cast<std::uint8_t>(mask >> (8 * i));
    bars_.push_back({bar, std::nullopt});
  }
}

PciDevice::~PciDevice() { unmap(); }

void PciDevice::unmap() {
  const std::lock_guard lock{mutex_};
  for (Placed& placed : bars_) {
    if (placed.at) mmio_.remove(*placed.at);
    placed.at.reset();
  }
}

std::uint32_t PciDevice::word(unsigned offset) const noexcept {
  std::uint32_t value = 0;
  for (unsigned i = 0; i < 4; ++i) value |= std::uint32_t{bytes_[offset + i]} << (8 * i);
  return value;
}

void PciDevice::set_word(unsigned offset, std::uint32_t value) noexcept {
  for (unsigned i = 0; i < 4; ++i) bytes_[offset + i] = static_cast<std::uint8_t>(value >> (8 * i));
}

std::uint16_t PciDevice::command() const noexcept {
  return static_cast<std::uint16_t>(word(kCommand));
}

unsigned PciDevice::add_capability(std::uint8_t id, std::span<const std::uint8_t> body) {
  const unsigned at = room_;
  if (at + 2 + body.size() > bytes_.size()) std::abort();
  const auto link = static_cast<std::uint8_t>(at);
  bytes_[last_capability_ == 0 ? kCapabilities : last_capability_ + 1] = link;
  last_capability_ = at;
  bytes_[kStatus] |= kHasCapabilities;
  bytes_[at] = id;
  for (std::size_t i = 0; i < body.size(); ++i) bytes_[at + 2 + i] = body[i];
  room_ = (at + 2 + static_cast<unsigned>(body.size()) + 3) & ~3U;
  return at;
}

void PciDevice::make_writable(unsigned offset, unsigned bytes) {
  for (unsigned i = 0; i < bytes; ++i) writable_.at(offset + i) = 0xFF;
}

void PciDevice::add_msix(Msix& msix, unsigned bar) {
  std::array<std::uint8_t, 10> body{};
  body[0] = static_cast<std::uint8_t>(msix.vectors() - 1);
  body[2] = static_cast<std::uint8_t>(bar);  // the table's offset is 0
  body[6] = static_cast<std::uint8_t>(Msix::kPendingBase | bar);
  body[7] = static_cast<std::uint8_t>(Msix::kPendingBase >> 8);
  msix_ = &msix;
  msix_at_ = add_capability(kMsixId, body);
  writable_[msix_at_ + 3] = (kMsixEnable | kMsixMask) >> 8;
}

std::uint64_t PciDevice::assign(std::uint64_t base) {
  const std::lock_guard lock{mutex_};
  for (std::size_t i = 0; i < bars_.size(); ++i) {
    const std::uint64_t bytes = bars_[i].bar.bytes;
    base = (base + bytes - 1) & ~(bytes - 1);
    set_word(kBar0 + 4 * static_cast<unsigned>(i), static_cast<std::uint32_t>(base));
    base += bytes;
  }
  bytes_[kCommand] |= kMemory;
  update();
  return base;
}

std::uint32_t PciDevice::config_word(unsigned offset) {
  const std::lock_guard lock{mutex_};
  return word(offset);
}

std::uint32_t PciDevice::read_config(unsigned offset, unsigned size) {
  if (const auto value = read_register(offset, size)) return *value;
  const std::lock_guard lock{mutex_};
  std::uint32_t value = 0;
  for (unsigned i = 0; i < size; ++i) value |= std::uint32_t{bytes_[offset + i]} << (8 * i);
  return value;
}

void PciDevice::write_config(unsigned offset, unsigned size, std::uint32_t value) {
  if (write_register(offset, size, value)) return;
  const std::lock_guard lock{mutex_};
  for (unsigned i = 0; i < size; ++i) {
    std::uint8_t& byte = bytes_[offset + i];
    const auto in = static_cast<std::uint8_t>(value >> (8 * i));
    byte =
        static_cast<std::uint8_t>((byte & ~writable_[offset + i]) | (in & writable_[offset + i]));
  }
  update();
}

void PciDevice::update() {
  update_bars();
  update_interrupts();
}

void PciDevice::update_bars() {
  const bool enabled = (command() & kMemory) != 0;
  for (std::size_t i = 0; i < bars_.size(); ++i) {
    Placed& placed = bars_[i];
    const std::uint64_t base = word(kBar0 + 4 * static_cast<unsigned>(i));
    if (placed.at && (!enabled || *placed.at != base)) {
      mmio_.remove(*placed.at);
      placed.at.reset();
    }
    if (!enabled || placed.at) continue;
    if (mmio_.add(base, placed.bar.bytes, *placed.bar.device)) placed.at = base;
  }
}

void PciDevice::update_interrupts() {
  bool msix_enabled = false;
  if (msix_ != nullptr) {
    const auto control = static_cast<std::uint16_t>(word(msix_at_) >> 16);
    msix_enabled = (control & kMsixEnable) != 0;
    msix_->control(msix_enabled, (control & kMsixMask) != 0);
  }
  // The status bit says what is wanted whether or not it may be (6.2.3).
  bytes_[kStatus] = static_cast<std::uint8_t>((bytes_[kStatus] & ~kInterruptStatus) |
                                              (intx_wanted_ ? kInterruptStatus : 0));
  intx_.set(intx_wanted_ && !msix_enabled && (command() & kIntxDisable) == 0);
}

void PciDevice::set_intx(bool level) {
  const std::lock_guard lock{mutex_};
  if (intx_wanted_ == level) return;
  intx_wanted_ = level;
  update_interrupts();
}

// ---- saved VMs ----------------------------------------------------------------------------------

template <class Archive>
void PciDevice::fields(Archive& a) {
  a("bytes", bytes_);
  a("intx", intx_wanted_);
}

nlohmann::json PciDevice::save_pci() {
  const std::lock_guard lock{mutex_};
  StateWriter writer;
  fields(writer);
  nlohmann::json state = std::move(writer).take();
  if (msix_ != nullptr) state["msix"] = msix_->save();
  return state;
}

/// Of the bytes only those count that a driver can write: the others are the function's.
StateResult PciDevice::load_pci(const nlohmann::json& state) {
  const std::lock_guard lock{mutex_};
  const auto own = bytes_;
  StateReader reader{state, "pci"};
  fields(reader);
  if (!reader.ok()) return reader.result();
  for (std::size_t i = 0; i < bytes_.size(); ++i) {
    bytes_[i] = static_cast<std::uint8_t>((own[i] & ~writable_[i]) | (bytes_[i] & writable_[i]));
  }
  if (msix_ != nullptr) {
    if (auto done = msix_->load(state.value("msix", nlohmann::json{})); !done) return done;
  }
  update();
  return {};
}

}  // namespace strata::devices::pci
