// The name server of a user-mode network, which is in truth the host's.
#pragma once

#include <netinet/in.h>

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace strata::network {

/// Rewrites the addresses of queries and answers. libslirp would do that itself, and would read
/// /etc/resolv.conf each time it has changed, which the sandbox forbids. One thread.
class DnsRedirect {
 public:
  /// `service` is the address the guest knows, `server` where queries really go; nothing: nowhere.
  DnsRedirect(in_addr service, std::optional<in_addr> server) noexcept
      : service_{service.s_addr}, server_{server} {}

  /// A frame of the guest. False: it is to be dropped. Whatever it contains, what libslirp sees of
  /// it is no query to `service`.
  [[nodiscard]] bool outgoing(std::span<std::byte> frame) noexcept;
  /// A frame for the guest.
  void incoming(std::span<std::byte> frame) noexcept;

 private:
  static constexpr std::size_t kPorts = 65536;
  /// Ports of the guest whose last query went to `service`, not to `server` itself: of TCP, UDP.
  std::array<std::bitset<kPorts>, 2> ports_{};
  const std::uint32_t service_;  ///< network byte order
  const std::optional<in_addr> server_;
  /// Identification of the answer whose later fragments are still to come.
  std::optional<std::uint16_t> fragmented_;
};

}  // namespace strata::network
