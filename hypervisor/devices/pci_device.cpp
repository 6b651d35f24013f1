#include "devices/pci_device.hpp"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "devices/device_state.hpp"

namespace strata::devices {

namespace {

// Offsets of the header (PCI 3.0, figure 6-1).
constexpr unsigned kVendor = 0x00, kCommand = 0x04, kStatus = 0x06, kRevision = 0x08, kClass = 0x09,
                   kBar0 = 0x10, kSubsystemVendor = 0x2C, kSubsystem = 0x2E, kCapabilities = 0x34,
                   kInterruptLine = 0x3C, kInterruptPin = 0x3D;
constexpr std::uint16_t kMemorySpace = 1U << 1, kBusMaster = 1U << 2, kIntxDisable = 1U << 10;
constexpr std::uint8_t kInterruptStatus = 1U << 3, kHasCapabilities = 1U << 4;
constexpr std::uint8_t kCapabilityMsix = 0x11;

}  // namespace

PciDevice::PciDevice(const PciIdentity& identity, const PciSlot& slot, Device& registers,
                     std::uint32_t bytes, unsigned vectors)
    : slot_{slot}, msix_{vectors, [bus = slot.messages](std::uint64_t address, std::uint32_t data) {
                           (void)bus->deliver_msi(address, data);
                         }} {
  put(kVendor, 2, identity.vendor);
  put(kVendor + 2, 2, identity.device);
  put(kRevision, 1, identity.revision);
  put(kClass, 1, identity.class_code & 0xFF);
  put(kClass + 1, 2, identity.class_code >> 8);
  put(kSubsystemVendor, 2, identity.subsystem_vendor);
  put(kSubsystem, 2, identity.subsystem);
  put(kStatus, 1, kHasCapabilities);
  put(kInterruptPin, 1, 1);  // INTA
  bars_ = {Bar{&registers, bytes, 0}, Bar{&msix_, static_cast<std::uint32_t>(Msix::kBytes), 0}};
  put(kBar0, 4, slot.registers);
  put(kBar0 + 4, 4, slot.msix);
  writable_[kCommand] = kMemorySpace | kBusMaster;
  writable_[kCommand + 1] = kIntxDisable >> 8;
  writable_[kInterruptLine] = 0xFF;
  for (unsigned i = 0; i < kBars; ++i) {
    const std::uint32_t bits = ~(bars_[i].bytes - 1);
    for (unsigned b = 0; b < 4; ++b) {
      writable_[kBar0 + 4 * i + b] = static_cast<std::uint8_t>(bits >> (8 * b));
    }
  }
  // Table and pending bits are both in BAR 1.
  const std::uint16_t size = msix_.control();
  const std::array<std::uint8_t, 10> body{static_cast<std::uint8_t>(size),
                                          static_cast<std::uint8_t>(size >> 8),
                                          Msix::kTableOffset | 1,
                                          0,
                                          0,
                                          0,
                                          (Msix::kPendingOffset & 0xFF) | 1,
                                          Msix::kPendingOffset >> 8,
                                          0,
                                          0};
  msix_capability_ = add_capability(kCapabilityMsix, body);
}

PciDevice::~PciDevice() {
  for (const Bar& bar : bars_) {
    if (bar.mapped != 0) (void)slot_.mmio->remove(bar.mapped);
  }
}

unsigned PciDevice::add_capability(std::uint8_t id, std::span<const std::uint8_t> body) {
  const unsigned at = next_capability_;
  if (at + 2 + body.size() > space_.size()) std::abort();  // our own list is too long
  space_[last_link_] = static_cast<std::uint8_t>(at);
  last_link_ = at + 1;
  space_[at] = id;
  std::ranges::copy(body, space_.begin() + at + 2);
  next_capability_ = static_cast<unsigned>(at + 2 + body.size() + 3) & ~3U;
  return at;
}

void PciDevice::allow_writes(unsigned offset, unsigned size) {
  std::fill_n(writable_.begin() + offset, size, std::uint8_t{0xFF});
}

std::uint32_t PciDevice::get(unsigned offset, unsigned size) const {
  std::uint32_t value = 0;
  for (unsigned i = 0; i < size; ++i) value |= std::uint32_t{space_[offset + i]} << (8 * i);
  return value;
}

void PciDevice::put(unsigned offset, unsigned size, std::uint32_t value) {
  for (unsigned i = 0; i < size; ++i) {
    space_[offset + i] = static_cast<std::uint8_t>(value >> (8 * i));
  }
}

std::uint32_t PciDevice::stored(unsigned offset, unsigned size) {
  const std::lock_guard lock{mutex_};
  return get(offset, size);
}

std::uint32_t PciDevice::read_window(unsigned /*offset*/, unsigned /*size*/, std::uint32_t stored) {
  return stored;
}
void PciDevice::write_window(unsigned /*offset*/, unsigned /*size*/, std::uint32_t /*value*/) {}

std::uint32_t PciDevice::read_config(unsigned offset, unsigned size) {
  std::uint32_t value = 0;
  {
    const std::lock_guard lock{mutex_};
    if (offset + size > space_.size()) return ~0U;
    put(msix_capability_ + 2, 2, msix_.control());
    put(kStatus, 1, static_cast<std::uint32_t>(kHasCapabilities | (intx_ ? kInterruptStatus : 0)));
    value = get(offset, size);
  }
  return read_window(offset, size, value);
}

void PciDevice::write_config(unsigned offset, unsigned size, std::uint32_t value) {
  {
    const std::lock_guard lock{mutex_};
    if (offset + size > space_.size()) return;
    for (unsigned i = 0; i < size; ++i) {
      const auto byte = static_cast<std::uint8_t>(value >> (8 * i));
      std::uint8_t& to = space_[offset + i];
      const std::uint8_t mask = writable_[offset + i];
      to = static_cast<std::uint8_t>((to & ~mask) | (byte & mask));
    }
    // Of Message Control only the upper byte can be written.
    const unsigned high = msix_capability_ + 3;
    if (offset <= high && high < offset + size) {
      msix_.set_control(static_cast<std::uint16_t>((value >> (8 * (high - offset)) & 0xFF) << 8));
    }
    map_bars();
    update_intx();
  }
  write_window(offset, size, value);
}

/// Where each BAR answers, by its register and the command register.
void PciDevice::map_bars() {
  const bool on = (get(kCommand, 2) & kMemorySpace) != 0;
  for (unsigned i = 0; i < kBars; ++i) {
    Bar& bar = bars_[i];
    const std::uint32_t base = get(kBar0 + 4 * i, 4);
    // All ones are how its size is asked for; nothing can be there.
    const std::uint32_t wanted = on && base != 0 && base != ~(bar.bytes - 1) ? base : 0;
    if (wanted == bar.mapped) continue;
    if (bar.mapped != 0) (void)slot_.mmio->remove(bar.mapped);
    bar.mapped = 0;
    if (wanted != 0 && slot_.mmio->add(wanted, bar.bytes, *bar.target)) bar.mapped = wanted;
  }
}

void PciDevice::update_intx() {
  const bool level = intx_ && (get(kCommand, 2) & kIntxDisable) == 0 && !msix_.enabled();
  if (std::exchange(asserted_, level) != level) slot_.intx->set(level);
}

void PciDevice::set_intx(bool level) {
  const std::lock_guard lock{mutex_};
  intx_ = level;
  update_intx();
}

bool PciDevice::bus_master() {
  const std::lock_guard lock{mutex_};
  return (get(kCommand, 2) & kBusMaster) != 0;
}

template <class Archive>
void PciDevice::fields(Archive& a) {
  std::array<std::uint8_t, 256> kept = space_;
  a("space", kept);
  a("intx", intx_);
  a("asserted", asserted_);
  if constexpr (Archive::kReads) {
    for (std::size_t i = 0; i < kept.size(); ++i) {
      const std::uint8_t mask = writable_[i];
      space_[i] = static_cast<std::uint8_t>((space_[i] & ~mask) | (kept[i] & mask));
    }
  }
}

nlohmann::json PciDevice::save_pci() {
  const std::lock_guard lock{mutex_};
  StateWriter writer;
  fields(writer);
  nlohmann::json state = std::move(writer).take();
  state["msix"] = msix_.save();
  return state;
}

StateResult PciDevice::load_pci(const nlohmann::json& state) {
  const std::lock_guard lock{mutex_};
  StateReader reader{state, "pci device"};
  fields(reader);
  if (auto done = reader.result(); !done) return done;
  if (!state.contains("msix")) return Unexpected{StateError{"pci device.msix is missing"}};
  if (auto done = msix_.load(state["msix"]); !done) return done;
  map_bars();
  return {};
}

}  // namespace strata::devices
