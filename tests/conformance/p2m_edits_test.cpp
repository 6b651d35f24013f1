// P2M edits under a vCPU that walks: pages move from frame to frame while the vCPU reads and writes
// through its translations. Every answer has to be the old page or the new one, once the flush is
// through only the new one, and no frame may be used after it was given back.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "mmu_world.hpp"

namespace strata::conformance {
namespace {

/// What an engine is to the flush protocol: it drops everything at its quiescent points.
class Vcpu final : public TranslationHolder {
 public:
  explicit Vcpu(FlushDomain& domain) : domain_{domain} { domain_.add(*this); }
  ~Vcpu() override { domain_.remove(*this); }
  void invalidate(const Invalidation&, Epoch epoch) noexcept override { told_.store(epoch); }
  [[nodiscard]] Epoch passed() const noexcept override { return passed_.load(); }

  /// Between instructions. True: translations from before must not be used.
  bool quiesce() noexcept {
    const Epoch told = told_.load();
    return passed_.exchange(told) != told;
  }
  /// A call into the Mmu, which counts as quiescent while it lasts (see Mmu): no translation is
  /// held, and the answer counts only if nothing was invalidated meanwhile.
  template <class Call>
  auto call(Call&& translate) {
    for (;;) {
      passed_.store(~Epoch{0});
      auto answer = translate();
      const Epoch told = told_.load();
      passed_.store(told);
      if (told_.load() == told && seen_ == told) return answer;
      seen_ = told;
    }
  }

 private:
  FlushDomain& domain_;
  std::atomic<Epoch> told_{0};
  std::atomic<Epoch> passed_{0};
  Epoch seen_ = 0;
};

/// Frames that hold one version each; a frame given back is poisoned.
class Versions final : public machine::PayloadOwner {
 public:
  static constexpr std::uint64_t kPoison = 0xDEAD'DEAD'DEAD'DEAD;

  explicit Versions(FrameSource& frames) : frames_{frames} {}
  MPN make(std::uint64_t version) {
    const MPN frame = machine::test::must(frames_.allocate(FrameKind::shared_page));
    word(frame).store(version);
    return frame;
  }
  void payload_dropped(PPN, P2mEntry old) noexcept override {
    word(old.mpn()).store(kPoison);
    frames_.release(old.mpn(), FrameKind::shared_page);
    dropped.fetch_add(1);
  }
  std::atomic<std::uint64_t> dropped{0};

 private:
  [[nodiscard]] std::atomic_ref<std::uint64_t> word(MPN frame) const {
    return std::atomic_ref<std::uint64_t>{*frames_.window().words(frame)};
  }
  FrameSource& frames_;
};

class P2mEdits : public testing::TestWithParam<std::string_view> {};

TEST_P(P2mEdits, EveryAnswerIsOldOrNewAndAfterTheFlushNew) {
  constexpr std::uint64_t kEdits = 300;
  MmuWorld world{GetParam()};
  world.use(kLayouts[5]);  // long4_4k: every backend knows it
  auto& p2m = world.machine.p2m;
  Versions versions{world.machine.frames};
  p2m.set_payload_owner(PageState::shared, &versions);
  const PPN ppn = page_of(PA{MmuWorld::kPage});
  world.set(world.context);

  std::atomic<std::uint64_t> newest{0};  ///< versions up to here may be seen
  std::atomic<std::uint64_t> oldest{0};  ///< versions below must not be seen any more
  std::atomic<bool> done{false};
  std::atomic<std::uint64_t> reads{0}, wrong{0};
  const auto edit = [&](std::uint64_t version) {
    const MPN frame = versions.make(version);
    newest.store(version);
    Flush flush{world.machine.domain};
    for (;;) {
      const P2mEntry seen = p2m.lookup(ppn).entry;
      const P2mEntry wanted = seen.with_busy(false).with_state(PageState::shared, frame.value());
      if (!seen.busy() && p2m.replace(ppn, seen, wanted, flush)) break;
      world.machine.domain.collect();
      std::this_thread::yield();
    }
    const Epoch epoch = flush.commit();
    world.machine.domain.wait(epoch);
    world.machine.domain.collect();
    oldest.store(version);
  };
  edit(1);

  {
    std::thread walker{[&] {
      Vcpu vcpu{world.machine.domain};
      while (!done.load()) {
        const std::uint64_t least = oldest.load();
        const auto t = vcpu.call([&] {
          return world.mmu->translate(0, world.va, {AccessKind::read, true, false});
        });
        if (!t) {  // busy for the moment
          if (t.error().stage != Stage::p2m || t.error().kind != FaultKind::retry) ++wrong;
          continue;
        }
        // The translation is used until the vCPU hears of the change.
        for (unsigned use = 0; use < 4; ++use) {
          auto* word = reinterpret_cast<std::uint64_t*>(world.machine.window().host(t->page));
          const std::uint64_t value = std::atomic_ref<std::uint64_t>{*word}.load();
          if (value < least || value > newest.load()) ++wrong;
          ++reads;
        }
        (void)vcpu.quiesce();
      }
    }};
    for (std::uint64_t version = 2; version < kEdits; ++version) {
      // Neither runs away from the other.
      const std::uint64_t before = reads.load();
      if (version % 8 == 0) {
        while (reads.load() == before) std::this_thread::yield();
      }
      edit(version);
    }
    done.store(true);
    walker.join();
  }
  EXPECT_EQ(wrong.load(), 0U);
  EXPECT_EQ(versions.dropped.load(), kEdits - 2) << "every old frame went back once";
  p2m.set_payload_owner(PageState::shared, nullptr);
}

/// The same page as memory, read-only memory, a device and nothing: each answer is the P2M's.
TEST_P(P2mEdits, RomAndDevicesAnswerAsSuch) {
  MmuWorld world{GetParam()};
  world.use(kLayouts[5]);
  world.set(world.context);
  auto& p2m = world.machine.p2m;
  const PpnRange range{page_of(PA{MmuWorld::kPage}), 1};
  const Access read{AccessKind::read, true, false};
  const Access write{AccessKind::write, true, false};
  const auto remove = [&] {
    Flush flush{world.machine.domain};
    ASSERT_TRUE(p2m.remove(range, flush));
    flush.commit();
  };
  for (unsigned round = 0; round < 3; ++round) {
    ASSERT_TRUE(world.mmu->translate(0, world.va, write)) << "memory";
    remove();
    const auto absent = world.mmu->translate(0, world.va, read);
    ASSERT_FALSE(absent);
    EXPECT_EQ(absent.error().kind, FaultKind::mmio);
    EXPECT_EQ(absent.error().pa, PA{MmuWorld::kPage + MmuWorld::kOffset});

    machine::test::must(p2m.add_rom(range, std::as_bytes(std::span{"rom"})));
    const auto rom = world.mmu->translate(0, world.va, read);
    ASSERT_TRUE(rom);
    EXPECT_FALSE(rom->writable);
    const auto dropped = world.mmu->translate(0, world.va, write);
    ASSERT_FALSE(dropped);
    EXPECT_EQ(dropped.error().kind, FaultKind::rom_write);
    EXPECT_EQ(dropped.error().va, world.va);
    remove();

    machine::test::must(p2m.add_mmio(range));
    for (const Access& access : kAccesses) {
      const auto device = world.mmu->translate(0, world.va, access);
      ASSERT_FALSE(device);
      EXPECT_EQ(device.error().stage, Stage::p2m);
      EXPECT_EQ(device.error().kind, FaultKind::mmio);
    }
    remove();

    machine::test::must(p2m.add_ram(range));
    const auto zero = world.mmu->translate(0, world.va, read);
    ASSERT_TRUE(zero);
    EXPECT_EQ(page_of(zero->page), p2m.zero_frame());
    EXPECT_FALSE(zero->writable);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, P2mEdits, testing::ValuesIn(backends()),
                         [](const auto& instance) { return std::string{instance.param}; });

}  // namespace
}  // namespace strata::conformance
