// A small machine for tests: machine memory, frames, a P2M with RAM, and guest page tables in it.
// For every test that needs real memory behind a P2M; link machine_test_support.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "machine/formats.hpp"
#include "machine/frame_allocator.hpp"
#include "machine/guest_memory.hpp"
#include "machine/guest_walk.hpp"
#include "machine/machine_memory.hpp"
#include "machine/p2m.hpp"
#include "mmu/flush.hpp"
#include "mmu/mmu.hpp"

namespace strata::machine::test {

/// Passes through to another source, and fails the allocation with number `fail_at` (from 0) and
/// all after it, until told otherwise. Counts what is out, so that a leak shows. Thread-safe.
class FailingFrames final : public FrameSource {
 public:
  static constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();

  explicit FailingFrames(FrameSource& inner) noexcept : inner_{&inner} {}

  /// The next `n` allocations succeed, later ones fail.
  void fail_after(std::uint64_t n) noexcept { left_.store(n); }
  void never_fail() noexcept { left_.store(kNever); }
  /// Whether an allocation has failed since fail_after().
  [[nodiscard]] bool failed() noexcept { return failed_.exchange(false); }
  /// Frames allocated through here and not released.
  [[nodiscard]] std::int64_t outstanding() const noexcept { return outstanding_.load(); }

  Expected<MPN, OutOfFrames> allocate(FrameKind kind) override {
    std::uint64_t left = left_.load();
    do {
      if (left == 0) {
        failed_.store(true);
        return Unexpected{OutOfFrames{}};
      }
    } while (left != kNever && !left_.compare_exchange_weak(left, left - 1));
    auto frame = inner_->allocate(kind);
    if (frame) outstanding_.fetch_add(1);
    return frame;
  }
  void release(MPN mpn, FrameKind kind) noexcept override {
    outstanding_.fetch_sub(1);
    inner_->release(mpn, kind);
  }
  [[nodiscard]] MachineWindow window() const noexcept override { return inner_->window(); }
  [[nodiscard]] std::array<std::uint64_t, kFrameKinds> in_use() const noexcept override {
    return inner_->in_use();
  }

 private:
  FrameSource* inner_;
  std::atomic<std::uint64_t> left_{kNever};
  std::atomic<bool> failed_{false};
  std::atomic<std::int64_t> outstanding_{0};
};

/// A holder of translations that has passed an epoch only when told so: for what waits on flushes.
class ManualHolder final : public TranslationHolder {
 public:
  void invalidate(const Invalidation& what, Epoch epoch) noexcept override {
    const std::lock_guard guard{lock_};
    seen.push_back(what);
    newest = epoch;
  }
  [[nodiscard]] Epoch passed() const noexcept override { return passed_.load(); }
  void pass(Epoch epoch) noexcept { passed_.store(epoch); }

  std::mutex lock_;
  std::vector<Invalidation> seen;
  Epoch newest = 0;

 private:
  std::atomic<Epoch> passed_{0};
};

/// The value of an Expected, or a failed test by exception.
template <class T, class E>
T must(Expected<T, E> result) {
  if (!result) throw std::runtime_error{"expected a value"};
  return std::move(*result);
}
template <class E>
void must(Expected<void, E> result) {
  if (!result) throw std::runtime_error{"expected success"};
}

/// A VM's memory: `ram_mib` MiB of untouched RAM from PA 0 in a segment of `segment_mib` MiB (by
/// default as large), frames through a FailingFrames. The first `skipped_frames` frames of machine
/// memory stay unused: for tests that take its addresses to another machine.
class TestMachine {
 public:
  explicit TestMachine(std::uint64_t ram_mib = 64, std::uint64_t segment_mib = 0,
                       std::uint64_t skipped_frames = 0)
      : memory{must(MachineMemory::create(layout()))},
        allocator{*memory},
        skipped{skip(allocator, skipped_frames)},
        frames{allocator},
        home{must(
            memory->create_segment((segment_mib == 0 ? ram_mib : segment_mib) << 20, "test-vm"))},
        p2m_owner{must(P2mTable::create(frames, home, domain))},
        p2m{*p2m_owner},
        guest{p2m, memory->window()} {
    if (ram_mib != 0) must(p2m.add_ram({PPN{0}, ram_mib << 8}));
    next_table_ = PA{ram_mib << 20};
  }

  [[nodiscard]] MachineWindow window() const noexcept { return memory->window(); }

  /// Writes one value at a PA, giving the page memory.
  template <class T>
  void store(PA pa, T value) {
    std::byte bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    must(guest.write(kIdentitySpace, pa, bytes));
  }
  template <class T>
  [[nodiscard]] T load(PA pa) {
    std::byte bytes[sizeof(T)];
    must(guest.read(kIdentitySpace, pa, bytes));
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
  }

  /// A fresh zero page for guest tables, from the end of RAM downwards.
  PA new_table() {
    next_table_ = PA{next_table_.value() - kPageSize};
    must(guest.write(kIdentitySpace, next_table_, std::vector<std::byte>(kPageSize)));
    return next_table_;
  }

  /// Where the entry of `level` for `va` lies under the tables of `root`; tables on the way are
  /// made with all rights. Guest tables of a Format with make_table (Long4Format, PaeFormat: the
  /// root is a page directory, I386Format).
  template <class Format>
  PA entry_address(PA root, VA va, unsigned level) {
    using Entry = typename Format::Entry;
    PA table = root;
    for (unsigned l = Format::kLevels;; --l) {
      const std::uint64_t index =
          va.value() >> Format::shift(l) & ((1ULL << Format::index_bits(l)) - 1);
      const PA entry = table + index * sizeof(Entry);
      if (l == level) return entry;
      Entry e = load<Entry>(entry);
      if (!Format::present(e)) {
        e = Format::make_table(new_table().value());
        store(entry, e);
      }
      table = PA{Format::table_address(e)};
    }
  }

  /// Maps the page of `va` (of 2^Format::shift(level) bytes) to `pa` in the guest's tables.
  /// `marks` is or-ed into the leaf. Returns the address of the leaf entry.
  template <class Format>
  PA map(PA root, VA va, PA pa, Rights rights = {}, unsigned level = 1, std::uint64_t marks = 0) {
    using Entry = typename Format::Entry;
    const PA entry = entry_address<Format>(root, va, level);
    const Entry leaf = Format::make_leaf(pa.value(), rights, level);
    store(entry, static_cast<Entry>(leaf | marks));
    return entry;
  }

  std::unique_ptr<MachineMemory> memory;
  FrameAllocator allocator;
  std::vector<MPN> skipped;
  FailingFrames frames;
  FlushDomain domain;
  SegmentRef home;
  std::unique_ptr<P2mTable> p2m_owner;
  P2mTable& p2m;
  GuestMemory guest;

 private:
  static std::vector<MPN> skip(FrameAllocator& allocator, std::uint64_t count) {
    std::vector<MPN> taken;
    while (taken.size() < count) taken.push_back(must(allocator.allocate(FrameKind::other)));
    return taken;
  }
  /// A small window, so that many machines fit in one sanitized process.
  static HostLayout layout() {
    HostLayout l;
    l.window_bytes = 1ULL << 36;
    l.system_pool_bytes = 1ULL << 30;
    return l;
  }

  PA next_table_{};
};

}  // namespace strata::machine::test
