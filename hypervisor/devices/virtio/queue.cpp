#include "devices/virtio/queue.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>
#include <utility>

namespace strata::devices::virtio {

namespace {

// Descriptor flags (virtio 1.2, 2.7.5).
constexpr std::uint16_t kNext = 1U << 0, kWrite = 1U << 1, kIndirect = 1U << 2;
/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6).
constexpr std::uint16_t kNoInterrupt = 1U << 0;
constexpr std::uint32_t kDescriptorBytes = 16, kUsedBytes = 8;

Unexpected<QueueError> bad(QueueError error) { return {error}; }

/// Calls transfer(PA, bytes done, bytes) for each piece until `bytes` are done.
template <class Transfer>
std::optional<std::uint64_t> for_each_piece(std::span<const Segment> segments, std::uint64_t bytes,
                                            Transfer&& transfer) {
  std::uint64_t done = 0;
  for (const Segment& s : segments) {
    const std::uint64_t piece = std::min<std::uint64_t>(s.length, bytes - done);
    if (piece == 0) continue;
    if (!transfer(s.address, done, piece)) return std::nullopt;
    done += piece;
  }
  return done;
}

}  // namespace

std::uint64_t total_length(std::span<const Segment> segments) noexcept {
  std::uint64_t sum = 0;
  for (const Segment& s : segments) sum += s.length;
  return sum;
}

std::vector<Segment> slice(std::span<const Segment> segments, std::uint64_t offset,
                           std::uint64_t length) {
  std::vector<Segment> out;
  for (const Segment& s : segments) {
    const std::uint64_t skipped = std::min<std::uint64_t>(offset, s.length);
    const auto taken =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(length, s.length - skipped));
    if (taken != 0) out.push_back({s.address + skipped, taken});
    offset -= skipped;
    length -= taken;
  }
  return out;
}

std::optional<std::uint64_t> copy_out(machine::GuestMemory& memory,
                                      std::span<const Segment> segments, std::span<std::byte> to) {
  return for_each_piece(segments, to.size(), [&](PA pa, std::uint64_t at, std::uint64_t bytes) {
    return memory.read(machine::kIdentitySpace, pa, to.subspan(at, bytes)).has_value();
  });
}

std::optional<std::uint64_t> copy_in(machine::GuestMemory& memory,
                                     std::span<const Segment> segments,
                                     std::span<const std::byte> from) {
  return for_each_piece(segments, from.size(), [&](PA pa, std::uint64_t at, std::uint64_t bytes) {
    return memory.write(machine::kIdentitySpace, pa, from.subspan(at, bytes)).has_value();
  });
}

template <class T>
std::optional<T> Queue::read(std::uint64_t address) {
  T value{};
  const auto bytes = std::as_writable_bytes(std::span{&value, 1});
  if (!memory_->read(machine::kIdentitySpace, PA{address}, bytes)) return std::nullopt;
  return value;
}

template <class T>
bool Queue::write(std::uint64_t address, const T& value) {
  const auto bytes = std::as_bytes(std::span{&value, 1});
  return memory_->write(machine::kIdentitySpace, PA{address}, bytes).has_value();
}

/// Sizes and alignments of virtio 1.2, 2.7; no ring reaches beyond the address space.
bool Queue::valid(const QueueLayout& layout) noexcept {
  constexpr std::uint64_t kLast = 1ULL << 52;
  return layout.size != 0 && layout.size <= kMaxQueueSize && std::has_single_bit(layout.size) &&
         layout.descriptors % 16 == 0 && layout.available % 2 == 0 && layout.used % 4 == 0 &&
         std::max({layout.descriptors, layout.available, layout.used}) < kLast;
}

Expected<void, QueueError> Queue::enable(const QueueLayout& layout, std::uint64_t features) {
  if (!valid(layout)) return bad(QueueError::bad_layout);
  disable();
  layout_ = layout;
  indirect_ = (features & kRingIndirectDesc) != 0;
  event_idx_ = (features & kRingEventIdx) != 0;
  return {};
}

std::optional<std::uint16_t> Queue::available_index() {
  const auto index = read<std::uint16_t>(layout_.available + 2);
  // What the driver wrote before the index is read after it.
  std::atomic_thread_fence(std::memory_order_acquire);
  return index;
}

Expected<std::optional<Chain>, QueueError> Queue::pop() {
  if (!enabled()) return std::optional<Chain>{};
  auto index = available_index();
  if (index && *index == next_available_ && event_idx_) {
    // Asks to be notified of the next one, and looks again: it may have come in between (2.7.10).
    if (!write(layout_.used + 4 + std::uint64_t{kUsedBytes} * layout_.size, next_available_)) {
      return bad(QueueError::bad_memory);
    }
    std::atomic_thread_fence(std::memory_order_seq_cst);
    index = available_index();
  }
  if (!index) return bad(QueueError::bad_memory);
  const auto waiting = static_cast<std::uint16_t>(*index - next_available_);
  if (waiting == 0) return std::optional<Chain>{};
  if (waiting > layout_.size) return bad(QueueError::bad_index);
  const std::uint64_t slot = next_available_ % layout_.size;
  const auto head = read<std::uint16_t>(layout_.available + 4 + 2 * slot);
  if (!head) return bad(QueueError::bad_memory);
  if (*head >= layout_.size) return bad(QueueError::bad_index);
  auto chain = follow(*head);
  if (!chain) return Unexpected{chain.error()};
  ++next_available_;
  return std::optional{std::move(*chain)};
}

Expected<Chain, QueueError> Queue::follow(std::uint16_t head) {
  Chain chain;
  chain.head = head;
  auto done = follow_table(layout_.descriptors, layout_.size, head, false, chain);
  if (!done) return Unexpected{done.error()};
  return chain;
}

/// Descriptors of one table from `first` on. As a chain has no more parts than the queue is long
/// (2.7.5), a loop ends too.
Expected<void, QueueError> Queue::follow_table(std::uint64_t table, std::uint32_t entries,
                                               std::uint16_t first, bool nested, Chain& chain) {
  std::uint32_t at = first;
  for (std::uint32_t steps = 0;; ++steps) {
    if (at >= entries || steps >= layout_.size) return bad(QueueError::bad_chain);
    const auto d = read<Descriptor>(table + std::uint64_t{kDescriptorBytes} * at);
    if (!d) return bad(QueueError::bad_memory);
    if ((d->flags & kIndirect) != 0) {
      // Alone or last, once, in whole descriptors, and not in a table of this kind (2.7.5.3).
      const std::uint32_t count = d->length / kDescriptorBytes;
      const bool allowed = indirect_ && !nested && (d->flags & kNext) == 0 &&
                           d->length % kDescriptorBytes == 0 && count != 0;
      if (!allowed) return bad(QueueError::bad_chain);
      return follow_table(d->address, count, 0, true, chain);
    }
    if (auto added = add(*d, chain); !added) return added;
    if ((d->flags & kNext) == 0) return {};
    at = d->next;
  }
}

Expected<void, QueueError> Queue::add(const Descriptor& d, Chain& chain) {
  const bool writes = (d.flags & kWrite) != 0;
  const bool wraps = d.length != 0 && d.address + (d.length - 1) < d.address;
  const bool late = !writes && !chain.writable.empty();  // 2.7.4.2
  const bool full = chain.readable.size() + chain.writable.size() >= layout_.size;
  const std::uint64_t total =
      total_length(chain.readable) + total_length(chain.writable) + d.length;
  if (wraps || late || full || total > std::numeric_limits<std::uint32_t>::max()) {
    return bad(QueueError::bad_chain);
  }
  (writes ? chain.writable : chain.readable).push_back({PA{d.address}, d.length});
  return {};
}

Expected<void, QueueError> Queue::push(std::uint16_t head, std::uint32_t written) {
  struct Used {
    std::uint32_t id, length;
  };
  const std::uint64_t slot = next_used_ % layout_.size;
  if (!write(layout_.used + 4 + kUsedBytes * slot, Used{head, written})) {
    return bad(QueueError::bad_memory);
  }
  // The driver sees the index only with what it stands for.
  std::atomic_thread_fence(std::memory_order_release);
  ++next_used_;
  if (!write(layout_.used + 2, next_used_)) return bad(QueueError::bad_memory);
  return {};
}

bool Queue::wants_interrupt() {
  if (!enabled() || signalled_ == next_used_) return false;
  const std::uint16_t before = std::exchange(signalled_, next_used_);
  // The index has to be out before the driver's wish is read, or both sides wait (2.7.7.2).
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!event_idx_) {
    const auto flags = read<std::uint16_t>(layout_.available);
    return !flags || (*flags & kNoInterrupt) == 0;
  }
  const auto event = read<std::uint16_t>(layout_.available + 4 + 2ULL * layout_.size);
  if (!event) return true;
  // The driver's event lies among the entries that were pushed since (2.7.7).
  const auto past_event = static_cast<std::uint16_t>(next_used_ - *event - 1);
  return past_event < static_cast<std::uint16_t>(next_used_ - before);
}

}  // namespace strata::devices::virtio
