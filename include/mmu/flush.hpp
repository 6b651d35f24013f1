// Telling holders of translations that a translation is gone, and freeing memory only afterwards
// (design rule 1).
//
// A holder is whoever keeps VA->MA or PA->MA results outside the tables: an engine's TLB, a device
// thread, I/O in flight. A change goes: edit tables or P2M under the owner's lock; record it in a
// Flush; drop the lock; commit the Flush. Holders process invalidations at their quiescent points
// (for a vCPU: between instructions, and on every call into its Mmu). What was deferred into the
// Flush runs when every holder has passed the commit's epoch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "mmu/address.hpp"

namespace strata {

using Epoch = std::uint64_t;

/// What holders have to drop.
struct Invalidation {
  bool all = false;              ///< every translation, whatever `ranges` says
  std::vector<PpnRange> ranges;  ///< translations that lead to these pages
};

/// Keeps translations; must drop them when told to.
class TranslationHolder {
 public:
  TranslationHolder() = default;
  TranslationHolder(const TranslationHolder&) = delete;
  TranslationHolder& operator=(const TranslationHolder&) = delete;
  virtual ~TranslationHolder() = default;
  /// Every translation that `what` names must be gone before the holder reports `epoch` as
  /// passed. Called from any thread, no P2M or backend lock held; must not block.
  virtual void invalidate(const Invalidation& what, Epoch epoch) noexcept = 0;
  /// The newest epoch whose invalidations have taken effect here; the maximum Epoch while the
  /// holder is idle and will look before it uses a translation again. Any thread.
  [[nodiscard]] virtual Epoch passed() const noexcept = 0;
};

/// All holders of one VM's translations, and the frees that wait for them. Thread-safe.
class FlushDomain {
 public:
  FlushDomain() = default;
  FlushDomain(const FlushDomain&) = delete;
  FlushDomain& operator=(const FlushDomain&) = delete;
  ~FlushDomain() { run_deferred(std::numeric_limits<Epoch>::max()); }

  void add(TranslationHolder& holder) {
    const std::lock_guard guard{lock_};
    holders_.push_back(&holder);
  }
  void remove(TranslationHolder& holder) {
    const std::lock_guard guard{lock_};
    std::erase(holders_, &holder);
  }

  /// Starts a new epoch and tells every holder. Returns the epoch.
  Epoch publish(const Invalidation& what, std::vector<std::function<void()>> deferred) {
    Epoch epoch = 0;
    {
      const std::lock_guard guard{lock_};
      epoch = ++epoch_;
      for (auto& action : deferred) deferred_.emplace_back(epoch, std::move(action));
      for (TranslationHolder* holder : holders_) holder->invalidate(what, epoch);
    }
    collect();
    return epoch;
  }

  /// Runs what every holder has passed. Cheap when nothing waits.
  void collect() { run_deferred(passed_without(nullptr)); }

  /// Waits until every holder but `self` has passed `epoch`: for downgrades of permission. The
  /// caller holds no lock, and must itself count as quiescent.
  void wait(Epoch epoch, const TranslationHolder* self = nullptr) const {
    while (passed_without(self) < epoch) std::this_thread::yield();
  }

  /// Deferred actions that have not run yet.
  [[nodiscard]] std::size_t waiting() const {
    const std::lock_guard guard{lock_};
    return deferred_.size();
  }

 private:
  [[nodiscard]] Epoch passed_without(const TranslationHolder* self) const {
    const std::lock_guard guard{lock_};
    Epoch least = std::numeric_limits<Epoch>::max();
    for (const TranslationHolder* holder : holders_) {
      if (holder != self) least = std::min(least, holder->passed());
    }
    return least;
  }

  void run_deferred(Epoch passed) {
    std::vector<std::function<void()>> ready;
    {
      const std::lock_guard guard{lock_};
      while (!deferred_.empty() && deferred_.front().first <= passed) {
        ready.push_back(std::move(deferred_.front().second));
        deferred_.pop_front();
      }
    }
    for (auto& action : ready) action();
  }

  /// Guards everything below. A leaf lock: holders' invalidate() may only take leaf locks of
  /// their own, and deferred actions run outside it.
  mutable std::mutex lock_;
  Epoch epoch_ = 0;
  std::vector<TranslationHolder*> holders_;
  std::deque<std::pair<Epoch, std::function<void()>>> deferred_;
};

/// What one change of a table or the P2M owes to the holders. Whoever edits holds one and commits
/// it after dropping its locks; destroying one that still owes is a bug and aborts, in Release too.
class Flush {
 public:
  explicit Flush(FlushDomain& domain) noexcept : domain_{&domain} {}
  Flush(const Flush&) = delete;
  Flush& operator=(const Flush&) = delete;
  ~Flush() {
    if (owes()) std::abort();
  }

  void add(PpnRange range) {
    auto& ranges = what_.ranges;
    if (!ranges.empty() && ranges.back().first + ranges.back().count == range.first) {
      ranges.back().count += range.count;
    } else {
      ranges.push_back(range);
    }
  }
  /// Everything every holder has: for wholesale changes.
  void add_all() noexcept { what_.all = true; }
  /// `action` runs once no holder can use the old translations: the place for frees.
  void defer(std::function<void()> action) { deferred_.push_back(std::move(action)); }

  [[nodiscard]] bool owes() const noexcept {
    return what_.all || !what_.ranges.empty() || !deferred_.empty();
  }
  /// Tells the holders. Returns the epoch to wait() for where a downgrade must be in force.
  /// No P2M or backend lock may be held.
  Epoch commit() {
    if (!owes()) return 0;
    return domain_->publish(std::exchange(what_, {}), std::exchange(deferred_, {}));
  }
  [[nodiscard]] FlushDomain& domain() const noexcept { return *domain_; }

 private:
  FlushDomain* domain_;
  Invalidation what_;
  std::vector<std::function<void()>> deferred_;
};

}  // namespace strata
