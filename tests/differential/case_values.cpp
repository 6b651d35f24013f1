#include "case_values.hpp"

#include <bit>
#include <cstring>

namespace strata::differential {

using fuzz::Random;

namespace {

std::uint32_t float32(Random& rng) {
  const std::uint64_t r = rng();
  switch (rng.below(8)) {
    case 0:
      return static_cast<std::uint32_t>(r & 0x807FFFFF);  // denormal
    case 1:
      return static_cast<std::uint32_t>((r & 0x80000000) | 0x7F800000);  // infinity
    case 2:
      return static_cast<std::uint32_t>(r | 0x7F800000);  // NaN
    case 3:
      return static_cast<std::uint32_t>(r & 0x80000000);  // zero
    case 4:
      return static_cast<std::uint32_t>((r & 0x80FFFFFF) | 0x7F000000);  // huge
    case 5:
      return std::bit_cast<std::uint32_t>(static_cast<float>(rng.below(2000)) - 1000.0F);
    case 6:
      return static_cast<std::uint32_t>(r & 0x81FFFFFF);  // tiny
    default:
      return static_cast<std::uint32_t>(r);
  }
}

std::uint64_t float64(Random& rng) {
  constexpr std::uint64_t kSign = 1ULL << 63;
  const std::uint64_t r = rng();
  switch (rng.below(8)) {
    case 0:
      return r & (kSign | 0xF'FFFF'FFFF'FFFF);
    case 1:
      return (r & kSign) | 0x7FF0'0000'0000'0000;
    case 2:
      return r | 0x7FF0'0000'0000'0000;
    case 3:
      return r & kSign;
    case 4:
      return (r & 0x801F'FFFF'FFFF'FFFF) | 0x7FE0'0000'0000'0000;
    case 5:
      return std::bit_cast<std::uint64_t>(static_cast<double>(rng.below(2000)) - 1000.0);
    case 6:
      return r & 0x803F'FFFF'FFFF'FFFF;
    default:
      return r;
  }
}

}  // namespace

void put_float80(Random& rng, std::uint8_t* at) {
  std::uint64_t significand = rng();
  auto exponent = static_cast<std::uint16_t>(rng());
  switch (rng.below(6)) {
    case 0:
      exponent = static_cast<std::uint16_t>((exponent & 0x8000) | (0x3FF0 + rng.below(80)));
      significand |= 1ULL << 63;
      break;
    case 1:
      exponent |= 0x7FFF;
      if (rng.chance(40)) significand = 1ULL << 63;
      break;
    case 2:
      exponent &= 0x8000;
      if (rng.chance(60)) significand = rng.chance(50) ? 0 : significand >> 1;
      break;
    case 3:
      exponent = 0x3FFF;
      significand = 1ULL << 63 | rng.below(4) << 62;
      break;
    default:
      if (rng.chance(90)) significand |= 1ULL << 63;
  }
  std::memcpy(at, &significand, 8);
  std::memcpy(at + 8, &exponent, 2);
}

std::uint64_t random_lane(Random& rng, std::uint64_t kind) {
  switch (kind) {
    case 0:
      return rng.edge();
    case 1:
      return float32(rng) | std::uint64_t{float32(rng)} << 32;
    case 2:
      return float64(rng);
    default:
      return rng.chance(50) ? 0 : rng() & rng();
  }
}

void set_units(Random& rng, Registers& r) {
  for (auto& y : r.ymm) {
    const std::uint64_t kind = rng.below(4);
    for (auto& w : y) w = random_lane(rng, kind);
  }
  const bool masked = rng.chance(75);
  std::uint16_t control = static_cast<std::uint16_t>(0x40 | (rng() & 0xF00) | 0x3F);
  if (rng.chance(40)) control = 0x37F;
  if (!masked) control &= static_cast<std::uint16_t>(~rng.below(64));
  // Exception flags only where masked: else the very next x87 instruction would fault.
  const auto status =
      static_cast<std::uint16_t>((rng() & 0x7F40 & 0x7F00) | (rng() & 0x3F & control));
  const std::uint8_t tags = rng.chance(50) ? 0xFF : rng.byte();
  std::uint32_t mxcsr = static_cast<std::uint32_t>(rng() & 0xE07F) | 0x1F80;
  if (rng.chance(40)) mxcsr = 0x1F80;
  if (!masked) mxcsr &= ~static_cast<std::uint32_t>(rng() & 0x1F80);
  std::memcpy(r.fx.data(), &control, 2);
  std::memcpy(r.fx.data() + 2, &status, 2);
  r.fx[4] = tags;
  std::memcpy(r.fx.data() + 24, &mxcsr, 4);
  for (std::size_t i = 0; i < 8; ++i) put_float80(rng, r.fx.data() + 32 + 16 * i);
}

}  // namespace strata::differential
