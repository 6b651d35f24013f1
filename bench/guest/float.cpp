// Floating point: what a translator that emulates it in software pays most for.
#include <array>
#include <cmath>
#include <complex>
#include <numbers>
#include <vector>

#include "suite.hpp"

namespace bench {
namespace {

std::uint64_t matmul(const Scale& scale) {
  constexpr std::size_t n = 128;
  static std::array<std::array<double, n>, n> a, b, c;
  Random random(10);
  for (std::size_t i = 0; i < n * n; ++i) {
    a[i / n][i % n] = random.unit();
    b[i / n][i % n] = random.unit();
  }
  std::uint64_t checksum = 0;
  for (std::size_t round = scale.rounds(60); round > 0; --round) {
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        double sum = 0;
        for (std::size_t k = 0; k < n; ++k) sum += a[i][k] * b[k][j];
        c[i][j] = sum;
      }
    }
    checksum = mix(checksum, c[round % n][(round * 7) % n]);
    a[round % n][round % n] += 0.5;
  }
  return checksum;
}

struct Body {
  double x[3], v[3], mass;
};

void attract(std::array<Body, 6>& bodies, double dt) {
  for (std::size_t i = 0; i < bodies.size(); ++i) {
    for (std::size_t j = i + 1; j < bodies.size(); ++j) {
      double d[3], square = 0.01;
      for (int k = 0; k < 3; ++k) {
        d[k] = bodies[i].x[k] - bodies[j].x[k];
        square += d[k] * d[k];
      }
      const double pull = dt / (square * std::sqrt(square));
      for (int k = 0; k < 3; ++k) {
        bodies[i].v[k] -= d[k] * bodies[j].mass * pull;
        bodies[j].v[k] += d[k] * bodies[i].mass * pull;
      }
    }
  }
  for (auto& body : bodies) {
    for (int k = 0; k < 3; ++k) body.x[k] += dt * body.v[k];
  }
}

std::uint64_t nbody(const Scale& scale) {
  std::array<Body, 6> bodies;
  Random random(11);
  for (auto& body : bodies) {
    for (int k = 0; k < 3; ++k) {
      body.x[k] = 4 * random.unit() - 2;
      body.v[k] = random.unit() - 0.5;
    }
    body.mass = 0.5 + random.unit();
  }
  for (std::size_t step = scale.rounds(500'000); step > 0; --step) attract(bodies, 0.0005);
  return mix(mix(0, bodies[0].x[0]), bodies[5].v[2]);
}

using Complex = std::complex<double>;

// Written out, for the library's operator * checks for NaN.
Complex times(Complex a, Complex b) {
  return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
}

void fft_in_place(std::vector<Complex>& data, const std::vector<Complex>& roots) {
  const std::size_t n = data.size();
  for (std::size_t i = 1, j = 0; i < n; ++i) {
    std::size_t bit = n / 2;
    for (; j & bit; bit /= 2) j ^= bit;
    j ^= bit;
    if (i < j) std::swap(data[i], data[j]);
  }
  for (std::size_t half = 1; half < n; half *= 2) {
    for (std::size_t start = 0; start < n; start += 2 * half) {
      for (std::size_t k = 0; k < half; ++k) {
        const Complex odd = times(data[start + k + half], roots[k * (n / 2 / half)]);
        const Complex even = data[start + k];
        data[start + k] = even + odd;
        data[start + k + half] = even - odd;
      }
    }
  }
}

std::uint64_t fft(const Scale& scale) {
  constexpr std::size_t n = 4096;
  std::vector<Complex> data(n), roots(n / 2);
  // Powers of one root by multiplication: sin and cos may differ in the last bit between the C
  // library's variants for different processors.
  const Complex step{0.99999882345170188, -0.0015339801862847655};
  roots[0] = 1;
  for (std::size_t k = 1; k < n / 2; ++k) roots[k] = times(roots[k - 1], step);
  Random random(12);
  for (auto& value : data) value = {random.unit() - 0.5, 0};
  std::uint64_t checksum = 0;
  for (std::size_t round = scale.rounds(250); round > 0; --round) {
    fft_in_place(data, roots);
    checksum = mix(checksum, data[round % n].real());
    for (auto& value : data) value *= 1.0 / 64;
  }
  return checksum;
}

std::uint64_t libm(const Scale& scale) {
  const std::size_t rounds = scale.rounds(1'300'000);
  double sum = 0;
  for (std::size_t i = 0; i < rounds; ++i) {
    const double x = 0.1 + static_cast<double>(i % 1000) / 125;
    sum += std::sin(x) + std::exp(-x) + std::log(x) + std::pow(x, 0.3) + std::atan(x);
    sum += std::floor(x * 3) * 0.125;
  }
  // The library's variants for different processors may differ in the last bit of a result.
  return static_cast<std::uint64_t>(std::llround(sum * 16));
}

std::uint64_t mandelbrot(const Scale& scale) {
  const std::size_t rows = scale.rounds(1440);
  std::uint64_t checksum = 0;
  for (std::size_t row = 0; row < rows; ++row) {
    for (int column = 0; column < 256; ++column) {
      const double cx = -2 + column * (3.0 / 256),
                   cy = -1.2 + static_cast<double>(row % 180) * (2.4 / 180);
      double x = 0, y = 0;
      unsigned steps = 0;
      for (; steps < 200 && x * x + y * y < 4; ++steps) {
        const double next = x * x - y * y + cx;
        y = 2 * x * y + cy;
        x = next;
      }
      checksum += steps * static_cast<unsigned>(column + 1);
    }
  }
  return checksum;
}

// Only operations that IEEE 754 defines to the last bit; the transcendental x87 instructions differ
// between processors.
std::uint64_t x87(const Scale& scale) {
  long double root = 2, product = 1, sum = 0;
  for (std::size_t i = scale.rounds(5'000'000); i > 0; --i) {
    const auto x = static_cast<long double>(i % 512 + 1);
    root = std::sqrt(root + x) * 1.25L;
    product = product * (x + root) / (x + 1.5L);
    if (product > 1e30L) product *= 1e-30L;
    sum += product * 1e-15L - root / x;
  }
  return mix(mix(0, static_cast<double>(sum)), static_cast<double>(product));
}

constexpr Test tests[] = {{"matmul", "floating point", matmul},
                          {"nbody", "floating point", nbody},
                          {"fft", "floating point", fft},
                          {"libm", "floating point", libm},
                          {"mandelbrot", "floating point", mandelbrot},
                          {"x87", "x87", x87}};

}  // namespace

std::span<const Test> float_tests() { return tests; }

}  // namespace bench
