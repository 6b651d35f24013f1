#include "shadow/tables.hpp"

#include <algorithm>
#include <mutex>
#include <utility>

#include "shadow/guest_leaf.hpp"

namespace strata::shadow {

using Format = machine::Long4Format;

namespace {

[[nodiscard]] constexpr std::uint32_t number_of(Slot slot) noexcept { return slot / kEntries; }
[[nodiscard]] constexpr std::uint32_t index_of(Slot slot) noexcept { return slot % kEntries; }

/// A miss may pin four tables; below that nothing could ever be installed.
constexpr std::uint64_t kLeastTables = 8;

/// Neighbours mapped with a miss: what a cache line of 8-byte guest entries holds, which the walk
/// has just read.
constexpr std::uint32_t kPrefetchGroup = 8;

/// Page directories and above cost all that is below them when they go.
constexpr std::uint32_t kUpperLevelPatience = 16;

}  // namespace

EntryRange derived_entries(const PageKey& key, std::uint64_t offset,
                           std::uint64_t length) noexcept {
  const auto guest = [&](std::uint64_t size) {
    return EntryRange{static_cast<std::uint32_t>(offset / size),
                      static_cast<std::uint32_t>((offset + length - 1) / size)};
  };
  if (length == 0) return {};
  if (key.role.mode != PagingMode::i386) return guest(8);
  // A mirror of an i386 page directory has two entries for each 4 MiB entry, and of the guest's
  // 1024 entries it mirrors 256; a mirror of a page table mirrors 512.
  const std::uint32_t mirrored = key.level == 2 ? 256 : 512;
  const std::uint32_t copies = key.level == 2 ? 2 : 1;
  const std::uint32_t begin = key.quadrant * mirrored;
  const EntryRange g = guest(4);
  if (g.last < begin || g.first >= begin + mirrored) return {};
  const std::uint32_t first = std::max(g.first, begin) - begin;
  const std::uint32_t last = std::min(g.last, begin + mirrored - 1) - begin;
  return {first * copies, last * copies + copies - 1};
}

ShadowTables::ShadowTables(P2m& p2m, FrameSource& frames, const ShadowOptions& options)
    : p2m_{p2m},
      frames_{frames},
      window_{frames.window()},
      options_{[&] {
        ShadowOptions o = options;
        o.memory_limit = std::max(o.memory_limit, kLeastTables * kTableCost);
        o.max_vcpus = std::max(o.max_vcpus, 1U);
        return o;
      }()},
      max_tables_{options_.memory_limit / kTableCost},
      roots_(options_.max_vcpus, {kNone, kNone}),
      retiring_{std::make_shared<std::atomic<std::uint64_t>>(0)} {}

ShadowTables::~ShadowTables() {
  for (const auto& t : tables_) {
    if (t) frames_.release(t->mpn, FrameKind::shadow_table);
  }
}

// --- entries and their links

std::atomic_ref<std::uint64_t> ShadowTables::word(Slot slot) const noexcept {
  return std::atomic_ref<std::uint64_t>{
      window_.words(tables_[number_of(slot)]->mpn)[index_of(slot)]};
}

std::uint64_t ShadowTables::entry(Slot slot) const noexcept {
  return word(slot).load(std::memory_order_relaxed);
}

Link& ShadowTables::link(Slot slot) noexcept {
  const std::uint32_t index = index_of(slot);
  return (
      *tables_[number_of(slot)]->blocks[index / ShadowTable::kBlock])[index % ShadowTable::kBlock];
}

Slot& ShadowTables::head_of(Slot slot) noexcept {
  const Link& l = link(slot);
  if (l.to_table()) return tables_[l.child()]->parents;
  Region& r = pages_.region(l.target);
  if (tables_[number_of(slot)]->key.level > 1) return r.large;
  return r.heads[l.target % kRegionPages];
}

void ShadowTables::attach(Slot slot, std::uint32_t target) {
  ShadowTable& t = *tables_[number_of(slot)];
  auto& block = t.blocks[index_of(slot) / ShadowTable::kBlock];
  if (!block) {
    block = std::make_unique<ShadowTable::LinkBlock>();
    ++link_blocks_;
  }
  Link& l = link(slot);
  l.target = target;
  Slot& head = head_of(slot);
  l.prev = kNone;
  l.next = head;
  if (head != kNone) link(head).prev = slot;
  head = slot;
  ++t.present;
  if (l.to_table()) {
    ++t.children;
  } else {
    ++counters_.mappings;
  }
}

void ShadowTables::detach(Slot slot) noexcept {
  ShadowTable& t = *tables_[number_of(slot)];
  Link& l = link(slot);
  if (l.next != kNone) link(l.next).prev = l.prev;
  (l.prev != kNone ? link(l.prev).next : head_of(slot)) = l.next;
  --t.present;
  if (l.to_table()) {
    --t.children;
  } else {
    --counters_.mappings;
  }
  l = {};
}

void ShadowTables::zap(Slot slot, Change& change) {
  const Link* l = tables_[number_of(slot)]->link(index_of(slot));
  if (l == nullptr || !l->occupied()) return;
  word(slot).store(0, std::memory_order_relaxed);
  const Link old = *l;
  detach(slot);
  ++counters_.zaps;
  if (!old.to_table()) return;
  ShadowTable& child = *tables_[old.child()];
  if (child.parents != kNone || child.queued) return;
  child.queued = true;
  change.orphans.push_back(old.child());
}

void ShadowTables::set_child(Slot slot, std::uint32_t child, std::uint64_t bits, Change& change) {
  const std::uint64_t value = bits | address_of(tables_[child]->mpn).value();
  const std::uint32_t target = child | Link::kTableBit;
  const Link* l = tables_[number_of(slot)]->link(index_of(slot));
  if (l == nullptr || l->target != target) {
    zap(slot, change);
    attach(slot, target);
    // A new way to leaves: those out of date can have been in nobody's TLB by it.
    if (tables_[child]->key.level == 1) {
      tables_[child]->provenance = {};
    } else if (tables_[child]->key.kind != PageKind::linear) {
      relinked_ = clock_.next();
    }
  }
  word(slot).store(value, std::memory_order_relaxed);
}

void ShadowTables::set_leaf(Slot slot, std::uint32_t reference, std::uint64_t bits,
                            Change& change) {
  const Link* l = tables_[number_of(slot)]->link(index_of(slot));
  if (l == nullptr || l->target != reference) {
    zap(slot, change);
    attach(slot, reference);
  }
  if (tables_[number_of(slot)]->key.level > 1) ++counters_.large_leaves;
  word(slot).store(bits, std::memory_order_relaxed);
}

PPN ShadowTables::mapped_page(std::uint32_t number, std::uint32_t index) const noexcept {
  return pages_.ppn(tables_[number]->link(index)->target);
}

void ShadowTables::prefetch(Slot slot, std::uint64_t linear_bits, Change& change) {
  const std::uint32_t number = number_of(slot);
  const PageKey& key = tables_[number]->key;
  const bool linear = key.kind == PageKind::linear;
  const GuestLeaves leaves{p2m_, window_, key};
  const std::uint32_t first = index_of(slot) & ~(kPrefetchGroup - 1);
  for (std::uint32_t i = first; i < first + kPrefetchGroup; ++i) {
    const Link* l = tables_[number]->link(i);
    if (l != nullptr && l->occupied()) continue;
    GuestLeaf leaf{PPN{key.base} + i, linear_bits & ~Format::kWritable,
                   (linear_bits & Format::kWritable) != 0};
    if (!linear) {
      const auto read = leaves.at(i);
      if (!read) continue;
      leaf = *read;
    }
    const P2mEntry entry = p2m_.lookup(leaf.ppn).entry;
    if (!entry.mappable()) continue;
    const P2mTarget target = target_of(entry, p2m_.zero_frame());
    std::uint64_t bits = leaf.bits | kPrefetched | target.mpn.value() << kPageShift;
    if (leaf.writable && target.writable) {
      bits |= pages_.traced(leaf.ppn) ? kTracedWrite : Format::kWritable | Format::kDirty;
    }
    set_leaf(number * kEntries + i, pages_.reference(leaf.ppn), bits, change);
    ++counters_.prefetched;
  }
}

void ShadowTables::note_prefetch_used(Slot slot) noexcept {
  const std::uint64_t old = word(slot).fetch_and(~kPrefetched, std::memory_order_relaxed);
  if ((old & kPrefetched) != 0) prefetch_used_.fetch_add(1, std::memory_order_relaxed);
}

// --- tables

std::uint32_t ShadowTables::find(const PageKey& key) const noexcept {
  std::uint32_t number = by_tag_.find(key.tag());
  while (number != kNone && !(tables_[number]->key == key)) number = tables_[number]->next_same_tag;
  return number;
}

Expected<std::uint32_t, Shortage> ShadowTables::find_or_create(const PageKey& key, Change& change) {
  if (const std::uint32_t number = find(key); number != kNone) return number;
  const auto frame = take_frame(change);
  if (!frame) return Unexpected{frame.error()};

  const std::uint32_t number = new_number();
  tables_[number] = std::make_unique<ShadowTable>();
  ShadowTable& t = *tables_[number];
  t.key = key;
  t.mpn = *frame;
  t.serial = next_serial_++;
  live_.fetch_add(1, std::memory_order_relaxed);
  ++counters_.pages_created;
  if (key.level == 4) root_tables_.push_back(number);
  if (key.kind == PageKind::mirror) begin_mirror(number, change);
  if (key.kind == PageKind::linear && key.linear.guest_shift != kPageShift) ++counters_.fragmented;
  insert(number);
  return number;
}

std::uint32_t ShadowTables::new_number() {
  if (free_numbers_.empty()) {
    tables_.emplace_back();
    return static_cast<std::uint32_t>(tables_.size() - 1);
  }
  const std::uint32_t number = free_numbers_.back();
  free_numbers_.pop_back();
  return number;
}

/// A page is settled as a whole: any settled mirror of it vouches for a new one.
void ShadowTables::begin_mirror(std::uint32_t number, Change& change) {
  ShadowTable& t = *tables_[number];
  const PPN ppn{t.key.base};
  t.settled = false;
  bool unsync_ones = false;
  for (std::uint32_t n = by_tag_.find(t.key.tag()); n != kNone; n = tables_[n]->next_same_tag) {
    t.settled = t.settled || tables_[n]->settled;
    unsync_ones = unsync_ones || tables_[n]->unsync;
  }
  if (t.settled) return;
  Region& r = pages_.region(pages_.reference(ppn));
  r.set_mirrored(ReverseMap::offset_of(ppn), true);
  if (unsync_ones && t.key.level == 1 && !r.traced(ReverseMap::offset_of(ppn))) {
    set_unsync(number, true);
    return;
  }
  // If others are out of sync, they come back with this one: upper levels have to be followed.
  trace_again(ppn, change);
  start_settling(number, change);
}

void ShadowTables::insert(std::uint32_t number) {
  ShadowTable& t = *tables_[number];
  t.next_same_tag = by_tag_.find(t.key.tag());
  by_tag_.set(t.key.tag(), number);
  by_frame_.set(t.mpn.value(), number);
}

void ShadowTables::remove(ShadowTable& t, std::uint32_t number) noexcept {
  by_frame_.erase(t.mpn.value());
  const std::uint64_t tag = t.key.tag();
  const std::uint32_t first = by_tag_.find(tag);
  if (first != number) {
    std::uint32_t n = first;
    while (tables_[n]->next_same_tag != number) n = tables_[n]->next_same_tag;
    tables_[n]->next_same_tag = t.next_same_tag;
  } else if (t.next_same_tag != kNone) {
    by_tag_.set(tag, t.next_same_tag);
  } else {
    by_tag_.erase(tag);
    // The last mirror is gone: stores to the page are nobody's business any more.
    if (t.key.kind == PageKind::mirror) {
      const PPN ppn{t.key.base};
      Region& r = *pages_.find(ppn);
      r.set_traced(ReverseMap::offset_of(ppn), false);
      r.set_mirrored(ReverseMap::offset_of(ppn), false);
    }
  }
}

void ShadowTables::drop(std::uint32_t number, Change& change) {
  ShadowTable& t = *tables_[number];
  while (t.parents != kNone) zap(t.parents, change);
  for (std::uint32_t i = 0; i < kEntries && t.present != 0; ++i) {
    if (i % ShadowTable::kBlock == 0 && !t.blocks[i / ShadowTable::kBlock]) {
      i += ShadowTable::kBlock - 1;
      continue;
    }
    zap(number * kEntries + i, change);
  }
  for (const auto& block : t.blocks) link_blocks_ -= block ? 1 : 0;
  if (t.key.level == 4) leave_root(number);
  stop_settling(t);
  if (t.unsync) set_unsync(number, false);
  remove(t, number);
  change.retired.push_back(t.mpn);
  live_.fetch_sub(1, std::memory_order_relaxed);
  tables_[number].reset();
  free_numbers_.push_back(number);
}

void ShadowTables::leave_root(std::uint32_t number) noexcept {
  std::erase(root_tables_, number);
  if (tables_[number]->users.load(std::memory_order_relaxed) == 0) return;
  for (auto& pair : roots_) {
    for (std::uint32_t& root : pair) {
      if (root == number) root = kNone;
    }
  }
}

void ShadowTables::reap(Change& change) {
  while (!change.orphans.empty()) {
    const std::uint32_t number = change.orphans.back();
    change.orphans.pop_back();
    // The number may have been dropped directly since, and even given to a new table.
    if (number >= tables_.size() || !tables_[number] || !tables_[number]->queued) continue;
    ShadowTable& t = *tables_[number];
    t.queued = false;
    if (t.parents == kNone && !t.pinned) drop(number, change);
  }
}

void ShadowTables::finish(Change& change) {
  reap(change);
  if (!change.retired.empty()) {
    retiring_->fetch_add(change.retired.size(), std::memory_order_relaxed);
    change.flush.defer([&frames = frames_, retiring = retiring_, mpns = std::move(change.retired)] {
      for (const MPN mpn : mpns) frames.release(mpn, FrameKind::shadow_table);
      retiring->fetch_sub(mpns.size(), std::memory_order_relaxed);
    });
  }
  if (!change.settling.empty()) {
    change.flush.defer([self = weak_from_this(), which = std::move(change.settling)] {
      if (const auto tables = self.lock()) tables->settle(which);
    });
  }
}

void ShadowTables::settle(const std::vector<Change::Settling>& which) {
  const std::unique_lock guard{lock_};
  for (const auto& [number, serial] : which) {
    if (number >= tables_.size() || !tables_[number]) continue;
    ShadowTable& t = *tables_[number];
    if (t.serial != serial || !t.settling) continue;
    stop_settling(t);
    t.settled = true;
    if (!t.unsync) continue;
    // From here on every store is announced; what was not is found now.
    zap_outdated(number);
    set_unsync(number, false);
  }
  // What a miss read from these pages before this point may have been overwritten unannounced.
  next_generation();
}

// --- memory

Expected<MPN, Shortage> ShadowTables::take_frame(Change& change) {
  Shortage shortage = Shortage::budget;
  if (change.retired.empty()) {
    if (live_.load(std::memory_order_relaxed) + retiring_->load(std::memory_order_relaxed) <
        max_tables_) {
      const auto fresh = frames_.allocate(FrameKind::shadow_table);
      if (fresh) return *fresh;
      shortage = Shortage::frames;
    }
    if (!evict(change)) return Unexpected{shortage};
  }
  // Only walks under the lock read shadow tables, so a table dropped under it can be reused at
  // once; the epoch matters for frames that go back to their source. drop() has zapped every entry.
  const MPN mpn = change.retired.back();
  change.retired.pop_back();
  return mpn;
}

bool ShadowTables::evict(Change& change) {
  std::uint32_t victim = oldest_idle_root();
  if (victim == kNone) victim = next_victim(false);
  if (victim == kNone) victim = next_victim(true);
  if (victim == kNone) return false;
  const std::size_t before = change.retired.size();
  drop(victim, change);
  reap(change);
  counters_.evictions += change.retired.size() - before;
  return true;
}

std::uint32_t ShadowTables::oldest_idle_root() const noexcept {
  std::uint32_t oldest = kNone;
  std::uint64_t least = ~0ULL;
  for (const std::uint32_t number : root_tables_) {
    const ShadowTable& t = *tables_[number];
    const std::uint64_t use = t.last_use.load(std::memory_order_relaxed);
    if (t.pinned || t.users.load(std::memory_order_relaxed) != 0 || use >= least) continue;
    oldest = number;
    least = use;
  }
  return oldest;
}

/// Second chance over the tables that have no tables below them; when desperate, over all that the
/// miss at work does not need, roots of running vCPUs among them.
std::uint32_t ShadowTables::next_victim(bool desperate) noexcept {
  const auto count = static_cast<std::uint32_t>(tables_.size());
  for (std::uint32_t step = 0; step < 2 * count; ++step) {
    hand_ = hand_ + 1 < count ? hand_ + 1 : 0;
    ShadowTable* t = tables_[hand_].get();
    if (t == nullptr || t->pinned) continue;
    if (desperate) return hand_;
    if (t->children != 0 || t->users.load(std::memory_order_relaxed) != 0) continue;
    if (!t->used.exchange(false, std::memory_order_relaxed)) return hand_;
  }
  return kNone;
}

// --- guest pages

void ShadowTables::clear_write(Slot slot) noexcept {
  const auto w = word(slot);
  const std::uint64_t old = w.load(std::memory_order_relaxed);
  if ((old & Format::kWritable) == 0) return;
  w.store((old & ~(Format::kWritable | Format::kDirty)) | kTracedWrite, std::memory_order_relaxed);
}

void ShadowTables::begin_trace(PPN ppn, Change& change) {
  Region& r = pages_.region(pages_.reference(ppn));
  const std::uint32_t offset = ReverseMap::offset_of(ppn);
  r.set_traced(offset, true);
  ++counters_.traces;
  for (Slot slot = r.heads[offset]; slot != kNone; slot = link(slot).next) clear_write(slot);
  // A large leaf can not be read-only for one page; the next miss maps smaller pieces.
  while (r.large != kNone) zap(r.large, change);
  // Even if no shadow entry is writable now, a holder may keep a writable translation from an
  // entry that has been zapped since: guests' stores to their tables do not flush.
  change.flush.add({ppn, 1});
}

bool ShadowTables::flooded(const ShadowTable& t, std::uint32_t writes) const noexcept {
  if (t.users.load(std::memory_order_relaxed) != 0) return false;
  // A root that nobody runs on is most likely the page of a process that has ended, used for
  // something else by now.
  const bool patient = t.key.level > 1 && t.parents != kNone;
  const std::uint32_t limit = options_.write_flood_limit * (patient ? kUpperLevelPatience : 1U);
  return limit != 0 && writes >= limit;
}

bool ShadowTables::note_write(PPN ppn, std::uint64_t offset, std::uint64_t length) noexcept {
  const auto weight = static_cast<std::uint32_t>(std::max<std::uint64_t>(1, length / 8));
  traced_writes_.fetch_add(1, std::memory_order_relaxed);
  bool apply = false;
  for (std::uint32_t n = by_tag_.find(ppn.value()); n != kNone; n = tables_[n]->next_same_tag) {
    ShadowTable& t = *tables_[n];
    const std::uint32_t writes = t.writes.fetch_add(weight, std::memory_order_relaxed) + weight;
    apply = apply || flooded(t, writes);
    const EntryRange range = derived_entries(t.key, offset, length);
    for (std::uint32_t i = range.first; i <= range.last && !apply; ++i) {
      const Link* l = t.link(i);
      apply = l != nullptr && l->occupied();
    }
  }
  return apply;
}

void ShadowTables::apply_write(PPN ppn, std::uint64_t offset, std::uint64_t length,
                               Change& change) {
  // Nothing is dropped while the chain is walked: orphans wait for finish().
  std::vector<std::uint32_t> given_up;
  for (std::uint32_t n = by_tag_.find(ppn.value()); n != kNone; n = tables_[n]->next_same_tag) {
    ShadowTable& t = *tables_[n];
    const EntryRange range = derived_entries(t.key, offset, length);
    for (std::uint32_t i = range.first; i <= range.last; ++i) zap(n * kEntries + i, change);
    if (flooded(t, t.writes.load(std::memory_order_relaxed))) given_up.push_back(n);
  }
  // Dropping may queue orphans, but removes no table other than the one named.
  for (const std::uint32_t n : given_up) drop(n, change);
  counters_.floods += given_up.size();
}

bool ShadowTables::mirrors_both_widths(PPN ppn) const noexcept {
  bool narrow = false;
  bool wide = false;
  for (std::uint32_t n = by_tag_.find(ppn.value()); n != kNone; n = tables_[n]->next_same_tag) {
    (tables_[n]->key.role.mode == PagingMode::i386 ? narrow : wide) = true;
  }
  return narrow && wide;
}

void ShadowTables::drop_pages(PpnRange range, Change& change) {
  std::vector<std::uint32_t> mirrors;
  pages_.for_each(range, [&](Region& r) {
    while (r.large != kNone) zap(r.large, change);
    for (std::uint32_t i = 0; i < kRegionPages; ++i) {
      if (!range.contains(r.base + i)) continue;
      while (r.heads[i] != kNone) zap(r.heads[i], change);
      if (!r.mirrored(i)) continue;
      // The page may come back with other contents (discarded, poisoned).
      for (std::uint32_t n = by_tag_.find((r.base + i).value()); n != kNone;
           n = tables_[n]->next_same_tag) {
        mirrors.push_back(n);
      }
    }
  });
  for (const std::uint32_t n : mirrors) drop(n, change);
}

// --- roots

void ShadowTables::set_root(VcpuId vcpu, bool anywhere, std::uint32_t number) noexcept {
  std::uint32_t& root = roots_[vcpu][anywhere ? 1 : 0];
  if (number != kNone) {
    tables_[number]->last_use.store(use_clock_.fetch_add(1, std::memory_order_relaxed),
                                    std::memory_order_relaxed);
  }
  if (root == number) return;
  if (root != kNone) tables_[root]->users.fetch_sub(1, std::memory_order_relaxed);
  if (number != kNone) tables_[number]->users.fetch_add(1, std::memory_order_relaxed);
  root = number;
}

ShadowStats ShadowTables::stats() const {
  ShadowStats s = counters_;
  s.pages = live_.load(std::memory_order_relaxed);
  s.retiring = retiring_->load(std::memory_order_relaxed);
  s.roots = root_tables_.size();
  s.rmap_bytes = pages_.bytes();
  s.metadata_bytes = s.pages * sizeof(ShadowTable) + tables_.capacity() * sizeof(tables_[0]) +
                     link_blocks_ * sizeof(ShadowTable::LinkBlock) + by_tag_.bytes() +
                     by_frame_.bytes();
  s.traced_writes = traced_writes_.load(std::memory_order_relaxed);
  s.root_hits = root_hits_.load(std::memory_order_relaxed);
  s.root_misses = root_misses_.load(std::memory_order_relaxed);
  s.prefetch_used = prefetch_used_.load(std::memory_order_relaxed);
  s.unsync_now = unsync_.size();
  s.limit_bytes = options_.memory_limit;
  return s;
}

}  // namespace strata::shadow
