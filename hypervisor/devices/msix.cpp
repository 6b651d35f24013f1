#include "devices/msix.hpp"

#include <algorithm>
#include <utility>

#include "devices/device_state.hpp"

namespace strata::devices {

namespace {

constexpr std::uint64_t kEntryBytes = 16;
constexpr std::uint32_t kMasked = 1U << 0;

}  // namespace

Msix::Msix(unsigned vectors, Send send)
    : send_{std::move(send)}, entries_(std::clamp(vectors, 1U, kMaxVectors)) {}

std::uint16_t Msix::control() {
  const std::lock_guard lock{mutex_};
  return static_cast<std::uint16_t>(control_ | (entries_.size() - 1));
}

void Msix::set_control(std::uint16_t value) {
  const std::lock_guard lock{mutex_};
  control_ = value & (kEnable | kMaskAll);
  send_pending();
}

bool Msix::enabled() {
  const std::lock_guard lock{mutex_};
  return (control_ & kEnable) != 0;
}

void Msix::reset() {
  const std::lock_guard lock{mutex_};
  std::ranges::fill(entries_, Entry{});
  control_ = 0;
}

bool Msix::masked(const Entry& entry) const noexcept {
  return (control_ & kMaskAll) != 0 || (entry.control & kMasked) != 0;
}

void Msix::raise(unsigned vector) {
  const std::lock_guard lock{mutex_};
  if ((control_ & kEnable) == 0 || vector >= entries_.size()) return;
  Entry& entry = entries_[vector];
  if (masked(entry)) {
    entry.pending = true;
  } else {
    send_(entry.address, entry.data);
  }
}

/// What was masked when it came is sent when it no longer is (PCI 3.0, 6.8.3.4).
void Msix::send_pending() {
  if ((control_ & kEnable) == 0) return;
  for (Entry& entry : entries_) {
    if (!entry.pending || masked(entry)) continue;
    entry.pending = false;
    send_(entry.address, entry.data);
  }
}

std::uint32_t Msix::read_dword(std::uint64_t offset) const {
  if (offset >= kPendingOffset) {
    const std::size_t first = (offset - kPendingOffset) * 8;
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < 32 && first + i < entries_.size(); ++i) {
      bits |= std::uint32_t{entries_[first + i].pending} << i;
    }
    return bits;
  }
  const std::size_t index = offset / kEntryBytes;
  if (index >= entries_.size()) return 0;
  const Entry& entry = entries_[index];
  switch (offset % kEntryBytes) {
    case 0:
      return static_cast<std::uint32_t>(entry.address);
    case 4:
      return static_cast<std::uint32_t>(entry.address >> 32);
    case 8:
      return entry.data;
    default:
      return entry.control;
  }
}

void Msix::write_dword(std::uint64_t offset, std::uint32_t value) {
  const std::size_t index = offset / kEntryBytes;
  if (offset >= kPendingOffset || index >= entries_.size()) return;
  Entry& entry = entries_[index];
  switch (offset % kEntryBytes) {
    case 0:
      entry.address = (entry.address & ~0xFFFFFFFFULL) | (value & ~3U);
      break;
    case 4:
      entry.address = (entry.address & 0xFFFFFFFFULL) | std::uint64_t{value} << 32;
      break;
    case 8:
      entry.data = value;
      break;
    default:
      entry.control = value & kMasked;
      send_pending();
  }
}

/// Double words and quad words, aligned; software must not use others (PCI 3.0, 6.8.2).
std::uint64_t Msix::read(std::uint64_t offset, unsigned size) {
  if (size < 4 || offset % size != 0) return 0;
  const std::lock_guard lock{mutex_};
  std::uint64_t value = read_dword(offset);
  if (size == 8) value |= std::uint64_t{read_dword(offset + 4)} << 32;
  return value;
}

void Msix::write(std::uint64_t offset, unsigned size, std::uint64_t value) {
  if (size < 4 || offset % size != 0) return;
  const std::lock_guard lock{mutex_};
  write_dword(offset, static_cast<std::uint32_t>(value));
  if (size == 8) write_dword(offset + 4, static_cast<std::uint32_t>(value >> 32));
}

template <class Archive>
void Msix::fields(Archive& a) {
  std::vector<std::uint64_t> addresses(entries_.size());
  std::vector<std::uint64_t> rest(entries_.size());  // data, then the mask and pending bits
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const Entry& e = entries_[i];
    addresses[i] = e.address;
    rest[i] = e.data | std::uint64_t{e.control & kMasked} << 32 | std::uint64_t{e.pending} << 33;
  }
  a("addresses", addresses);
  a("entries", rest);
  a("control", control_, kEnable | kMaskAll);
  if constexpr (Archive::kReads) {
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      entries_[i] = {.address = addresses[i] & ~3ULL,
                     .data = static_cast<std::uint32_t>(rest[i]),
                     .control = static_cast<std::uint32_t>(rest[i] >> 32) & kMasked,
                     .pending = (rest[i] >> 33 & 1) != 0};
    }
    control_ &= kEnable | kMaskAll;
  }
}

nlohmann::json Msix::save() {
  const std::lock_guard lock{mutex_};
  StateWriter writer;
  fields(writer);
  return std::move(writer).take();
}

StateResult Msix::load(const nlohmann::json& state) {
  const std::lock_guard lock{mutex_};
  StateReader reader{state, "msix"};
  fields(reader);
  return reader.result();
}

}  // namespace strata::devices
