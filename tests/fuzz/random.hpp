// Random numbers that are the same everywhere for the same seed: the standard's distributions are
// not, its engines are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>

namespace strata::fuzz {

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_{mix(seed)} {}

  std::uint64_t operator()() { return engine_(); }
  /// A uniform number below `n`, which is not 0.
  std::uint64_t below(std::uint64_t n) { return engine_() % n; }
  bool chance(unsigned percent) { return below(100) < percent; }
  std::uint8_t byte() { return static_cast<std::uint8_t>(engine_()); }
  /// One of a container's elements.
  template <class Container>
  const auto& pick(const Container& from) {
    return from[static_cast<std::size_t>(below(from.size()))];
  }
  /// A value of the kinds that find bugs: small, at the edges of a width, a power of two, or any.
  std::uint64_t edge() {
    const auto bits = static_cast<unsigned>(below(64));
    switch (below(8)) {
      case 0:
        return below(3) - 1;
      case 1:
        return 1ULL << bits;
      case 2:
        return (1ULL << bits) - 1;
      case 3:
        return ~(1ULL << bits);
      case 4:
        return below(256);
      case 5:
        return engine_() >> bits;
      default:
        return engine_();
    }
  }

 private:
  /// Neighbouring seeds start far apart (the finaliser of MurmurHash3).
  static std::uint64_t mix(std::uint64_t x) {
    x = (x ^ x >> 33) * 0xFF51AFD7ED558CCDULL;
    x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53ULL;
    return x ^ x >> 33;
  }
  std::mt19937_64 engine_;
};

}  // namespace strata::fuzz
