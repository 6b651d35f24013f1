#include "network/user_link.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <random>
#include <string>
#include <thread>

#include "machine/machine_memory.hpp"
#include "support.hpp"

namespace strata::network {
namespace {

using namespace testing;

/// A socket on 127.0.0.1 and a port of its own.
class Socket {
 public:
  explicit Socket(int type) : fd_{::socket(AF_INET, type, 0)} {
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof name;
    EXPECT_EQ(::bind(fd_.get(), reinterpret_cast<sockaddr*>(&name), length), 0);
    EXPECT_EQ(::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&name), &length), 0);
    port_ = ntohs(name.sin_port);
    if (type == SOCK_STREAM) {
      EXPECT_EQ(::listen(fd_.get(), 1), 0);
    }
  }
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] std::uint16_t port() const { return port_; }
  /// Gives the port up.
  std::uint16_t close() {
    fd_ = {};
    return port_;
  }

 private:
  machine::FileDescriptor fd_;
  std::uint16_t port_ = 0;
};

bool readable(int fd) {
  pollfd one{fd, POLLIN, 0};
  return ::poll(&one, 1, 60'000) == 1;
}

bool is_ip(const Bytes& frame, unsigned protocol) {
  return frame.size() >= 34 && get16(frame, 12) == 0x0800 && get8(frame, 23) == protocol;
}

bool is_arp(const Bytes& frame, unsigned operation) {
  return frame.size() >= 42 && get16(frame, 12) == 0x0806 && get16(frame, 20) == operation;
}

Bytes arp_reply() {
  Bytes out = ethernet(0x0806);
  for (const unsigned value : {1U, 0x0800U, 0x0604U, 2U}) put16(out, value);
  put(out, kMac);
  put32(out, kGuest);
  put(out, std::string_view{"\x52\x55\x0a\0\x02\x02", 6});
  put32(out, kHost);
  return out;
}

class UserLinkTest : public ::testing::Test {
 protected:
  void start(const UserOptions& options = {}) {
    auto link = UserLink::open(options);
    ASSERT_TRUE(link) << link.error().message;
    link_ = std::move(*link);
    link_->start(inbox_);
  }
  void say(const Bytes& frame) { send(*link_, frame); }
  std::optional<Bytes> hear(unsigned protocol) {
    return inbox_.wait_for([protocol](const Bytes& frame) { return is_ip(frame, protocol); });
  }
  /// The network learns where the guest is.
  void introduce() {
    say(arp_request(kHost));
    ASSERT_TRUE(inbox_.wait_for([](const Bytes& frame) { return is_arp(frame, 2); }));
  }
  /// Whether the network still answers.
  void expect_alive() { introduce(); }

  Inbox inbox_;
  std::unique_ptr<UserLink> link_;
};

TEST_F(UserLinkTest, HostAndNameServerHaveAddresses) {
  start();
  for (const std::uint32_t who : {kHost, kDns}) {
    say(arp_request(who));
    const auto reply = inbox_.wait_for([](const Bytes& frame) { return is_arp(frame, 2); });
    ASSERT_TRUE(reply);
    EXPECT_EQ(get32(*reply, 28), who);
  }
}

TEST_F(UserLinkTest, LeasesAnAddress) {
  start();
  Bytes message;
  put32(message, 0x0101'0600);
  put32(message, 0xCAFE'F00D);
  message.resize(28);
  put(message, kMac);
  message.resize(236);
  put32(message, 0x6382'5363);
  put(message, std::string_view{"\x35\x01\x01\xff", 4});  // DISCOVER
  Bytes frame = ip(IPPROTO_UDP, 0, 0xFFFF'FFFF, udp(68, 67, message));
  std::fill(frame.begin(), frame.begin() + 6, std::byte{0xFF});
  say(frame);
  const auto offer = hear(IPPROTO_UDP);
  ASSERT_TRUE(offer);
  EXPECT_TRUE(checksums_hold(*offer));
  EXPECT_EQ(get32(*offer, 42 + 4), 0xCAFE'F00D);
  EXPECT_EQ(get32(*offer, 42 + 16), kGuest);
  EXPECT_LE(offer->size(), kMaxFrameBytes);
}

TEST_F(UserLinkTest, TheHostAnswersPings) {
  start();
  introduce();
  Bytes echo;
  put32(echo, 0x0800'0000);
  put32(echo, 0x1234'0001);
  put(echo, "payload");
  set16(echo, 2, checksum(echo, 0, echo.size()));
  say(ip(IPPROTO_ICMP, kGuest, kHost, echo));
  const auto reply = hear(IPPROTO_ICMP);
  ASSERT_TRUE(reply);
  EXPECT_EQ(get8(*reply, 34), 0U);
  EXPECT_EQ(get32(*reply, 38), 0x1234'0001U);
}

TEST_F(UserLinkTest, DatagramsReachTheHostsLoopback) {
  const Socket server{SOCK_DGRAM};
  start();
  introduce();
  say(ip(IPPROTO_UDP, kGuest, kHost, udp(5000, server.port(), Bytes(1400, std::byte{'q'}))));
  std::array<char, 2000> data{};
  sockaddr_in from{};
  socklen_t length = sizeof from;
  ASSERT_TRUE(readable(server.fd()));
  ASSERT_EQ(::recvfrom(server.fd(), data.data(), data.size(), 0, reinterpret_cast<sockaddr*>(&from),
                       &length),
            1400);
  ASSERT_EQ(::sendto(server.fd(), "answer", 6, 0, reinterpret_cast<sockaddr*>(&from), length), 6);
  const auto reply = hear(IPPROTO_UDP);
  ASSERT_TRUE(reply);
  EXPECT_TRUE(checksums_hold(*reply));
  EXPECT_EQ(get32(*reply, 26), kHost);
  EXPECT_EQ(get16(*reply, 36), 5000U);
  EXPECT_EQ(get8(*reply, 42), unsigned{'a'});
}

/// The guest's side of a connection, which loses nothing.
class Peer {
 public:
  Peer(Link& link, unsigned local, unsigned remote) : link_{link}, local_{local}, remote_{remote} {}
  void say(unsigned flags, std::string_view data = {}) {
    send(link_,
         ip(IPPROTO_TCP, kGuest, kHost, tcp(local_, remote_, sent_, received_, flags, data)));
    sent_ += static_cast<std::uint32_t>(data.size()) + ((flags & (kSyn | kFin)) != 0 ? 1 : 0);
  }
  /// Takes what is new in a segment: its bytes.
  std::string take(const Bytes& frame) {
    const unsigned flags = get8(frame, 47);
    const std::size_t header = 34 + 4 * (get8(frame, 46) >> 4), end = 14 + get16(frame, 16);
    if ((flags & kSyn) != 0) received_ = get32(frame, 38);
    if (get32(frame, 38) != received_) return {};
    std::string data;
    for (std::size_t i = header; i < end; ++i) data.push_back(static_cast<char>(frame[i]));
    received_ += static_cast<std::uint32_t>(data.size()) + ((flags & (kSyn | kFin)) != 0 ? 1 : 0);
    return data;
  }

 private:
  Link& link_;
  unsigned local_, remote_;
  std::uint32_t sent_ = 1000, received_ = 0;
};

TEST_F(UserLinkTest, ConnectionsCarryBytesBothWays) {
  const Socket server{SOCK_STREAM};
  start();
  introduce();
  Peer peer{*link_, 6000, server.port()};
  peer.say(kSyn);
  auto frame = hear(IPPROTO_TCP);
  ASSERT_TRUE(frame);
  ASSERT_EQ(get8(*frame, 47) & (kSyn | kAck | kRst), unsigned{kSyn | kAck});
  (void)peer.take(*frame);
  peer.say(kAck, "hello");
  const machine::FileDescriptor end{::accept(server.fd(), nullptr, nullptr)};
  ASSERT_TRUE(readable(end.get()));
  std::array<char, 16> data{};
  ASSERT_EQ(::read(end.get(), data.data(), data.size()), 5);
  std::string text(300'000, 'x');
  std::thread writer{[&] {
    for (std::size_t at = 0; at < text.size();) {
      const ssize_t wrote = ::write(end.get(), text.data() + at, text.size() - at);
      if (wrote <= 0) return;
      at += static_cast<std::size_t>(wrote);
    }
  }};
  std::string got;
  while (got.size() < text.size()) {
    frame = hear(IPPROTO_TCP);
    if (!frame) break;
    EXPECT_TRUE(checksums_hold(*frame));
    got += peer.take(*frame);
    peer.say(kAck);
  }
  EXPECT_EQ(got, text);
  writer.join();
}

TEST_F(UserLinkTest, ForwardedPortsReachTheGuest) {
  const std::uint16_t port = Socket{SOCK_STREAM}.close();
  start({.forwards = {{.host = {htonl(INADDR_LOOPBACK)}, .host_port = port, .guest_port = 22}}});
  const machine::FileDescriptor client{::socket(AF_INET, SOCK_STREAM, 0)};
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  name.sin_port = htons(port);
  ASSERT_EQ(::connect(client.get(), reinterpret_cast<sockaddr*>(&name), sizeof name), 0);
  ASSERT_TRUE(inbox_.wait_for([](const Bytes& frame) { return is_arp(frame, 1); }));
  say(arp_reply());
  const auto frame = hear(IPPROTO_TCP);
  ASSERT_TRUE(frame);
  EXPECT_EQ(get32(*frame, 30), kGuest);
  EXPECT_EQ(get16(*frame, 36), 22U);
  EXPECT_EQ(get8(*frame, 47) & kSyn, unsigned{kSyn});
}

TEST_F(UserLinkTest, APortThatIsTakenIsAnError) {
  const Socket taken{SOCK_STREAM};
  const auto link = UserLink::open(
      {.forwards = {
           {.host = {htonl(INADDR_LOOPBACK)}, .host_port = taken.port(), .guest_port = 22}}});
  ASSERT_FALSE(link);
  EXPECT_NE(link.error().message.find("127.0.0.1:" + std::to_string(taken.port())),
            std::string::npos)
      << link.error().message;
}

TEST_F(UserLinkTest, RestrictedNetworksLeadNowhere) {
  const Socket server{SOCK_DGRAM};
  start({.restricted = true});
  introduce();
  say(ip(IPPROTO_UDP, kGuest, kHost, udp(5000, server.port(), Bytes(8, std::byte{'q'}))));
  expect_alive();  // frames are taken in order: the datagram was
  pollfd one{server.fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&one, 1, 0), 0);
}

TEST_F(UserLinkTest, FramesWaitForRoomInTheCard) {
  start();
  introduce();
  inbox_.set_closed(true);
  constexpr int kPings = 5;
  for (int i = 0; i < kPings; ++i) say(arp_request(kHost));
  ASSERT_TRUE(inbox_.wait_for_refusal());
  EXPECT_EQ(inbox_.waiting(), 0U);
  inbox_.set_closed(false);
  link_->resume();
  for (int i = 0; i < kPings; ++i) {
    ASSERT_TRUE(inbox_.wait_for([](const Bytes& frame) { return is_arp(frame, 2); })) << i;
  }
}

TEST_F(UserLinkTest, ACardWithoutRoomCostsBoundedMemory) {
  start();
  introduce();
  inbox_.set_closed(true);
  for (int i = 0; i < 20'000; ++i) say(arp_request(kHost));
  ASSERT_TRUE(inbox_.wait_for_refusal());
  inbox_.set_closed(false);
  link_->resume();
  expect_alive();
}

TEST_F(UserLinkTest, NothingArrivesAfterItsEnd) {
  start();
  introduce();
  for (int i = 0; i < 200; ++i) say(arp_request(kHost));
  link_.reset();
  const std::size_t arrived = inbox_.waiting();
  EXPECT_EQ(inbox_.waiting(), arrived);
}

TEST_F(UserLinkTest, HostileFrames) {
  // Restricted: random destinations must not be reached from the machine that runs this.
  start({.restricted = true});
  std::mt19937 random{42};
  Bytes echo(40, std::byte{0});
  const std::vector<Bytes> seeds{
      arp_request(kHost),
      arp_reply(),
      ip(IPPROTO_UDP, kGuest, kHost, udp(68, 67, Bytes(300, std::byte{1}))),
      ip(IPPROTO_UDP, kGuest, kHost, udp(1000, 69, Bytes(30, std::byte{1}))),
      ip(IPPROTO_UDP, kGuest, kDns, udp(1000, 53, Bytes(30, std::byte{1}))),
      ip(IPPROTO_UDP, kGuest, kHost, udp(7, 7, Bytes(1400, std::byte{1})), 0x2000),
      ip(IPPROTO_TCP, kGuest, kHost, tcp(1, 2, 3, 4, kSyn)),
      ip(IPPROTO_ICMP, kGuest, kHost, echo),
      ethernet(0x86DD),
      ethernet(0x88F8)};
  for (int i = 0; i < 100'000; ++i) {
    Bytes frame = seeds[random() % seeds.size()];
    switch (random() % 4) {
      case 0:
        frame.resize(random() % 1600);
        break;
      case 1:
        frame.resize(14 + random() % 40);
        break;
      default:
        break;
    }
    for (auto j = random() % 6; j > 0 && frame.size() > 14; --j) {
      frame[12 + random() % (frame.size() - 12)] = static_cast<std::byte>(random());
    }
    if (frame.size() >= 34 && get16(frame, 12) == 0x0800 && random() % 2 == 0) {
      set16(frame, 24, 0);
      set16(frame, 24, checksum(frame, 14, 34));  // past the first check
    }
    say(frame);
    if (i % 200 == 0) expect_alive();  // so that the ring takes them all
  }
}

}  // namespace
}  // namespace strata::network
