// The window under P2M edits. The tests touch it as KVM does: from kernel code (process_vm_readv
// and _writev), where a page that cannot be had is EFAULT.
#include "engines/kvm/host_window.hpp"

#include <gtest/gtest.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "machine/test_support.hpp"

namespace strata::kvm {
namespace {

using machine::test::must;

class KvmHostWindow : public testing::Test {
 protected:
  void SetUp() override {
    auto made = HostWindow::create(m.p2m, m.window(), {{{PPN{0}, 16 << 8}}});
    if (!made) GTEST_SKIP() << made.error().message;
    window = std::move(*made);
    window->start();
  }

  /// A load or store through the window. False: EFAULT.
  bool touch(std::uint64_t pa, std::uint64_t& value, bool write) const {
    iovec here{&value, sizeof value};
    iovec there{window->host(PA{pa}), sizeof value};
    const auto call = write ? ::process_vm_writev : ::process_vm_readv;
    return call(::getpid(), &here, 1, &there, 1, 0) == sizeof value;
  }
  std::uint64_t load(std::uint64_t pa) const {
    std::uint64_t value = 0;
    while (!touch(pa, value, false)) EXPECT_FALSE(window->after_fault());
    return value;
  }
  void store(std::uint64_t pa, std::uint64_t value) const {
    while (!touch(pa, value, true)) EXPECT_FALSE(window->after_fault());
  }
  PageState state_of(std::uint64_t ppn) const { return m.p2m.lookup(PPN{ppn}).entry.state(); }
  /// What a device sees.
  std::uint64_t device_load(std::uint64_t pa) {
    std::uint64_t value = 0;
    must(m.guest.read(machine::kIdentitySpace, PA{pa},
                      std::as_writable_bytes(std::span{&value, 1})));
    return value;
  }
  void device_store(std::uint64_t pa, std::uint64_t value) {
    must(m.guest.write(machine::kIdentitySpace, PA{pa}, std::as_bytes(std::span{&value, 1})));
  }
  /// Makes `ppn` a page of the pool with `value` in it.
  MPN share(std::uint64_t ppn, std::uint64_t value) {
    const MPN frame = must(m.frames.allocate(FrameKind::shared_page));
    *m.window().words(frame) = value;
    Flush flush{m.domain};
    const P2mEntry seen = m.p2m.lookup(PPN{ppn}).entry;
    must(m.p2m.replace(PPN{ppn}, seen, P2mEntry::make(PageState::shared, frame.value()), flush));
    flush.commit();
    return frame;
  }

  machine::test::TestMachine m{16};
  std::unique_ptr<HostWindow> window;
};

TEST_F(KvmHostWindow, UntouchedMemoryComesAtItsFirstTouchAndTheP2mKnows) {
  EXPECT_EQ(m.p2m.private_pages(), 0U);
  EXPECT_EQ(load(0x5008), 0U);
  EXPECT_EQ(state_of(5), PageState::private_page);
  store(0x6008, 77);
  EXPECT_EQ(state_of(6), PageState::private_page);
  EXPECT_EQ(state_of(7), PageState::zero);
  EXPECT_EQ(m.p2m.private_pages(), 2U);
  EXPECT_EQ(device_load(0x6008), 77U);
}

TEST_F(KvmHostWindow, DevicesStoresAreSeenAndTheGuestsByDevices) {
  device_store(0x9000, 1);
  EXPECT_EQ(load(0x9000), 1U);
  store(0x9000, 2);
  EXPECT_EQ(device_load(0x9000), 2U);
  device_store(0x9000, 3);
  EXPECT_EQ(load(0x9000), 3U);
}

TEST_F(KvmHostWindow, DiscardedPagesAreGoneAndComeBackEmpty) {
  store(0x3000, 5);
  const auto before = m.home->resident_bytes();
  Flush flush{m.domain};
  EXPECT_EQ(must(m.p2m.discard({PPN{3}, 1}, flush)), 1U);
  flush.commit();
  EXPECT_LT(m.home->resident_bytes(), before);
  EXPECT_EQ(state_of(3), PageState::zero);
  EXPECT_EQ(load(0x3000), 0U);
  EXPECT_EQ(state_of(3), PageState::private_page);
}

TEST_F(KvmHostWindow, APageThatIsBeingMovedIsOutOfReachBeforeTheFlush) {
  store(0x3000, 5);
  Flush flush{m.domain};
  must(m.p2m.discard({PPN{3}, 1}, flush));
  // Busy until the flush is through: a touch waits for it.
  std::atomic<bool> done{false};
  std::uint64_t seen = 99;
  std::thread guest{[&] {
    seen = load(0x3000);
    done = true;
  }};
  while (window->stats().served < 2) std::this_thread::yield();
  EXPECT_FALSE(done);
  flush.commit();
  guest.join();
  EXPECT_EQ(seen, 0U);
}

TEST_F(KvmHostWindow, ASharedPageIsReadWhereItIsAndAStoreUnsharesIt) {
  store(0x4000, 1);
  const MPN frame = share(4, 1234);
  EXPECT_EQ(load(0x4000), 1234U);
  EXPECT_EQ(state_of(4), PageState::shared) << "a load leaves it shared";
  EXPECT_EQ(window->stats().downgrades, 1U);
  // A store where only loads are allowed: EFAULT, which names no page.
  std::uint64_t value = 5;
  EXPECT_FALSE(touch(0x4008, value, true));
  EXPECT_EQ(state_of(4), PageState::shared);
  EXPECT_FALSE(window->after_fault());
  EXPECT_TRUE(touch(0x4008, value, true));
  EXPECT_EQ(state_of(4), PageState::private_page);
  EXPECT_EQ(load(0x4000), 1234U);
  EXPECT_EQ(load(0x4008), 5U);
  EXPECT_EQ(m.window().words(frame)[1], 0U) << "the pool's frame is untouched";
  m.frames.release(frame, FrameKind::shared_page);
}

TEST_F(KvmHostWindow, AStoreAfterADirtyMarkIsLogged) {
  store(0x2000, 1);
  Flush flush{m.domain};
  must(m.p2m.log_dirty({PPN{0}, 16}, flush));
  flush.commit();
  EXPECT_EQ(load(0x2000), 1U);
  EXPECT_TRUE(m.p2m.collect_dirty({PPN{0}, 16}).empty());
  store(0x2000, 2);
  const auto dirty = m.p2m.collect_dirty({PPN{0}, 16});
  ASSERT_EQ(dirty.size(), 1U);
  EXPECT_EQ(dirty[0].first, PPN{2});
}

TEST_F(KvmHostWindow, APageTheHostHasNoMemoryForIsAFaultAndNotTheEnd) {
  store(0x1000, 1);
  m.p2m.set_private_limit(1);
  std::uint64_t value = 2;
  EXPECT_FALSE(touch(0x8000, value, true));
  const auto fault = window->after_fault();
  ASSERT_TRUE(fault);
  EXPECT_EQ(fault->kind, FaultKind::out_of_memory);
  EXPECT_EQ(fault->pa, PA{0x8000});
  m.p2m.set_private_limit(100);
  EXPECT_TRUE(touch(0x8000, value, true)) << "the next touch asks again";
  EXPECT_EQ(device_load(0x8000), 2U);
}

TEST_F(KvmHostWindow, MemoryTakenOutOfTheP2mIsOutOfReach) {
  store(0x1000, 1);
  Flush flush{m.domain};
  must(m.p2m.remove({PPN{1}, 1}, flush));
  flush.commit();
  std::uint64_t value = 0;
  EXPECT_FALSE(touch(0x1000, value, false));
  const auto fault = window->after_fault();
  ASSERT_TRUE(fault);
  EXPECT_EQ(fault->kind, FaultKind::mmio);
}

/// Each page holds its number or, after a discard, zero: never another page's contents, and no
/// store is lost to an edit that came before it.
TEST_F(KvmHostWindow, EditsUnderRunningGuestsLoseNothing) {
  constexpr std::uint64_t kPages = 32;
  std::atomic<bool> stop{false};
  std::thread editor{[&] {
    for (std::uint64_t i = 0; !stop; ++i) {
      const PpnRange range{PPN{i * 7 % kPages}, 1};
      Flush flush{m.domain};
      if (i % 3 == 0) {
        (void)m.p2m.log_dirty(range, flush);
      } else {
        (void)m.p2m.discard(range, flush);
      }
      flush.commit();
    }
  }};
  std::vector<std::thread> guests;
  for (std::uint64_t g = 0; g < 2; ++g) {
    guests.emplace_back([&, g] {
      for (std::uint64_t i = 0; i < 3000; ++i) {
        const std::uint64_t page = i * 5 % kPages;
        const std::uint64_t pa = page * kPageSize + g * 8;
        const std::uint64_t value = load(pa);
        ASSERT_TRUE(value == 0 || value == page + 1) << value;
        store(pa, page + 1);
      }
    });
  }
  for (auto& g : guests) g.join();
  stop = true;
  editor.join();
  for (std::uint64_t page = 0; page < kPages; ++page) {
    store(page * kPageSize, page + 100);
    EXPECT_EQ(device_load(page * kPageSize), page + 100);
  }
}

}  // namespace
}  // namespace strata::kvm
