#include "devices/virtio/queue.hpp"

#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <utility>

namespace strata::devices::virtio {

using machine::kIdentitySpace;

namespace {

// Descriptor flags (2.7.5).
constexpr std::uint16_t kNext = 1, kWrite = 2, kIndirect = 4;
/// Flag of the available ring: the driver wants no interrupts (2.7.6).
constexpr std::uint16_t kNoInterrupt = 1;

constexpr std::uint64_t kDescriptorBytes = 16, kUsedBytes = 8;
// Offsets in the rings (2.7.6, 2.7.8).
constexpr std::uint64_t kFlags = 0, kIndex = 2, kRing = 4;

constexpr bool fits(PA pa, std::uint64_t bytes, std::uint64_t alignment) noexcept {
  return pa.value() % alignment == 0 && pa.value() + bytes > pa.value();
}

}  // namespace

struct Queue::Descriptor {
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  std::uint16_t flags = 0;
  std::uint16_t next = 0;
};

bool QueueConfig::valid() const noexcept {
  constexpr std::uint16_t kMostEntries = 32768;
  if (!std::has_single_bit(size) || size > max_size || max_size > kMostEntries) return false;
  return fits(descriptors, size * kDescriptorBytes, 16) && fits(available, 6 + 2ULL * size, 2) &&
         fits(used, 6 + kUsedBytes * size, 4);
}

Queue::Queue(machine::GuestMemory& memory, const QueueConfig& config,
             const QueuePosition& position) noexcept
    : memory_{memory}, config_{config}, position_{position} {}

Queue::Popped Queue::fail() noexcept {
  broken_.store(true, std::memory_order_release);
  return Popped::broken;
}

std::optional<std::uint16_t> Queue::load(PA pa) {
  const auto value = patiently([&] { return memory_.load_acquire(kIdentitySpace, pa); });
  if (value) return *value;
  fail();
  return std::nullopt;
}

void Queue::store(PA pa, std::uint16_t value) {
  if (!patiently([&] { return memory_.store_release(kIdentitySpace, pa, value); })) fail();
}

/// How many chains wait, after asking for a notification if there are none.
std::optional<std::uint16_t> Queue::waiting() {
  const auto count = [this]() -> std::optional<std::uint16_t> {
    const auto index = load(config_.available + kIndex);
    if (!index) return std::nullopt;
    const auto n = static_cast<std::uint16_t>(*index - position_.available);
    if (n <= config_.size) return n;
    fail();  // the index jumped: more chains than the ring has room for
    return std::nullopt;
  };
  const auto n = count();
  if (!n || *n != 0 || !config_.event_idx) return n;
  // 2.7.10: tell from which entry on to notify, then look again. Either the driver sees the event
  // index, or its entry is seen here: both sides store, fence, load.
  store(config_.used + kRing + kUsedBytes * config_.size, position_.available);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return count();
}

Queue::Popped Queue::pop(Chain& chain) {
  const std::lock_guard lock{mutex_};
  if (broken()) return Popped::broken;
  const auto n = waiting();
  if (!n || broken()) return Popped::broken;
  if (*n == 0) return Popped::empty;
  const std::uint64_t slot = position_.available & (config_.size - 1U);
  const auto head = load(config_.available + kRing + 2 * slot);
  if (!head) return Popped::broken;
  if (!gather(*head, chain)) return fail();
  ++position_.available;
  return Popped::chain;
}

void Queue::unpop(std::uint16_t count) {
  const std::lock_guard lock{mutex_};
  position_.available = static_cast<std::uint16_t>(position_.available - count);
}

bool Queue::gather(std::uint16_t head, Chain& chain) {
  chain.begin(head);
  return gather_table(config_.descriptors, config_.size, head, false, chain);
}

/// Descriptors from `first` on. A chain visits no more entries than its table has, so that a loop
/// ends; an indirect table holds no indirect descriptor and is the last of its chain (2.7.5.3.1).
bool Queue::gather_table(PA table, std::uint32_t entries, std::uint16_t first, bool inner,
                         Chain& chain) {
  std::uint32_t at = first;
  for (std::uint32_t visited = 0; visited < entries; ++visited) {
    if (at >= entries) return false;
    std::array<std::byte, kDescriptorBytes> bytes{};
    const PA pa = table + at * kDescriptorBytes;
    if (!patiently([&] { return memory_.read(kIdentitySpace, pa, bytes); })) return false;
    Descriptor d;
    static_assert(sizeof(d) == kDescriptorBytes);
    std::memcpy(&d, bytes.data(), sizeof(d));
    if ((d.flags & kIndirect) != 0) {
      if (inner || !config_.indirect || (d.flags & kNext) != 0) return false;
      const std::uint32_t inner_entries = d.length / kDescriptorBytes;
      if (d.length % kDescriptorBytes != 0 || inner_entries == 0) return false;
      if (inner_entries > config_.max_size || !fits(PA{d.address}, d.length, 1)) return false;
      return gather_table(PA{d.address}, inner_entries, 0, true, chain);
    }
    if (!chain.add(PA{d.address}, d.length, (d.flags & kWrite) != 0)) return false;
    if ((d.flags & kNext) == 0) return true;
    at = d.next;
  }
  return false;
}

void Queue::push(std::uint16_t head, std::uint32_t written) {
  const std::lock_guard lock{mutex_};
  if (broken()) return;
  const std::uint64_t slot = position_.used & (config_.size - 1U);
  const std::array<std::uint32_t, 2> entry{head, written};
  const PA pa = config_.used + kRing + slot * kUsedBytes;
  if (!patiently(
          [&] { return memory_.write(kIdentitySpace, pa, std::as_bytes(std::span{entry})); })) {
    fail();
    return;
  }
  ++position_.used;
  store(config_.used + kIndex, position_.used);
}

bool Queue::wants_interrupt() {
  const std::lock_guard lock{mutex_};
  if (broken()) return false;
  // The index that push() stored must be visible before what the driver asks for is read: the
  // driver stores its wish, and then looks at the index once more.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const std::uint16_t now = position_.used;
  const bool known = std::exchange(position_.signalled_valid, true);
  const std::uint16_t before = std::exchange(position_.signalled, now);
  if (known && now == before) return false;
  if (!config_.event_idx) {
    const auto flags = load(config_.available + kFlags);
    return flags && (*flags & kNoInterrupt) == 0;
  }
  const auto event = load(config_.available + kRing + 2ULL * config_.size);
  if (!event) return false;
  // 2.7.10.1: the entry asked for is among those written since.
  const auto passed = static_cast<std::uint16_t>(now - *event - 1);
  return !known || passed < static_cast<std::uint16_t>(now - before);
}

QueuePosition Queue::position() {
  const std::lock_guard lock{mutex_};
  return position_;
}

}  // namespace strata::devices::virtio
