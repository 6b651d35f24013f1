#include "devices/virtio/chain.hpp"

#include <algorithm>

namespace strata::devices::virtio {

using machine::GuestMemory;
using machine::kIdentitySpace;

namespace {

/// Calls `step(pa, bytes, done)` for the pieces of [offset, offset + length) in order. False: the
/// range does not exist, or a step returned false.
template <class Step>
bool each_piece(std::span<const Segment> segments, std::uint64_t offset, std::uint64_t length,
                Step step) {
  std::uint64_t done = 0;
  for (const Segment& s : segments) {
    if (done == length) break;
    if (offset >= s.length) {
      offset -= s.length;
      continue;
    }
    const std::uint64_t bytes = std::min<std::uint64_t>(s.length - offset, length - done);
    if (!step(s.pa + offset, bytes, done)) return false;
    done += bytes;
    offset = 0;
  }
  return done == length;
}

Chain::Held pin_all(GuestMemory& memory, std::span<const Segment> segments, std::uint64_t offset,
                    std::uint64_t length, AccessKind kind, PinnedBuffers& buffers) {
  if (length > GuestMemory::kMaxPinBytes) return Chain::Held::no;
  // Few: a page that has all the pins it can have keeps them for long, and there is another way.
  constexpr unsigned kTries = 8;
  bool busy = false;
  const bool held =
      each_piece(segments, offset, length, [&](PA pa, std::uint64_t n, std::uint64_t) {
        auto pin = patiently([&] { return memory.pin(kIdentitySpace, pa, n, kind); }, kTries);
        if (!pin) {
          busy = pin.error().kind == FaultKind::retry;
          return false;
        }
        for (const auto& chunk : pin->chunks())
          buffers.vectors.push_back({chunk.data(), chunk.size()});
        buffers.pins.push_back(std::move(*pin));
        return true;
      });
  if (held) return Chain::Held::yes;
  return busy ? Chain::Held::busy : Chain::Held::no;
}

}  // namespace

void Chain::begin(std::uint16_t head) noexcept {
  head_ = head;
  readable_ = 0;
  readable_bytes_ = writable_bytes_ = 0;
  segments_.clear();
}

bool Chain::add(PA pa, std::uint32_t length, bool writable) {
  if (length == 0) return true;
  if (pa.value() + length < pa.value()) return false;
  if (!writable && segments_.size() != readable_) return false;               // 2.7.4.2
  if (readable_bytes_ + writable_bytes_ + length > 1ULL << 32) return false;  // 2.7.5.2
  segments_.push_back({pa, length});
  if (writable) {
    writable_bytes_ += length;
  } else {
    ++readable_;
    readable_bytes_ += length;
  }
  return true;
}

bool Chain::read(GuestMemory& memory, std::uint64_t offset, std::span<std::byte> out) const {
  return each_piece(readable(), offset, out.size(), [&](PA pa, std::uint64_t n, std::uint64_t at) {
    return patiently([&] { return memory.read(kIdentitySpace, pa, out.subspan(at, n)); })
        .has_value();
  });
}

bool Chain::write(GuestMemory& memory, std::uint64_t offset, std::span<const std::byte> in) const {
  return each_piece(writable(), offset, in.size(), [&](PA pa, std::uint64_t n, std::uint64_t at) {
    return patiently([&] { return memory.write(kIdentitySpace, pa, in.subspan(at, n)); })
        .has_value();
  });
}

Chain::Held Chain::pin_readable(GuestMemory& memory, std::uint64_t offset, std::uint64_t length,
                                PinnedBuffers& buffers) const {
  return pin_all(memory, readable(), offset, length, AccessKind::read, buffers);
}

Chain::Held Chain::pin_writable(GuestMemory& memory, std::uint64_t offset, std::uint64_t length,
                                PinnedBuffers& buffers) const {
  return pin_all(memory, writable(), offset, length, AccessKind::write, buffers);
}

}  // namespace strata::devices::virtio
