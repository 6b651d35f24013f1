// What the P2M's tests share: a machine, and objects that record what the P2M tells them.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "machine/test_support.hpp"

namespace strata::machine::test {

inline constexpr std::uint64_t kRun = 512;

inline bool same(const PpnRange& a, const PpnRange& b) {
  return a.first == b.first && a.count == b.count;
}

/// Records what it is told, and looks at the P2M while it is being told.
class Watcher final : public P2mObserver {
 public:
  explicit Watcher(P2m& p2m) : p2m_{p2m} { p2m_.add_observer(*this); }
  ~Watcher() override { p2m_.remove_observer(*this); }
  void p2m_changed(PpnRange range, Flush& flush) override {
    seen.push_back(range);
    states.push_back(p2m_.lookup(range.first).entry);
    flush.defer([this] { ++freed; });
  }
  std::vector<PpnRange> seen;
  std::vector<P2mEntry> states;
  int freed = 0;

 private:
  P2m& p2m_;
};

class Owner final : public PayloadOwner {
 public:
  void payload_dropped(PPN ppn, P2mEntry old) noexcept override { dropped.emplace_back(ppn, old); }
  std::vector<std::pair<PPN, P2mEntry>> dropped;
};

class P2mTest : public ::testing::Test {
 protected:
  PageState state(std::uint64_t ppn) { return p2m().lookup(PPN{ppn}).entry.state(); }
  P2mEntry entry(std::uint64_t ppn) { return p2m().lookup(PPN{ppn}).entry; }
  P2mTable& p2m() { return m_.p2m; }
  std::uint64_t frames(FrameKind kind) {
    return m_.allocator.in_use()[static_cast<std::size_t>(kind)];
  }
  FaultKind fault(std::uint64_t ppn, AccessKind kind) {
    const auto r = p2m().resolve(PPN{ppn}, kind);
    EXPECT_FALSE(r);
    if (r) return FaultKind::page_fault;
    EXPECT_EQ(r.error().stage, Stage::p2m);
    EXPECT_EQ(r.error().pa, address_of(PPN{ppn}));
    return r.error().kind;
  }
  void touch(std::uint64_t ppn) { must(p2m().resolve(PPN{ppn}, AccessKind::write)); }
  /// Puts page `ppn` into `state` through the editor, as a service would.
  P2mEntry put(std::uint64_t ppn, PageState s, std::uint64_t payload = 0) {
    Flush flush{m_.domain};
    const P2mEntry seen = entry(ppn);
    const auto done = p2m().replace(PPN{ppn}, seen, seen.with_state(s, payload), flush);
    flush.commit();
    EXPECT_TRUE(done);
    return entry(ppn);
  }
  std::uint64_t discard(std::uint64_t first, std::uint64_t count) {
    Flush flush{m_.domain};
    const auto done = p2m().discard({PPN{first}, count}, flush);
    flush.commit();
    return done ? *done : 0;
  }

  TestMachine m_{64, 256};
};

}  // namespace strata::machine::test
