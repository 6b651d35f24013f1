#include "engines/bt/slice_pool.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

namespace strata::bt {
namespace {

constexpr std::uint64_t kReservation = kSliceBytes + 2 * kGuardBytes;
constexpr int kReserved = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

void* pointer(std::uint64_t address) noexcept { return reinterpret_cast<void*>(address); }

/// The range may be a hole now. Closes it before guest code runs again.
void close_hole(std::uint64_t at, std::size_t bytes) noexcept {
  if (mmap(pointer(at), bytes, PROT_NONE, kReserved | MAP_FIXED, -1, 0) != MAP_FAILED) return;
  std::fputs("strata: the host can not keep a window's addresses reserved; ending this VM\n",
             stderr);
  std::abort();
}

}  // namespace

SlicePool::~SlicePool() {
  for (const std::uint64_t slice : all_) munmap(pointer(slice - kGuardBytes), kReservation);
}

std::uint64_t SlicePool::take() noexcept {
  if (!free_.empty()) {
    const std::uint64_t slice = free_.back();
    free_.pop_back();
    return slice;
  }
  if (all_.size() == kMostSlices) return 0;
  void* p = mmap(nullptr, kReservation, PROT_NONE, kReserved, -1, 0);
  if (p == MAP_FAILED) return 0;
  all_.push_back(reinterpret_cast<std::uint64_t>(p) + kGuardBytes);
  return all_.back();
}

bool SlicePool::map(std::uint64_t at, const std::byte* source, std::size_t bytes,
                    bool write) noexcept {
  // Of a shared mapping, a length of 0 asks for a second one (mremap(2)).
  void* from = const_cast<std::byte*>(source);
  if (mremap(from, 0, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, pointer(at)) == MAP_FAILED ||
      (!write && mprotect(pointer(at), bytes, PROT_READ) != 0)) {
    close_hole(at, bytes);
    return false;
  }
  // Every page of it is one that the guest uses; one call costs less than their faults. Should the
  // host not know it, they fault.
  static_cast<void>(madvise(pointer(at), bytes, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ));
  return true;
}

void SlicePool::unmap(std::uint64_t at, std::size_t bytes) noexcept { close_hole(at, bytes); }

}  // namespace strata::bt
