// Random numbers that are the same in every run.
#pragma once

#include <cstdint>
#include <optional>

#include "engines/engine.hpp"

namespace strata::replay {

/// RDRAND and RDSEED of a VM whose clock counts instructions: SplitMix64 (public domain, S. Vigna)
/// over the number of draws. No secret may depend on it. vCPU thread.
class SeededRandom final : public engine::RandomSource {
 public:
  std::optional<std::uint64_t> random(bool /*seed*/, unsigned /*bytes*/) noexcept override {
    std::uint64_t z = ++draws_ * 0x9E3779B97F4A7C15ULL;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ z >> 27) * 0x94D049BB133111EBULL;
    return z ^ z >> 31;
  }
  [[nodiscard]] std::uint64_t draws() const noexcept { return draws_; }
  void set_draws(std::uint64_t draws) noexcept { draws_ = draws; }

 private:
  std::uint64_t draws_ = 0;
};

}  // namespace strata::replay
