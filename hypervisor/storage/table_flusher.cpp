#include "storage/table_flusher.hpp"

#include <utility>

#include "storage/overlay_file.hpp"

namespace strata::storage {

void TableFlusher::submit(Completion& done) {
  bool failed = false;
  Phase phase = Phase::idle;
  {
    const std::lock_guard hold{shared_.lock};
    failed = failed_;
    if (running_) {
      // The chain may have begun before a write that this flush covers was complete.
      next_.push_back(&done);
      return;
    }
    if (!failed && shared_.table.dirty()) {
      running_ = true;
      current_.push_back(&done);
      phase = first_phase();
    }
  }
  if (failed) {
    done.completed(Status::io_error);
  } else if (phase == Phase::idle) {
    engine_.submit(kOverlayFile, {.operation = Operation::flush}, done);
  } else {
    begin(phase);
  }
}

/// Under the lock, for the chain that begins: what the table has now belongs to it.
TableFlusher::Phase TableFlusher::first_phase() {
  if (!shared_.table.dirty()) return Phase::last;
  sectors_ = shared_.table.take_dirty();
  return Phase::data;
}

void TableFlusher::begin(Phase phase) {
  phase_ = phase;
  parts_.begin(1);
  engine_.submit(kOverlayFile, {.operation = Operation::flush}, *this);
}

void TableFlusher::completed(Status status) noexcept {
  if (parts_.ended(status)) step(parts_.status());
}

void TableFlusher::step(Status status) {
  if (status != Status::ok || phase_ == Phase::last) {
    end(status);
  } else if (phase_ == Phase::data) {
    write_table();
  } else {
    begin(Phase::last);
  }
}

void TableFlusher::write_table() {
  phase_ = Phase::table;
  // The chain's last part may end, and the next chain take new sectors, before its submit() is
  // back.
  const std::size_t count = sectors_.size();
  parts_.begin(static_cast<unsigned>(count));
  for (std::size_t i = 0; i < count; ++i) {
    ClusterTable::Dirty& dirty = sectors_[i];
    const iovec buffer{dirty.sector.data(), dirty.sector.size()};
    engine_.submit(kOverlayFile,
                   {.operation = Operation::write,
                    .offset = OverlayFile::kTableOffset + dirty.index * kSectorBytes,
                    .length = kSectorBytes,
                    .buffers = {&buffer, 1}},
                   *this);
  }
}

void TableFlusher::end(Status status) {
  std::vector<Completion*> served, lost;
  Phase phase = Phase::idle;
  {
    const std::lock_guard hold{shared_.lock};
    served.swap(current_);
    if (status != Status::ok) failed_ = true;
    if (failed_) lost.swap(next_);
    running_ = !next_.empty();
    if (running_) {
      current_.swap(next_);
      phase = first_phase();
    }
  }
  if (phase != Phase::idle) begin(phase);
  for (Completion* const done : served) done->completed(status);
  for (Completion* const done : lost) done->completed(Status::io_error);
}

}  // namespace strata::storage
