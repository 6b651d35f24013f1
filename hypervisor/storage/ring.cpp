#include "storage/ring.hpp"

#include <array>
#include <cstddef>
#include <cstdint>

namespace strata::storage {

Ring::~Ring() {
  if (made_) ::io_uring_queue_exit(&ring_);
}

bool Ring::make(unsigned depth, std::span<const int> files) {
  // Disabled at first, since only then restrictions can be made.
  io_uring_params parameters{};
  parameters.flags = IORING_SETUP_R_DISABLED;
  if (::io_uring_queue_init_params(depth, &ring_, &parameters) != 0) return false;
  made_ = true;
  const auto count = static_cast<unsigned>(files.size());
  return ::io_uring_register_files(&ring_, files.data(), count) == 0 && restrict_requests() &&
         ::io_uring_enable_rings(&ring_) == 0;
}

bool Ring::restrict_requests() {
  constexpr std::array<std::uint8_t, 5> kOperations{
      IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE, IORING_OP_NOP};
  std::array<io_uring_restriction, kOperations.size() + 1> rules{};
  for (std::size_t i = 0; i < kOperations.size(); ++i) {
    rules[i].opcode = IORING_RESTRICTION_SQE_OP;
    rules[i].sqe_op = kOperations[i];
  }
  // Only the files that are registered, by index. A flag that no rule names is refused, and so is
  // every io_uring_register(2).
  rules.back().opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
  rules.back().sqe_flags = IOSQE_FIXED_FILE;
  const auto count = static_cast<unsigned>(rules.size());
  return ::io_uring_register_restrictions(&ring_, rules.data(), count) == 0;
}

}  // namespace strata::storage
