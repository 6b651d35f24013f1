// A machine small enough to see through: memory, frames that can run out, a P2M of one array, and
// an engine that keeps translations as long as it may.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "mmu/flush.hpp"
#include "mmu/frames.hpp"
#include "mmu/mmu.hpp"
#include "mmu/p2m.hpp"
#include "shadow/shadow.hpp"

namespace strata::shadow::test {

inline constexpr std::uint64_t kGuestPages = 2048;  // 8 MiB, homes from MPN 512
inline constexpr std::uint64_t kHome = 512;
inline constexpr std::uint64_t kPool = kHome + kGuestPages;

/// Memory of `pool` frames behind the guest's. Frames can be made to run out.
class FakeFrames final : public FrameSource {
 public:
  explicit FakeFrames(std::uint64_t pool)
      : bytes_{(kPool + pool) * kPageSize},
        memory_{
            static_cast<std::byte*>(::operator new (bytes_, std::align_val_t{kLargePageSize}))} {
    std::memset(memory_.get(), 0, bytes_);
    for (std::uint64_t i = 0; i < pool; ++i) free_.push_back(MPN{kPool + pool - 1 - i});
  }
  Expected<MPN, OutOfFrames> allocate(FrameKind kind) override {
    const std::lock_guard guard{lock_};
    if (fail_after == 0 || free_.empty()) return Unexpected{OutOfFrames{}};
    if (fail_after > 0) --fail_after;
    const MPN mpn = free_.back();
    free_.pop_back();
    ++in_use_[static_cast<std::size_t>(kind)];
    std::memset(window().host(address_of(mpn)), 0, kPageSize);
    return mpn;
  }
  void release(MPN mpn, FrameKind kind) noexcept override {
    const std::lock_guard guard{lock_};
    // Whoever still reads a released table reads garbage.
    std::memset(window().host(address_of(mpn)), 0xA5, kPageSize);
    --in_use_[static_cast<std::size_t>(kind)];
    free_.push_back(mpn);
  }
  [[nodiscard]] MachineWindow window() const noexcept override {
    return MachineWindow{memory_.get()};
  }
  [[nodiscard]] std::array<std::uint64_t, kFrameKinds> in_use() const noexcept override {
    const std::lock_guard guard{lock_};
    return in_use_;
  }
  [[nodiscard]] std::uint64_t tables() const noexcept {
    return in_use()[static_cast<std::size_t>(FrameKind::shadow_table)];
  }
  /// Allocations that still succeed; negative: all.
  std::int64_t fail_after = -1;

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete (p, std::align_val_t{kLargePageSize}); }
  };
  mutable std::mutex lock_;
  std::uint64_t bytes_;
  std::unique_ptr<std::byte, Free> memory_;
  std::vector<MPN> free_;
  std::array<std::uint64_t, kFrameKinds> in_use_{};
};

/// Entries in an array. Follows the protocol of the real one: busy, observers, final word.
class FakeP2m final : public P2m {
 public:
  FakeP2m(FrameSource& frames, FlushDomain& domain)
      : frames_{frames}, domain_{domain}, entries_(kGuestPages), runs_(kGuestPages / 512) {
    zero_ = *frames_.allocate(FrameKind::shared_page);
    for (std::uint64_t p = 0; p < kGuestPages; ++p) {
      entries_[p] = P2mEntry::make(PageState::private_page, kHome + p).raw();
    }
  }
  ~FakeP2m() override { frames_.release(zero_, FrameKind::shared_page); }

  [[nodiscard]] P2mLookup lookup(PPN ppn) const noexcept override {
    ppn = fold(ppn);
    if (ppn.value() >= kGuestPages) return {};
    return {P2mEntry{entries_[ppn.value()].load()},
            runs_[ppn.value() / 512] ? kLargePageShift : kPageShift};
  }
  Expected<P2mLookup, Fault> resolve(PPN ppn, AccessKind kind) override {
    auto result = resolve_now(fold(ppn), kind);
    if (after_resolve && ppn == after_resolve_of) std::exchange(after_resolve, nullptr)();
    return result;
  }
  Expected<P2mLookup, Fault> resolve_now(PPN ppn, AccessKind kind) {
    const P2mLookup found = lookup(ppn);
    const auto fault = [&](FaultKind k) {
      return Unexpected{Fault{Stage::p2m, k, 0, {}, address_of(ppn)}};
    };
    if (found.entry.busy()) return fault(FaultKind::retry);
    const bool write = kind == AccessKind::write;
    switch (found.entry.state()) {
      case PageState::private_page:
        return found;
      case PageState::zero:
      case PageState::shared:
        if (!write) return found;
        std::memcpy(home(ppn), page(target_of(found.entry, zero_).mpn), kPageSize);
        change(ppn, found.entry, PageState::private_page, kHome + ppn.value());
        return lookup(ppn);
      case PageState::rom:
        if (write) return fault(FaultKind::rom_write);
        return found;
      case PageState::swapped:
        return fault(FaultKind::paused);
      default:
        return fault(FaultKind::mmio);
    }
  }
  [[nodiscard]] MPN zero_frame() const noexcept override { return zero_; }
  void note_dirty(PPN ppn) noexcept override {
    ++noted_dirty;
    if (logs_again) return;
    const P2mEntry e{entries_[ppn.value()].load()};
    entries_[ppn.value()] = e.with_logged(false).next_version().raw();
  }
  void add_observer(P2mObserver& o) override { observers_.push_back(&o); }
  void remove_observer(P2mObserver& o) override { std::erase(observers_, &o); }

  /// Replaces the entry of `ppn` whatever it is, as a reclaiming service would.
  void set(PPN ppn, PageState state, std::uint64_t payload = 0) {
    change(ppn, P2mEntry{entries_[ppn.value()].load()}, state, payload);
  }
  void log(PPN ppn) {
    const P2mEntry e{entries_[ppn.value()].load()};
    tell(ppn, e, e.with_logged(true));
  }
  /// Says that the 2 MiB around `ppn` are one run, or are not.
  void set_run(PPN ppn, bool on) { runs_[ppn.value() / 512] = on; }
  [[nodiscard]] bool observed() const { return !observers_.empty(); }
  /// Whether PAs from 4 GiB on lead to the same pages again, those with bit 37 to the page after.
  bool high_aliases = false;
  std::atomic<int> noted_dirty{0};
  bool logs_again = false;  ///< somebody logs a page as soon as it was noted
  /// Runs once, when `after_resolve_of` has been resolved: what another vCPU does in the middle of
  /// a miss.
  std::function<void()> after_resolve;
  PPN after_resolve_of;

 private:
  [[nodiscard]] PPN fold(PPN ppn) const noexcept {
    if (!high_aliases || ppn.value() < kGuestPages) return ppn;
    return PPN{ppn.value() % kGuestPages + (ppn.value() >> 25 & 1)};
  }
  [[nodiscard]] std::byte* page(MPN mpn) const { return frames_.window().host(address_of(mpn)); }
  [[nodiscard]] std::byte* home(PPN ppn) const { return page(MPN{kHome + ppn.value()}); }
  void change(PPN ppn, P2mEntry seen, PageState state, std::uint64_t payload) {
    tell(ppn, seen, seen.with_state(state, payload));
  }
  void tell(PPN ppn, P2mEntry seen, P2mEntry wanted) {
    std::uint64_t expected = seen.raw();
    const P2mEntry busy = seen.with_busy(true).next_version();
    if (!entries_[ppn.value()].compare_exchange_strong(expected, busy.raw())) return;
    Flush flush{domain_};
    for (P2mObserver* o : observers_) o->p2m_changed({ppn, 1}, flush);
    flush.add({ppn, 1});
    const P2mEntry final_word{(wanted.raw() & ((1ULL << 52) - 1)) | (busy.raw() >> 52 << 52)};
    entries_[ppn.value()] = final_word.next_version().raw();
    flush.commit();
  }

  FrameSource& frames_;
  FlushDomain& domain_;
  std::vector<std::atomic<std::uint64_t>> entries_;
  std::vector<std::atomic<bool>> runs_;
  std::vector<P2mObserver*> observers_;
  MPN zero_;
};

/// One vCPU of an engine that caches every translation until it is told to drop it. `lazy` engines
/// count as having passed an epoch only after quiesce(), others also while they are in the Mmu.
class FakeEngine final : public TranslationHolder {
 public:
  FakeEngine(FlushDomain& domain, Mmu& mmu, MachineWindow window, VcpuId vcpu, bool lazy)
      : domain_{domain}, mmu_{mmu}, window_{window}, vcpu_{vcpu}, lazy_{lazy} {
    domain_.add(*this);
  }
  ~FakeEngine() override { domain_.remove(*this); }

  void invalidate(const Invalidation& what, Epoch epoch) noexcept override {
    const std::lock_guard guard{lock_};
    mailbox_.all = mailbox_.all || what.all;
    mailbox_.ranges.insert(mailbox_.ranges.end(), what.ranges.begin(), what.ranges.end());
    told_.store(epoch, std::memory_order_seq_cst);
  }
  [[nodiscard]] Epoch passed() const noexcept override {
    return inside_ ? ~Epoch{0} : passed_.load(std::memory_order_seq_cst);
  }
  /// The point between two instructions: drops what it was told to drop, and nothing else.
  void quiesce() {
    if (!stale()) return;
    const std::lock_guard guard{lock_};
    std::erase_if(tlb_, [&](const auto& cached) {
      const PPN ppn = page_of(cached.second.pa);
      return mailbox_.all || std::any_of(mailbox_.ranges.begin(), mailbox_.ranges.end(),
                                         [&](const PpnRange& r) { return r.contains(ppn); });
    });
    mailbox_ = {};
    passed_.store(told_.load(), std::memory_order_seq_cst);
  }
  /// Whether translations got since the last quiesce() have to be dropped before use.
  [[nodiscard]] bool stale() const noexcept { return told_.load() != passed_.load(); }

  /// A supervisor store of 4 or 8 bytes, with CR0.PG=0 or an identity map.
  template <class Value>
  Expected<void, Fault> store(PA pa, Value value) {
    for (;;) {
      quiesce();
      auto t = find(VA{pa.value()}, {AccessKind::write, false, false});
      if (!t) return Unexpected{t.error()};
      if (stale()) continue;  // dropped meanwhile: ask again
      auto* at = reinterpret_cast<Value*>(window_.host(t->page) + pa.page_offset());
      std::atomic_ref<Value>{*at}.store(value);
      if (t->traced) {
        inside_ = !lazy_;
        mmu_.guest_wrote(pa, sizeof(Value));
        inside_ = false;
        ++traced;
      }
      return {};
    }
  }
  Expected<Translation, Fault> find(VA va, Access access) {
    const auto key = std::tuple{va.value() >> kPageShift, access.user, access.ac};
    if (const auto it = tlb_.find(key); it != tlb_.end()) {
      const Translation& t = it->second;
      if (access.kind == AccessKind::write ? t.writable : t.readable) return t;
    }
    inside_ = !lazy_;
    auto t = mmu_.translate(vcpu_, va, access);
    inside_ = false;
    if (t && !t->traced) tlb_[key] = *t;
    return t;
  }
  std::uint64_t traced = 0;

 private:
  FlushDomain& domain_;
  Mmu& mmu_;
  MachineWindow window_;
  VcpuId vcpu_;
  bool lazy_;
  std::atomic<bool> inside_{false};
  std::mutex lock_;
  Invalidation mailbox_;
  std::atomic<Epoch> told_{0};
  std::atomic<Epoch> passed_{0};
  std::map<std::tuple<std::uint64_t, bool, bool>, Translation> tlb_;
};

/// Everything one test needs. The guest's tables are edited with put(), which announces stores.
class TestGuest {
 public:
  explicit TestGuest(ShadowOptions options = patient(), std::uint64_t pool = 512)
      : frames{pool}, p2m{frames, domain} {
    mmu = make_shadow_backend(p2m, frames, domain, options);
  }
  /// Tables that follow the guest's store by store, and nothing else.
  static ShadowOptions patient() {
    ShadowOptions o = plain_options();
    o.large_pages = true;
    return o;
  }
  [[nodiscard]] std::byte* host(PA pa) const {
    const P2mEntry e = p2m.lookup(page_of(pa)).entry;
    return frames.window().host(address_of(target_of(e, p2m.zero_frame()).mpn)) + pa.page_offset();
  }
  template <class Entry>
  [[nodiscard]] Entry get(PA pa) const {
    return std::atomic_ref<Entry>{*reinterpret_cast<Entry*>(host(pa))}.load();
  }
  /// Stores without telling anybody.
  template <class Entry>
  void poke(PA pa, Entry e) const {
    std::atomic_ref<Entry>{*reinterpret_cast<Entry*>(host(pa))}.store(e);
  }
  template <class Entry>
  void put(PA pa, Entry e) const {
    poke(pa, e);
    mmu->guest_wrote(pa, sizeof(Entry));
  }
  Expected<Translation, Fault> read(VA va, bool user = false) const {
    return mmu->translate(0, va, {AccessKind::read, user, false});
  }
  Expected<Translation, Fault> write(VA va, bool user = false) const {
    return mmu->translate(0, va, {AccessKind::write, user, false});
  }
  [[nodiscard]] static MA home(std::uint64_t ppn) { return address_of(MPN{kHome + ppn}); }

  FakeFrames frames;
  FlushDomain domain;
  FakeP2m p2m;
  std::unique_ptr<ShadowBackend> mmu;
};

inline constexpr std::uint64_t kP = 1, kW = 2, kU = 4, kA = 0x20, kD = 0x40, kPS = 0x80, kG = 0x100;
inline constexpr std::uint64_t kNX = 1ULL << 63;
inline constexpr std::uint64_t kPWU = kP | kW | kU;

[[nodiscard]] inline PA at(std::uint64_t ppn, std::uint64_t index = 0, std::uint64_t size = 8) {
  return PA{ppn * kPageSize + index * size};
}
[[nodiscard]] inline std::uint64_t to(std::uint64_t ppn, std::uint64_t bits) {
  return ppn << kPageShift | bits;
}

/// A long-mode context with tables from `root`.
[[nodiscard]] inline PagingContext long4(std::uint64_t root) {
  PagingContext c;
  c.mode = PagingMode::long4;
  c.root = at(root);
  c.wp = true;
  c.nxe = true;
  c.pge = true;
  return c;
}

/// Long-mode tables in pages `root` to `root + 3` that map VA 0..2 MiB through page root + 3, whose
/// entries are left to the test.
inline void build_long4(const TestGuest& s, std::uint64_t root) {
  s.put(at(root), to(root + 1, kPWU));
  s.put(at(root + 1), to(root + 2, kPWU));
  s.put(at(root + 2), to(root + 3, kPWU));
}

}  // namespace strata::shadow::test
