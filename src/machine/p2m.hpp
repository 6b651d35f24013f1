// The P2M as a radix table in machine memory: four levels, 8-byte entries, 2 MiB and 1 GiB runs.
//
// Concurrency. Every change is a compare-and-swap of one whole word; there is no lock around the
// table, only one that keeps whole-range edits (regions, log marks, joins) from each other. Whoever
// moves a page marks its entry busy first: nobody else changes a busy entry (the logged mark
// apart), and nobody derives a translation from it, so observers can be called between the mark and
// the final word with no lock held. A busy entry has no pins. Table frames that a join takes out
// are freed after a grace period of ReaderGate.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <vector>

#include "machine/machine_memory.hpp"
#include "machine/p2m_format.hpp"
#include "machine/radix_table.hpp"
#include "machine/reader_gate.hpp"
#include "mmu/flush.hpp"
#include "mmu/frames.hpp"
#include "mmu/p2m.hpp"

namespace strata::machine {

/// Owns what P2M payloads of one state name: shared frames, swap slots, compressed blocks.
class PayloadOwner {
 public:
  PayloadOwner() = default;
  PayloadOwner(const PayloadOwner&) = delete;
  PayloadOwner& operator=(const PayloadOwner&) = delete;
  virtual ~PayloadOwner() = default;
  /// The P2M no longer names `old.payload()` at `ppn`. Runs once no holder can use it any more;
  /// any thread, no lock held.
  virtual void payload_dropped(PPN ppn, P2mEntry old) noexcept = 0;
};

/// A page held in place. `counted`: the entry counts the pin and unpin() is owed. Zero and ROM
/// pages are held by nothing, because nothing takes them away.
struct PinnedPage {
  MPN mpn;
  bool counted = false;
};

struct P2mTableBytes {
  std::uint64_t nodes = 0;   ///< interior tables
  std::uint64_t leaves = 0;  ///< tables with an entry a 4 KiB page
  [[nodiscard]] std::uint64_t total() const noexcept { return nodes + leaves; }
};

class P2mTable final : public P2m, public P2mEditor {
 public:
  /// Guest-physical addresses reach this many bits; pages beyond are absent.
  static constexpr unsigned kAddressBits = 48;

  /// `home`: the VM's segment; the private page of PPN p lies at its byte p * 4096. `frames` and
  /// `domain` must outlive the table. OutOfFrames: the root or the zero frame.
  static Expected<std::unique_ptr<P2mTable>, OutOfFrames> create(FrameSource& frames,
                                                                 SegmentRef home,
                                                                 FlushDomain& domain);
  /// No other thread may use the table or run the domain's deferred actions meanwhile.
  ~P2mTable() override;

  // Regions. All thread-safe; errors: bad_range (empty, beyond the segment or the address width,
  // or overlapping another region), out_of_frames (nothing was added).
  /// Untouched memory: one entry a 1 GiB or 2 MiB run where aligned.
  Expected<void, EditError> add_ram(PpnRange range);
  /// Read-only memory holding `image` (at most range.count pages; the rest is zeroes). The bytes
  /// are copied into the home pages; out_of_frames also when the host has no memory for them.
  Expected<void, EditError> add_rom(PpnRange range, std::span<const std::byte> image);
  Expected<void, EditError> add_mmio(PpnRange range);
  /// Makes `range` absent, whatever is there; memory goes back once `flush` is through. Returns how
  /// many pages it did and stops early like discard().
  Expected<std::uint64_t, EditError> remove(PpnRange range, Flush& flush);

  // P2m
  [[nodiscard]] P2mLookup lookup(PPN ppn) const noexcept override;
  /// Besides the interface's promises: a write takes the logged mark off and records the page as
  /// dirty, and a touch of a ballooned page takes it back as untouched memory.
  Expected<P2mLookup, Fault> resolve(PPN ppn, AccessKind kind) override;
  [[nodiscard]] MPN zero_frame() const noexcept override { return zero_frame_; }
  void note_dirty(PPN ppn) noexcept override;
  void add_observer(P2mObserver& observer) override;
  void remove_observer(P2mObserver& observer) override;

  // P2mEditor
  /// Of `wanted`, state, payload and busy count: the entry keeps its logged mark and gets its next
  /// version. Both entries must be guest memory (not absent, ROM or MMIO; else bad_range), and a
  /// busy `seen` says that the caller is the one who made it busy.
  /// A private page may only be at its home (else bad_range). Leaving private_page gives the home
  /// frame back once `flush` is through, and until then the entry stays busy: so does the returned
  /// one, and a further edit waits (error busy). A payload that goes is told to its PayloadOwner.
  Expected<P2mEntry, EditError> replace(PPN ppn, P2mEntry seen, P2mEntry wanted,
                                        Flush& flush) override;
  Expected<void, EditError> log_dirty(PpnRange range, Flush& flush) override;
  /// Entries stay busy until `flush` is through. An error only when the very first page could not
  /// be discarded; after that the number of pages done, however it ended.
  Expected<std::uint64_t, EditError> discard(PpnRange range, Flush& flush) override;

  /// Holds `ppn` in place, resolved for `kind`. Faults as resolve(); retry also at kMaxPins.
  Expected<PinnedPage, Fault> pin(PPN ppn, AccessKind kind);
  /// For each counted pin. After a write pin the page is recorded as dirty if logging is on.
  void unpin(PPN ppn, AccessKind kind) noexcept;

  /// Pages of `range` written since they were marked or last collected, as runs in order; forgets
  /// them. They are not marked again: call log_dirty() before copying.
  [[nodiscard]] std::vector<PpnRange> collect_dirty(PpnRange range);

  /// Makes one entry of the 2 MiB around `ppn` again if its 512 pages agree. True when it is one
  /// entry now.
  bool join(PPN ppn);
  /// join() for every 2 MiB run inside `range`; returns how many tables it freed.
  std::uint64_t join_range(PpnRange range);

  /// Calls owner.payload_dropped for payloads of `state`; the owner outlives the table's use.
  void set_payload_owner(PageState state, PayloadOwner* owner) noexcept;
  /// Private pages the VM may hold; beyond, writes fault with out_of_memory.
  void set_private_limit(std::uint64_t pages) noexcept { private_limit_.store(pages); }
  [[nodiscard]] std::uint64_t private_pages() const noexcept { return private_pages_.load(); }
  [[nodiscard]] P2mTableBytes table_bytes() const noexcept;
  /// The home frame of `ppn`; whether it holds anything is another question.
  [[nodiscard]] MPN home_of(PPN ppn) const noexcept {
    return MPN{page_of(home_->base()).value() + ppn.value()};
  }
  [[nodiscard]] const SegmentRef& home() const noexcept { return home_; }
  [[nodiscard]] FlushDomain& domain() const noexcept { return *domain_; }

 private:
  using Table = RadixTable<P2mFormat>;
  using Slot = Table::Slot;

  P2mTable(FrameSource& frames, SegmentRef home, FlushDomain& domain, Table table, MPN zero,
           HostMapping dirty);

  /// How a change of a busy entry ends.
  struct Outcome {
    PageState state;
    std::uint64_t payload;
    bool busy = false;
    bool written = false;  ///< the page is about to be written: takes the logged mark off
  };
  struct Reset;
  /// What waits for a flush: the pages whose entries are busy until then.
  struct Release {
    PpnRange edited;              ///< the whole edit
    std::vector<PpnRange> moved;  ///< the busy parts of it
    std::uint64_t private_pages = 0;
  };

  Expected<void, EditError> add_region(PpnRange range, PageState state);
  template <class Visit>
  Expected<void, OutOfFrames> cover(PpnRange range, Visit&& visit);
  [[nodiscard]] bool range_is_absent(PpnRange range) const noexcept;
  [[nodiscard]] bool valid_range(PpnRange range, bool needs_home) const noexcept;
  [[nodiscard]] P2mLookup lookup_of(const Slot& slot, PPN ppn) const noexcept;
  [[nodiscard]] Expected<Slot, OutOfFrames> leaf_slot(PPN ppn);
  std::optional<Expected<P2mLookup, Fault>> resolve_once(PPN ppn, AccessKind kind);
  std::optional<Expected<P2mLookup, Fault>> take_back(PPN ppn);
  std::optional<Expected<P2mLookup, Fault>> make_private(PPN ppn);
  bool charge_private() noexcept;
  bool fill_home(PPN ppn, P2mEntry from);
  P2mEntry finish(Slot slot, PPN ppn, const Outcome& outcome);
  void record_dirty(PPN ppn, std::uint64_t count) noexcept;
  void tell_observers(PpnRange range, Flush& flush);
  void drop_payload(PPN ppn, P2mEntry old, Flush& flush);
  std::optional<EditError> refuses(PPN ppn, P2mEntry current, P2mEntry seen,
                                   P2mEntry wanted) const noexcept;
  Expected<std::uint64_t, EditError> reset_range(PpnRange range, PageState to, Flush& flush);
  Expected<std::uint64_t, EditError> reset_one(PPN ppn, std::uint64_t left, Reset& reset);
  void defer_release(Release release, Flush& flush);
  void release_home(const Release& release) noexcept;
  void clear_busy(PpnRange pages) noexcept;
  Expected<std::uint64_t, EditError> log_one(PPN ppn, std::uint64_t left,
                                             std::vector<PpnRange>& downgraded);
  std::optional<P2mEntry> lock_leaves(PPN first, MPN table);

  FrameSource* frames_;
  SegmentRef home_;
  FlushDomain* domain_;
  MachineWindow window_;
  MPN zero_frame_;
  mutable ReaderGate gate_;
  Table table_;
  /// One bit a home page; touched only where pages were written while logged.
  HostMapping dirty_;
  std::atomic<bool> logging_{false};
  std::atomic<std::uint64_t> private_pages_{0};
  std::atomic<std::uint64_t> private_limit_{std::numeric_limits<std::uint64_t>::max()};
  std::array<std::atomic<PayloadOwner*>, 16> owners_{};
  /// Keeps add_*, log_dirty and join apart. Taken before the FrameSource's locks; never held while
  /// observers are called or a grace period is awaited.
  std::mutex edit_lock_;
  /// Guards observers_. Held shared while observers are called, so that removing one waits for it.
  /// Not a lock on the P2M: observers may look pages up and resolve them for reading, but not edit,
  /// resolve for writing, or add or remove observers.
  std::shared_mutex observers_lock_;
  std::vector<P2mObserver*> observers_;
  /// Deferred actions hold it weakly and do nothing once the table is gone.
  std::shared_ptr<const bool> alive_ = std::make_shared<const bool>(true);
};

}  // namespace strata::machine
