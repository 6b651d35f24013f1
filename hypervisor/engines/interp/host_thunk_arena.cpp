#include "engines/interp/host_thunk_arena.hpp"

#include <cpuid.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

namespace strata::interp {
namespace {

/// Code written through one linear address and run through another needs a serialising instruction
/// in between (SDM 3A 8.1.3).
void serialise() noexcept {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  __cpuid(0, a, b, c, d);
  // The results only keep the instruction from being dropped.
  asm volatile("" : : "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

std::byte* map(int fd, std::size_t bytes, int protection, int flags) noexcept {
  void* p = mmap(nullptr, bytes, protection, MAP_SHARED | flags, fd, 0);
  return p == MAP_FAILED ? nullptr : static_cast<std::byte*>(p);
}

}  // namespace

ThunkArena::ThunkArena(std::size_t bytes) noexcept {
  const int fd = memfd_create("strata-thunks", MFD_CLOEXEC);
  if (fd < 0) return;
  if (ftruncate(fd, static_cast<off_t>(bytes)) == 0) {
    writable_ = map(fd, bytes, PROT_READ | PROT_WRITE, 0);
    // Below 2 GiB, near other generated code, if the host has room there.
    executable_ = map(fd, bytes, PROT_READ | PROT_EXEC, MAP_32BIT);
    if (executable_ == nullptr) executable_ = map(fd, bytes, PROT_READ | PROT_EXEC, 0);
  }
  close(fd);
  if (writable_ != nullptr && executable_ != nullptr) {
    size_ = bytes;
    used_ = kScratchBytes;
    return;
  }
  if (writable_ != nullptr) munmap(writable_, bytes);
  if (executable_ != nullptr) munmap(executable_, bytes);
  writable_ = executable_ = nullptr;
}

ThunkArena::~ThunkArena() {
  if (size_ == 0) return;
  munmap(writable_, size_);
  munmap(executable_, size_);
}

const std::byte* ThunkArena::append(std::span<const std::byte> code) noexcept {
  if (size_ - used_ < code.size()) return nullptr;
  std::memcpy(writable_ + used_, code.data(), code.size());
  serialise();
  const std::byte* entry = executable_ + used_;
  // 16-byte starts keep a thunk within as few fetch blocks as its length allows.
  used_ += (code.size() + 15) & ~std::size_t{15};
  if (used_ > size_) used_ = size_;
  return entry;
}

const std::byte* ThunkArena::scratch(std::span<const std::byte> code) noexcept {
  if (size_ == 0 || code.size() > kScratchBytes) return nullptr;
  std::memcpy(writable_, code.data(), code.size());
  serialise();
  return executable_;
}

}  // namespace strata::interp
