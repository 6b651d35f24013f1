#include "storage/overlay_disk.hpp"

#include <algorithm>
#include <utility>

#include "storage/raw_disk.hpp"

namespace strata::storage {

void append_slice(std::span<const iovec> buffers, std::uint64_t offset, std::uint64_t length,
                  std::vector<iovec>& to) {
  for (const iovec& buffer : buffers) {
    if (offset >= buffer.iov_len) {
      offset -= buffer.iov_len;
      continue;
    }
    const std::uint64_t part = std::min(buffer.iov_len - offset, length);
    if (part == 0) return;
    to.push_back({static_cast<std::byte*>(buffer.iov_base) + offset, part});
    length -= part;
    offset = 0;
  }
}

/// A request that lies in both files.
class OverlayDisk::Split final : public Completion {
 public:
  explicit Split(OverlayDisk& disk) noexcept : disk_{disk} {}
  void begin(Completion& done, unsigned parts) noexcept {
    done_ = &done;
    parts_.begin(parts);
  }
  void completed(Status status) noexcept override {
    if (!parts_.ended(status)) return;
    Completion& done = *done_;
    const Status all = parts_.status();
    disk_.give_back(*this);
    done.completed(all);
  }

 private:
  OverlayDisk& disk_;
  Completion* done_ = nullptr;
  PartCount parts_;
};

namespace {

class Nobody final : public Completion {
 public:
  void completed(Status) noexcept override {}
};

}  // namespace

OverlayDisk::OverlayDisk(ImageFile base, OverlayFile overlay, Access access,
                         std::unique_ptr<FileEngine> engine)
    : base_{std::move(base)},
      overlay_{std::move(overlay.image)},
      data_offset_{overlay.data_offset},
      access_{access},
      shared_{{}, std::move(overlay.table)},
      engine_{std::move(engine)},
      writer_{*engine_, shared_, data_offset_, base_.bytes},
      flusher_{*engine_, shared_} {}

OverlayDisk::~OverlayDisk() {
  if (!shared_.table.dirty()) return;
  Nobody nobody;
  flusher_.submit(nobody);
  engine_->drain();
}

void OverlayDisk::submit(const Request& request, Completion& done) {
  const Status status = check_request(request, bytes(), read_only());
  const bool nothing_to_do =
      request.operation == Operation::flush ? read_only() : request.length == 0;
  if (status != Status::ok || nothing_to_do) {
    done.completed(status);
    return;
  }
  switch (request.operation) {
    case Operation::flush:
      flusher_.submit(done);
      break;
    case Operation::write:
    case Operation::write_zeroes:
      writer_.submit(request, done);
      break;
    case Operation::discard:
      if (!discards()) {
        done.completed(Status::unsupported);
        break;
      }
      [[fallthrough]];
    case Operation::read:
      submit_runs(request, done);
      break;
  }
}

/// Reads from where the bytes are; discards only what the overlay holds, since the base stays.
void OverlayDisk::submit_runs(const Request& request, Completion& done) {
  const std::uint64_t end = request.offset + request.length;
  std::vector<Run> runs;
  Run first;
  Split* split = nullptr;
  {
    const std::lock_guard hold{shared_.lock};
    first = run_at(request.offset, end);
    if (first.length < request.length) {
      for (std::uint64_t at = request.offset; at < end; at += runs.back().length) {
        runs.push_back(run_at(at, end));
      }
      split = &take_split(done, static_cast<unsigned>(runs.size()));
    }
  }
  if (split == nullptr) {
    submit_run(request, first, done);
    return;
  }
  for (const Run& run : runs) {
    Request part = request;
    std::vector<iovec> buffers;
    append_slice(request.buffers, run.offset - request.offset, run.length, buffers);
    part.offset = run.offset;
    part.length = run.length;
    part.buffers = buffers;
    submit_run(part, run, *split);
  }
}

void OverlayDisk::submit_run(const Request& request, const Run& run, Completion& done) {
  if (run.held) {
    Request moved = request;
    moved.offset += data_offset_;
    engine_->submit(kOverlayFile, moved, done);
  } else if (request.operation == Operation::discard) {
    done.completed(Status::ok);
  } else {
    engine_->submit(kBaseFile, request, done);
  }
}

/// Under the lock. What begins at `offset` and ends at `end` or where the other file has the disk.
OverlayDisk::Run OverlayDisk::run_at(std::uint64_t offset, std::uint64_t end) const {
  const std::uint64_t first = offset / kClusterBytes;
  const std::uint64_t last = shared_.table.same_until(first, (end - 1) / kClusterBytes);
  return {shared_.table.holds(first), offset, std::min((last + 1) * kClusterBytes, end) - offset};
}

/// Under the lock.
OverlayDisk::Split& OverlayDisk::take_split(Completion& done, unsigned parts) {
  Split* split = nullptr;
  if (free_.empty()) {
    split = splits_.emplace_back(std::make_unique<Split>(*this)).get();
  } else {
    split = free_.back();
    free_.pop_back();
  }
  split->begin(done, parts);
  return *split;
}

void OverlayDisk::give_back(Split& split) {
  const std::lock_guard hold{shared_.lock};
  free_.push_back(&split);
}

}  // namespace strata::storage
