// Fetching near the end of CS (SDM 3A 5.3): an instruction with a byte beyond the limit is #GP(0).
#include <algorithm>

#include "engines/interp/core.hpp"
#include "engines/interp/lower.hpp"

namespace strata::interp {

bool Core::code_room(std::uint64_t va, std::uint64_t& room) {
  const std::uint64_t limit = arch.segment[cpu::CS].limit;
  const std::uint64_t offset = ip_at(va);
  if (offset > limit) return record_exception(cpu::GP, 0);
  room = limit - offset + 1;
  return true;
}

Block* Core::shorter_block(std::uint64_t va, PA pa, const std::byte* host, DecodeMode mode,
                           std::uint64_t room) {
  mode.single = true;
  const std::uint64_t in_page = kPageSize - (va & kPageMask);
  std::array<std::byte, 32> bytes{};
  const std::byte* code = host;
  std::uint64_t available = std::min(room, in_page);
  std::vector<Uop> steps;
  DecodeResult d =
      decode_block(code, static_cast<std::size_t>(available), va, mode, *env.model, steps);
  if (d.needs_next_page && room > in_page) {
    unsigned count = 0;
    if (!crossing_bytes(va, bytes, count)) return nullptr;
    code = bytes.data();
    available = std::min<std::uint64_t>(room, count);
    steps.clear();
    d = decode_block(code, static_cast<std::size_t>(available), va, mode, *env.model, steps);
  }
  if (d.needs_next_page) {
    record_exception(cpu::GP, 0);
    return nullptr;
  }
  Block* b = make_block(steps, d, pa, mode);
  if (b == nullptr) b = make_block(steps, d, pa, mode);
  b->crosses = true;  // keeps it out of jump cache and links
  return b;
}

}  // namespace strata::interp
