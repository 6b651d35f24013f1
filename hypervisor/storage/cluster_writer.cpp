#include "storage/cluster_writer.hpp"

#include <algorithm>
#include <utility>

namespace strata::storage {

/// One request that touches clusters which the overlay does not hold: reads what is beside it in
/// the base, then writes whole clusters. Nobody else writes to its clusters meanwhile.
class ClusterWriter::Job final : public Completion {
 public:
  explicit Job(ClusterWriter& writer) noexcept : writer_{writer} {}

  void take(const Request& request, Completion& done) {
    request_ = request;
    buffers_.assign(request.buffers.begin(), request.buffers.end());
    done_ = &done;
    first_ = request.offset / kClusterBytes;
    last_ = (request.offset + request.length - 1) / kClusterBytes;
  }
  [[nodiscard]] bool overlaps(const Job& other) const noexcept {
    return first_ <= other.last_ && other.first_ <= last_;
  }
  /// Under the lock.
  void prepare(const ClusterTable& table, std::unique_ptr<Bounce> bounce) {
    bounce_ = std::move(bounce);
    const std::uint64_t end = request_.offset + request_.length;
    const std::uint64_t cluster_end = std::min((last_ + 1) * kClusterBytes, writer_.bytes_);
    head_ = table.holds(first_) ? 0 : request_.offset - first_ * kClusterBytes;
    tail_ = table.holds(last_) ? 0 : cluster_end - end;
  }
  /// Without the lock, as all below.
  void start();
  void completed(Status status) noexcept override {
    if (parts_.ended(status)) step();
  }

 private:
  friend class ClusterWriter;
  enum class Phase : std::uint8_t { reading, writing };

  void step();
  void write();
  void write_data();
  void write_zeroes();
  void submit_part(unsigned file, Operation operation, std::uint64_t offset, std::byte* bytes,
                   std::uint64_t length);
  [[nodiscard]] std::uint64_t end() const noexcept { return request_.offset + request_.length; }

  ClusterWriter& writer_;
  Request request_;  ///< but for its buffers
  std::vector<iovec> buffers_;
  Completion* done_ = nullptr;
  std::uint64_t first_ = 0, last_ = 0;  ///< clusters
  std::uint64_t head_ = 0, tail_ = 0;   ///< bytes to copy before and behind the request
  std::unique_ptr<Bounce> bounce_;
  Phase phase_ = Phase::reading;
  PartCount parts_;
};

void ClusterWriter::Job::start() {
  if (head_ == 0 && tail_ == 0) {
    write();
    return;
  }
  phase_ = Phase::reading;
  const bool both = head_ > 0 && tail_ > 0;
  parts_.begin(both ? 2 : 1);
  // Reads of the last part may end, and go on to write, before submit_part() returns.
  const std::uint64_t tail = tail_;
  if (head_ > 0) {
    submit_part(kBaseFile, Operation::read, request_.offset - head_, bounce_->head.data(), head_);
  }
  if (tail > 0) submit_part(kBaseFile, Operation::read, end(), bounce_->tail.data(), tail);
}

void ClusterWriter::Job::step() {
  if (phase_ == Phase::reading && parts_.status() == Status::ok) {
    write();
  } else {
    writer_.finish(*this, parts_.status());
  }
}

void ClusterWriter::Job::write() {
  phase_ = Phase::writing;
  if (request_.operation == Operation::write) {
    write_data();
  } else {
    write_zeroes();
  }
}

void ClusterWriter::Job::write_data() {
  std::vector<iovec> all;
  all.reserve(buffers_.size() + 2);
  if (head_ > 0) all.push_back({bounce_->head.data(), head_});
  all.insert(all.end(), buffers_.begin(), buffers_.end());
  if (tail_ > 0) all.push_back({bounce_->tail.data(), tail_});
  parts_.begin(1);
  writer_.engine_.submit(kOverlayFile,
                         {.operation = Operation::write,
                          .offset = writer_.data_offset_ + request_.offset - head_,
                          .length = head_ + request_.length + tail_,
                          .buffers = all},
                         *this);
}

void ClusterWriter::Job::write_zeroes() {
  // The last part to end gives the job away, so nothing of it is used after that part's submit().
  const std::uint64_t head = head_, tail = tail_;
  parts_.begin(1U + (head > 0 ? 1U : 0U) + (tail > 0 ? 1U : 0U));
  if (head > 0) {
    submit_part(kOverlayFile, Operation::write, writer_.data_offset_ + request_.offset - head,
                bounce_->head.data(), head);
  }
  if (tail > 0) {
    submit_part(kOverlayFile, Operation::write, writer_.data_offset_ + end(), bounce_->tail.data(),
                tail);
  }
  writer_.engine_.submit(kOverlayFile,
                         {.operation = Operation::write_zeroes,
                          .offset = writer_.data_offset_ + request_.offset,
                          .length = request_.length,
                          .unmap = request_.unmap},
                         *this);
}

void ClusterWriter::Job::submit_part(unsigned file, Operation operation, std::uint64_t offset,
                                     std::byte* bytes, std::uint64_t length) {
  const iovec buffer{bytes, length};
  writer_.engine_.submit(
      file, {.operation = operation, .offset = offset, .length = length, .buffers = {&buffer, 1}},
      *this);
}

ClusterWriter::ClusterWriter(FileEngine& engine, SharedTable& shared, std::uint64_t data_offset,
                             std::uint64_t bytes) noexcept
    : engine_{engine}, shared_{shared}, data_offset_{data_offset}, bytes_{bytes} {}
ClusterWriter::~ClusterWriter() = default;

void ClusterWriter::submit(const Request& request, Completion& done) {
  const std::uint64_t first = request.offset / kClusterBytes;
  const std::uint64_t last = (request.offset + request.length - 1) / kClusterBytes;
  Job* job = nullptr;
  {
    const std::lock_guard hold{shared_.lock};
    if (!shared_.table.holds_all(first, last)) {
      job = &take_job();
      job->take(request, done);
      if (!begin_if_possible(*job)) {
        waiting_.push_back(job);
        return;
      }
    }
  }
  if (job != nullptr) {
    job->start();
    return;
  }
  Request moved = request;
  moved.offset += data_offset_;
  engine_.submit(kOverlayFile, moved, done);
}

ClusterWriter::Job& ClusterWriter::take_job() {
  if (free_.empty()) return *jobs_.emplace_back(std::make_unique<Job>(*this));
  Job& job = *free_.back();
  free_.pop_back();
  return job;
}

/// Under the lock. False: it has to wait.
bool ClusterWriter::begin_if_possible(Job& job) {
  if (running_.size() == kRunning) return false;
  for (const Job* const other : running_) {
    if (job.overlaps(*other)) return false;
  }
  std::unique_ptr<Bounce> bounce;
  if (bounces_.empty()) {
    bounce = std::make_unique<Bounce>();
  } else {
    bounce = std::move(bounces_.back());
    bounces_.pop_back();
  }
  job.prepare(shared_.table, std::move(bounce));
  running_.push_back(&job);
  return true;
}

void ClusterWriter::finish(Job& job, Status status) {
  Completion& done = *job.done_;
  std::vector<Job*> startable;
  {
    const std::lock_guard hold{shared_.lock};
    if (status == Status::ok) shared_.table.add(job.first_, job.last_);
    bounces_.push_back(std::move(job.bounce_));
    running_.erase(std::find(running_.begin(), running_.end(), &job));
    free_.push_back(&job);
    for (auto at = waiting_.begin(); at != waiting_.end() && running_.size() < kRunning;) {
      if (begin_if_possible(**at)) {
        startable.push_back(*at);
        at = waiting_.erase(at);
      } else {
        ++at;
      }
    }
  }
  for (Job* const next : startable) next->start();
  done.completed(status);
}

}  // namespace strata::storage
