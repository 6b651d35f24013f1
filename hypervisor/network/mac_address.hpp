// Ethernet addresses (IEEE 802-2014, 8).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace strata::network {

struct MacAddress {
  std::array<std::uint8_t, 6> bytes{};

  /// Locally administered, of one card; from the host's random bytes. Throws std::system_error if
  /// the host has none.
  [[nodiscard]] static MacAddress random();
  /// "52:54:00:12:34:56". Nothing: it is not of that form, or no address of one card (all zero, or
  /// a group's).
  [[nodiscard]] static std::optional<MacAddress> parse(std::string_view text);
  [[nodiscard]] std::string text() const;
  bool operator==(const MacAddress&) const = default;
};

}  // namespace strata::network
