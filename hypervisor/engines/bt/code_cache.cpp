#include "engines/bt/code_cache.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "engines/interp/low_memory.hpp"

namespace strata::bt {
namespace {

/// The smallest unit that holds the stubs and a few blocks.
constexpr std::size_t kMinUnitBudget = 48U << 10;
/// How much of the budget is code; the rest is tables. As Linux guests want it.
constexpr std::size_t kCodeShare = 3, kCodeShareOf = 4;
constexpr std::size_t kBudgetPerBucket = 512, kBucketsPerPage = 8, kBucketsPerCrossing = 64;
constexpr std::uint64_t kHash = 0x9E3779B97F4A7C15ULL;

/// The upper bits of a hash, as an index into `table`.
template <class T>
std::size_t slot(std::uint64_t hash, const std::vector<T*>& table) noexcept {
  return static_cast<std::size_t>(hash >> (64 - std::countr_zero(table.size())));
}

}  // namespace

CodeCache::CodeCache(std::size_t budget) {
  const std::size_t units = std::min(budget / kMinUnitBudget, kMaxUnits);
  if (units == 0) return;
  const std::size_t buckets = std::bit_floor(budget / kBudgetPerBucket);
  buckets_.resize(buckets);
  pages_.resize(buckets / kBucketsPerPage);
  crossings_.resize(buckets / kBucketsPerCrossing);
  unit_bytes_ = budget * kCodeShare / kCodeShareOf / units & ~std::size_t{kPageMask};
  if (!map(unit_bytes_ * units)) return;
  const std::size_t tables = budget - size_ - bytes();
  for (std::size_t i = 0; i < units; ++i) {
    const std::uint64_t from = executable_ + i * unit_bytes_;
    units_.emplace_back(CodeRange{from, from + unit_bytes_}, tables / units);
  }
}

bool CodeCache::map(std::size_t bytes) noexcept {
  const int fd = memfd_create("strata-code", MFD_CLOEXEC);
  if (fd < 0) return false;
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
    return false;
  }
  executable_ = reinterpret_cast<std::uint64_t>(x);
  writable_ = static_cast<std::byte*>(w);
  size_ = bytes;
  return true;
}

CodeCache::~CodeCache() {
  if (size_ == 0) return;
  munmap(reinterpret_cast<void*>(executable_), size_);
  munmap(writable_, size_);
}

// ---- code ---------------------------------------------------------------------------------------

bool CodeCache::append(std::span<const std::uint8_t> code) noexcept {
  std::byte* at = writable(cursor());
  if (!unit().take(code.size())) return false;
  std::memcpy(at, code.data(), code.size());
  return true;
}

void CodeCache::keep(const UnlinkedTargets& unlinked) noexcept {
  unlinked_ = unlinked;
  unit().keep();
}

void CodeCache::patch_jump(std::uint64_t field, std::uint64_t target) noexcept {
  const auto distance = static_cast<std::uint32_t>(target - (field + 4));
  std::memcpy(writable(field), &distance, sizeof distance);
}

/// mov r10d, entry; jmp stale. Chains still lead here.
void CodeCache::lead_to_stale(std::uint32_t entry) noexcept {
  std::byte* at = writable(entry);
  const std::array<std::uint8_t, 2> opcode{0x41, 0xBA};
  std::memcpy(at, opcode.data(), 2);
  std::memcpy(at + 2, &entry, 4);
  at[6] = std::byte{0xE9};
  patch_jump(entry + 7, unlinked_.stale);
}

bool CodeCache::note_link(std::uint64_t at, std::uint64_t target, LinkKind kind) {
  const std::size_t from = unit_of(at);
  const std::size_t to = unit_of(target);
  // Within a unit both ends go together.
  return from == to || units_[from].add_link({.at = static_cast<std::uint32_t>(at),
                                              .unit = static_cast<std::uint16_t>(to),
                                              .kind = kind});
}

void CodeCache::link(std::uint64_t field, std::uint64_t target) {
  if (note_link(field, target, LinkKind::jump)) patch_jump(field, target);
}

void CodeCache::fill_in(std::uint64_t at, const FarLink& link) noexcept {
  std::byte* code = writable(at);
  std::memcpy(code + FarJump::kPageVa, &link.page_va, sizeof link.page_va);
  std::memcpy(code + FarJump::kContext, &link.context, sizeof link.context);
  patch_jump(at + FarJump::kJump, link.target);
  patch_jump(at + FarJump::kMiss, link.miss);
}

void CodeCache::link_far(std::uint64_t at, const FarLink& link) {
  // It may have been linked for another VA or context; mostly to the same code.
  const std::size_t before = unit_of(far_target(at));
  const std::size_t from = unit_of(at);
  if (before != from && before != unit_of(link.target)) {
    std::erase_if(units_[from].links, [&](const Link& known) { return known.at == at; });
  }
  const bool noted = before == unit_of(link.target) || note_link(at, link.target, LinkKind::far);
  fill_in(at, noted ? link : FarLink{.target = at, .miss = unlinked_.far});
}

/// Where a far jump leads: to itself if it is not linked.
std::uint64_t CodeCache::far_target(std::uint64_t at) noexcept {
  std::int32_t distance = 0;
  std::memcpy(&distance, writable(at + FarJump::kJump), sizeof distance);
  return at + FarJump::kJump + 4 + static_cast<std::uint64_t>(static_cast<std::int64_t>(distance));
}

void CodeCache::redirect(std::uint32_t entry, std::uint64_t target) {
  if (!note_link(entry, target, LinkKind::redirect)) return;
  *writable(entry) = std::byte{0xE9};
  patch_jump(entry + 1, target);
}

void CodeCache::undo(const Link& link) noexcept {
  switch (link.kind) {
    case LinkKind::jump:
      return patch_jump(link.at, link.at + 4);
    case LinkKind::far:
      return fill_in(link.at, {.target = link.at, .miss = unlinked_.far});
    case LinkKind::redirect:
      return lead_to_stale(link.at);
  }
}

// ---- units --------------------------------------------------------------------------------------

CodeRange CodeCache::make_room() noexcept {
  if (unit().has_room()) return {};
  current_ = (current_ + 1) % units_.size();
  const CodeRange code = unit().code();
  if (unit().table_bytes() != 0) evict(current_);
  return code;
}

void CodeCache::evict(std::size_t which) noexcept {
  CodeUnit& gone = units_[which];
  for (TranslatedBlock& b : gone.blocks) {
    if (!b.dropped) unlist(b);
  }
  for (CodeUnit& other : units_) {
    if (&other == &gone) continue;
    std::erase_if(other.links, [&](const Link& link) {
      if (link.unit == which) undo(link);
      return link.unit == which;
    });
  }
  // Whoever still came here is to be found out: INT3.
  const CodeRange code = gone.code();
  std::memset(writable(code.from), 0xCC, code.to - code.from);
  gone.clear();
  ++changes_;
  ++evictions_;
}

void CodeCache::flush() noexcept {
  for (std::size_t i = 0; i < units_.size(); ++i) evict(i);
  current_ = 0;
}

std::size_t CodeCache::bytes() const noexcept {
  std::size_t sum = (buckets_.size() + pages_.size() + crossings_.size()) * sizeof(void*);
  for (const CodeUnit& u : units_) sum += u.bytes();
  return sum;
}

// ---- blocks -------------------------------------------------------------------------------------

std::size_t CodeCache::bucket(PA pa, std::uint32_t key) const noexcept {
  return slot((pa.value() ^ static_cast<std::uint64_t>(key) << 48) * kHash, buckets_);
}

std::size_t CodeCache::page_slot(PPN ppn) const noexcept {
  return slot(ppn.value() * kHash, pages_);
}

std::size_t CodeCache::crossing_slot(PPN ppn) const noexcept {
  return slot(ppn.value() * kHash, crossings_);
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

bool CodeCache::has_code(PPN ppn) const noexcept {
  const TranslatedBlock* b = pages_[page_slot(ppn)];
  while (b != nullptr && page_of(b->pa) != ppn) b = b->page_next;
  const Crossing* c = crossings_[crossing_slot(ppn)];
  while (c != nullptr && c->block->second != ppn) c = c->next;
  return b != nullptr || c != nullptr;
}

const TranslatedBlock* CodeCache::insert(const TranslatedBlock& block) {
  TranslatedBlock& b = unit().blocks.emplace_back(block);
  TranslatedBlock*& head = buckets_[bucket(b.pa, b.key)];
  b.hash_next = std::exchange(head, &b);
  TranslatedBlock*& page = pages_[page_slot(page_of(b.pa))];
  b.page_next = std::exchange(page, &b);
  if (b.crosses) {
    Crossing*& first = crossings_[crossing_slot(b.second)];
    first = &unit().crossings.emplace_back(Crossing{&b, first});
  }
  return &b;
}

void CodeCache::unlist(const TranslatedBlock& block) noexcept {
  TranslatedBlock** hashed = &buckets_[bucket(block.pa, block.key)];
  while (*hashed != &block) hashed = &(*hashed)->hash_next;
  *hashed = block.hash_next;
  TranslatedBlock** in_page = &pages_[page_slot(page_of(block.pa))];
  while (*in_page != &block) in_page = &(*in_page)->page_next;
  *in_page = block.page_next;
  if (!block.crosses) return;
  Crossing** crossing = &crossings_[crossing_slot(block.second)];
  while ((*crossing)->block != &block) crossing = &(*crossing)->next;
  *crossing = (*crossing)->next;
}

// ---- code that changes --------------------------------------------------------------------------

void CodeCache::retire(TranslatedBlock& block) noexcept {
  unlist(block);
  block.dropped = true;
  lead_to_stale(block.entry);
}

std::size_t CodeCache::drop_in_page(PPN ppn, PA pa, PA end) noexcept {
  std::size_t dropped = 0;
  const PA page = address_of(ppn);
  TranslatedBlock* next = nullptr;
  for (TranslatedBlock* b = pages_[page_slot(ppn)]; b != nullptr; b = next) {
    next = b->page_next;
    if (page_of(b->pa) != ppn || !(page + b->from < end && pa < page + b->to)) continue;
    retire(*b);
    ++dropped;
  }
  return dropped;
}

/// They are few: whatever was written to the page's beginning, all of them go.
std::size_t CodeCache::drop_crossing_into(PPN ppn) noexcept {
  std::size_t dropped = 0;
  Crossing* next = nullptr;
  for (Crossing* c = crossings_[crossing_slot(ppn)]; c != nullptr; c = next) {
    next = c->next;
    if (c->block->second != ppn) continue;
    retire(*c->block);
    ++dropped;
  }
  return dropped;
}

std::size_t CodeCache::drop(PA pa, std::uint64_t length) noexcept {
  constexpr std::uint64_t kLongestTail = 14;
  std::size_t dropped = 0;
  const PA end = pa + length;
  for (PPN ppn = page_of(pa); address_of(ppn) < end; ppn = ppn + 1) {
    if (pa < address_of(ppn) + kLongestTail) dropped += drop_crossing_into(ppn);
    dropped += drop_in_page(ppn, pa, end);
  }
  if (dropped != 0) ++changes_;
  return dropped;
}

}  // namespace strata::bt
