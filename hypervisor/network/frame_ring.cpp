#include "network/frame_ring.hpp"

#include <cstring>

namespace strata::network {

FrameRing::FrameRing(std::size_t frames)
    : slots_{frames},
      bytes_{std::make_unique_for_overwrite<std::byte[]>(frames * kMaxFrameBytes)},
      lengths_(frames) {}

std::size_t length_of(std::span<const iovec> frame) noexcept {
  std::size_t length = 0;
  for (const iovec& piece : frame) length += piece.iov_len;
  return length;
}

FrameRing::Pushed FrameRing::push(std::span<const iovec> frame) noexcept {
  const std::size_t length = length_of(frame);
  if (length < kMinFrameBytes || length > kMaxFrameBytes) return Pushed::dropped;
  const std::lock_guard lock{mutex_};
  if (count_ == slots_) return Pushed::dropped;
  // An empty ring begins anew, so that a quiet network stays within the first pages.
  if (count_ == 0) first_ = 0;
  const std::size_t slot = (first_ + count_) % slots_;
  std::byte* to = bytes_.get() + slot * kMaxFrameBytes;
  for (const iovec& piece : frame) {
    if (piece.iov_len == 0) continue;
    std::memcpy(to, piece.iov_base, piece.iov_len);
    to += piece.iov_len;
  }
  lengths_[slot] = length;
  return count_++ == 0 ? Pushed::first : Pushed::more;
}

std::span<std::byte> FrameRing::front() noexcept {
  const std::lock_guard lock{mutex_};
  if (count_ == 0) return {};
  return {bytes_.get() + first_ * kMaxFrameBytes, lengths_[first_]};
}

void FrameRing::pop() noexcept {
  const std::lock_guard lock{mutex_};
  first_ = (first_ + 1) % slots_;
  --count_;
}

}  // namespace strata::network
