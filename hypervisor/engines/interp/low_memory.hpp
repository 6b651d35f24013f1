// Memory below 2 GiB, where translated code reaches it with a 32-bit displacement and no base
// register.
#pragma once

#include <cstddef>

namespace strata::interp {

/// Zeroed pages below 2 GiB. Falls back to memory anywhere if the host has none left there; who
/// needs the reach asks is_low(). Throws std::bad_alloc. Any thread.
[[nodiscard]] void* allocate_low(std::size_t bytes);
void free_low(void* memory, std::size_t bytes) noexcept;
[[nodiscard]] bool is_low(const void* memory, std::size_t bytes) noexcept;

/// For containers.
template <class T>
struct LowAllocator {
  using value_type = T;
  LowAllocator() = default;
  template <class U>
  explicit LowAllocator(const LowAllocator<U>& /*other*/) noexcept {}
  [[nodiscard]] T* allocate(std::size_t n) { return static_cast<T*>(allocate_low(n * sizeof(T))); }
  void deallocate(T* p, std::size_t n) noexcept { free_low(p, n * sizeof(T)); }
  template <class U>
  friend bool operator==(const LowAllocator& /*a*/, const LowAllocator<U>& /*b*/) noexcept {
    return true;
  }
};

}  // namespace strata::interp
