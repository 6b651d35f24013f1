// Memory: how far away it is, and how fast it streams. Working sets are prepared, and so touched,
// before the time starts; page faults have a test of their own.
#include <cstring>
#include <numeric>
#include <vector>

#include "suite.hpp"

namespace bench {
namespace {

struct Node {
  Node* next;
  std::uint64_t number;
  char rest[48];
};
static_assert(sizeof(Node) == 64, "one cache line");

std::vector<Node> nodes;

// One cycle through all lines of 128 MiB in random order (Sattolo): every step misses caches and
// nearly every one the TLB.
void prepare_chase(const Scale& scale) {
  nodes = std::vector<Node>(scale.size((128 << 20) / sizeof(Node), 1024));
  std::vector<std::uint32_t> order(nodes.size());
  std::iota(order.begin(), order.end(), 0U);
  Random random(20);
  for (std::size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[random.below(i)]);
  for (std::size_t i = 0; i < order.size(); ++i) nodes[i] = {&nodes[order[i]], i, {}};
}

std::uint64_t chase(const Scale& scale) {
  const Node* at = nodes.data();
  std::uint64_t checksum = 0;
  for (std::size_t step = scale.rounds(1'200'000); step > 0; --step) {
    checksum += at->number;
    at = at->next;
  }
  const std::uint64_t result = mix(checksum, at->number);
  nodes = {};
  return result;
}

// Three arrays of 16 MiB: more than what caches hold for one guest.
std::vector<double> a, b, c;
std::size_t stream_size;

void prepare_stream(const Scale& scale) {
  stream_size = scale.size(2 << 20, 4096);
  a.assign(stream_size, 1.5);
  b.assign(stream_size, 2.25);
  c.assign(stream_size, 0.5);
}

template <typename Kernel>
std::uint64_t stream(const Scale& scale, std::size_t rounds, Kernel kernel) {
  for (std::size_t round = scale.rounds(rounds); round > 0; --round) {
    double *x = a.data(), *y = b.data(), *z = c.data();
    opaque(x);
    for (std::size_t i = 0; i < stream_size; ++i) kernel(x[i], y[i], z[i]);
  }
  std::uint64_t checksum = 0;
  for (std::size_t i = 0; i < stream_size; i += 1021) {
    checksum = mix(mix(mix(checksum, a[i]), b[i]), c[i]);
  }
  a = b = c = {};
  return checksum;
}

std::uint64_t stream_copy(const Scale& scale) {
  return stream(scale, 80, [](double& x, double&, double& z) { z = x; });
}
std::uint64_t stream_scale(const Scale& scale) {
  return stream(scale, 80, [](double&, double& y, double& z) { y = 0.5 * z; });
}
std::uint64_t stream_add(const Scale& scale) {
  return stream(scale, 60, [](double& x, double& y, double& z) { z = x + y; });
}
std::uint64_t stream_triad(const Scale& scale) {
  return stream(scale, 60, [](double& x, double& y, double& z) { x = y + 3.0 * z; });
}

constexpr std::size_t buffer_size = 8 << 20;
std::vector<unsigned char> from, to;

void prepare_buffers(const Scale&) {
  from.resize(buffer_size);
  to.assign(buffer_size, 0);
  Random random(21);
  for (std::size_t i = 0; i < buffer_size; i += 8) {
    const std::uint64_t value = random.next();
    std::memcpy(&from[i], &value, 8);
  }
}

std::uint64_t checksum_of_buffers() {
  std::uint64_t checksum = 0;
  for (std::size_t i = 0; i < buffer_size; i += 4093)
    checksum = mix(checksum, std::uint64_t{to[i]});
  from = to = {};
  return checksum;
}

// Of lengths 1 to 256, at any alignment: what string-heavy programs do.
std::uint64_t memcpy_small(const Scale& scale) {
  Random random(22);
  for (std::size_t round = scale.rounds(8'000'000); round > 0; --round) {
    const std::uint64_t bits = random.next();
    std::size_t size = 1 + (bits & 255);
    opaque(size);
    std::memcpy(&to[(bits >> 8) & 0x3fff], &from[(bits >> 24) & 0x3fff], size);
  }
  return checksum_of_buffers();
}

std::uint64_t memcpy_page(const Scale& scale) {
  constexpr std::size_t page = 4096, pages = 64;
  for (std::size_t round = scale.rounds(1'200'000); round > 0; --round) {
    std::size_t size = page;
    opaque(size);
    std::memcpy(&to[round % pages * page], &from[round * 7 % pages * page], size);
  }
  return checksum_of_buffers();
}

std::uint64_t memcpy_large(const Scale& scale) {
  for (std::size_t round = scale.rounds(320); round > 0; --round) {
    std::size_t size = buffer_size - 64;
    opaque(size);
    std::memcpy(&to[round % 64], &from[round * 5 % 64], size);
  }
  return checksum_of_buffers();
}

std::uint64_t memset_mix(const Scale& scale) {
  for (std::size_t round = scale.rounds(200'000); round > 0; --round) {
    std::size_t size = (round & 63) == 0 ? buffer_size / 4 : 4096;
    opaque(size);
    std::memset(&to[round % 512 * 4096], static_cast<int>(round), size);
  }
  return checksum_of_buffers();
}

constexpr Test tests[] = {{"chase", "memory", chase, prepare_chase},
                          {"stream_copy", "memory", stream_copy, prepare_stream},
                          {"stream_scale", "memory", stream_scale, prepare_stream},
                          {"stream_add", "memory", stream_add, prepare_stream},
                          {"stream_triad", "memory", stream_triad, prepare_stream},
                          {"memcpy_small", "memory", memcpy_small, prepare_buffers},
                          {"memcpy_page", "memory", memcpy_page, prepare_buffers},
                          {"memcpy_large", "memory", memcpy_large, prepare_buffers},
                          {"memset", "memory", memset_mix, prepare_buffers}};

}  // namespace

std::span<const Test> memory_tests() { return tests; }

}  // namespace bench
