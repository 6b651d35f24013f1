// The miss handler: guest walk, P2M, then the shadow path is built under the lock.

#include <array>
#include <mutex>

#include "shadow/shadow_mmu.hpp"
#include "shadow/translation.hpp"

namespace strata::shadow {

using Format = machine::Long4Format;

namespace {

/// Entries that the guest's tables say nothing about allow everything.
constexpr std::uint64_t kOpen =
    Format::kPresent | Format::kWritable | Format::kUser | Format::kAccessed;

constexpr std::uint64_t kKeyMask = machine::bit_range(59, 62);

[[nodiscard]] std::uint32_t index_at(unsigned level, std::uint64_t input) noexcept {
  return static_cast<std::uint32_t>(input >> Format::shift(level) & (kEntries - 1));
}

/// R/W, U/S and XD of a guest entry for the shadow entry that mirrors it. Without EFER.NXE a set
/// bit 63 is reserved and never gets here; i386 entries have none.
[[nodiscard]] std::uint64_t mirrored_rights(std::uint64_t entry, bool anywhere) noexcept {
  const std::uint64_t write = anywhere ? Format::kWritable : entry & Format::kWritable;
  return Format::kPresent | Format::kAccessed | write | (entry & Format::kUser) |
         (entry & Format::kNoExecute);
}

}  // namespace

/// The tables of one path, pinned while it is built.
struct ShadowMmu::Path {
  explicit Path(ShadowTables& t) noexcept : tables{&t} {}
  Path(const Path&) = delete;
  Path& operator=(const Path&) = delete;
  ~Path() {
    for (std::uint32_t i = 0; i < count; ++i) tables->table(numbers[i]).pinned = false;
  }
  void add(std::uint32_t number) noexcept {
    ShadowTable& t = tables->table(number);
    t.pinned = true;
    t.touch();
    numbers[count++] = number;
  }
  ShadowTables* tables;
  std::array<std::uint32_t, 4> numbers{};
  std::uint32_t count = 0;
};

Expected<P2mLookup, Fault> ShadowMmu::resolve(VA va, PA pa, AccessKind kind) {
  auto found = p2m_.resolve(page_of(pa), kind);
  if (found && kind == AccessKind::write && found->entry.logged()) {
    p2m_.note_dirty(page_of(pa));
    found = p2m_.resolve(page_of(pa), kind);
  }
  if (found) return found;
  Fault fault = found.error();
  fault.va = va;
  fault.pa = pa;
  return Unexpected{fault};
}

Expected<ShadowMmu::Mapping, Fault> ShadowMmu::find_mapping(Vcpu& v, VA va, Access access,
                                                            bool anywhere) {
  Mapping m;
  m.input = table_input(v.context.mode, va);
  m.anywhere = anywhere;
  machine::GuestWalkCounters counters;
  auto walk = machine::guest_walk(v.context, va, access, p2m_, window_, counters);
  v.guest_references.add(counters.references);
  v.ad_writes.add(counters.ad_writes);
  m.ad_written = counters.ad_writes != 0;
  if (!walk) {
    if (walk.error().stage == Stage::guest_table) v.faults.add(1);
    return Unexpected{walk.error()};
  }
  m.guest = *walk;
  if (v.context.mode != PagingMode::off) {
    m.leaf_level = m.guest.leaf_level;
    m.top_level = m.guest.top_level;
  }
  m.ppn = page_of(m.guest.pa);
  const auto found = resolve(va, m.guest.pa, access.kind);
  if (!found) return Unexpected{found.error()};
  m.lookup = *found;
  m.target = target_of(found->entry, p2m_.zero_frame());
  return m;
}

Translation ShadowMmu::translation_of(const Vcpu& v, const Mapping& m, bool traced,
                                      Access access) const noexcept {
  // The rights that the shadow path has or will have, so that a miss and later hits agree. With
  // paging off the walk allows everything, by a page of 4 KiB.
  machine::Rights rights = m.guest.rights;
  const bool guest_write = (rights.write || m.anywhere) && m.guest.dirty;
  rights.write = guest_write && m.target.writable && !traced;
  const machine::WalkControls& c = v.controls[m.anywhere ? 1 : 0];
  Translation t = allowed_by(rights, m.guest.leaf, access, c);
  t.page = address_of(m.target.mpn);
  t.pa = address_of(m.ppn);
  t.global = m.guest.global && v.context.pge;
  t.traced = traced && access.kind == AccessKind::write;
  t.page_shift = m.guest.page_shift;
  return t;
}

Expected<Translation, Fault> ShadowMmu::miss(VcpuId vcpu, VA va, Access access, bool anywhere) {
  Vcpu& v = vcpus_[vcpu];
  v.misses.add(1);
  Translation t;
  for (unsigned attempt = 1;; ++attempt) {
    if (tables_->unsettled() != 0) domain_.collect();
    const std::uint64_t generation = tables_->generation();
    const auto mapping = find_mapping(v, va, access, anywhere);
    if (!mapping) {
      if (mapping.error().stage == Stage::guest_table) forget_address(vcpu, va);
      return Unexpected{mapping.error()};
    }
    const Install how = try_install(vcpu, *mapping, generation, t, access);
    Fault fault{Stage::p2m, FaultKind::retry, 0, va, mapping->guest.pa};
    // Somebody took write access away again (logging) after resolve() had given it.
    if (access.kind == AccessKind::write && !t.writable && !t.traced) return Unexpected{fault};
    switch (how) {
      case Install::done:
        return t;
      case Install::out_of_frames:
        fault.kind = FaultKind::out_of_memory;
        return Unexpected{fault};
      case Install::unsettled:
        // Holders that wait in calls of their own have passed already; then it is settled now.
        if (tables_->unsettled() == 0 && attempt < kAttempts) continue;
        break;
      case Install::raced:
        v.retries.add(1);
        if (attempt < kAttempts) continue;
        break;
      case Install::no_room:
        break;
    }
    v.unlinked.add(1);
    return t;
  }
}

/// One attempt. `out` is right even where nothing could be installed: what changed since the guest
/// walk reaches the engine as an invalidation that it looks at before it uses `out`.
ShadowMmu::Install ShadowMmu::try_install(VcpuId vcpu, const Mapping& m, std::uint64_t generation,
                                          Translation& out, Access access) {
  Flush flush{domain_};
  Install result = Install::raced;
  {
    const std::unique_lock guard{tables_->lock()};
    Change change{flush};
    if (generation == tables_->generation() && p2m_.lookup(m.ppn).entry == m.lookup.entry) {
      const bool traced_store =
          access.kind == AccessKind::write && m.target.writable && tables_->pages().traced(m.ppn);
      if (traced_store && tables_->may_unsync(m.ppn)) tables_->unsync(m.ppn, change);
      result = install(vcpu, m, change);
    }
    if (m.ad_written) announce_ad_writes(m, change);
    tables_->finish(change);
    // After the install: it may have begun to trace the very page that is mapped.
    out = translation_of(vcpus_[vcpu], m, tables_->pages().traced(m.ppn), access);
  }
  flush.commit();
  return result;
}

/// A and D bits that a walk sets mean the same to every mirror of the table, and change none.
/// Unless a hostile guest uses one page as a table of 4-byte and of 8-byte entries: then bits 5 and
/// 6 of one are bits 37 and 38 of the other.
void ShadowMmu::announce_ad_writes(const Mapping& m, Change& change) {
  for (unsigned level = m.leaf_level; level <= m.top_level && level < 5; ++level) {
    const PA entry{m.guest.steps[level].entry_address & ~7ULL};
    if (!tables_->mirrors_both_widths(page_of(entry))) continue;
    tables_->apply_write(page_of(entry), entry.page_offset(), sizeof(std::uint64_t), change);
    tables_->next_generation();
  }
}

ShadowMmu::Install ShadowMmu::install(VcpuId vcpu, const Mapping& m, Change& change) {
  Path path{*tables_};
  const auto root = root_for(vcpu, m.anywhere, change);
  if (!root) return root.error() == Shortage::frames ? Install::out_of_frames : Install::no_room;
  path.add(*root);
  return build_path(vcpu, *root, m, path, change);
}

Expected<std::uint32_t, Shortage> ShadowMmu::root_for(VcpuId vcpu, bool anywhere, Change& change) {
  if (const std::uint32_t root = tables_->root_of(vcpu, anywhere); root != kNone) return root;
  const PagingContext& context = vcpus_[vcpu].context;
  const PageKey key = root_key(context, role_of(context, anywhere));
  const bool cached = tables_->find(key) != kNone;
  const auto root = tables_->find_or_create(key, change);
  if (!root) return root;
  tables_->count_root(cached);
  tables_->set_root(vcpu, anywhere, *root);
  return root;
}

bool ShadowMmu::maps_large(const Mapping& m) const noexcept {
  if (!large_pages_ || m.leaf_level < 2) return false;
  const PageState state = m.lookup.entry.state();
  if (m.lookup.run_shift < kLargePageShift || state != PageState::private_page) return false;
  // Inside a run the machine pages are consecutive; the entry also needs an aligned first one.
  if ((m.lookup.entry.mpn().value() - m.ppn.value()) % kRegionPages != 0) return false;
  const Region* region = tables_->pages().find(m.ppn);
  return region == nullptr || region->mirrored_pages == 0;
}

PageKey ShadowMmu::key_below(unsigned level, const Mapping& m, Role role) const noexcept {
  PageKey key;
  const unsigned below = level - 1;
  key.level = static_cast<std::uint8_t>(below);
  if (below < m.leaf_level) {
    key.kind = PageKind::linear;
    key.base = m.ppn.value() & ~((1ULL << (9 * below)) - 1);
    if (role.mode != PagingMode::off) {
      key.linear.global = Format::global(m.guest.leaf);
      key.linear.protection_key = static_cast<std::uint8_t>(
          role.mode == PagingMode::long4 ? Format::protection_key(m.guest.leaf) : 0);
      key.linear.guest_shift = static_cast<std::uint8_t>(m.guest.page_shift);
    }
    return key;
  }
  key.role = role;
  key.base = page_of(PA{m.guest.steps[below].entry_address}).value();
  if (role.mode == PagingMode::i386) {
    key.quadrant = static_cast<std::uint8_t>(below == 2 ? m.input >> 30 & 3 : m.input >> 21 & 1);
  }
  return key;
}

namespace {

/// The entry at `level` that points to the next table down.
std::uint64_t table_bits(unsigned level, unsigned leaf_level, unsigned top_level,
                         const machine::GuestWalk& guest, bool anywhere) noexcept {
  if (level > top_level || level < leaf_level) return kOpen;
  std::uint64_t bits = mirrored_rights(guest.steps[level].entry, anywhere);
  // Here a guest large page begins: its D bit decides for all its pieces.
  if (level == leaf_level && !guest.dirty) bits &= ~Format::kWritable;
  return bits;
}

/// The leaf at `level` without its address. `writable`: as far as the P2M is concerned.
std::uint64_t leaf_bits(unsigned level, unsigned leaf_level, const machine::GuestWalk& guest,
                        bool anywhere, bool writable, bool traced) noexcept {
  std::uint64_t bits = level == leaf_level ? mirrored_rights(guest.leaf, anywhere) : kOpen;
  if (level == leaf_level && !guest.dirty) writable = false;
  writable = writable && (bits & Format::kWritable) != 0;
  bits &= ~Format::kWritable;
  if (writable) bits |= traced ? kTracedWrite : Format::kWritable | Format::kDirty;
  if (level > 1) bits |= Format::kLarge;
  return bits | (guest.leaf & Format::kGlobal);
}

}  // namespace

ShadowMmu::Install ShadowMmu::build_path(VcpuId vcpu, std::uint32_t root, const Mapping& m,
                                         Path& path, Change& change) {
  const PageKey top = tables_->table(root).key;
  const Role role = top.role;
  bool settled = true;
  std::uint32_t number = root;
  unsigned level = 4;
  for (; level > 1; --level) {
    if (level == 2 && maps_large(m)) break;
    PageKey key = key_below(level, m, role);
    if (level - 1 > m.top_level) {
      // Levels that the guest's format lacks belong to the root alone.
      key = top;
      key.level = static_cast<std::uint8_t>(level - 1);
    }
    const auto child = tables_->find_or_create(key, change);
    if (!child) {
      return child.error() == Shortage::frames ? Install::out_of_frames : Install::no_room;
    }
    path.add(*child);
    if (tables_->table(number).settled) {
      tables_->set_child(number * kEntries + index_at(level, m.input), *child,
                         table_bits(level, m.leaf_level, m.top_level, m.guest, m.anywhere), change);
    } else {
      settled = false;
    }
    number = *child;
  }
  const ShadowTable& last = tables_->table(number);
  if (!settled || !(last.settled || last.unsync)) return Install::unsettled;

  const bool large = level == 2;
  const std::uint64_t inside = large ? m.ppn.value() % kRegionPages : 0;
  std::uint64_t bits = leaf_bits(level, m.leaf_level, m.guest, m.anywhere, m.target.writable,
                                 tables_->pages().traced(m.ppn));
  const std::uint64_t key = role.mode == PagingMode::long4 ? m.guest.leaf & kKeyMask : 0;
  bits |= key;
  bits |= (m.target.mpn.value() - inside) << kPageShift;
  const Slot slot = number * kEntries + index_at(level, m.input);
  if (!large) tables_->note_maker(slot, vcpus_[vcpu].history.tenure(), region_of(m.input));
  tables_->set_leaf(slot, tables_->pages().reference(PPN{m.ppn.value() - inside}), bits, change);
  // Nobody announces stores to a table out of sync: the guest's entry may be another by now.
  if (last.unsync && !tables_->up_to_date(slot)) {
    tables_->zap(slot, change);
    return Install::raced;
  }
  if (prefetch_ && !large) {
    tables_->prefetch(slot, kOpen | key | (m.guest.leaf & Format::kGlobal), change);
  }
  return Install::done;
}

}  // namespace strata::shadow
