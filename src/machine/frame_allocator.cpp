#include "machine/frame_allocator.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

namespace strata::machine {
namespace {

/// Frames that move between a thread's cache and the central lists at once.
constexpr std::size_t kBatch = 16;
constexpr std::size_t kCacheFrames = 2 * kBatch;
/// Free frames that keep their host memory: 1 MiB. Beyond, holes are punched, half a reserve at a
/// time, so that a table that comes and goes costs no system call.
constexpr std::size_t kReserveFrames = 256;

/// A frame's index in the pool, and whether it is known to hold zeroes.
struct FreeFrame {
  std::uint64_t index = 0;
  bool zeroed = false;
};

/// One thread's free frames and its share of the accounts.
struct Cache {
  /// Guards frames and count. Taken by the owning thread alone, except when another runs dry.
  std::mutex lock;
  std::array<FreeFrame, kCacheFrames> frames{};
  std::size_t count = 0;
  /// Allocated minus released by this thread: may be negative. Written by the owner only.
  std::array<std::atomic<std::int64_t>, kFrameKinds> balance{};

  void add(FrameKind kind, std::int64_t delta) noexcept {
    auto& b = balance[static_cast<std::size_t>(kind)];
    b.store(b.load(std::memory_order_relaxed) + delta, std::memory_order_relaxed);
  }
};

}  // namespace

/// What all threads share. Lock order: lock_ before a Cache's lock.
class FrameAllocator::Central {
 public:
  Central(SegmentRef pool, MachineWindow window, std::uint64_t budget)
      : pool_{std::move(pool)}, window_{window}, budget_{budget} {
    frames_ = pool_->bytes() / kPageSize;
    auto bits = HostMapping::anonymous((frames_ + 63) / 64 * sizeof(std::uint64_t));
    if (!bits) std::abort();  // 32 KiB a GiB of address space, sparse: nothing works without
    allocated_ = std::move(*bits);
  }

  [[nodiscard]] MachineWindow window() const noexcept { return window_; }

  void enroll(Cache& cache) {
    const std::lock_guard guard{lock_};
    caches_.push_back(&cache);
  }

  /// The owning thread ends: its frames and accounts come here.
  void retire(Cache& cache) noexcept {
    const std::lock_guard guard{lock_};
    drain(cache);
    for (std::size_t k = 0; k < kFrameKinds; ++k) retired_[k] += cache.balance[k].load();
    std::erase(caches_, &cache);
  }

  /// Up to kBatch frames into `batch`; 0 when there is none to be had.
  std::size_t take(std::span<FreeFrame> batch);
  void give(std::span<const FreeFrame> batch) noexcept;
  void punch_beyond(std::size_t reserve) noexcept;
  void trim() noexcept {
    {
      const std::lock_guard guard{lock_};
      for (Cache* cache : caches_) drain(*cache);
    }
    punch_beyond(0);
  }

  void set_budget(std::uint64_t frames) noexcept {
    const std::lock_guard guard{lock_};
    budget_ = frames;
  }
  [[nodiscard]] std::uint64_t resident() const noexcept {
    const std::lock_guard guard{lock_};
    return out_ + free_.size();
  }
  [[nodiscard]] std::array<std::uint64_t, kFrameKinds> in_use() const noexcept {
    const std::lock_guard guard{lock_};
    std::array<std::uint64_t, kFrameKinds> sum{};
    for (std::size_t k = 0; k < kFrameKinds; ++k) {
      std::int64_t total = retired_[k];
      for (const Cache* cache : caches_) total += cache->balance[k].load(std::memory_order_relaxed);
      // A frame released by one thread while we add up may show as less than nothing.
      sum[k] = static_cast<std::uint64_t>(std::max<std::int64_t>(total, 0));
    }
    return sum;
  }

  [[nodiscard]] MPN mpn_of(std::uint64_t index) const noexcept {
    return MPN{page_of(pool_->base()).value() + index};
  }
  [[nodiscard]] std::uint64_t index_of(MPN mpn) const noexcept {
    const std::uint64_t index = mpn.value() - page_of(pool_->base()).value();
    if (mpn < page_of(pool_->base()) || index >= frames_) std::abort();
    return index;
  }

  /// Marks a frame as handed out or not. Aborts when it was so already: a double free of a table
  /// would hand one frame to two owners, with a guest in control of one of them.
  void mark(std::uint64_t index, bool allocated) noexcept {
    auto* words = reinterpret_cast<std::uint64_t*>(allocated_.base());
    const std::atomic_ref<std::uint64_t> word{words[index / 64]};
    const std::uint64_t bit = 1ULL << (index % 64);
    const std::uint64_t before = allocated ? word.fetch_or(bit, std::memory_order_relaxed)
                                           : word.fetch_and(~bit, std::memory_order_relaxed);
    if (((before & bit) != 0) == allocated) std::abort();
  }

 private:
  /// lock_ held.
  void drain(Cache& cache) noexcept {
    const std::lock_guard guard{cache.lock};
    put(std::span{cache.frames}.first(cache.count));
    cache.count = 0;
  }
  /// lock_ held.
  void put(std::span<const FreeFrame> batch) noexcept {
    free_.insert(free_.end(), batch.begin(), batch.end());
    out_ -= batch.size();
  }
  std::size_t pick(std::span<FreeFrame> batch, bool& populated);
  [[nodiscard]] std::size_t allowed(std::size_t wanted) const noexcept {
    return out_ >= budget_
               ? 0
               : static_cast<std::size_t>(std::min<std::uint64_t>(wanted, budget_ - out_));
  }
  [[nodiscard]] bool touch(std::span<const FreeFrame> batch) noexcept;

  SegmentRef pool_;
  MachineWindow window_;
  std::uint64_t frames_ = 0;
  HostMapping allocated_;  ///< a bit a frame
  /// Guards everything below.
  mutable std::mutex lock_;
  std::uint64_t budget_;
  std::uint64_t out_ = 0;         ///< frames in use or in caches
  std::uint64_t next_fresh_ = 1;  ///< frames from here on were never used; 0 never is
  std::vector<FreeFrame> free_;   ///< with host memory
  std::vector<FreeFrame> holes_;  ///< punched
  std::vector<Cache*> caches_;
  std::array<std::int64_t, kFrameKinds> retired_{};
};

/// lock_ held. Takes frames out of one list; `populated` says whether they have host memory.
std::size_t FrameAllocator::Central::pick(std::span<FreeFrame> batch, bool& populated) {
  std::size_t n = allowed(batch.size());
  populated = !free_.empty();
  auto& list = populated ? free_ : holes_;
  if (!list.empty()) {
    n = std::min(n, list.size());
    std::copy(list.end() - static_cast<std::ptrdiff_t>(n), list.end(), batch.begin());
    list.resize(list.size() - n);
  } else {
    n = static_cast<std::size_t>(std::min<std::uint64_t>(n, frames_ - next_fresh_));
    for (std::size_t i = 0; i < n; ++i) batch[i] = {next_fresh_ + i, true};
    next_fresh_ += n;
  }
  out_ += n;
  return n;
}

/// Makes sure of host memory now, where its lack is still an error value and not a SIGBUS.
bool FrameAllocator::Central::touch(std::span<const FreeFrame> batch) noexcept {
  for (std::size_t i = 0; i < batch.size();) {
    std::size_t run = 1;
    while (i + run < batch.size() && batch[i + run].index == batch[i].index + run) ++run;
    if (!pool_->touch({batch[i].index * kPageSize, run * kPageSize})) return false;
    i += run;
  }
  return true;
}

std::size_t FrameAllocator::Central::take(std::span<FreeFrame> batch) {
  bool populated = false;
  std::size_t n = 0;
  {
    const std::lock_guard guard{lock_};
    n = pick(batch, populated);
    if (n == 0) {
      // Budget or pool used up: what other threads have cached still counts as free.
      for (Cache* cache : caches_) drain(*cache);
      n = pick(batch, populated);
    }
  }
  const auto taken = batch.first(n);
  if (populated || touch(taken)) return n;
  const std::lock_guard guard{lock_};
  holes_.insert(holes_.end(), taken.begin(), taken.end());
  out_ -= n;
  return 0;
}

void FrameAllocator::Central::give(std::span<const FreeFrame> batch) noexcept {
  bool full = false;
  {
    const std::lock_guard guard{lock_};
    put(batch);
    full = free_.size() > kReserveFrames;
  }
  if (full) punch_beyond(kReserveFrames / 2);
}

void FrameAllocator::Central::punch_beyond(std::size_t reserve) noexcept {
  std::vector<FreeFrame> excess;
  {
    const std::lock_guard guard{lock_};
    if (free_.size() <= reserve) return;
    excess.assign(free_.begin() + static_cast<std::ptrdiff_t>(reserve), free_.end());
    free_.resize(reserve);
  }
  // One system call a run of neighbours. The frames are in no list meanwhile.
  std::sort(excess.begin(), excess.end(),
            [](const FreeFrame& a, const FreeFrame& b) { return a.index < b.index; });
  for (std::size_t i = 0; i < excess.size();) {
    std::size_t run = 1;
    while (i + run < excess.size() && excess[i + run].index == excess[i].index + run) ++run;
    const bool punched = pool_->punch({excess[i].index * kPageSize, run * kPageSize}).has_value();
    for (std::size_t j = i; j < i + run; ++j) excess[j].zeroed = punched;
    i += run;
  }
  const std::lock_guard guard{lock_};
  holes_.insert(holes_.end(), excess.begin(), excess.end());
}

namespace {

/// A thread's caches, one an allocator it has used.
class ThreadCaches {
 public:
  ThreadCaches() = default;
  ThreadCaches(const ThreadCaches&) = delete;
  ThreadCaches& operator=(const ThreadCaches&) = delete;
  ~ThreadCaches() {
    for (auto& entry : entries_) {
      if (const auto central = entry.central.lock()) central->retire(*entry.cache);
    }
  }

  Cache& of(const std::shared_ptr<FrameAllocator::Central>& central) {
    for (auto& entry : entries_) {
      // Compares control blocks, which a weak_ptr keeps: a new allocator at the address of an old
      // one is not taken for it.
      if (!entry.central.owner_before(central) && !central.owner_before(entry.central)) {
        return *entry.cache;
      }
    }
    std::erase_if(entries_, [](const Entry& e) { return e.central.expired(); });
    entries_.push_back({central, std::make_unique<Cache>()});
    central->enroll(*entries_.back().cache);
    return *entries_.back().cache;
  }

 private:
  struct Entry {
    std::weak_ptr<FrameAllocator::Central> central;
    std::unique_ptr<Cache> cache;
  };
  std::vector<Entry> entries_;
};

Cache& cache_of(const std::shared_ptr<FrameAllocator::Central>& central) {
  thread_local ThreadCaches caches;
  return caches.of(central);
}

/// A frame from the cache, refilled from `central` when empty.
bool pop(FrameAllocator::Central& central, Cache& cache, FreeFrame& frame) {
  {
    const std::lock_guard guard{cache.lock};
    if (cache.count != 0) {
      frame = cache.frames[--cache.count];
      return true;
    }
  }
  std::array<FreeFrame, kBatch> batch{};
  const std::size_t n = central.take(batch);
  if (n == 0) return false;
  frame = batch[0];
  // Only this thread adds to its cache, so there is room.
  const std::lock_guard guard{cache.lock};
  for (std::size_t i = n; i > 1; --i) cache.frames[cache.count++] = batch[i - 1];
  return true;
}

}  // namespace

FrameAllocator::FrameAllocator(MachineMemory& memory, std::uint64_t budget)
    : FrameAllocator{memory.system_pool(), memory.window(), budget} {}
FrameAllocator::FrameAllocator(SegmentRef pool, MachineWindow window, std::uint64_t budget)
    : central_{std::make_shared<Central>(std::move(pool), window, budget)} {}
FrameAllocator::~FrameAllocator() = default;

Expected<MPN, OutOfFrames> FrameAllocator::allocate(FrameKind kind) {
  Cache& cache = cache_of(central_);
  FreeFrame frame{};
  if (!pop(*central_, cache, frame)) return Unexpected{OutOfFrames{}};
  central_->mark(frame.index, true);
  cache.add(kind, 1);
  const MPN mpn = central_->mpn_of(frame.index);
  if (!frame.zeroed) std::memset(window().host(address_of(mpn)), 0, kPageSize);
  return mpn;
}

void FrameAllocator::release(MPN mpn, FrameKind kind) noexcept {
  const std::uint64_t index = central_->index_of(mpn);
  central_->mark(index, false);
  Cache& cache = cache_of(central_);
  cache.add(kind, -1);
  std::array<FreeFrame, kBatch> batch{};
  {
    const std::lock_guard guard{cache.lock};
    if (cache.count < kCacheFrames) {
      cache.frames[cache.count++] = {index, false};
      return;
    }
    // The oldest go: the newest are likely still in the processor's cache.
    std::copy_n(cache.frames.begin(), kBatch, batch.begin());
    std::copy(cache.frames.begin() + kBatch, cache.frames.end(), cache.frames.begin());
    cache.count = kCacheFrames - kBatch;
    cache.frames[cache.count++] = {index, false};
  }
  central_->give(batch);
}

MachineWindow FrameAllocator::window() const noexcept { return central_->window(); }
std::array<std::uint64_t, kFrameKinds> FrameAllocator::in_use() const noexcept {
  return central_->in_use();
}
void FrameAllocator::set_budget(std::uint64_t frames) noexcept { central_->set_budget(frames); }
std::uint64_t FrameAllocator::resident_frames() const noexcept { return central_->resident(); }
void FrameAllocator::trim() noexcept { central_->trim(); }

}  // namespace strata::machine
