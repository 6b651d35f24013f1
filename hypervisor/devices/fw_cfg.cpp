#include "devices/fw_cfg.hpp"

namespace strata::devices {

namespace {
constexpr std::uint16_t kSignature = 0x00, kId = 0x01, kRamSize = 0x03, kCpus = 0x05,
                        kMaxCpus = 0x0F;
constexpr std::uint32_t kTraditional = 1;  // feature bit 0: selector and data port
}  // namespace

template <class T>
void FwCfg::put(std::uint16_t key, T value) {
  std::vector<std::uint8_t>& item = items_[key];
  for (unsigned i = 0; i < sizeof(T); ++i) {
    item.push_back(static_cast<std::uint8_t>(std::uint64_t{value} >> (8 * i)));
  }
}

FwCfg::FwCfg(const Config& config) {
  put(kSignature, std::uint32_t{0x554D4551});  // "QEMU", low byte first
  put(kId, kTraditional);
  put(kRamSize, config.ram_bytes);
  put(kCpus, config.cpus);
  put(kMaxCpus, config.cpus);
}

Expected<void, BusError> FwCfg::attach(Bus& ports) { return ports.add(kPort, kPorts, *this); }

std::uint64_t FwCfg::read(std::uint64_t offset, unsigned size) {
  if (offset != 1 || size != 1) return 0;
  const std::lock_guard guard{mutex_};
  const auto item = items_.find(selected_);
  if (item == items_.end() || next_ >= item->second.size()) return 0;
  return item->second[next_++];
}

void FwCfg::write(std::uint64_t offset, unsigned size, std::uint64_t value) {
  if (offset != 0 || size != 2) return;  // the data port is read-only since QEMU 2.4
  const std::lock_guard guard{mutex_};
  selected_ = static_cast<std::uint16_t>(value);
  next_ = 0;
}

}  // namespace strata::devices
