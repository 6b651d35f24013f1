#include "devices/pci_host.hpp"

namespace strata::devices {

namespace {

constexpr std::uint32_t kEnable = 1U << 31;
constexpr std::uint32_t kAddressBits = 0x80FFFFFC;
constexpr std::uint64_t kData = 4;
constexpr std::uint8_t kResetCpu = 1U << 2;

constexpr std::uint32_t ones(unsigned size) noexcept {
  return size >= 4 ? 0xFFFFFFFF : (1U << (8 * size)) - 1;
}

/// The access lies in one aligned double word.
constexpr bool in_dword(std::uint64_t offset, unsigned size) noexcept {
  return (offset & 3) + size <= 4;
}

}  // namespace

Expected<void, BusError> PciHost::attach(Bus& ports) { return ports.add(kPort, 8, *this); }

bool PciHost::add(unsigned device, PciFunction& function) {
  const std::lock_guard lock{mutex_};
  if (device >= functions_.size() || functions_[device] != nullptr) return false;
  functions_[device] = &function;
  return true;
}

PciHost::Selection PciHost::selected() {
  const std::lock_guard lock{mutex_};
  const bool bus_0_function_0 = (address_ >> 16 & 0xFF) == 0 && (address_ >> 8 & 7) == 0;
  if ((address_ & kEnable) == 0 || !bus_0_function_0) return {};
  return {functions_[address_ >> 11 & 0x1F], address_ & 0xFC};
}

std::uint64_t PciHost::read(std::uint64_t offset, unsigned size) {
  if (!in_dword(offset, size)) {
    std::uint64_t value = 0;
    for (unsigned i = 0; i < size && i < 8; ++i) value |= read(offset + i, 1) << (8 * i);
    return value;
  }
  if (offset >= kData) {
    const Selection s = selected();
    if (s.function == nullptr) return ones(size);
    const auto at = s.offset + static_cast<unsigned>(offset - kData);
    return s.function->read_config(at, size) & ones(size);
  }
  const std::lock_guard lock{mutex_};
  if (size == 4) return address_;
  return offset == 1 && size == 1 ? reset_ : ones(size);
}

void PciHost::write(std::uint64_t offset, unsigned size, std::uint64_t value) {
  if (!in_dword(offset, size)) {
    for (unsigned i = 0; i < size && i < 8; ++i) write(offset + i, 1, value >> (8 * i) & 0xFF);
    return;
  }
  if (offset >= kData) {
    const Selection s = selected();
    if (s.function == nullptr) return;
    const auto at = s.offset + static_cast<unsigned>(offset - kData);
    s.function->write_config(at, size, static_cast<std::uint32_t>(value) & ones(size));
  } else if (size == 4) {
    const std::lock_guard lock{mutex_};
    address_ = static_cast<std::uint32_t>(value) & kAddressBits;
  } else if (offset == 1 && size == 1) {
    write_reset(static_cast<std::uint8_t>(value));
  }
}

/// Bit 2 going from 0 to 1 resets; bit 1 says how hard, which makes no difference here.
void PciHost::write_reset(std::uint8_t value) {
  bool reset = false;
  {
    const std::lock_guard lock{mutex_};
    reset = (value & kResetCpu) != 0;
    // After the reset the register is clear again.
    reset_ = reset ? 0 : value & 0x0A;
  }
  if (reset) control_.reset();
}

/// Identity of the 82441FX that every PC guest knows; class 0600h, nothing else in it.
std::uint32_t PciHostBridge::read_config(unsigned offset, unsigned size) {
  std::uint32_t dword = 0;
  if ((offset & 0xFC) == 0x00) dword = 0x12378086;
  if ((offset & 0xFC) == 0x08) dword = 0x06000002;
  return dword >> (8 * (offset & 3)) & ones(size);
}

void PciHostBridge::write_config(unsigned, unsigned, std::uint32_t) {}

}  // namespace strata::devices
