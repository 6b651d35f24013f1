#include "network/net_options.hpp"

#include <gtest/gtest.h>

namespace strata::network {
namespace {

TEST(NetOptions, User) {
  const auto options =
      parse_net("user,hostfwd=tcp::2222-:22,hostfwd=udp:0.0.0.0:53-10.0.2.9:5353,restrict");
  ASSERT_TRUE(options);
  EXPECT_TRUE(options->tap.empty());
  EXPECT_TRUE(options->restricted);
  EXPECT_FALSE(options->mac);
  ASSERT_EQ(options->forwards.size(), 2U);
  EXPECT_FALSE(options->forwards[0].udp);
  EXPECT_EQ(options->forwards[0].host.s_addr, htonl(INADDR_LOOPBACK));
  EXPECT_EQ(options->forwards[0].host_port, 2222);
  EXPECT_EQ(options->forwards[0].guest.s_addr, 0U);
  EXPECT_EQ(options->forwards[0].guest_port, 22);
  EXPECT_TRUE(options->forwards[1].udp);
  EXPECT_EQ(options->forwards[1].host.s_addr, 0U);
  EXPECT_EQ(options->forwards[1].guest.s_addr, htonl(0x0A00'0209));
}

TEST(NetOptions, TapAndAddresses) {
  const auto options = parse_net("tap=tap0,mac=52:54:00:ab:CD:0f");
  ASSERT_TRUE(options);
  EXPECT_EQ(options->tap, "tap0");
  ASSERT_TRUE(options->mac);
  EXPECT_EQ(options->mac->text(), "52:54:00:ab:cd:0f");
  const MacAddress random = MacAddress::random();
  EXPECT_EQ(random.bytes[0] & 3, 2);
  EXPECT_EQ(MacAddress::parse(random.text()), random);
  EXPECT_NE(MacAddress::random(), random);
}

TEST(NetOptions, WrongOnesAreNamed) {
  for (const char* text : {"",
                           "usr",
                           "user=1",
                           "tap",
                           "tap=",
                           "tap=a-name-that-is-too-long",
                           "tap=t,restrict",
                           "user,hostfwd=",
                           "user,hostfwd=tcp::0-:22",
                           "user,hostfwd=tcp::1-:65536",
                           "user,hostfwd=tcp:2222-:22",
                           "user,hostfwd=tcp::2222:22",
                           "user,hostfwd=icmp::1-:2",
                           "user,hostfwd=tcp:localhost:1-:2",
                           "user,hostfwd=tcp::1-:2x",
                           "user,restrict=on",
                           "user,mac=",
                           "user,mac=52:54:00:12:34",
                           "user,mac=52:54:00:12:34:5g",
                           "user,,restrict",
                           "user,mac=01:00:5e:00:00:01",
                           "user,mac=00:00:00:00:00:00",
                           "user,mac=52-54-00-12-34-56",
                           "user,mac=+2:54:00:12:34:56"}) {
    const auto options = parse_net(text);
    ASSERT_FALSE(options) << text;
    EXPECT_FALSE(options.error().message.empty());
    EXPECT_EQ(options.error().message.find('\n'), std::string::npos);
  }
}

}  // namespace
}  // namespace strata::network
