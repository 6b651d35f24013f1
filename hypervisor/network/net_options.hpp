// What --net and the key "net" of a config file say.
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mmu/expected.hpp"
#include "network/link_error.hpp"
#include "network/mac_address.hpp"

namespace strata::network {

/// Connections to a port of the host go to one of the guest.
struct Forward {
  bool udp = false;
  in_addr host{};  ///< network byte order
  std::uint16_t host_port = 0;
  in_addr guest{};  ///< 0: the first address that DHCP gives away
  std::uint16_t guest_port = 0;
};

struct NetOptions {
  std::string tap;                ///< an interface of the host; empty: a user-mode network
  std::vector<Forward> forwards;  ///< of a user-mode network
  bool restricted = false;        ///< ... from which the guest reaches nothing but itself
  std::optional<MacAddress> mac;  ///< nothing: a random one
};

/// "user[,hostfwd=tcp:[ADDRESS]:PORT-[GUEST]:PORT]...[,restrict][,mac=MAC]" or
/// "tap=INTERFACE[,mac=MAC]". Errors say what would be right, without naming the option.
[[nodiscard]] Expected<NetOptions, LinkError> parse_net(std::string_view text);

}  // namespace strata::network
