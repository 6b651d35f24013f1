#include "devices/random_bytes.hpp"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "devices/device_state.hpp"

namespace strata::devices {

nlohmann::json RandomBytes::save() { return nullptr; }
StateResult RandomBytes::load(const nlohmann::json& /*state*/) { return {}; }

void HostRandomBytes::fill(std::span<std::byte> bytes) noexcept {
  while (!bytes.empty()) {
    const ssize_t n = ::getrandom(bytes.data(), bytes.size(), 0);
    // Only a signal can stop it (random(7)); a guest must never take zeroes for random.
    if (n < 0 && errno != EINTR) std::abort();
    if (n > 0) bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

void SeededRandomBytes::fill(std::span<std::byte> bytes) noexcept {
  // Another beginning than that of RDRAND's sequence, which would repeat it.
  constexpr std::uint64_t kStart = 0x243F'6A88'85A3'08D3;
  while (!bytes.empty()) {
    std::uint64_t z = kStart + ++draws_ * 0x9E37'79B9'7F4A'7C15ULL;
    z = (z ^ z >> 30) * 0xBF58'476D'1CE4'E5B9ULL;
    z = (z ^ z >> 27) * 0x94D0'49BB'1331'11EBULL;
    z ^= z >> 31;
    const std::size_t part = std::min(bytes.size(), sizeof z);
    std::memcpy(bytes.data(), &z, part);
    bytes = bytes.subspan(part);
  }
}

template <class Archive>
void SeededRandomBytes::fields(Archive& a) {
  a("draws", draws_);
}

nlohmann::json SeededRandomBytes::save() {
  StateWriter writer;
  fields(writer);
  return std::move(writer).take();
}

StateResult SeededRandomBytes::load(const nlohmann::json& state) {
  StateReader reader{state, "random"};
  fields(reader);
  return reader.result();
}

}  // namespace strata::devices
