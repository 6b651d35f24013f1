// A disk in memory that answers at once, or when the test says so.
#pragma once

#include <cstring>
#include <thread>
#include <vector>

#include "storage/disk.hpp"

namespace strata::devices::virtio::test {

struct DiskKind {
  bool read_only = false;
  bool deferred = false;  ///< requests wait for complete()
};

class MemoryDisk final : public storage::Disk {
 public:
  MemoryDisk(std::size_t bytes, DiskKind kind) : content(bytes), kind_{kind} {}

  [[nodiscard]] std::uint64_t bytes() const noexcept override { return content.size(); }
  [[nodiscard]] bool read_only() const noexcept override { return kind_.read_only; }
  [[nodiscard]] bool discards() const noexcept override { return true; }
  void start() override {}
  void submit(const storage::Request& request, storage::Completion& done) override {
    operations.push_back(request.operation);
    Waiting w{request, {request.buffers.begin(), request.buffers.end()}, &done};
    if (!kind_.deferred) return finish(w);
    waiting.push_back(std::move(w));
  }
  void kick() override { ++kicks; }
  void drain() override { complete(); }

  /// Answers what waits, the last first, on a thread of its own as io_uring's would be.
  void complete() {
    std::thread{[this] {
      while (!waiting.empty()) {
        Waiting w = std::move(waiting.back());
        waiting.pop_back();
        finish(w);
      }
    }}.join();
  }

  struct Waiting {
    storage::Request request;
    std::vector<iovec> buffers;
    storage::Completion* done;
  };
  std::vector<std::byte> content;
  std::vector<Waiting> waiting;
  std::vector<storage::Operation> operations;
  int kicks = 0;

 private:
  void finish(Waiting& w) { w.done->completed(carry_out(w)); }
  storage::Status carry_out(Waiting& w) {
    using storage::Operation;
    using storage::Status;
    const storage::Request& r = w.request;
    if (r.operation == Operation::flush) return Status::ok;
    if (r.offset % 512 != 0 || r.length % 512 != 0) return Status::out_of_range;
    if (r.offset > content.size() || r.length > content.size() - r.offset) {
      return Status::out_of_range;
    }
    if (kind_.read_only && r.operation != Operation::read) return Status::read_only;
    std::byte* at = content.data() + r.offset;
    if (r.operation == Operation::discard || r.operation == Operation::write_zeroes) {
      std::memset(at, 0, r.length);
      return Status::ok;
    }
    for (const iovec& v : w.buffers) {
      if (r.operation == Operation::read) {
        std::memcpy(v.iov_base, at, v.iov_len);
      } else {
        std::memcpy(at, v.iov_base, v.iov_len);
      }
      at += v.iov_len;
    }
    return Status::ok;
  }

  const DiskKind kind_;
};

}  // namespace strata::devices::virtio::test
