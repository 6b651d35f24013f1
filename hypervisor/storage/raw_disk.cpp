#include "storage/raw_disk.hpp"

namespace strata::storage {

namespace {

bool buffers_hold(const Request& request) {
  std::uint64_t left = request.length;
  for (const iovec& buffer : request.buffers) {
    if (buffer.iov_len > left) return false;
    left -= buffer.iov_len;
  }
  return left == 0;
}

}  // namespace

Status check_request(const Request& request, std::uint64_t bytes, bool read_only) {
  if (request.operation == Operation::flush) return Status::ok;
  if (read_only && request.operation != Operation::read) return Status::read_only;
  if (request.offset % kSectorBytes != 0 || request.length % kSectorBytes != 0 ||
      request.offset > bytes || request.length > bytes - request.offset) {
    return Status::out_of_range;
  }
  const bool moves = request.operation == Operation::read || request.operation == Operation::write;
  return moves && !buffers_hold(request) ? Status::out_of_range : Status::ok;
}

void RawDisk::submit(const Request& request, Completion& done) {
  const Status status = check_request(request, image_.bytes, read_only());
  const bool nothing_to_do =
      request.operation == Operation::flush ? read_only() : request.length == 0;
  if (status != Status::ok || nothing_to_do) {
    done.completed(status);
    return;
  }
  if (request.operation == Operation::discard && !discards()) {
    done.completed(Status::unsupported);
    return;
  }
  engine_->submit(0, request, done);
}

}  // namespace strata::storage
