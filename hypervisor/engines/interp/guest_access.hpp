// The interpreter's own loads and stores of guest memory. Guests may race with themselves, devices
// and walkers as they like: such a race is the guest's business and must be one access on the host,
// no more. ThreadSanitizer, which looks for races of ours, is not shown these accesses.
#pragma once

#include <cstddef>
#include <cstring>

#if defined(__SANITIZE_THREAD__)
// Out of line, for an attribute like this one does not survive inlining.
#define STRATA_GUEST_ACCESS [[gnu::noinline, gnu::no_sanitize("thread")]]
#else
#define STRATA_GUEST_ACCESS [[gnu::always_inline]]
#endif

namespace strata::interp::guest {

/// One host access for the sizes that the host's instructions have.
template <class T>
STRATA_GUEST_ACCESS inline T load(const void* from) noexcept {
  T v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class T>
STRATA_GUEST_ACCESS inline void store(void* to, T v) noexcept {
  std::memcpy(to, &v, sizeof v);
}
/// `to` may lie inside the source only below `from`.
STRATA_GUEST_ACCESS inline void copy(void* to, const void* from, std::size_t bytes) noexcept {
#if defined(__SANITIZE_THREAD__)
  auto* out = static_cast<volatile std::byte*>(to);  // a plain loop would become memcpy()
  const auto* in = static_cast<const std::byte*>(from);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = in[i];
#else
  std::memmove(to, from, bytes);
#endif
}

STRATA_GUEST_ACCESS inline void fill(void* to, unsigned char value, std::size_t bytes) noexcept {
#if defined(__SANITIZE_THREAD__)
  auto* out = static_cast<volatile unsigned char*>(to);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = value;
#else
  std::memset(to, value, bytes);
#endif
}

}  // namespace strata::interp::guest
