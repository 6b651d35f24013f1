// io_uring(7): requests are queued in memory that the kernel shares, and many begin with one call.
// What the page cache answers is over when that call returns and is reaped by the thread that made
// it; a thread of the engine waits for the rest.

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "storage/file_engine.hpp"
#include "storage/ring.hpp"
#include "storage/transfer.hpp"

namespace strata::storage {

namespace {

constexpr unsigned kDepth = 256;  // requests that the kernel has at a time
constexpr std::uint64_t kSmallWrite = 64 * 1024;

class UringEngine final : public FileEngine {
 public:
  UringEngine(std::unique_ptr<Ring> ring, std::vector<int> files)
      : ring_{std::move(ring)}, files_{std::move(files)}, flushes_(files_.size()) {}
  ~UringEngine() override;

  [[nodiscard]] std::string_view name() const noexcept override { return "io_uring"; }
  void start() override {
    thread_ = std::thread{[this] { reap_until_stopped(); }};
  }
  void submit(unsigned file, const Request& request, Completion& done) override;
  void kick() override;
  void drain() override;

 private:
  struct Slot {
    Transfer transfer;
    unsigned file = 0;
    bool flush = false;
    Completion* done = nullptr;
  };
  struct Finished {
    Completion* done = nullptr;
    Status status = Status::ok;
  };
  /// Of a file. One fdatasync at a time: the kernel reports an error to one caller only. It serves
  /// everybody who asked before it began.
  struct Flushes {
    std::vector<Slot*> running;
    std::vector<Slot*> next;
    bool failed = false;
  };

  [[nodiscard]] Slot& take_slot();
  void begin_flush(Flushes& flushes);
  void end_flush(Flushes& flushes, Status status);
  void finish(Slot& slot, Status status);
  void advance(Slot& slot, std::int64_t result);
  void write_alone(std::unique_lock<std::mutex>& hold);
  void push();
  void prepare(io_uring_sqe& entry, Slot& slot);
  void enter();
  void reap();
  void drive(std::unique_lock<std::mutex>& hold);
  void reap_until_stopped();

  const std::unique_ptr<Ring> ring_;
  const std::vector<int> files_;
  std::thread thread_;

  std::mutex lock_;  ///< guards the rest and both ends of the ring; held while requests are given
                     ///< to the kernel, not while completions are called or waited for
  std::condition_variable wake_;  ///< the thread has something to wait for
  std::condition_variable idle_;  ///< nothing is under way
  std::deque<Slot> slots_;        ///< addresses stay
  std::vector<Slot*> free_;
  std::deque<Slot*> waiting_;  ///< to be given to the kernel
  std::vector<Flushes> flushes_;
  std::vector<Finished> finished_;  ///< to be told
  std::size_t in_kernel_ = 0;
  std::size_t active_ = 0;  ///< submitted, and completed() has not returned
  bool asleep_ = false;     ///< the thread, in wake_
  bool stopping_ = false;
};

UringEngine::~UringEngine() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard hold{lock_};
    stopping_ = true;
    // The thread may wait in the kernel for a completion that somebody else has reaped.
    io_uring_sqe* const entry = ::io_uring_get_sqe(ring_->get());
    ::io_uring_prep_nop(entry);
    entry->flags = IOSQE_FIXED_FILE;
    ::io_uring_sqe_set_data(entry, nullptr);
    ++in_kernel_;
    enter();
  }
  wake_.notify_one();
  thread_.join();
}

void UringEngine::submit(unsigned file, const Request& request, Completion& done) {
  const std::lock_guard hold{lock_};
  Slot& slot = take_slot();
  slot.transfer.begin(request);
  slot.file = file;
  slot.flush = request.operation == Operation::flush;
  slot.done = &done;
  ++active_;
  if (!slot.flush) {
    waiting_.push_back(&slot);
    return;
  }
  Flushes& flushes = flushes_[file];
  flushes.next.push_back(&slot);
  if (flushes.running.empty()) begin_flush(flushes);
}

void UringEngine::kick() {
  std::unique_lock hold{lock_};
  drive(hold);
}

void UringEngine::drain() {
  std::unique_lock hold{lock_};
  drive(hold);
  idle_.wait(hold, [this] { return active_ == 0; });
}

UringEngine::Slot& UringEngine::take_slot() {
  if (free_.empty()) return slots_.emplace_back();
  Slot& slot = *free_.back();
  free_.pop_back();
  return slot;
}

/// All of `next` are served by the first's fdatasync; or, after one that failed, by none.
void UringEngine::begin_flush(Flushes& flushes) {
  if (flushes.next.empty()) return;
  flushes.running.swap(flushes.next);
  if (flushes.failed) {
    end_flush(flushes, Status::io_error);
  } else {
    waiting_.push_back(flushes.running.front());
  }
}

void UringEngine::end_flush(Flushes& flushes, Status status) {
  if (status != Status::ok) flushes.failed = true;
  for (Slot* const slot : flushes.running) {
    finished_.push_back({slot->done, status});
    free_.push_back(slot);
  }
  flushes.running.clear();
  begin_flush(flushes);
}

void UringEngine::finish(Slot& slot, Status status) {
  if (slot.flush) {
    end_flush(flushes_[slot.file], status);
    return;
  }
  finished_.push_back({slot.done, status});
  free_.push_back(&slot);
}

void UringEngine::advance(Slot& slot, std::int64_t result) {
  if (const auto status = slot.transfer.advance(result)) {
    finish(slot, *status);
  } else {
    waiting_.push_back(&slot);
  }
}

void UringEngine::prepare(io_uring_sqe& entry, Slot& slot) {
  const HostCall call = slot.transfer.next();
  const int file = static_cast<int>(slot.file);
  switch (call.kind) {
    case HostCall::Kind::readv:
      ::io_uring_prep_readv(&entry, file, call.buffers, call.count, call.offset);
      break;
    case HostCall::Kind::writev:
      ::io_uring_prep_writev(&entry, file, call.buffers, call.count, call.offset);
      break;
    case HostCall::Kind::fdatasync:
      ::io_uring_prep_fsync(&entry, file, IORING_FSYNC_DATASYNC);
      break;
    case HostCall::Kind::fallocate:
      ::io_uring_prep_fallocate(&entry, file, call.mode, static_cast<off_t>(call.offset),
                                static_cast<off_t>(call.length));
      break;
  }
  entry.flags = IOSQE_FIXED_FILE;
  ::io_uring_sqe_set_data(&entry, &slot);
}

/// Few file systems can write into the page cache for a ring without waiting; for the others a
/// thread of the kernel does, and who submitted waits for two threads to wake. For many requests,
/// or large ones, that is a gain. One small write, with nothing else under way that it could have
/// to wait for, is ten times as quick as a system call (bench/storage_bench.cpp).
void UringEngine::write_alone(std::unique_lock<std::mutex>& hold) {
  if (waiting_.size() != 1 || in_kernel_ != 0) return;
  Slot& slot = *waiting_.front();
  const HostCall call = slot.transfer.next();
  if (call.kind != HostCall::Kind::writev || call.length > kSmallWrite) return;
  waiting_.pop_front();
  hold.unlock();
  const std::int64_t result = make_call(files_[slot.file], call);
  hold.lock();
  advance(slot, result);
}

/// Gives the kernel what waits, as much as it takes at a time.
void UringEngine::push() {
  bool any = false;
  while (!waiting_.empty() && in_kernel_ < kDepth) {
    io_uring_sqe* const entry = ::io_uring_get_sqe(ring_->get());
    prepare(*entry, *waiting_.front());
    waiting_.pop_front();
    ++in_kernel_;
    any = true;
  }
  if (any) enter();
}

void UringEngine::enter() {
  while (::io_uring_sq_ready(ring_->get()) > 0) {
    // EAGAIN: the host has no memory for a request right now. EINTR: a signal.
    if (::io_uring_submit(ring_->get()) < 0) std::this_thread::yield();
  }
}

void UringEngine::reap() {
  io_uring_cqe* entry = nullptr;
  while (::io_uring_peek_cqe(ring_->get(), &entry) == 0) {
    auto* const slot = static_cast<Slot*>(::io_uring_cqe_get_data(entry));
    const std::int64_t result = entry->res;
    ::io_uring_cqe_seen(ring_->get(), entry);
    --in_kernel_;
    if (slot == nullptr) continue;
    advance(*slot, result);
  }
}

/// Takes everything as far as it goes without waiting.
void UringEngine::drive(std::unique_lock<std::mutex>& hold) {
  while (true) {
    write_alone(hold);
    push();
    reap();
    const bool more = !waiting_.empty() && in_kernel_ < kDepth;  // transfers that were short
    if (finished_.empty() && more) continue;
    if (in_kernel_ > 0 && asleep_) wake_.notify_one();
    if (finished_.empty()) return;
    std::vector<Finished> finished;
    finished.swap(finished_);
    hold.unlock();
    for (const Finished& request : finished) request.done->completed(request.status);
    hold.lock();
    active_ -= finished.size();
    if (active_ == 0) idle_.notify_all();
  }
}

void UringEngine::reap_until_stopped() {
  std::unique_lock hold{lock_};
  while (true) {
    asleep_ = true;
    wake_.wait(hold, [this] { return in_kernel_ > 0 || stopping_; });
    asleep_ = false;
    if (in_kernel_ == 0) return;
    hold.unlock();
    ::io_uring_enter(static_cast<unsigned>(ring_->get()->ring_fd), 0, 1, IORING_ENTER_GETEVENTS,
                     nullptr);
    hold.lock();
    drive(hold);
  }
}

}  // namespace

std::unique_ptr<FileEngine> make_uring_engine(std::vector<int> files) {
  auto ring = std::make_unique<Ring>();
  if (!ring->make(kDepth, files)) return nullptr;
  return std::make_unique<UringEngine>(std::move(ring), std::move(files));
}

}  // namespace strata::storage
