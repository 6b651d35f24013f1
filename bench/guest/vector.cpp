// Vector instructions. One source for both widths: the compiler splits a 32-byte vector in two
// where it may use SSE2 only, so every lane's result, and with it the checksum, is the same.
#include <cstring>
#include <vector>

#include "suite.hpp"

namespace bench {
namespace {

using Words = std::uint32_t __attribute__((vector_size(32)));
using Floats = float __attribute__((vector_size(32)));

constexpr std::size_t lanes = 8, vectors = 512;

// Shifts, products, comparisons and masks over 16 KiB, which stays in the first-level cache.
[[gnu::always_inline]] inline std::uint64_t words_kernel(std::size_t rounds) {
  alignas(32) static Words data[vectors];
  for (std::size_t i = 0; i < vectors * lanes; ++i) {
    data[i / lanes][i % lanes] = static_cast<std::uint32_t>(i * 2654435761U);
  }
  Words sum{};
  for (; rounds > 0; --rounds) {
    for (auto& value : data) {
      Words next = value + (sum >> 3);
      next ^= next << 7;
      const Words large = reinterpret_cast<Words>(next > (sum | 0x10000U));
      sum += (next & large) * 5U + (value & ~large);
      value = next;
    }
  }
  std::uint64_t checksum = 0;
  for (std::size_t i = 0; i < lanes; ++i) checksum = mix(checksum, std::uint64_t{sum[i]});
  return checksum;
}

[[gnu::always_inline]] inline std::uint64_t floats_kernel(std::size_t rounds) {
  alignas(32) static Floats data[vectors];
  for (std::size_t i = 0; i < vectors * lanes; ++i) {
    data[i / lanes][i % lanes] = static_cast<float>(i % 251) * 0.01F;
  }
  Floats sum{};
  for (; rounds > 0; --rounds) {
    // Not the same every round, or all would settle at a fixed point that hides errors.
    const Floats slope = Floats{} + (0.75F + static_cast<float>(rounds & 15) * 0.01F);
    for (auto& value : data) {
      const Floats next = value * slope + 0.5F;
      sum = sum * 0.5F + next / (value + 1.25F);
      value = next - sum * 0.125F;
    }
  }
  std::uint64_t checksum = 0;
  for (std::size_t i = 0; i < lanes; ++i) checksum = mix(checksum, double{sum[i]});
  return checksum;
}

constexpr std::size_t words_rounds = 30'000, floats_rounds = 50'000;

std::uint64_t words_sse2(const Scale& scale) { return words_kernel(scale.rounds(words_rounds)); }
std::uint64_t floats_sse2(const Scale& scale) { return floats_kernel(scale.rounds(floats_rounds)); }

[[gnu::target("avx2")]] std::uint64_t words_with_avx2(std::size_t rounds) {
  return words_kernel(rounds);
}
[[gnu::target("avx2")]] std::uint64_t floats_with_avx2(std::size_t rounds) {
  return floats_kernel(rounds);
}

bool has_avx2() { return __builtin_cpu_supports("avx2"); }

std::uint64_t words_avx2(const Scale& scale) {
  return has_avx2() ? words_with_avx2(scale.rounds(words_rounds)) : words_sse2(scale);
}
std::uint64_t floats_avx2(const Scale& scale) {
  return has_avx2() ? floats_with_avx2(scale.rounds(floats_rounds)) : floats_sse2(scale);
}

constexpr Test tests[] = {{"int_sse2", "vector", words_sse2},
                          {"float_sse2", "vector", floats_sse2},
                          {"int_avx2", "vector", words_avx2},
                          {"float_avx2", "vector", floats_avx2}};

}  // namespace

const char* vector_isa() { return has_avx2() ? "avx2" : "sse2"; }

std::span<const Test> vector_tests() { return tests; }

}  // namespace bench
