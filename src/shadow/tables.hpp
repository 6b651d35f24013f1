// The shadow tables of one VM: their frames, what they stand for, who points to them, which guest
// pages they map and trace, and which go when memory is short.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <shared_mutex>
#include <vector>

#include "machine/formats.hpp"
#include "mmu/expected.hpp"
#include "mmu/flush.hpp"
#include "mmu/frames.hpp"
#include "mmu/p2m.hpp"
#include "shadow/flat_index.hpp"
#include "shadow/flush_history.hpp"
#include "shadow/guest_leaf.hpp"
#include "shadow/reverse_map.hpp"
#include "shadow/role.hpp"
#include "shadow/shadow.hpp"

namespace strata::shadow {

inline constexpr std::uint32_t kEntries = 512;

/// In a leaf without R/W: only tracing keeps it from being writable. One of the bits 11:9 that the
/// processor ignores (SDM 3A table 4-20).
inline constexpr std::uint64_t kTracedWrite = 1ULL << 9;

/// In a leaf that was made for a neighbour of a miss and not used yet; another such bit.
inline constexpr std::uint64_t kPrefetched = 1ULL << 10;

/// One entry of one shadow table: table number * 512 + index.
using Slot = std::uint32_t;

/// What a present shadow entry leads to, and its neighbours among those that lead there too. Kept
/// beside the table, because an entry has no room for it.
struct Link {
  static constexpr std::uint32_t kTableBit = 1U << 31;

  std::uint32_t target = kNone;  ///< child's number | kTableBit, or a ReverseMap reference
  Slot prev = kNone;
  Slot next = kNone;

  [[nodiscard]] bool occupied() const noexcept { return target != kNone; }
  [[nodiscard]] bool to_table() const noexcept { return (target & kTableBit) != 0; }
  [[nodiscard]] std::uint32_t child() const noexcept { return target & ~kTableBit; }
};

/// One shadow table.
struct ShadowTable {
  /// Links come in blocks made on demand: most tables are sparse.
  static constexpr std::uint32_t kBlock = 64;
  using LinkBlock = std::array<Link, kBlock>;

  PageKey key;
  MPN mpn;
  std::uint64_t serial = 0;  ///< renewed when tracing of the mirrored page begins or ends
  std::uint32_t next_same_tag = kNone;
  Slot parents = kNone;                    ///< chain of entries that point here
  std::uint32_t present = 0;               ///< entries in use
  std::uint32_t children = 0;              ///< of these, entries that point to tables
  bool settled = true;                     ///< every store to the mirrored page is announced to us
  bool settling = false;                   ///< will be settled when all holders have passed
  bool unsync = false;                     ///< entries may be out of date; never if settled
  std::uint8_t quiet = 0;                  ///< resyncs in a row that found nothing
  Provenance provenance;                   ///< of the entries; kept for level 1
  bool pinned = false;                     ///< needed by the miss at work
  bool queued = false;                     ///< in Change::orphans
  std::atomic<std::uint32_t> users{0};     ///< roots: vCPUs that run on it
  std::atomic<std::uint64_t> last_use{0};  ///< roots: clock value
  std::atomic<std::uint32_t> writes{0};    ///< traced writes since the table was last used
  std::atomic<bool> used{false};           ///< since the eviction hand last passed
  std::array<std::unique_ptr<LinkBlock>, kEntries / kBlock> blocks;

  /// The table helped a translation. Called with the lock shared: writes only on change.
  void touch() noexcept {
    if (writes.load(std::memory_order_relaxed) != 0) writes.store(0, std::memory_order_relaxed);
    if (!used.load(std::memory_order_relaxed)) used.store(true, std::memory_order_relaxed);
  }
  [[nodiscard]] const Link* link(std::uint32_t index) const noexcept {
    const LinkBlock* block = blocks[index / kBlock].get();
    return block == nullptr ? nullptr : &(*block)[index % kBlock];
  }
};

// Indices are hash tables at most three quarters full, doubled when they grow: 16 bytes an entry
// come to 43 at most. Two of them, and two vectors' pointers and numbers.
static_assert(kPageSize + sizeof(ShadowTable) +
                  kEntries / ShadowTable::kBlock * sizeof(ShadowTable::LinkBlock) + 2 * 43 + 24 <=
              kTableCost);

/// What one change under the lock has to do once the lock is dropped, or before.
struct Change {
  explicit Change(Flush& f) noexcept : flush{f} {}
  struct Settling {
    std::uint32_t table;
    std::uint64_t serial;
  };
  Flush& flush;
  std::vector<MPN> retired;            ///< frames of dropped tables; reused before new ones
  std::vector<std::uint32_t> orphans;  ///< tables that lost their last parent
  std::vector<Settling> settling;      ///< mirrors whose pages other holders may still write
};

/// Why there is no table: the budget, or the host.
enum class Shortage : std::uint8_t { budget, frames };

/// Owner of all shadow tables. Every function wants lock() held: exclusively if it takes a Change,
/// shared is enough otherwise. Changes end with finish().
///
/// Lock order: lock() may be held while the FrameSource's and nothing else's locks are taken, and
/// P2M entries are looked up; never while the P2M is asked to resolve, or a Flush is committed.
class ShadowTables : public std::enable_shared_from_this<ShadowTables> {
 public:
  ShadowTables(P2m& p2m, FrameSource& frames, const ShadowOptions& options);
  ShadowTables(const ShadowTables&) = delete;
  ShadowTables& operator=(const ShadowTables&) = delete;
  /// Gives all frames back at once: nobody walks the tables any more.
  ~ShadowTables();

  [[nodiscard]] std::shared_mutex& lock() const noexcept { return lock_; }
  [[nodiscard]] MachineWindow window() const noexcept { return window_; }

  /// Grows with every event that may invalidate what a miss has read before it took the lock: a
  /// traced store, a P2M change, a page becoming settled. Needs no lock.
  [[nodiscard]] std::uint64_t generation() const noexcept {
    return generation_.load(std::memory_order_acquire);
  }
  void next_generation() noexcept { generation_.fetch_add(1, std::memory_order_acq_rel); }
  /// Mirrors that are settling. Needs no lock.
  [[nodiscard]] std::uint32_t unsettled() const noexcept {
    return unsettled_.load(std::memory_order_acquire);
  }

  // --- tables
  [[nodiscard]] std::uint32_t find(const PageKey& key) const noexcept;
  Expected<std::uint32_t, Shortage> find_or_create(const PageKey& key, Change& change);
  [[nodiscard]] ShadowTable& table(std::uint32_t number) noexcept { return *tables_[number]; }
  /// The table in frame `mpn`, or kNone.
  [[nodiscard]] std::uint32_t in_frame(MPN mpn) const noexcept {
    return by_frame_.find(mpn.value());
  }
  /// Unlinks the table from its parents, its entries from what they lead to, and retires it.
  void drop(std::uint32_t number, Change& change);
  /// Drops tables that have no parent left.
  void reap(Change& change);
  /// Hands frames and settlements to the Flush. The last act of every change.
  void finish(Change& change);

  // --- entries
  [[nodiscard]] std::uint64_t entry(Slot slot) const noexcept;
  /// Makes `slot` point to table `child` with entry `bits`; replaces what was there.
  void set_child(Slot slot, std::uint32_t child, std::uint64_t bits, Change& change);
  /// Makes `slot` a leaf that maps the page `reference` with entry `bits`.
  void set_leaf(Slot slot, std::uint32_t reference, std::uint64_t bits, Change& change);
  /// Takes the entry away, if there is one.
  void zap(Slot slot, Change& change);

  // --- tables out of sync (unsync.cpp)
  /// Tables that may be out of date now. Needs no lock.
  [[nodiscard]] std::uint32_t unsync_count() const noexcept {
    return unsync_count_.load(std::memory_order_acquire);
  }
  /// Orders flushes of vCPUs and checks of tables. Needs no lock.
  [[nodiscard]] EventClock& clock() noexcept { return clock_; }
  /// When an entry above a table of level 2 or higher was last made.
  [[nodiscard]] std::uint64_t relinked() const noexcept { return relinked_; }
  /// Whether stores to traced page `ppn` may go unwatched: it is a table of leaves and nothing
  /// else.
  [[nodiscard]] bool may_unsync(PPN ppn) const noexcept;
  /// Ends the tracing of `ppn`, which may_unsync(), and leaves its mirrors out of sync.
  void unsync(PPN ppn, Change& change);
  /// Makes every entry of table `number` agree with the guest's, for a vCPU that met it in `region`
  /// after a flush. A table that has stayed as it was for a while is traced again.
  void resync(std::uint32_t number, const Tenure& by, std::uint64_t region, Change& change);
  /// INVLPG of `input` on the roots of `vcpu`: no table out of sync keeps an outdated entry for it
  /// that this vCPU could use.
  void check_address(VcpuId vcpu, std::uint64_t input) noexcept;
  /// Notes who made the leaf that is about to be put into `slot` of a table of level 1, and where.
  void note_maker(Slot slot, const Tenure& by, std::uint64_t region) noexcept;
  /// Whether the leaf in `slot`, of a mirror of level 1, agrees with the guest's.
  [[nodiscard]] bool up_to_date(Slot slot) const noexcept;

  // --- guest pages
  [[nodiscard]] ReverseMap& pages() noexcept { return pages_; }
  [[nodiscard]] const ReverseMap& pages() const noexcept { return pages_; }
  /// Maps the neighbours of `slot`, which has just got a leaf of level 1, as far as they can be
  /// mapped from what is known. `linear_bits`: the rights of linear tables' entries.
  void prefetch(Slot slot, std::uint64_t linear_bits, Change& change);
  /// A hit on `slot`, which `entry` says was prefetched. Shared lock is enough.
  void note_prefetch_used(Slot slot) noexcept;
  /// The guest page that a present leaf maps (its first one, if large).
  [[nodiscard]] PPN mapped_page(std::uint32_t number, std::uint32_t index) const noexcept;
  /// Takes note of a store to [offset, offset + length) of traced page `ppn`. True: entries derived
  /// from it are present, or the page is flooded, and apply_write() has to follow.
  [[nodiscard]] bool note_write(PPN ppn, std::uint64_t offset, std::uint64_t length) noexcept;
  /// Zaps what the store invalidated; gives the page's shadows up if it is flooded.
  void apply_write(PPN ppn, std::uint64_t offset, std::uint64_t length, Change& change);
  /// Whether `ppn` is shadowed both as a table of 4-byte and of 8-byte entries.
  [[nodiscard]] bool mirrors_both_widths(PPN ppn) const noexcept;
  /// Drops all that derives from pages in `range`: leaves that map them, and mirrors of them.
  void drop_pages(PpnRange range, Change& change);

  // --- roots of vCPUs; [0] ordinary, [1] write_anywhere. A vCPU's own thread calls these.
  [[nodiscard]] std::uint32_t root_of(VcpuId vcpu, bool anywhere) const noexcept {
    return roots_[vcpu][anywhere ? 1 : 0];
  }
  /// Puts `vcpu` on root `number`, or on none.
  void set_root(VcpuId vcpu, bool anywhere, std::uint32_t number) noexcept;

  void count_root(bool hit) noexcept {
    (hit ? root_hits_ : root_misses_).fetch_add(1, std::memory_order_relaxed);
  }
  [[nodiscard]] ShadowStats stats() const;
  [[nodiscard]] std::uint64_t table_bytes() const noexcept {
    return live_.load(std::memory_order_relaxed) * kPageSize;
  }

 private:
  [[nodiscard]] Expected<MPN, Shortage> take_frame(Change& change);
  [[nodiscard]] bool evict(Change& change);
  [[nodiscard]] std::uint32_t oldest_idle_root() const noexcept;
  [[nodiscard]] std::uint32_t next_victim(bool desperate) noexcept;
  [[nodiscard]] std::uint32_t new_number();
  void begin_mirror(std::uint32_t number, Change& change);
  void insert(std::uint32_t number);
  void remove(ShadowTable& t, std::uint32_t number) noexcept;
  void leave_root(std::uint32_t number) noexcept;
  void begin_trace(PPN ppn, Change& change);
  void trace_again(PPN ppn, Change& change);
  void start_settling(std::uint32_t number, Change& change);
  void stop_settling(ShadowTable& t) noexcept;
  void set_unsync(std::uint32_t number, bool on);
  std::uint32_t zap_outdated(std::uint32_t number) noexcept;
  void zap_leaf(Slot slot) noexcept;
  void check_entry(Slot slot) noexcept;
  [[nodiscard]] bool agrees_now(Slot slot, const GuestLeaves& leaves) const noexcept;
  void clear_write(Slot slot) noexcept;
  [[nodiscard]] bool flooded(const ShadowTable& t, std::uint32_t writes) const noexcept;
  void settle(const std::vector<Change::Settling>& which);

  [[nodiscard]] std::atomic_ref<std::uint64_t> word(Slot slot) const noexcept;
  [[nodiscard]] Link& link(Slot slot) noexcept;
  [[nodiscard]] Slot& head_of(Slot slot) noexcept;
  void attach(Slot slot, std::uint32_t target);
  void detach(Slot slot) noexcept;

  /// Guards everything below but atomics: shared to walk, exclusive to change.
  mutable std::shared_mutex lock_;
  P2m& p2m_;
  FrameSource& frames_;
  const MachineWindow window_;
  const ShadowOptions options_;
  const std::uint64_t max_tables_;  ///< options_.memory_limit in tables
  std::vector<std::unique_ptr<ShadowTable>> tables_;
  std::vector<std::uint32_t> free_numbers_;
  FlatIndex by_tag_;
  FlatIndex by_frame_;
  ReverseMap pages_;
  std::vector<std::array<std::uint32_t, 2>> roots_;
  std::vector<std::uint32_t> root_tables_;
  std::uint64_t next_serial_ = 1;
  std::uint32_t hand_ = 0;
  std::uint64_t link_blocks_ = 0;
  std::vector<std::uint32_t> unsync_;  ///< tables out of sync, longest first
  std::uint64_t relinked_ = 0;
  ShadowStats counters_;  ///< those that change with the lock held exclusively

  std::atomic<std::uint64_t> live_{0};
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<std::uint32_t> unsettled_{0};
  std::atomic<std::uint32_t> unsync_count_{0};
  EventClock clock_;
  std::atomic<std::uint64_t> use_clock_{0};
  std::atomic<std::uint64_t> traced_writes_{0};
  std::atomic<std::uint64_t> root_hits_{0};
  std::atomic<std::uint64_t> root_misses_{0};
  std::atomic<std::uint64_t> prefetch_used_{0};
  /// Frames handed to a Flush and not released yet; outlives us in the deferred actions.
  const std::shared_ptr<std::atomic<std::uint64_t>> retiring_;
};

/// The shadow entries that derive from bytes [offset, offset + length) of the guest page that
/// `key` mirrors: indices first..last, none if first > last. `offset + length` is at most 4096.
struct EntryRange {
  std::uint32_t first = 1;
  std::uint32_t last = 0;
};
[[nodiscard]] EntryRange derived_entries(const PageKey& key, std::uint64_t offset,
                                         std::uint64_t length) noexcept;

}  // namespace strata::shadow
