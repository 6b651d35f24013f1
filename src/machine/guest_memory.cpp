#include "machine/guest_memory.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace strata::machine {
namespace {

Fault at(Fault fault, PA pa) noexcept {
  fault.pa = pa;
  return fault;
}

/// Releases one page's pin.
class PagePin {
 public:
  PagePin(P2mTable& p2m, PPN ppn, AccessKind kind, bool counted) noexcept
      : p2m_{&p2m}, ppn_{ppn}, kind_{kind}, counted_{counted} {}
  PagePin(const PagePin&) = delete;
  PagePin& operator=(const PagePin&) = delete;
  ~PagePin() {
    if (counted_) p2m_->unpin(ppn_, kind_);
  }

 private:
  P2mTable* p2m_;
  PPN ppn_;
  AccessKind kind_;
  bool counted_;
};

}  // namespace

Pin::Pin(Pin&& other) noexcept
    : memory_{std::exchange(other.memory_, nullptr)},
      kind_{other.kind_},
      pa_{other.pa_},
      length_{std::exchange(other.length_, 0)},
      chunks_{std::move(other.chunks_)},
      counted_{std::move(other.counted_)} {}

Pin& Pin::operator=(Pin&& other) noexcept {
  if (this == &other) return *this;
  release();
  memory_ = std::exchange(other.memory_, nullptr);
  kind_ = other.kind_;
  pa_ = other.pa_;
  length_ = std::exchange(other.length_, 0);
  chunks_ = std::move(other.chunks_);
  counted_ = std::move(other.counted_);
  return *this;
}

void Pin::release() noexcept {
  if (memory_ == nullptr) return;
  GuestMemory& memory = *std::exchange(memory_, nullptr);
  for (const PPN ppn : counted_) memory.p2m().unpin(ppn, kind_);
  // After unpinning: a listener may take long, and the bytes are already there.
  if (kind_ == AccessKind::write && length_ != 0) memory.announce(pa_, length_);
  counted_.clear();
  chunks_.clear();
  length_ = 0;
}

bool Pin::copy_out(std::uint64_t offset, std::span<std::byte> out) const noexcept {
  if (offset > length_ || out.size() > length_ - offset) return false;
  for (const auto& chunk : chunks_) {
    if (out.empty()) break;
    if (offset >= chunk.size()) {
      offset -= chunk.size();
      continue;
    }
    const std::size_t n = std::min<std::size_t>(out.size(), chunk.size() - offset);
    std::memcpy(out.data(), chunk.data() + offset, n);
    out = out.subspan(n);
    offset = 0;
  }
  return true;
}

bool Pin::copy_in(std::uint64_t offset, std::span<const std::byte> in) noexcept {
  if (kind_ != AccessKind::write) return false;
  if (offset > length_ || in.size() > length_ - offset) return false;
  for (const auto& chunk : chunks_) {
    if (in.empty()) break;
    if (offset >= chunk.size()) {
      offset -= chunk.size();
      continue;
    }
    const std::size_t n = std::min<std::size_t>(in.size(), chunk.size() - offset);
    std::memcpy(chunk.data() + offset, in.data(), n);
    in = in.subspan(n);
    offset = 0;
  }
  return true;
}

/// Calls `step(page, offset, bytes)` for each piece of a page in the range, in order; it returns a
/// Fault or nothing. Addresses beyond the P2M fault in pin() long before they could wrap around.
template <class Step>
Expected<void, Fault> GuestMemory::each_page(AddressSpaceId space, PA pa, std::uint64_t length,
                                             Step&& step) {
  if (space != kIdentitySpace) {
    return Unexpected{Fault{Stage::engine, FaultKind::mmio, 0, VA{}, pa}};
  }
  for (std::uint64_t done = 0; done < length;) {
    const PA here = pa + done;
    const std::uint64_t bytes = std::min(length - done, kPageSize - here.page_offset());
    const Expected<void, Fault> stepped = step(here, bytes);
    if (!stepped) return Unexpected{at(stepped.error(), here)};
    done += bytes;
  }
  return {};
}

Expected<Pin, Fault> GuestMemory::pin(AddressSpaceId space, PA pa, std::uint64_t length,
                                      AccessKind kind) {
  if (length > kMaxPinBytes) {
    return Unexpected{Fault{Stage::engine, FaultKind::out_of_memory, 0, VA{}, pa}};
  }
  Pin pin;
  pin.memory_ = this;
  pin.kind_ = kind;
  pin.pa_ = pa;
  const auto pinned = each_page(space, pa, length, [&](PA at, std::uint64_t bytes) {
    const auto page = p2m_->pin(page_of(at), kind);
    if (!page) return Expected<void, Fault>{Unexpected{page.error()}};
    if (page->counted) pin.counted_.push_back(page_of(at));
    std::byte* host = window_.host(address_of(page->mpn)) + at.page_offset();
    auto& chunks = pin.chunks_;
    if (!chunks.empty() && chunks.back().data() + chunks.back().size() == host) {
      chunks.back() = {chunks.back().data(), chunks.back().size() + bytes};
    } else {
      chunks.emplace_back(host, bytes);
    }
    return Expected<void, Fault>{};
  });
  // Until here length_ is 0, so that a pin that failed announces no store.
  if (!pinned) return Unexpected{pinned.error()};
  pin.length_ = length;
  return pin;
}

Expected<void, Fault> GuestMemory::read(AddressSpaceId space, PA pa, std::span<std::byte> out) {
  return each_page(space, pa, out.size(), [&](PA at, std::uint64_t bytes) {
    const auto page = p2m_->pin(page_of(at), AccessKind::read);
    if (!page) return Expected<void, Fault>{Unexpected{page.error()}};
    const PagePin held{*p2m_, page_of(at), AccessKind::read, page->counted};
    std::memcpy(out.data() + (at - pa), window_.host(address_of(page->mpn)) + at.page_offset(),
                bytes);
    return Expected<void, Fault>{};
  });
}

/// Write access to one piece of a page: pin, `store(host)`, unpin, announce.
template <class Store>
Expected<void, Fault> GuestMemory::store_piece(PA at, std::uint64_t bytes, Store&& store) {
  {
    const auto page = p2m_->pin(page_of(at), AccessKind::write);
    if (!page) return Unexpected{page.error()};
    const PagePin held{*p2m_, page_of(at), AccessKind::write, page->counted};
    store(window_.host(address_of(page->mpn)) + at.page_offset());
  }
  announce(at, bytes);
  return {};
}

Expected<void, Fault> GuestMemory::write(AddressSpaceId space, PA pa,
                                         std::span<const std::byte> in) {
  return each_page(space, pa, in.size(), [&](PA at, std::uint64_t bytes) {
    return store_piece(at, bytes,
                       [&](std::byte* host) { std::memcpy(host, in.data() + (at - pa), bytes); });
  });
}

Expected<void, Fault> GuestMemory::fill(AddressSpaceId space, PA pa, std::uint64_t length,
                                        std::byte value) {
  return each_page(space, pa, length, [&](PA at, std::uint64_t bytes) {
    const P2mEntry entry = p2m_->lookup(page_of(at)).entry;
    const bool untouched = entry.state() == PageState::zero && !entry.busy();
    if (value == std::byte{0} && untouched) return Expected<void, Fault>{};
    return store_piece(
        at, bytes, [&](std::byte* host) { std::memset(host, std::to_integer<int>(value), bytes); });
  });
}

namespace {

/// The caller has seen to it that the word lies in one page, and aligned in it.
std::atomic_ref<std::uint16_t> word_at(std::byte* host) noexcept {
  return std::atomic_ref<std::uint16_t>{*reinterpret_cast<std::uint16_t*>(host)};
}

}  // namespace

Expected<std::uint16_t, Fault> GuestMemory::load_acquire(AddressSpaceId space, PA pa) {
  if (pa.value() % sizeof(std::uint16_t) != 0) std::abort();
  std::uint16_t value = 0;
  const auto done = each_page(space, pa, sizeof(value), [&](PA at, std::uint64_t) {
    const auto page = p2m_->pin(page_of(at), AccessKind::read);
    if (!page) return Expected<void, Fault>{Unexpected{page.error()}};
    const PagePin held{*p2m_, page_of(at), AccessKind::read, page->counted};
    std::byte* host = window_.host(address_of(page->mpn)) + at.page_offset();
    value = word_at(host).load(std::memory_order_acquire);
    return Expected<void, Fault>{};
  });
  if (!done) return Unexpected{done.error()};
  return value;
}

Expected<void, Fault> GuestMemory::store_release(AddressSpaceId space, PA pa, std::uint16_t value) {
  if (pa.value() % sizeof(value) != 0) std::abort();
  return each_page(space, pa, sizeof(value), [&](PA at, std::uint64_t bytes) {
    return store_piece(
        at, bytes, [&](std::byte* host) { word_at(host).store(value, std::memory_order_release); });
  });
}

void GuestMemory::announce(PA pa, std::uint64_t length) {
  const std::shared_lock guard{listeners_lock_};
  for (WriteListener* listener : listeners_) listener->memory_written(pa, length);
}

void GuestMemory::add_listener(WriteListener& listener) {
  const std::lock_guard guard{listeners_lock_};
  listeners_.push_back(&listener);
}

void GuestMemory::remove_listener(WriteListener& listener) {
  const std::lock_guard guard{listeners_lock_};
  std::erase(listeners_, &listener);
}

}  // namespace strata::machine
