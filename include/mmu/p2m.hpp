// The P2M: PA -> MA of one VM, and the only truth about where a guest page is.
#pragma once

#include <cstdint>

#include "mmu/address.hpp"
#include "mmu/expected.hpp"
#include "mmu/fault.hpp"
#include "mmu/flush.hpp"

namespace strata {

/// Where a guest page is. Values are stored in P2M entries.
enum class PageState : std::uint8_t {
  absent = 0,    ///< neither memory nor a device: reads give ones, writes are dropped
  zero,          ///< memory never written: costs no frame, the zero frame stands in for reads
  private_page,  ///< this VM's own, at its home offset
  shared,        ///< one machine page for several PPNs; a write unshares
  ballooned,     ///< given back by the guest
  compressed,    ///< payload names a store slot
  swapped,       ///< payload names a store slot
  image_backed,  ///< payload names an image page
  rom,           ///< readable and executable, writes are dropped
  mmio,          ///< a device answers
  poisoned,      ///< the host lost the contents
};

/// One P2M leaf, eight bytes. A value: changed only by compare-and-swap of the whole word.
///
///   bits 0-3 state | 4 busy | 5 logged | 6-11 pins | 12-51 payload (MPN or slot) | 52-63 version
///
/// The version grows with every change, so that a compare-and-swap cannot confuse an entry with an
/// older one that looked the same.
class P2mEntry {
 public:
  static constexpr unsigned kMaxPins = 63;

  constexpr P2mEntry() noexcept = default;
  constexpr explicit P2mEntry(std::uint64_t raw) noexcept : raw_{raw} {}
  static constexpr P2mEntry make(PageState state, std::uint64_t payload = 0) noexcept {
    return P2mEntry{static_cast<std::uint64_t>(state) | (payload & kPayloadMask) << kPayloadShift};
  }

  [[nodiscard]] constexpr std::uint64_t raw() const noexcept { return raw_; }
  [[nodiscard]] constexpr PageState state() const noexcept {
    return static_cast<PageState>(raw_ & 0xF);
  }
  /// Somebody is moving the page; accesses retry.
  [[nodiscard]] constexpr bool busy() const noexcept { return (raw_ >> 4 & 1) != 0; }
  /// Dirty logging wants to hear of the next write.
  [[nodiscard]] constexpr bool logged() const noexcept { return (raw_ >> 5 & 1) != 0; }
  [[nodiscard]] constexpr unsigned pins() const noexcept {
    return static_cast<unsigned>(raw_ >> 6 & 0x3F);
  }
  [[nodiscard]] constexpr std::uint64_t payload() const noexcept {
    return raw_ >> kPayloadShift & kPayloadMask;
  }
  /// The machine page; meaningful for private_page, shared and rom.
  [[nodiscard]] constexpr MPN mpn() const noexcept { return MPN{payload()}; }
  [[nodiscard]] constexpr unsigned version() const noexcept {
    return static_cast<unsigned>(raw_ >> 52);
  }
  /// A table may point at the page as it is, if only for reading.
  [[nodiscard]] constexpr bool mappable() const noexcept {
    if (busy()) return false;
    switch (state()) {
      case PageState::zero:
      case PageState::private_page:
      case PageState::shared:
      case PageState::rom:
        return true;
      default:
        return false;
    }
  }

  [[nodiscard]] constexpr P2mEntry with_state(PageState s, std::uint64_t payload) const noexcept {
    return P2mEntry{(raw_ & (kMarksMask | kVersionMask)) | make(s, payload).raw_};
  }
  [[nodiscard]] constexpr P2mEntry with_busy(bool on) const noexcept {
    return P2mEntry{(raw_ & ~(1ULL << 4)) | static_cast<std::uint64_t>(on) << 4};
  }
  [[nodiscard]] constexpr P2mEntry with_logged(bool on) const noexcept {
    return P2mEntry{(raw_ & ~(1ULL << 5)) | static_cast<std::uint64_t>(on) << 5};
  }
  [[nodiscard]] constexpr P2mEntry with_pins(unsigned pins) const noexcept {
    return P2mEntry{(raw_ & ~(0x3FULL << 6)) | static_cast<std::uint64_t>(pins & 0x3F) << 6};
  }
  [[nodiscard]] constexpr P2mEntry next_version() const noexcept {
    return P2mEntry{raw_ + (1ULL << 52)};
  }
  friend constexpr bool operator==(P2mEntry, P2mEntry) noexcept = default;

 private:
  static constexpr unsigned kPayloadShift = 12;
  static constexpr std::uint64_t kPayloadMask = (1ULL << 40) - 1;
  static constexpr std::uint64_t kMarksMask = 0xFF0;
  static constexpr std::uint64_t kVersionMask = 0xFFFULL << 52;
  std::uint64_t raw_ = 0;
};

/// The answer to a lookup: the entry for one page, and how large the uniform run around it is.
struct P2mLookup {
  P2mEntry entry;  ///< for a page inside a run, the payload is already that page's own MPN
  /// log2 of the bytes around the page that this one entry covers: 12, or 21 for a 2 MiB run.
  unsigned run_shift = kPageShift;
};

/// Told before the P2M gives a page a new place or takes permission away. Backends drop what they
/// derived from `range` and record in `flush` what they free. The P2M holds no lock of its own
/// during the call; the observer may take its own.
class P2mObserver {
 public:
  P2mObserver() = default;
  P2mObserver(const P2mObserver&) = delete;
  P2mObserver& operator=(const P2mObserver&) = delete;
  virtual ~P2mObserver() = default;
  virtual void p2m_changed(PpnRange range, Flush& flush) = 0;
};

/// What translating backends see of the P2M. Thread-safe.
class P2m {
 public:
  P2m() = default;
  P2m(const P2m&) = delete;
  P2m& operator=(const P2m&) = delete;
  virtual ~P2m() = default;

  /// The entry now. Lock-free. A page beyond every region is `absent`.
  [[nodiscard]] virtual P2mLookup lookup(PPN ppn) const noexcept = 0;

  /// Makes `ppn` usable for `kind` and returns its entry: a write to a zero page gives it its home
  /// frame, a write to a shared page unshares it. A read or fetch of a zero page leaves it zero;
  /// the zero frame (see zero_frame()) is what the reader sees.
  /// Faults: mmio (also for absent pages), rom_write, retry, paused, poisoned, out_of_memory; the
  /// fault's `pa` is the page's base address, `va` is left to the caller.
  virtual Expected<P2mLookup, Fault> resolve(PPN ppn, AccessKind kind) = 0;

  /// The frame of zeroes that stands in for pages in state `zero`. Never writable.
  [[nodiscard]] virtual MPN zero_frame() const noexcept = 0;

  /// Takes the `logged` mark off a page that is about to be written and records it as dirty.
  virtual void note_dirty(PPN ppn) noexcept = 0;

  virtual void add_observer(P2mObserver& observer) = 0;
  virtual void remove_observer(P2mObserver& observer) = 0;
};

/// Where a resolved page can be reached, as every backend derives it from an entry.
struct P2mTarget {
  MPN mpn;
  bool writable = false;  ///< stores may go there without asking the P2M again
};

/// The machine page behind an entry that resolve() returned.
[[nodiscard]] constexpr P2mTarget target_of(P2mEntry entry, MPN zero_frame) noexcept {
  switch (entry.state()) {
    case PageState::zero:
      return {zero_frame, false};
    case PageState::private_page:
      return {entry.mpn(), !entry.logged()};
    default:
      return {entry.mpn(), false};
  }
}

/// Why an edit did not happen.
enum class EditError : std::uint8_t { changed, pinned, busy, out_of_frames, bad_range };

/// What reclaiming services (sharing, balloon, swap, compression) see of the P2M. Thread-safe.
class P2mEditor {
 public:
  P2mEditor() = default;
  P2mEditor(const P2mEditor&) = delete;
  P2mEditor& operator=(const P2mEditor&) = delete;
  virtual ~P2mEditor() = default;

  /// Replaces the entry of one page if it still is `seen` (versions included); splits a run if it
  /// must. Observers have been told when it returns; holders are told by `flush`.
  virtual Expected<P2mEntry, EditError> replace(PPN ppn, P2mEntry seen, P2mEntry wanted,
                                                Flush& flush) = 0;
  /// Marks the pages of `range` for dirty logging.
  virtual Expected<void, EditError> log_dirty(PpnRange range, Flush& flush) = 0;
  /// Turns `range` back into untouched memory (state zero), giving its home frames back to the
  /// host once `flush` is through. Stops at the first pinned page and says how far it came.
  virtual Expected<std::uint64_t, EditError> discard(PpnRange range, Flush& flush) = 0;
};

}  // namespace strata
