#include "engines/bt/code_cache.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <new>

#include "engines/interp/low_memory.hpp"

namespace strata::bt {
namespace {

constexpr std::size_t kBuckets = 1U << 15;

}  // namespace

CodeCache::CodeCache(std::size_t bytes) : buckets_(kBuckets, nullptr) {
  const int fd = memfd_create("strata-code", MFD_CLOEXEC);
  if (fd < 0) return;
  void* x = MAP_FAILED;
  void* w = MAP_FAILED;
  if (ftruncate(fd, static_cast<off_t>(bytes)) == 0) {
    x = mmap(nullptr, bytes, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_32BIT, fd, 0);
    w = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  close(fd);
  if (x == MAP_FAILED || w == MAP_FAILED || !interp::is_low(x, bytes)) {
    if (x != MAP_FAILED) munmap(x, bytes);
    if (w != MAP_FAILED) munmap(w, bytes);
    return;
  }
  executable_ = reinterpret_cast<std::uint64_t>(x);
  writable_ = static_cast<std::byte*>(w);
  size_ = bytes;
}

CodeCache::~CodeCache() {
  if (size_ == 0) return;
  munmap(reinterpret_cast<void*>(executable_), size_);
  munmap(writable_, size_);
}

void CodeCache::append(std::span<const std::uint8_t> code) noexcept {
  std::memcpy(writable_ + used_, code.data(), code.size());
  used_ += (code.size() + 15) & ~std::size_t{15};
  if (used_ > size_) used_ = size_;
}

void CodeCache::patch_jump(std::uint64_t field, std::uint64_t target) noexcept {
  const auto distance = static_cast<std::uint32_t>(target - (field + 4));
  std::memcpy(writable_ + (field - executable_), &distance, sizeof distance);
}

void CodeCache::link_far(std::uint64_t at, const FarLink& link) noexcept {
  std::byte* code = writable_ + (at - executable_);
  std::memcpy(code + FarJump::kPageVa, &link.page_va, sizeof link.page_va);
  std::memcpy(code + FarJump::kContext, &link.context, sizeof link.context);
  patch_jump(at + FarJump::kJump, link.target);
  patch_jump(at + FarJump::kMiss, link.miss);
}

std::size_t CodeCache::bucket(PA pa, std::uint32_t key) noexcept {
  const std::uint64_t h =
      (pa.value() ^ static_cast<std::uint64_t>(key) << 48) * 0x9E3779B97F4A7C15ULL;
  return static_cast<std::size_t>(h >> 49);
}

const TranslatedBlock* CodeCache::find(PA pa, std::uint32_t key) const noexcept {
  const TranslatedBlock* b = buckets_[bucket(pa, key)];
  while (b != nullptr && (b->pa != pa || b->key != key || b->crosses)) b = b->hash_next;
  return b;
}

const TranslatedBlock* CodeCache::find_crossing(PA pa, std::uint32_t key,
                                                PPN second) const noexcept {
  const TranslatedBlock* b = buckets_[bucket(pa, key)];
  while (b != nullptr && (b->pa != pa || b->key != key || !b->crosses || b->second != second)) {
    b = b->hash_next;
  }
  return b;
}

const TranslatedBlock* CodeCache::insert(const TranslatedBlock& block) {
  TranslatedBlock& b = blocks_.emplace_back(block);
  TranslatedBlock*& head = buckets_[bucket(b.pa, b.key)];
  b.hash_next = head;
  head = &b;
  TranslatedBlock*& page = pages_[page_of(b.pa)];
  b.page_next = page;
  page = &b;
  if (b.crosses) crossing_[b.second].push_back(&b);
  return &b;
}

void CodeCache::unhash(const TranslatedBlock* block) noexcept {
  TranslatedBlock** link = &buckets_[bucket(block->pa, block->key)];
  while (*link != block) link = &(*link)->hash_next;
  *link = block->hash_next;
}

void CodeCache::retire(TranslatedBlock* b, std::uint64_t stale) noexcept {
  unhash(b);
  // mov r10d, entry; jmp stale. Chains still lead here.
  std::byte* at = writable_ + (b->entry - executable_);
  const std::array<std::uint8_t, 2> opcode{0x41, 0xBA};
  std::memcpy(at, opcode.data(), 2);
  std::memcpy(at + 2, &b->entry, 4);
  at[6] = std::byte{0xE9};
  patch_jump(b->entry + 7, stale);
  dropped_[b->entry] = static_cast<std::uint16_t>(b->pa.page_offset());
}

std::size_t CodeCache::drop_in_page(TranslatedBlock*& first, PA pa, PA end,
                                    std::uint64_t stale) noexcept {
  std::size_t dropped = 0;
  TranslatedBlock** link = &first;
  while (TranslatedBlock* b = *link) {
    const PA page = b->pa.page_base();
    if (!(page + b->from < end && pa < page + b->to)) {
      link = &b->page_next;
      continue;
    }
    *link = b->page_next;
    if (b->crosses) std::erase(crossing_[b->second], b);
    retire(b, stale);
    ++dropped;
  }
  return dropped;
}

/// They are few: whatever was written to the page's beginning, all of them go.
std::size_t CodeCache::drop_crossing_into(PPN ppn, std::uint64_t stale) noexcept {
  const auto found = crossing_.find(ppn);
  if (found == crossing_.end()) return 0;
  const std::vector<TranslatedBlock*> blocks = std::move(found->second);
  crossing_.erase(found);
  for (TranslatedBlock* b : blocks) {
    const auto page = pages_.find(page_of(b->pa));
    TranslatedBlock** link = &page->second;
    while (*link != b) link = &(*link)->page_next;
    *link = b->page_next;
    if (page->second == nullptr) pages_.erase(page);
    retire(b, stale);
  }
  return blocks.size();
}

std::size_t CodeCache::drop(PA pa, std::uint64_t length, std::uint64_t stale) noexcept {
  constexpr std::uint64_t kLongestTail = 14;
  std::size_t dropped = 0;
  const PA end = pa + length;
  for (PPN ppn = page_of(pa); address_of(ppn) < end; ppn = ppn + 1) {
    if (pa < address_of(ppn) + kLongestTail) dropped += drop_crossing_into(ppn, stale);
    const auto page = pages_.find(ppn);
    if (page == pages_.end()) continue;
    dropped += drop_in_page(page->second, pa, end, stale);
    if (page->second == nullptr) pages_.erase(page);
  }
  if (dropped != 0) ++changes_;
  return dropped;
}

void CodeCache::redirect(std::uint32_t entry, std::uint64_t target) noexcept {
  writable_[entry - executable_] = std::byte{0xE9};
  patch_jump(entry + 1, target);
}

void CodeCache::flush() noexcept {
  used_ = kept_;
  ++changes_;
  ++flushes_;
  blocks_.clear();
  buckets_.assign(kBuckets, nullptr);
  pages_.clear();
  crossing_.clear();
  dropped_.clear();
  sites_.clear();
  faults_.clear();
  steps_.clear();
  step_bytes_ = 0;
}

std::uint64_t CodeCache::find_fault(std::uint64_t at) const noexcept {
  const auto next = std::upper_bound(
      faults_.begin(), faults_.end(), at,
      [](std::uint64_t address, const FaultRange& r) { return address < r.begin; });
  if (next == faults_.begin()) return 0;
  const FaultRange& range = *(next - 1);
  return at < range.end ? range.cold : 0;
}

interp::Block* CodeCache::add_steps(std::span<const interp::Uop> steps) {
  const std::size_t size = sizeof(interp::Block) + steps.size_bytes();
  steps_.push_back(std::make_unique<std::byte[]>(size));
  step_bytes_ += size;
  auto* block = new (steps_.back().get()) interp::Block{};
  for (std::size_t i = 0; i < steps.size(); ++i) new (block->first() + i) interp::Uop{steps[i]};
  block->steps = static_cast<std::uint16_t>(steps.size());
  return block;
}

std::size_t CodeCache::bytes() const noexcept {
  return used_ + faults_.size() * sizeof(FaultRange) + buckets_.size() * sizeof(void*) +
         blocks_.size() * sizeof(TranslatedBlock) + (pages_.size() + dropped_.size()) * 64 +
         sites_.size() * sizeof(Site) + step_bytes_;
}

}  // namespace strata::bt
