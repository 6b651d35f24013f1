// Memory as guests have it: one shared mapping of a memfd.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "mmu/address.hpp"

namespace strata::bt::test {

class SharedMemory {
 public:
  explicit SharedMemory(std::size_t pages) : bytes_{pages * kPageSize} {
    const int fd = memfd_create("guest", MFD_CLOEXEC);
    void* p = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, static_cast<off_t>(bytes_)) == 0) {
      p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    if (fd >= 0) close(fd);
    if (p == MAP_FAILED) throw std::runtime_error{"no shared memory"};
    base_ = static_cast<std::byte*>(p);
    // Each page is known by its number.
    for (std::size_t n = 0; n < pages; ++n) std::memcpy(page(n), &n, sizeof n);
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() { munmap(base_, bytes_); }

  [[nodiscard]] std::byte* page(std::size_t n) const { return base_ + n * kPageSize; }

 private:
  std::size_t bytes_;
  std::byte* base_ = nullptr;
};

/// The number of the page that is at a host address.
inline std::size_t page_number_at(std::uint64_t address) {
  std::size_t n = 0;
  std::memcpy(&n, reinterpret_cast<const void*>(address), sizeof n);
  return n;
}

}  // namespace strata::bt::test
