#include "devices/bus.hpp"

#include <algorithm>
#include <mutex>

namespace strata::devices {

namespace {

constexpr bool valid_size(unsigned size) noexcept {
  return size == 1 || size == 2 || size == 4 || size == 8;
}

constexpr std::uint64_t size_mask(unsigned size) noexcept {
  return size >= 8 ? ~0ULL : (1ULL << (8 * size)) - 1;
}

}  // namespace

Bus::Bus(unsigned address_bits) noexcept
    : last_address_{address_bits >= 64 ? ~0ULL : (1ULL << address_bits) - 1} {}

Expected<void, BusError> Bus::add(std::uint64_t base, std::uint64_t length, Device& device) {
  if (length == 0) return Unexpected{BusError::empty};
  if (base > last_address_ || length - 1 > last_address_ - base) {
    return Unexpected{BusError::out_of_space};
  }
  const std::uint64_t last = base + (length - 1);
  const std::unique_lock lock{mutex_};
  const auto after = std::ranges::upper_bound(ranges_, base, {}, &Range::first);
  if (after != ranges_.end() && after->first <= last) return Unexpected{BusError::overlap};
  if (after != ranges_.begin() && std::prev(after)->last >= base) {
    return Unexpected{BusError::overlap};
  }
  auto& counters = counters_[std::string{device.name()}];
  if (!counters) counters = std::make_unique<Counters>();
  ranges_.insert(after, Range{base, last, &device, counters.get()});
  return {};
}

bool Bus::remove(std::uint64_t base) {
  const std::unique_lock lock{mutex_};
  const auto at = std::ranges::lower_bound(ranges_, base, {}, &Range::first);
  if (at == ranges_.end() || at->first != base) return false;
  ranges_.erase(at);
  return true;
}

Bus::Target Bus::find(std::uint64_t address, unsigned size) const {
  // The last byte saturates: an access that runs off the space straddles its end.
  const std::uint64_t room = last_address_ - address;
  const std::uint64_t last = size - 1 > room ? last_address_ : address + (size - 1);
  const std::shared_lock lock{mutex_};
  const auto after = std::ranges::upper_bound(ranges_, address, {}, &Range::first);
  if (after != ranges_.begin() && std::prev(after)->last >= address) {
    const Range& range = *std::prev(after);
    const bool inside = last <= range.last && last - address == size - 1;
    return {inside ? Fit::inside : Fit::straddles, range};
  }
  // Starts in a gap: the tail may reach the next range.
  const bool reaches = after != ranges_.end() && after->first <= last;
  return {reaches ? Fit::straddles : Fit::none, {}};
}

std::uint64_t Bus::read(std::uint64_t address, unsigned size) {
  if (!valid_size(size) || address > last_address_) return ~0ULL;
  const Target target = find(address, size);
  if (target.fit == Fit::none) {
    unclaimed_.fetch_add(1, std::memory_order_relaxed);
    return size_mask(size);
  }
  if (target.fit == Fit::inside) {
    target.range.counters->reads.fetch_add(1, std::memory_order_relaxed);
    return target.range.device->read(address - target.range.first, size) & size_mask(size);
  }
  std::uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) {
    const bool exists = i <= last_address_ - address;
    value |= (exists ? read(address + i, 1) : 0xFF) << (8 * i);
  }
  return value;
}

void Bus::write(std::uint64_t address, unsigned size, std::uint64_t value) {
  if (!valid_size(size) || address > last_address_) return;
  const Target target = find(address, size);
  if (target.fit == Fit::none) {
    unclaimed_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  if (target.fit == Fit::inside) {
    target.range.counters->writes.fetch_add(1, std::memory_order_relaxed);
    target.range.device->write(address - target.range.first, size, value & size_mask(size));
    return;
  }
  for (unsigned i = 0; i < size && i <= last_address_ - address; ++i) {
    write(address + i, 1, value >> (8 * i));
  }
}

bool Bus::claims(std::uint64_t address) const {
  return address <= last_address_ && find(address, 1).fit == Fit::inside;
}

std::vector<DeviceCounts> Bus::counts() const {
  const std::shared_lock lock{mutex_};
  std::vector<DeviceCounts> counts;
  counts.reserve(counters_.size());
  for (const auto& [name, c] : counters_) {
    counts.push_back({name, c->reads.load(std::memory_order_relaxed),
                      c->writes.load(std::memory_order_relaxed)});
  }
  return counts;
}

std::uint64_t Bus::unclaimed() const noexcept { return unclaimed_.load(std::memory_order_relaxed); }

}  // namespace strata::devices
