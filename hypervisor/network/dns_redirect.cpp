#include "network/dns_redirect.hpp"

#include <cstring>

namespace strata::network {

namespace {

constexpr std::size_t kEthernet = 14, kLeastIp = 20, kPortBytes = 4;
constexpr std::uint16_t kIpType = 0x0800, kDnsPort = 53;
constexpr std::uint16_t kMoreFragments = 0x2000, kFragmentOffset = 0x1FFF;

/// An IPv4 packet (RFC 791, 3.1) in a frame.
class Packet {
 public:
  explicit Packet(std::span<std::byte> frame) noexcept : frame_{frame} {}

  [[nodiscard]] bool is_ip() const noexcept {
    return frame_.size() >= kEthernet + kLeastIp && load16(12) == kIpType &&
           std::to_integer<unsigned>(frame_[kEthernet]) >> 4 == 4;
  }
  [[nodiscard]] std::uint32_t source() const noexcept { return load32(kEthernet + 12); }
  [[nodiscard]] std::uint32_t destination() const noexcept { return load32(kEthernet + 16); }
  [[nodiscard]] std::uint16_t identification() const noexcept { return load16(kEthernet + 4); }
  [[nodiscard]] bool more_fragments() const noexcept {
    return (load16(kEthernet + 6) & kMoreFragments) != 0;
  }
  [[nodiscard]] bool later_fragment() const noexcept {
    return (load16(kEthernet + 6) & kFragmentOffset) != 0;
  }
  [[nodiscard]] unsigned protocol() const noexcept {
    return std::to_integer<unsigned>(frame_[kEthernet + 9]);
  }
  /// TCP or UDP, and its ports are there.
  [[nodiscard]] bool has_ports() const noexcept {
    return (protocol() == IPPROTO_TCP || protocol() == IPPROTO_UDP) &&
           frame_.size() >= payload() + kPortBytes;
  }
  [[nodiscard]] std::uint16_t source_port() const noexcept { return load16(payload()); }
  [[nodiscard]] std::uint16_t destination_port() const noexcept { return load16(payload() + 2); }

  void set_source(std::uint32_t address) noexcept { replace(kEthernet + 12, address); }
  void set_destination(std::uint32_t address) noexcept { replace(kEthernet + 16, address); }

 private:
  [[nodiscard]] std::size_t payload() const noexcept {
    return kEthernet + 4 * (std::to_integer<std::size_t>(frame_[kEthernet]) & 0xF);
  }
  [[nodiscard]] std::uint16_t load16(std::size_t at) const noexcept {
    return static_cast<std::uint16_t>(std::to_integer<unsigned>(frame_[at]) << 8 |
                                      std::to_integer<unsigned>(frame_[at + 1]));
  }
  void store16(std::size_t at, std::uint32_t value) noexcept {
    frame_[at] = static_cast<std::byte>(value >> 8);
    frame_[at + 1] = static_cast<std::byte>(value);
  }
  /// As in memory: network byte order.
  [[nodiscard]] std::uint32_t load32(std::size_t at) const noexcept {
    std::uint32_t value = 0;
    std::memcpy(&value, frame_.data() + at, sizeof value);
    return value;
  }

  void replace(std::size_t at, std::uint32_t address) noexcept {
    const std::uint32_t before = load16(at) + static_cast<std::uint32_t>(load16(at + 2));
    std::memcpy(frame_.data() + at, &address, sizeof address);
    const std::uint32_t after = load16(at) + static_cast<std::uint32_t>(load16(at + 2));
    adjust(kEthernet + 10, before, after);
    // Of the pseudo header; only the first fragment has one.
    if (later_fragment()) return;
    if (protocol() == IPPROTO_TCP) adjust(payload() + 16, before, after);
    if (protocol() == IPPROTO_UDP && frame_.size() >= payload() + 8 && load16(payload() + 6) != 0) {
      adjust(payload() + 6, before, after);
      if (load16(payload() + 6) == 0) store16(payload() + 6, 0xFFFF);
    }
  }
  /// The checksum at `at` after 16-bit words changed whose sums are given (RFC 1624, 3).
  void adjust(std::size_t at, std::uint32_t before, std::uint32_t after) noexcept {
    if (frame_.size() < at + 2) return;
    std::uint32_t sum = (~load16(at) & 0xFFFFU) + fold(~fold(before) & 0xFFFFU) + fold(after);
    sum = fold(sum);
    store16(at, ~sum & 0xFFFFU);
  }
  static std::uint32_t fold(std::uint32_t sum) noexcept {
    while (sum > 0xFFFF) sum = (sum & 0xFFFF) + (sum >> 16);
    return sum;
  }

  std::span<std::byte> frame_;
};

}  // namespace

bool DnsRedirect::outgoing(std::span<std::byte> frame) noexcept {
  Packet packet{frame};
  if (!packet.is_ip()) return true;
  const bool to_service = packet.destination() == service_;
  // A query in fragments would have to be put together to be known; none is that long.
  if (to_service && (packet.more_fragments() || packet.later_fragment())) return false;
  if (!packet.has_ports() || packet.destination_port() != kDnsPort) return true;
  const bool to_server = server_ && packet.destination() == server_->s_addr;
  if (!to_service && !to_server) return true;
  if (!server_) return false;
  ports_[packet.protocol() == IPPROTO_UDP].set(packet.source_port(), to_service);
  if (to_service) packet.set_destination(server_->s_addr);
  return true;
}

void DnsRedirect::incoming(std::span<std::byte> frame) noexcept {
  Packet packet{frame};
  if (!server_ || !packet.is_ip() || packet.source() != server_->s_addr) return;
  if (packet.later_fragment()) {
    if (fragmented_ == packet.identification()) packet.set_source(service_);
    return;
  }
  if (!packet.has_ports() || packet.source_port() != kDnsPort ||
      !ports_[packet.protocol() == IPPROTO_UDP].test(packet.destination_port())) {
    return;
  }
  if (packet.more_fragments()) fragmented_ = packet.identification();
  packet.set_source(service_);
}

}  // namespace strata::network
