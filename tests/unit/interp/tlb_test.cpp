// The interpreter's TLB: what each flush takes, whatever the page sizes.
#include "engines/interp/tlb.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace strata::interp::test {
namespace {

struct Fill {
  VA va;
  std::uint16_t pcid;
  unsigned shift;
  bool global;
};

Translation translation(const Fill& f) {
  Translation t;
  t.pa = PA{f.va.value() & 0xFFFFFF000};
  t.page_shift = static_cast<std::uint8_t>(f.shift);
  t.readable = t.writable = true;
  t.global = f.global;
  return t;
}

bool cached(Tlb& tlb, const Fill& f) {
  return tlb.slot(kSupervisor, f.va, f.pcid).read_tag == Tlb::tag(f.va, f.pcid);
}
bool fetched(Tlb& tlb, const Fill& f) {
  return tlb.fetch_slot(false, f.va).tag == Tlb::tag(f.va, f.pcid);
}
bool same_page(const Fill& f, VA va) { return (f.va.value() ^ va.value()) >> f.shift == 0; }

/// INVLPG must take every fragment of the page and leave other pages alone, however many fragments
/// of however many large pages there are.
class TlbFlushPage : public ::testing::TestWithParam<unsigned> {};

TEST_P(TlbFlushPage, TakesThePageAndNothingElse) {
  std::mt19937_64 random{GetParam()};
  const auto below = [&](std::uint64_t n) { return random() % n; };
  for (int round = 0; round < 200; ++round) {
    Tlb tlb;
    std::vector<Fill> fills;
    const std::uint64_t count = 1 + below(40);
    for (std::uint64_t i = 0; i < count; ++i) {
      const unsigned shifts[] = {12, 21, 22, 30};
      // A region has one page size, as guest tables do; regions are 1 GiB apart.
      const std::uint64_t region = below(6);
      const Fill f{VA{0xFFFF800000000000 + (region << 30) + (below(1024) << 12)},
                   static_cast<std::uint16_t>(below(2)), shifts[(region + GetParam()) % 4 % 3],
                   below(4) == 0};
      tlb.fill(kSupervisor, f.va, f.pcid, translation(f), nullptr, true);
      tlb.fill_fetch(false, f.va, f.pcid, translation(f), nullptr);
      fills.push_back(f);
    }
    const VA target{fills[below(count)].va.value() ^ (below(2) << 20)};
    std::vector<Fill> live;
    for (const Fill& f : fills) {
      if (cached(tlb, f)) live.push_back(f);
    }
    tlb.flush_page(target, 1);
    for (const Fill& f : fills) {
      const bool named = same_page(f, target) && f.pcid == 1;
      if (named) {
        EXPECT_FALSE(cached(tlb, f)) << std::hex << f.va.value();
        EXPECT_FALSE(fetched(tlb, f)) << std::hex << f.va.value();
      }
    }
    for (const Fill& f : live) {
      if (!same_page(f, target)) {
        EXPECT_TRUE(cached(tlb, f)) << std::hex << f.va.value();
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, TlbFlushPage, ::testing::Range(0U, 4U));

TEST(Tlb, OneGigabytePagesAreFoundToo) {
  Tlb tlb;
  const Fill f{VA{0xFFFF800012345000}, 0, 30, false};
  tlb.fill(kSupervisor, f.va, f.pcid, translation(f), nullptr, true);
  tlb.flush_page(VA{0xFFFF800000000000}, 0);
  EXPECT_FALSE(cached(tlb, f));
}

TEST(Tlb, GlobalPagesOfEveryPcid) {
  Tlb tlb;
  const Fill f{VA{0x5000}, 3, 12, true};
  tlb.fill(kSupervisor, f.va, f.pcid, translation(f), nullptr, true);
  tlb.flush_page(VA{0x5000}, 1);
  EXPECT_FALSE(cached(tlb, f));
}

}  // namespace
}  // namespace strata::interp::test
