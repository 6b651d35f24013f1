// What the guest benchmark suite's tests share: how they are listed, how much they do, and the
// checksum that must come out the same wherever they run.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace bench {

// How much of its fixed work a test does. Below 1 for slow engines and smoke tests.
class Scale {
 public:
  explicit Scale(double factor) : factor_(factor) {}

  // `full` rounds at scale 1; never none, so that every checksum says something.
  std::size_t rounds(std::size_t full) const {
    const auto scaled = static_cast<std::size_t>(static_cast<double>(full) * factor_);
    return scaled == 0 ? 1 : scaled;
  }
  // A working set is what a memory test is about: it shrinks with the scale but never grows.
  std::size_t size(std::size_t full, std::size_t least) const {
    const std::size_t scaled = factor_ < 1 ? rounds(full) : full;
    return scaled < least ? least : scaled;
  }

 private:
  double factor_;
};

struct Test {
  const char* name;
  const char* group;
  std::uint64_t (*run)(const Scale&);
  // What must be there before the time starts; may be null.
  void (*prepare)(const Scale&) = nullptr;
};

std::span<const Test> integer_tests();
std::span<const Test> text_tests();
std::span<const Test> float_tests();
std::span<const Test> vector_tests();
std::span<const Test> memory_tests();
std::span<const Test> os_tests();

// "avx2" or "sse2": what the AVX2 tests use on this processor. The checksums are the same.
const char* vector_isa();

// Where the file test may write; a tmpfs.
void set_scratch_directory(const char* path);

inline std::uint64_t mix(std::uint64_t checksum, std::uint64_t value) {
  checksum ^= value + 0x9e3779b97f4a7c15U + (checksum << 6) + (checksum >> 2);
  return checksum * 0xff51afd7ed558ccdU;
}
inline std::uint64_t mix(std::uint64_t checksum, double value) {
  return mix(checksum, std::bit_cast<std::uint64_t>(value));
}

// xorshift64: cheap and the same everywhere.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  std::size_t below(std::size_t limit) { return next() % limit; }
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  std::uint64_t state_;
};

// Hides where a value came from, so that the compiler neither folds a loop away nor hoists it.
template <typename T>
void opaque(T& value) {
  asm volatile("" : "+r"(value) : : "memory");
}

}  // namespace bench
