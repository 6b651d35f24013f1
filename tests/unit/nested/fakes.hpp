// A machine and a P2M small enough to see through, with handles for everything that can go wrong.
#pragma once

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "mmu/flush.hpp"
#include "mmu/frames.hpp"
#include "mmu/p2m.hpp"

namespace strata::nested::test {

inline constexpr std::uint64_t kGuestBytes = 3ULL << 30;  ///< PA 0 .. 3 GiB can be memory
inline constexpr std::uint64_t kHomeBase = 1ULL << 30;    ///< MA of PA 0
inline constexpr std::uint64_t kFrameBase = kHomeBase + kGuestBytes;
inline constexpr std::uint64_t kFrames = 1ULL << 14;
inline constexpr std::uint64_t kWindowBytes = kFrameBase + kFrames * kPageSize;
inline constexpr std::uint64_t kZeroFrame = 5;  ///< MPN
/// MPNs from here on are for pages that do not live at home.
inline constexpr std::uint64_t kElsewhere = 16;

/// Machine memory: guest memory at 1 GiB, so that PA and MA are aligned alike, frames above.
class FakeMachine final : public FrameSource {
 public:
  FakeMachine() {
    void* p = mmap(nullptr, kWindowBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) std::abort();
    base_ = static_cast<std::byte*>(p);
  }
  ~FakeMachine() override { munmap(base_, kWindowBytes); }

  Expected<MPN, OutOfFrames> allocate(FrameKind kind) override {
    const std::lock_guard guard{lock_};
    ++attempts_;
    if (fail_at_ != 0 && attempts_ >= fail_at_) return Unexpected{OutOfFrames{}};
    std::uint64_t mpn = 0;
    if (!free_.empty()) {
      mpn = free_.back();
      free_.pop_back();
    } else {
      if (next_ == kFrames) return Unexpected{OutOfFrames{}};
      mpn = kFrameBase / kPageSize + next_++;
    }
    live_.insert(mpn);
    ++used_[static_cast<std::size_t>(kind)];
    std::memset(window().host(MA{mpn * kPageSize}), 0, kPageSize);
    return MPN{mpn};
  }
  void release(MPN mpn, FrameKind kind) noexcept override {
    const std::lock_guard guard{lock_};
    if (live_.erase(mpn.value()) == 0) std::abort();  // freed twice
    --used_[static_cast<std::size_t>(kind)];
    // Whoever still walks it meets reserved bits.
    std::memset(window().host(address_of(mpn)), 0xFF, kPageSize);
    free_.push_back(mpn.value());
  }
  [[nodiscard]] MachineWindow window() const noexcept override { return MachineWindow{base_}; }
  [[nodiscard]] std::array<std::uint64_t, kFrameKinds> in_use() const noexcept override {
    const std::lock_guard guard{lock_};
    return used_;
  }
  [[nodiscard]] std::uint64_t nested_tables() const noexcept {
    return in_use()[static_cast<std::size_t>(FrameKind::nested_table)];
  }

  /// The `nth` allocation from now, and all after it, fail; 0: none.
  void fail_from(std::uint64_t nth) {
    const std::lock_guard guard{lock_};
    attempts_ = 0;
    fail_at_ = nth;
  }

 private:
  mutable std::mutex lock_;
  std::byte* base_ = nullptr;
  std::vector<std::uint64_t> free_;
  std::set<std::uint64_t> live_;
  std::array<std::uint64_t, kFrameKinds> used_{};
  std::uint64_t next_ = 0;
  std::uint64_t attempts_ = 0;
  std::uint64_t fail_at_ = 0;
};

/// A P2M as an array. Everything is absent until set. Follows the order that backends rely on: mark
/// busy (or logged), tell observers, then change.
class FakeP2m final : public P2m {
 public:
  explicit FakeP2m(FlushDomain& domain) : domain_{&domain}, pages_(kGuestBytes >> kPageShift) {}

  // P2m
  [[nodiscard]] P2mLookup lookup(PPN ppn) const noexcept override {
    if (ppn.value() >= pages_.size()) return {};
    const std::lock_guard guard{lock_};
    return pages_[ppn.value()];
  }
  Expected<P2mLookup, Fault> resolve(PPN ppn, AccessKind kind) override {
    const auto result = decide(ppn, kind);
    if (after_resolve) std::exchange(after_resolve, nullptr)(ppn);
    return result;
  }
  Expected<P2mLookup, Fault> decide(PPN ppn, AccessKind kind) {
    const P2mLookup now = lookup(ppn);
    const bool write = kind == AccessKind::write;
    if (now.entry.busy()) return fault(FaultKind::retry, ppn);
    switch (now.entry.state()) {
      case PageState::zero:
      case PageState::shared:
        if (!write) return now;
        if (refuse_memory.load()) return fault(FaultKind::out_of_memory, ppn);
        return make_private(ppn, now.entry);
      case PageState::private_page:
        return now;  // a logged page is the backend's to announce
      case PageState::rom:
        if (write) return fault(FaultKind::rom_write, ppn);
        return now;
      case PageState::poisoned:
        return fault(FaultKind::poisoned, ppn);
      case PageState::compressed:
      case PageState::swapped:
      case PageState::image_backed:
        return fault(FaultKind::paused, ppn);
      default:
        return fault(FaultKind::mmio, ppn);
    }
  }
  [[nodiscard]] MPN zero_frame() const noexcept override { return MPN{kZeroFrame}; }
  void note_dirty(PPN ppn) noexcept override {
    const std::lock_guard guard{lock_};
    P2mLookup& p = pages_[ppn.value()];
    if (!p.entry.logged()) return;
    p.entry = p.entry.with_logged(false).next_version();
    p.run_shift = kPageShift;
    dirty.push_back(ppn.value());
  }
  void add_observer(P2mObserver& observer) override { observers_.push_back(&observer); }
  void remove_observer(P2mObserver& observer) override { std::erase(observers_, &observer); }

  [[nodiscard]] static MPN home(PPN ppn) { return MPN{kHomeBase / kPageSize + ppn.value()}; }

  /// Says what `count` pages from `first` are, telling nobody: for setting the scene.
  void set(std::uint64_t first, std::uint64_t count, PageState state,
           unsigned run_shift = kPageShift) {
    const std::lock_guard guard{lock_};
    for (std::uint64_t p = first; p < first + count; ++p) {
      const bool at_home = state == PageState::private_page || state == PageState::rom;
      const std::uint64_t payload = at_home ? home(PPN{p}).value() : 0;
      pages_[p] = {P2mEntry::make(state, payload), run_shift};
    }
  }
  void set_entry(std::uint64_t ppn, P2mEntry entry, unsigned run_shift = kPageShift) {
    const std::lock_guard guard{lock_};
    pages_[ppn] = {entry, run_shift};
  }
  /// Changes one page as an editor would; the caller commits `flush`.
  void change(PPN ppn, P2mEntry wanted, Flush& flush, unsigned run_shift = kPageShift) {
    make_busy(ppn, flush);
    const std::lock_guard guard{lock_};
    P2mLookup& p = pages_[ppn.value()];
    p.entry = P2mEntry{(p.entry.next_version().raw() & ~((1ULL << 52) - 1)) | wanted.raw()};
    p.run_shift = run_shift;
  }
  /// What an editor does first.
  void make_busy(PPN ppn, Flush& flush) {
    update(ppn, [](P2mEntry e) { return e.with_busy(true); });
    tell({ppn, 1}, flush);
  }
  void log(PpnRange range, Flush& flush) {
    for (std::uint64_t i = 0; i < range.count; ++i) {
      update(range.first + i, [](P2mEntry e) { return e.with_logged(true); });
    }
    tell(range, flush);
  }
  void tell(PpnRange range, Flush& flush) {
    flush.add(range);
    for (P2mObserver* o : observers_) o->p2m_changed(range, flush);
  }

  /// Runs once, when the next resolve() has made up its mind: what another thread might do then.
  std::function<void(PPN)> after_resolve;
  std::atomic<bool> refuse_memory{false};
  std::vector<std::uint64_t> dirty;

 private:
  static Unexpected<Fault> fault(FaultKind kind, PPN ppn) {
    return Unexpected{Fault{Stage::p2m, kind, 0, {}, address_of(ppn)}};
  }
  template <class Change>
  void update(PPN ppn, Change change) {
    const std::lock_guard guard{lock_};
    P2mEntry& e = pages_[ppn.value()].entry;
    e = change(e).next_version();
  }
  Expected<P2mLookup, Fault> make_private(PPN ppn, P2mEntry from) {
    {
      const std::lock_guard guard{lock_};
      P2mEntry& e = pages_[ppn.value()].entry;
      if (e != from) return fault(FaultKind::retry, ppn);
      e = e.with_busy(true).next_version();
    }
    // From anywhere in machine memory: only MAs of this window are valid.
    std::byte* to = host_base + home(ppn).value() * kPageSize;
    if (from.state() == PageState::shared) {
      std::memcpy(to, host_base + from.mpn().value() * kPageSize, kPageSize);
    }
    Flush flush{*domain_};
    tell({ppn, 1}, flush);
    {
      const std::lock_guard guard{lock_};
      P2mLookup& p = pages_[ppn.value()];
      p.entry = p.entry.with_state(PageState::private_page, home(ppn).value())
                    .with_busy(false)
                    .next_version();
      p.run_shift = kPageShift;
    }
    flush.commit();
    return lookup(ppn);
  }

  FlushDomain* domain_;
  mutable std::mutex lock_;
  std::vector<P2mLookup> pages_;
  std::vector<P2mObserver*> observers_;

 public:
  std::byte* host_base = nullptr;  ///< of machine memory
};

}  // namespace strata::nested::test
