#include "devices/pci/msix.hpp"

#include <cstdlib>
#include <utility>

#include "devices/device_state.hpp"

namespace strata::devices::pci {

namespace {

constexpr unsigned kWords = 4, kEntryBytes = 16;
enum Word : unsigned { kAddress = 0, kAddressHigh = 1, kData = 2, kControl = 3 };
constexpr std::uint32_t kVectorMask = 1;

}  // namespace

Msix::Msix(std::string name, ApicBus& bus, unsigned vectors)
    : name_{std::move(name)},
      bus_{bus},
      vectors_{vectors},
      table_(std::size_t{vectors} * kWords),
      pending_(vectors) {
  if (vectors == 0 || vectors > kMostVectors) std::abort();
  for (unsigned v = 0; v < vectors; ++v) table_[v * kWords + kControl] = kVectorMask;
}

bool Msix::masked(unsigned vector) const noexcept {
  return masked_ || (table_[vector * kWords + kControl] & kVectorMask) != 0;
}

void Msix::send(unsigned vector) {
  const std::uint32_t* entry = &table_[std::size_t{vector} * kWords];
  const std::uint64_t address = std::uint64_t{entry[kAddressHigh]} << 32 | entry[kAddress];
  // A message to elsewhere than the APICs is a write into nothing.
  (void)bus_.deliver_msi(address, entry[kData]);
}

void Msix::send_pending() {
  if (!enabled_) return;
  for (unsigned v = 0; v < vectors_; ++v) {
    if (pending_[v] == 0 || masked(v)) continue;
    pending_[v] = 0;
    send(v);
  }
}

void Msix::control(bool enabled, bool masked) {
  const std::lock_guard lock{mutex_};
  enabled_ = enabled;
  masked_ = masked;
  send_pending();
}

bool Msix::enabled() {
  const std::lock_guard lock{mutex_};
  return enabled_;
}

void Msix::signal(unsigned vector) {
  const std::lock_guard lock{mutex_};
  if (!enabled_ || vector >= vectors_) return;
  if (masked(vector)) {
    pending_[vector] = 1;
  } else {
    send(vector);
  }
}

std::uint8_t Msix::byte_at(std::uint64_t offset) const noexcept {
  if (offset / kEntryBytes < vectors_) {
    return static_cast<std::uint8_t>(table_[offset / 4] >> (8 * (offset % 4)));
  }
  if (offset < kPendingBase) return 0;
  std::uint8_t bits = 0;
  for (unsigned i = 0; i < 8; ++i) {
    const std::uint64_t vector = (offset - kPendingBase) * 8 + i;
    if (vector < vectors_ && pending_[vector] != 0) bits |= static_cast<std::uint8_t>(1U << i);
  }
  return bits;
}

std::uint64_t Msix::read(std::uint64_t offset, unsigned size) {
  const std::lock_guard lock{mutex_};
  std::uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) value |= std::uint64_t{byte_at(offset + i)} << (8 * i);
  return value;
}

/// Drivers write words or pairs of them (6.8.2.6); anything else changes nothing.
void Msix::write(std::uint64_t offset, unsigned size, std::uint64_t value) {
  if (offset % size != 0 || size < 4) return;
  const std::lock_guard lock{mutex_};
  for (unsigned i = 0; i < size / 4; ++i) {
    const std::uint64_t word = offset / 4 + i;
    if (word / kWords >= vectors_) return;
    auto bits = static_cast<std::uint32_t>(value >> (32 * i));
    if (word % kWords == kControl) bits &= kVectorMask;
    if (word % kWords == kAddress) bits &= ~3U;
    table_[word] = bits;
  }
  send_pending();
}

template <class Archive>
void Msix::fields(Archive& a) {
  a("table", table_);
  a("pending", pending_);
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

}  // namespace strata::devices::pci
