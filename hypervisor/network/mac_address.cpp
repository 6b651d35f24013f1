#include "network/mac_address.hpp"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <system_error>

namespace strata::network {

namespace {

constexpr std::uint8_t kGroup = 1, kLocal = 2;
constexpr std::size_t kTextLength = 17;

}  // namespace

MacAddress MacAddress::random() {
  MacAddress mac;
  if (::getrandom(mac.bytes.data(), mac.bytes.size(), 0) !=
      static_cast<ssize_t>(mac.bytes.size())) {
    throw std::system_error{errno, std::generic_category(), "getrandom"};
  }
  mac.bytes[0] = static_cast<std::uint8_t>((mac.bytes[0] & ~kGroup) | kLocal);
  return mac;
}

std::optional<MacAddress> MacAddress::parse(std::string_view text) {
  if (text.size() != kTextLength) return std::nullopt;
  MacAddress mac;
  for (std::size_t i = 0; i < mac.bytes.size(); ++i) {
    const char* first = text.data() + 3 * i;
    const auto [end, error] = std::from_chars(first, first + 2, mac.bytes[i], 16);
    if (error != std::errc{} || end != first + 2) return std::nullopt;
    if (i + 1 < mac.bytes.size() && *end != ':') return std::nullopt;
  }
  const bool zero = std::ranges::all_of(mac.bytes, [](std::uint8_t byte) { return byte == 0; });
  if (zero || (mac.bytes[0] & kGroup) != 0) return std::nullopt;
  return mac;
}

std::string MacAddress::text() const {
  return fmt::format("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2],
                     bytes[3], bytes[4], bytes[5]);
}

}  // namespace strata::network
