#include "engines/interp/block_cache.hpp"

#include <new>

namespace strata::interp {

namespace {
constexpr std::size_t kBuckets = 1U << 15;
}

BlockCache::BlockCache(std::size_t bytes, Handler stale)
    : stale_{stale}, size_{bytes}, arena_{new std::byte[bytes]}, buckets_(kBuckets, nullptr) {}

std::size_t BlockCache::bucket(PA pa, unsigned mode_key) const noexcept {
  const std::uint64_t h =
      (pa.value() ^ static_cast<std::uint64_t>(mode_key) << 52) * 0x9E3779B97F4A7C15ULL;
  return static_cast<std::size_t>(h >> 49);
}

Block* BlockCache::find(PA pa, unsigned mode_key) const noexcept {
  Block* b = buckets_[bucket(pa, mode_key)];
  while (b != nullptr && (b->pa != pa || b->mode_key != mode_key)) b = b->hash_next;
  return b;
}

bool BlockCache::any_code_in(const std::vector<PpnRange>& ranges) const noexcept {
  constexpr std::uint64_t kFew = 64;
  for (const PpnRange& range : ranges) {
    if (range.count > kFew) return true;
    for (std::uint64_t i = 0; i < range.count; ++i) {
      if (page_has_code(range.first + i)) return true;
    }
  }
  return false;
}

Block* BlockCache::allocate(std::size_t steps) noexcept {
  const std::size_t needed = (sizeof(Block) + steps * sizeof(Uop) + 15) & ~std::size_t{15};
  if (used_ + needed > size_) return nullptr;
  auto* block = new (arena_.get() + used_) Block{};
  used_ += needed;
  for (std::size_t i = 0; i < steps; ++i) new (block->first() + i) Uop{};
  block->steps = static_cast<std::uint16_t>(steps);
  return block;
}

void BlockCache::insert(Block* block) {
  Block*& head = buckets_[bucket(block->pa, block->mode_key)];
  block->hash_next = head;
  head = block;
  Block*& page = pages_[page_of(block->pa)];
  block->page_next = page;
  page = block;
}

void BlockCache::unhash(Block* block) noexcept {
  Block** link = &buckets_[bucket(block->pa, block->mode_key)];
  while (*link != block) link = &(*link)->hash_next;
  *link = block->hash_next;
}

std::size_t BlockCache::drop_in_page(Block*& first, PA pa, PA end) noexcept {
  std::size_t dropped = 0;
  Block** link = &first;
  while (Block* b = *link) {
    if (b->pa < end && pa < b->pa + b->bytes) {
      *link = b->page_next;
      unhash(b);
      for (unsigned i = 0; i < b->steps; ++i) b->first()[i].fn = stale_;
      ++dropped;
    } else {
      link = &b->page_next;
    }
  }
  return dropped;
}

void BlockCache::flush() noexcept {
  used_ = 0;
  ++flushes_;
  crossing_.clear();
  buckets_.assign(kBuckets, nullptr);
  pages_.clear();
}

std::size_t BlockCache::bytes() const noexcept {
  return size_ + buckets_.size() * sizeof(Block*) + pages_.size() * 64;
}

}  // namespace strata::interp
