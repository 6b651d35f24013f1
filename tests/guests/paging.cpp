#include "paging.hpp"

#include "cpu.hpp"
#include "traps.hpp"

namespace guest {
namespace {

constexpr std::uint64_t kFrameMask = 0x000FFFFFFFFFF000ULL;

/// Small pages come from behind the image up to 8 MiB, large ones from there up: every guest has at
/// least 16 MiB.
std::uint64_t next_page = 0;
std::uint64_t next_large = 8U << 20;
constexpr std::uint64_t kSmallEnd = 8U << 20;
constexpr std::uint64_t kLargeEnd = 16U << 20;

volatile std::uint64_t& child(volatile std::uint64_t& entry, std::uint64_t address,
                              unsigned shift) {
  if ((entry & kPresent) == 0) entry = allocate_page() | kPresent | kWritable | kUser;
  auto* const table = reinterpret_cast<volatile std::uint64_t*>(entry & kFrameMask);
  return table[address >> shift & 511];
}

}  // namespace

std::uint64_t allocate_page() {
  if (next_page == 0) next_page = reinterpret_cast<std::uint64_t>(image_end);
  if (next_page >= kSmallEnd) stop();
  const std::uint64_t page = next_page;
  next_page += kPage;
  auto* const words = reinterpret_cast<std::uint64_t*>(page);
  for (unsigned i = 0; i < 512; ++i) words[i] = 0;
  return page;
}

std::uint64_t allocate_large_page() {
  if (next_large >= kLargeEnd) stop();
  const std::uint64_t page = next_large;
  next_large += kLargePage;
  return page;
}

volatile std::uint64_t& large_entry_of(std::uint64_t address) {
  volatile std::uint64_t& level4 = pml4[address >> 39 & 511];
  return child(child(level4, address, 30), address, 21);
}

volatile std::uint64_t& entry_of(std::uint64_t address) {
  return child(large_entry_of(address), address, 12);
}

void map(std::uint64_t address, std::uint64_t frame, std::uint64_t bits) {
  entry_of(address) = frame | bits;
  invlpg(address);
}

}  // namespace guest
