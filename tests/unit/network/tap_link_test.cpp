#include "network/tap_link.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "support.hpp"

namespace strata::network {
namespace {

using namespace testing;

constexpr const char* kName = "stratatap0";

/// Makes a network namespace for this process with one TAP interface that is up. False: the host
/// does not allow it.
bool make_tap() {
  if (::unshare(CLONE_NEWNET) != 0) return false;
  const int tun = ::open("/dev/net/tun", O_RDWR | O_CLOEXEC);
  ifreq request{};
  std::string{kName}.copy(request.ifr_name, IFNAMSIZ - 1);
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  if (tun < 0 || ::ioctl(tun, TUNSETIFF, &request) != 0 || ::ioctl(tun, TUNSETPERSIST, 1) != 0) {
    return false;
  }
  ::close(tun);
  const int control = ::socket(AF_INET, SOCK_DGRAM, 0);
  request.ifr_flags = IFF_UP;
  const bool up = ::ioctl(control, SIOCSIFFLAGS, &request) == 0;
  ::close(control);
  return up;
}

TEST(TapLink, NamesThatAreNotThere) {
  const auto link = TapLink::open("nosuchif");
  ASSERT_FALSE(link);
  EXPECT_NE(link.error().message.find("nosuchif"), std::string::npos);
  const auto other = TapLink::open("lo");
  ASSERT_FALSE(other);
}

void pass_frames_both_ways() {
  if (!make_tap()) GTEST_SKIP() << "the host lets nobody here make a TAP interface";
  auto link = TapLink::open(kName);
  ASSERT_TRUE(link) << link.error().message;
  const auto second = TapLink::open(kName);
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().message.find("another program"), std::string::npos);
  Inbox inbox;
  inbox.set_closed(true);
  (*link)->start(inbox);

  const int host = ::socket(AF_PACKET, SOCK_RAW, htons(0x88B5));
  sockaddr_ll name{};
  name.sll_family = AF_PACKET;
  name.sll_protocol = htons(0x88B5);
  name.sll_ifindex = static_cast<int>(::if_nametoindex(kName));
  ASSERT_EQ(::bind(host, reinterpret_cast<sockaddr*>(&name), sizeof name), 0);
  Bytes frame = ethernet(0x88B5);
  frame.resize(1514, std::byte{5});
  // The host loses what is sent before it has noticed that somebody is there.
  do {
    ASSERT_EQ(::send(host, frame.data(), frame.size(), 0), 1514);
  } while (!inbox.wait_for_refusal(std::chrono::milliseconds{100}));
  inbox.set_closed(false);
  (*link)->resume();
  const auto arrived = inbox.wait_for([](const Bytes& one) { return get16(one, 12) == 0x88B5; });
  ASSERT_TRUE(arrived);
  EXPECT_EQ(*arrived, frame);

  frame[20] = std::byte{6};
  Bytes tail(frame.begin() + 100, frame.end());
  const std::array<iovec, 2> pieces{{{frame.data(), 100}, {tail.data(), tail.size()}}};
  (*link)->send(pieces);
  Bytes got(2000);
  const ssize_t length = ::recv(host, got.data(), got.size(), 0);
  ASSERT_EQ(length, 1514);
  got.resize(1514);
  EXPECT_EQ(got, frame);
  send(**link, Bytes(5));
  send(**link, Bytes(3000));
  link->reset();
  ::close(host);
}

TEST(TapLink, FramesPassBothWays) {
  // A thread, since a network namespace is a thread's own.
  std::thread{pass_frames_both_ways}.join();
}

}  // namespace
}  // namespace strata::network
