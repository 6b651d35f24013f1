#include "network/dns_redirect.hpp"

#include <gtest/gtest.h>

#include <random>

#include "support.hpp"

namespace strata::network {
namespace {

using namespace testing;

constexpr std::uint32_t kServer = 0xC0A8'0101;
in_addr net(std::uint32_t host) { return {htonl(host)}; }

Bytes query(unsigned protocol, std::uint32_t to, unsigned fragment = 0) {
  return ip(protocol, kGuest, to,
            protocol == IPPROTO_UDP ? udp(4000, 53, Bytes(31, std::byte{7}))
                                    : tcp(4000, 53, 1, 2, kAck, "query"),
            fragment);
}
Bytes answer(unsigned protocol, std::uint32_t from, unsigned fragment = 0, unsigned id = 1) {
  return ip(protocol, from, kGuest,
            protocol == IPPROTO_UDP ? udp(53, 4000, Bytes(40, std::byte{9}))
                                    : tcp(53, 4000, 1, 2, kAck, "answer"),
            fragment, id);
}

class DnsRedirectTest : public ::testing::TestWithParam<unsigned> {
 protected:
  DnsRedirect dns_{net(kDns), net(kServer)};
};

TEST_P(DnsRedirectTest, QueriesGoToTheServerAndAnswersComeFromTheService) {
  Bytes out = query(GetParam(), kDns);
  ASSERT_TRUE(dns_.outgoing(out));
  EXPECT_EQ(get32(out, 30), kServer);
  EXPECT_TRUE(checksums_hold(out));
  Bytes in = answer(GetParam(), kServer);
  dns_.incoming(in);
  EXPECT_EQ(get32(in, 26), kDns);
  EXPECT_TRUE(checksums_hold(in));
}

TEST_P(DnsRedirectTest, TheServerItselfAnswersUnderItsOwnName) {
  Bytes out = query(GetParam(), kDns);
  ASSERT_TRUE(dns_.outgoing(out));
  out = query(GetParam(), kServer);
  const Bytes before = out;
  ASSERT_TRUE(dns_.outgoing(out));
  EXPECT_EQ(out, before);
  Bytes in = answer(GetParam(), kServer);
  const Bytes same = in;
  dns_.incoming(in);
  EXPECT_EQ(in, same);
}

TEST_P(DnsRedirectTest, WithoutAServerThereIsNoAnswer) {
  DnsRedirect none{net(kDns), std::nullopt};
  Bytes out = query(GetParam(), kDns);
  EXPECT_FALSE(none.outgoing(out));
}

TEST_P(DnsRedirectTest, QueriesInFragmentsAreDropped) {
  for (const unsigned fragment : {0x2000U, 0x2001U, 1U, 0x1FFFU}) {
    Bytes out = query(GetParam(), kDns, fragment);
    EXPECT_FALSE(dns_.outgoing(out));
  }
}

INSTANTIATE_TEST_SUITE_P(Protocols, DnsRedirectTest, ::testing::Values(IPPROTO_TCP, IPPROTO_UDP));

TEST(DnsRedirect, FragmentsOfAnAnswerHaveOneSource) {
  DnsRedirect dns{net(kDns), net(kServer)};
  Bytes out = query(IPPROTO_UDP, kDns);
  ASSERT_TRUE(dns.outgoing(out));
  Bytes first = answer(IPPROTO_UDP, kServer, 0x2000, 77);
  dns.incoming(first);
  EXPECT_EQ(get32(first, 26), kDns);
  Bytes later = answer(IPPROTO_UDP, kServer, 6, 77);
  const unsigned payload = get16(later, 40);
  dns.incoming(later);
  EXPECT_EQ(get32(later, 26), kDns);
  EXPECT_EQ(get16(later, 40), payload) << "no checksum there";
  Bytes other = answer(IPPROTO_UDP, kServer, 6, 78);
  dns.incoming(other);
  EXPECT_EQ(get32(other, 26), kServer);
}

TEST(DnsRedirect, NothingElseChanges) {
  DnsRedirect dns{net(kDns), net(kServer)};
  for (const Bytes& frame : {arp_request(kDns), ip(IPPROTO_UDP, kGuest, kDns, udp(1, 54, {})),
                             ip(IPPROTO_UDP, kGuest, kHost, udp(1, 53, {}))}) {
    Bytes out = frame;
    EXPECT_TRUE(dns.outgoing(out));
    EXPECT_EQ(out, frame);
  }
}

TEST(DnsRedirect, AnyBytes) {
  DnsRedirect dns{net(kDns), net(kServer)};
  std::mt19937 random{1};
  for (int i = 0; i < 200'000; ++i) {
    Bytes frame = i % 2 == 0 ? query(IPPROTO_UDP, kDns) : answer(IPPROTO_TCP, kServer);
    frame.resize(random() % 80);
    frame.shrink_to_fit();
    for (int j = 0; j < 3 && !frame.empty(); ++j) {
      frame[random() % frame.size()] = static_cast<std::byte>(random());
    }
    (void)dns.outgoing(frame);
    dns.incoming(frame);
  }
}

}  // namespace
}  // namespace strata::network
