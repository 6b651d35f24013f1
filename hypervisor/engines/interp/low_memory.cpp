#include "engines/interp/low_memory.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <new>

namespace strata::interp {
namespace {

constexpr std::uint64_t kReach = 1ULL << 31;

std::size_t whole_pages(std::size_t bytes) { return (bytes + 4095) & ~std::size_t{4095}; }

}  // namespace

void* allocate_low(std::size_t bytes) {
  const std::size_t size = whole_pages(bytes);
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS;
  void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags | MAP_32BIT, -1, 0);
  if (p == MAP_FAILED) p = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc{};
  return p;
}

void free_low(void* memory, std::size_t bytes) noexcept { munmap(memory, whole_pages(bytes)); }

bool is_low(const void* memory, std::size_t bytes) noexcept {
  return reinterpret_cast<std::uintptr_t>(memory) + bytes <= kReach;
}

}  // namespace strata::interp
