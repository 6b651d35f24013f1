#include "devices/local_apic.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "devices/manual_clock.hpp"
#include "support.hpp"

namespace strata::devices {
namespace {

/// A PIC that only answers.
class FakePic final : public ExtIntSource {
 public:
  std::uint8_t acknowledge_ext_int() override {
    ++acknowledged;
    if (lint != nullptr) lint->set(false);
    return 0x31;
  }
  int acknowledged = 0;
  IrqLine* lint = nullptr;
};

class Eois final : public EoiListener {
 public:
  void end_of_interrupt(std::uint8_t vector) override { vectors.push_back(vector); }
  std::vector<int> vectors;
};

class ApicTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (std::uint32_t id = 0; id < 3; ++id) {
      apics.push_back(
          std::make_unique<LocalApic>(LocalApic::Config{id, id == 0}, bus, clock, clock));
      apics[id]->set_callbacks({[this, id] { ++wakes[id]; }, [this, id] { ++inits[id]; },
                                [this, id](std::uint8_t v) { startups[id].push_back(v); }});
      enable(id);
    }
    bus.add(eois);
  }
  void TearDown() override { bus.remove(eois); }
  void enable(std::uint32_t id) { write(id, kApicSvr, 0x1FF); }
  std::uint32_t read(std::uint32_t id, std::uint32_t reg) {
    return static_cast<std::uint32_t>(apics[id]->mmio_read(PA{kApicDefaultBase + reg}, 4));
  }
  void write(std::uint32_t id, std::uint32_t reg, std::uint32_t value) {
    apics[id]->mmio_write(PA{kApicDefaultBase + reg}, 4, value);
  }
  bool raise(std::uint32_t id, std::uint8_t vector, bool level = false) {
    ApicMessage m;
    m.vector = vector;
    m.level = level;
    return apics[id]->accept(m);
  }
  void to_x2apic(std::uint32_t id) {
    const std::uint64_t base = *apics[id]->read_msr(kMsrApicBase);
    ASSERT_TRUE(apics[id]->write_msr(kMsrApicBase, base | 1U << 10));
  }
  bool pends(std::uint32_t id, std::uint8_t vector) {
    return (read(id, kApicIrr + (vector / 32U) * 0x10) >> (vector % 32) & 1) != 0;
  }

  ManualClock clock;
  ApicBus bus;
  Eois eois;
  int wakes[3]{}, inits[3]{};
  std::vector<int> startups[3];
  std::vector<std::unique_ptr<LocalApic>> apics;
};

TEST_F(ApicTest, PowerOnState) {
  ApicBus other;
  LocalApic apic{{5, true}, other, clock, clock};
  const auto reg = [&](std::uint32_t r) { return apic.mmio_read(PA{kApicDefaultBase + r}, 4); };
  EXPECT_EQ(reg(kApicId), 0x05000000U);
  EXPECT_EQ(reg(kApicVersion), 0x00050014U);
  EXPECT_EQ(reg(kApicSvr), 0xFFU);
  EXPECT_EQ(reg(kApicDfr), 0xFFFFFFFFU);
  EXPECT_EQ(reg(kApicLvtTimer), 0x10000U);
  EXPECT_EQ(reg(kApicLvtLint0), 0x10000U);
  EXPECT_EQ(apic.read_msr(kMsrApicBase), 0xFEE00900U);
  EXPECT_FALSE(apic.pending());
}

TEST_F(ApicTest, TakesTheHighestAndNests) {
  raise(0, 0x41);
  raise(0, 0x62);
  EXPECT_TRUE(apics[0]->pending());
  EXPECT_EQ(apics[0]->acknowledge(), 0x62);
  EXPECT_EQ(read(0, kApicPpr), 0x60U);
  EXPECT_FALSE(apics[0]->pending()) << "41h is of a lower class than what is in service";
  EXPECT_EQ(apics[0]->acknowledge(), std::nullopt);
  raise(0, 0x6F);
  EXPECT_FALSE(apics[0]->pending()) << "the same class does not interrupt";
  raise(0, 0x70);
  EXPECT_TRUE(apics[0]->pending());
  EXPECT_EQ(apics[0]->acknowledge(), 0x70);
  write(0, kApicEoi, 0);
  EXPECT_EQ(read(0, kApicPpr), 0x60U) << "EOI ends the highest in service";
  EXPECT_FALSE(apics[0]->pending());
  write(0, kApicEoi, 0);
  EXPECT_EQ(apics[0]->acknowledge(), 0x6F);
  write(0, kApicEoi, 0);
  EXPECT_EQ(apics[0]->acknowledge(), 0x41);
  EXPECT_EQ(read(0, kApicIsr + 0x20), 1U << 1);
}

TEST_F(ApicTest, EoiWakesForWhatItUncovers) {
  raise(0, 0x62);
  (void)apics[0]->acknowledge();
  raise(0, 0x41);
  const int before = wakes[0];
  write(0, kApicEoi, 0);
  EXPECT_GT(wakes[0], before);
}

TEST_F(ApicTest, TprHoldsBackItsClassAndCr8IsItsUpperHalf) {
  write(0, kApicTpr, 0x45);
  EXPECT_EQ(apics[0]->cr8(), 4U);
  EXPECT_EQ(read(0, kApicPpr), 0x45U);
  raise(0, 0x4F);
  EXPECT_FALSE(apics[0]->pending());
  EXPECT_EQ(apics[0]->acknowledge(), std::nullopt);
  const int before = wakes[0];
  apics[0]->set_cr8(3);
  EXPECT_TRUE(apics[0]->pending());
  EXPECT_GT(wakes[0], before);
  EXPECT_EQ(read(0, kApicTpr), 0x30U);
  apics[0]->set_cr8(0xF);
  EXPECT_FALSE(apics[0]->pending());
}

TEST_F(ApicTest, PprIsTheHigherOfTprAndService) {
  raise(0, 0x55);
  (void)apics[0]->acknowledge();
  write(0, kApicTpr, 0x57);
  EXPECT_EQ(read(0, kApicPpr), 0x57U) << "equal classes: TPR, with its subclass";
  write(0, kApicTpr, 0x47);
  EXPECT_EQ(read(0, kApicPpr), 0x50U);
}

TEST_F(ApicTest, EoiOfALevelInterruptIsBroadcast) {
  raise(0, 0x50, true);
  EXPECT_EQ(read(0, kApicTmr + 0x20), 1U << 16);
  (void)apics[0]->acknowledge();
  write(0, kApicEoi, 0);
  EXPECT_EQ(eois.vectors, std::vector<int>{0x50});
  raise(0, 0x50, false);
  (void)apics[0]->acknowledge();
  write(0, kApicEoi, 0);
  write(0, kApicEoi, 0);  // nothing in service
  EXPECT_EQ(eois.vectors.size(), 1U);
  EXPECT_EQ(read(0, kApicTmr + 0x20), 0U);
}

TEST_F(ApicTest, ASecondNmiWaitsAndOneOnlyBehindAHandler) {
  ApicMessage nmi;
  nmi.mode = DeliveryMode::nmi;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(apics[0]->accept(nmi));
  EXPECT_TRUE(apics[0]->take_nmi());
  EXPECT_TRUE(apics[0]->nmi_pending());
  for (int i = 0; i < 3; ++i) apics[0]->accept(nmi);  // the handler runs
  EXPECT_TRUE(apics[0]->take_nmi());
  EXPECT_FALSE(apics[0]->take_nmi());
  EXPECT_FALSE(apics[0]->nmi_pending());
}

/// There is room for two NMIs, also where the first is taken just as the second arrives.
TEST_F(ApicTest, AnNmiThatArrivesWhileAnotherIsTakenIsNotLost) {
  constexpr int kRounds = 2'000'000, kEnd = -1;
  // On a busy host each round can take both threads a time slice.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{2};
  apics[0]->set_callbacks({});
  std::atomic<int> started{0}, sent{0};
  ApicMessage nmi;
  nmi.mode = DeliveryMode::nmi;
  const auto delay = [](int n) {  // a cycle or so each, so that the two meet at every distance
    for (; n > 0; --n) asm volatile("" : : : "memory");
  };
  const auto rest = [](unsigned spins) {  // a waiting thread leaves the processor to the other
    if (spins > 100'000) std::this_thread::yield();
  };
  std::thread sender{[&] {
    for (int round = 1;; ++round) {
      for (unsigned spins = 0; started != round; ++spins) {
        if (started == kEnd) return;
        rest(spins);
      }
      apics[0]->accept(nmi);
      sent = round;
    }
  }};
  int lost = 0;
  for (int round = 1; round <= kRounds && std::chrono::steady_clock::now() < deadline; ++round) {
    (void)apics[0]->take_nmi();  // no handler runs
    started = round;
    apics[0]->accept(nmi);
    delay(round % 1024);
    int taken = 0;
    for (unsigned spins = 0; taken < 2; ++spins) {
      const bool all_sent = sent == round;
      if (apics[0]->take_nmi()) {
        ++taken;
      } else if (all_sent) {
        break;
      }
      rest(spins);
    }
    if (taken != 2) ++lost;
  }
  started = kEnd;
  sender.join();
  EXPECT_EQ(lost, 0);
}

TEST_F(ApicTest, XapicIdCanBeChangedAndTheX2apicIdNot) {
  write(1, kApicId, 0x42000000);
  EXPECT_EQ(read(1, kApicId), 0x42000000U);
  ApicMessage m;
  m.vector = 0x50;
  m.destination = 0x42;
  EXPECT_TRUE(apics[1]->matches(m));
  m.destination = 1;
  EXPECT_FALSE(apics[1]->matches(m));
  to_x2apic(1);
  EXPECT_EQ(apics[1]->read_msr(0x802), 1U);
  EXPECT_FALSE(apics[1]->write_msr(0x802, 5));
  EXPECT_TRUE(apics[1]->matches(m));
  ASSERT_TRUE(apics[1]->write_msr(kMsrApicBase, kApicDefaultBase));
  EXPECT_FALSE(apics[1]->present());
  ASSERT_TRUE(apics[1]->write_msr(kMsrApicBase, kApicDefaultBase | 1U << 11));
  EXPECT_TRUE(apics[1]->present());
  EXPECT_EQ(read(1, kApicId), 1U << 24) << "disabling forgets";
}

TEST_F(ApicTest, SoftwareDisabledTakesNothingButNmiInitAndSipi) {
  write(0, kApicLvtLint0, 0x50);
  write(0, kApicSvr, 0xFF);
  EXPECT_EQ(read(0, kApicLvtLint0), 0x10050U) << "masked";
  write(0, kApicLvtLint0, 0x50);
  EXPECT_EQ(read(0, kApicLvtLint0), 0x10050U) << "and stays so";
  EXPECT_FALSE(raise(0, 0x50));
  EXPECT_FALSE(apics[0]->pending());
  ApicMessage nmi;
  nmi.mode = DeliveryMode::nmi;
  EXPECT_TRUE(apics[0]->accept(nmi));
  EXPECT_TRUE(apics[0]->nmi_pending());
  EXPECT_TRUE(apics[0]->take_nmi());
  EXPECT_FALSE(apics[0]->take_nmi());
  EXPECT_FALSE(apics[0]->pending()) << "NMIs are not pending()'s business";
}

TEST_F(ApicTest, IllegalVectorsAreErrors) {
  write(0, kApicLvtError, 0xFE);
  EXPECT_FALSE(raise(0, 15));
  EXPECT_EQ(read(0, kApicEsr), 0U) << "not before ESR is written";
  write(0, kApicEsr, 0);
  EXPECT_EQ(read(0, kApicEsr), 0x40U);
  EXPECT_EQ(apics[0]->acknowledge(), 0xFE);
  write(0, kApicEsr, 0);
  EXPECT_EQ(read(0, kApicEsr), 0U);
  write(0, kApicIcr, 0x40005);  // self, vector 5
  write(0, kApicEsr, 0);
  EXPECT_EQ(read(0, kApicEsr), 0x20U);
  (void)read(0, 0x3D0);
  write(0, kApicEsr, 0);
  EXPECT_EQ(read(0, kApicEsr), 0x80U) << "no such register";
}

TEST_F(ApicTest, AnErrorInterruptWithAnIllegalVectorDoesNotRecurse) {
  write(0, kApicLvtError, 0x03);
  EXPECT_FALSE(raise(0, 2));
  write(0, kApicEsr, 0);
  EXPECT_EQ(read(0, kApicEsr), 0x40U);
}

TEST_F(ApicTest, IpiPhysicalAndShorthands) {
  write(0, kApicIcrHigh, 2U << 24);
  write(0, kApicIcr, 0x44);
  EXPECT_FALSE(pends(1, 0x44));
  EXPECT_TRUE(pends(2, 0x44));
  EXPECT_EQ(read(0, kApicIcr), 0x44U) << "delivery status idle";
  write(1, kApicIcr, 1U << 18 | 0x45);
  EXPECT_TRUE(pends(1, 0x45));
  EXPECT_FALSE(pends(0, 0x45));
  write(1, kApicIcr, 2U << 18 | 0x46);
  EXPECT_TRUE(pends(0, 0x46) && pends(1, 0x46) && pends(2, 0x46));
  write(1, kApicIcr, 3U << 18 | 0x47);
  EXPECT_TRUE(pends(0, 0x47) && !pends(1, 0x47) && pends(2, 0x47));
  write(0, kApicIcrHigh, 0xFFU << 24);
  write(0, kApicIcr, 0x48);
  EXPECT_TRUE(pends(0, 0x48) && pends(1, 0x48) && pends(2, 0x48)) << "broadcast address";
}

TEST_F(ApicTest, LogicalFlatAndCluster) {
  for (std::uint32_t id = 0; id < 3; ++id) write(id, kApicLdr, 1U << (24 + id));
  write(0, kApicIcrHigh, 6U << 24);
  write(0, kApicIcr, 1U << 11 | 0x51);
  EXPECT_TRUE(!pends(0, 0x51) && pends(1, 0x51) && pends(2, 0x51));
  for (std::uint32_t id = 0; id < 3; ++id) {
    write(id, kApicDfr, 0);
    write(id, kApicLdr, (id == 2 ? 0x11U : 0x01U << id) << 24);  // 01h, 02h; cluster 1: 11h
  }
  EXPECT_EQ(read(0, kApicDfr), 0x0FFFFFFFU);
  write(0, kApicIcrHigh, 0x13U << 24);
  write(0, kApicIcr, 1U << 11 | 0x52);
  EXPECT_TRUE(!pends(0, 0x52) && !pends(1, 0x52) && pends(2, 0x52));
  write(0, kApicIcrHigh, 0x02U << 24);
  write(0, kApicIcr, 1U << 11 | 0x53);
  EXPECT_TRUE(!pends(0, 0x53) && pends(1, 0x53) && !pends(2, 0x53));
}

TEST_F(ApicTest, LowestPriorityGoesToOneOfLowestPpr) {
  for (std::uint32_t id = 0; id < 3; ++id) write(id, kApicLdr, 0x01000000);
  write(0, kApicTpr, 0x80);
  write(2, kApicTpr, 0x20);
  EXPECT_TRUE(bus.deliver_msi(0xFEE01004, 0x0155)) << "logical 1, lowest priority";
  EXPECT_TRUE(!pends(0, 0x55) && pends(1, 0x55) && !pends(2, 0x55));
  write(1, kApicSvr, 0xFF);
  EXPECT_TRUE(bus.deliver_msi(0xFEE01004, 0x0156));
  EXPECT_TRUE(pends(2, 0x56)) << "a disabled APIC does not take part";
}

TEST_F(ApicTest, LowestPriorityTiesRotate) {
  for (std::uint32_t id = 0; id < 3; ++id) write(id, kApicLdr, 0x01000000);
  for (std::uint32_t v = 0x60; v < 0x66; ++v) (void)bus.deliver_msi(0xFEE01004, 0x0100 | v);
  for (std::uint32_t id = 0; id < 3; ++id) {
    EXPECT_EQ(__builtin_popcount(read(id, kApicIrr + 0x30)), 2) << id;
  }
}

TEST_F(ApicTest, MsiDecodesItsAddressAndData) {
  EXPECT_FALSE(bus.deliver_msi(0xFED00000, 0x40));
  EXPECT_FALSE(bus.deliver_msi(0x1FEE00000, 0x40));
  EXPECT_FALSE(bus.deliver_msi(0xFEE05000, 0x40)) << "nobody has ID 5";
  EXPECT_TRUE(bus.deliver_msi(0xFEE01000, 0xC051));
  EXPECT_TRUE(pends(1, 0x51));
  EXPECT_EQ(read(1, kApicTmr + 0x20), 1U << 17) << "level-triggered";
  EXPECT_TRUE(bus.deliver_msi(0xFEE02000, 0x0400));
  EXPECT_TRUE(apics[2]->take_nmi());
}

TEST_F(ApicTest, InitAndStartupSequence) {
  EXPECT_TRUE(apics[1]->waits_for_startup());
  EXPECT_FALSE(apics[0]->waits_for_startup());
  raise(1, 0x40);
  write(0, kApicIcrHigh, 1U << 24);
  write(0, kApicIcr, 0xC500);  // INIT, level, assert
  EXPECT_EQ(inits[1], 1);
  EXPECT_EQ(read(1, kApicSvr), 0xFFU) << "state as after reset";
  EXPECT_FALSE(apics[1]->pending());
  write(0, kApicIcr, 0x8500);  // INIT level de-assert: ignored
  EXPECT_EQ(inits[1], 1);
  write(0, kApicIcr, 0x4699);
  write(0, kApicIcr, 0x469A);
  EXPECT_EQ(startups[1], std::vector<int>{0x99}) << "the second SIPI finds it running";
  EXPECT_FALSE(apics[1]->waits_for_startup());
  EXPECT_EQ(read(1, kApicId), 0x01000000U);
}

TEST_F(ApicTest, Lint0ExtIntPassesByPriorities) {
  FakePic pic;
  pic.lint = &apics[0]->lint0();
  apics[0]->connect_pic(pic);
  write(0, kApicTpr, 0xFF);
  apics[0]->lint0().set(true);
  EXPECT_FALSE(apics[0]->pending()) << "LINT0 is masked";
  write(0, kApicLvtLint0, 0x700);
  EXPECT_TRUE(apics[0]->pending());
  EXPECT_EQ(apics[0]->acknowledge(), 0x31);
  EXPECT_EQ(pic.acknowledged, 1);
  EXPECT_FALSE(apics[0]->pending());
  EXPECT_EQ(read(0, kApicIsr + 0x10), 0U) << "not in the APIC's service";
  apics[0]->lint0().set(true);
  EXPECT_TRUE(apics[0]->pending());
  apics[0]->lint0().set(false);
  EXPECT_FALSE(apics[0]->pending());
}

TEST_F(ApicTest, GloballyDisabledLintPinsAreIntrAndNmi) {
  FakePic pic;
  apics[0]->connect_pic(pic);
  ASSERT_TRUE(apics[0]->write_msr(kMsrApicBase, kApicDefaultBase));
  EXPECT_FALSE(raise(0, 0x50));
  apics[0]->lint0().set(true);
  EXPECT_TRUE(apics[0]->pending());
  EXPECT_EQ(apics[0]->acknowledge(), 0x31);
  apics[0]->lint1().set(true);
  EXPECT_TRUE(apics[0]->take_nmi());
  EXPECT_FALSE(apics[0]->claims(PA{kApicDefaultBase}));
}

TEST_F(ApicTest, VirtualWireModeIsWhatFirmwareLeaves) {
  FakePic pic;
  ApicBus other;
  LocalApic bsp{{0, true}, other, clock, clock};
  LocalApic ap{{1, false}, other, clock, clock};
  bsp.connect_pic(pic);
  bsp.enter_virtual_wire_mode();
  ap.enter_virtual_wire_mode();
  bsp.lint0().set(true);
  EXPECT_TRUE(bsp.pending());
  bsp.lint1().set(true);
  EXPECT_TRUE(bsp.take_nmi());
  EXPECT_EQ(ap.mmio_read(PA{kApicDefaultBase + kApicLvtLint0}, 4), 0x10700U);
  EXPECT_EQ(bsp.mmio_read(PA{kApicDefaultBase + kApicSvr}, 4), 0x1FFU);
}

TEST_F(ApicTest, Lint1NmiNeedsAnEdgeAndNoMask) {
  apics[0]->lint1().set(true);
  EXPECT_FALSE(apics[0]->take_nmi()) << "masked";
  apics[0]->lint1().set(false);
  write(0, kApicLvtLint1, 0x400);
  const int before = wakes[0];
  apics[0]->lint1().set(true);
  EXPECT_GT(wakes[0], before);
  EXPECT_TRUE(apics[0]->take_nmi());
  apics[0]->lint1().set(true);
  EXPECT_FALSE(apics[0]->take_nmi());
}

TEST_F(ApicTest, PageMovesAndAnswersOddAccesses) {
  ASSERT_TRUE(apics[0]->write_msr(kMsrApicBase, 0x100000000ULL | 0x800));
  EXPECT_TRUE(apics[0]->claims(PA{0x100000FFF}));
  EXPECT_FALSE(apics[0]->claims(PA{kApicDefaultBase}));
  EXPECT_EQ(apics[0]->mmio_read(PA{kApicDefaultBase + kApicSvr + 1}, 1), 1U);
  EXPECT_EQ(apics[0]->mmio_read(PA{kApicDefaultBase + kApicSvr + 4}, 4), 0U);
  EXPECT_EQ(apics[0]->mmio_read(PA{kApicDefaultBase + kApicSvr}, 8), 0x1FFU);
  apics[0]->mmio_write(PA{kApicDefaultBase + kApicTpr}, 1, 0x50);
  apics[0]->mmio_write(PA{kApicDefaultBase + kApicTpr + 1}, 4, 0x50);
  EXPECT_EQ(read(0, kApicTpr), 0U) << "only whole registers are written";
}

TEST_F(ApicTest, BaseMsrTransitions) {
  LocalApic& apic = *apics[0];
  constexpr std::uint64_t kOff = kApicDefaultBase, kX = kOff | 0x800, kX2 = kOff | 0xC00;
  const auto set = [&](std::uint64_t v) { return apic.write_msr(kMsrApicBase, v); };
  EXPECT_FALSE(set(kOff | 0x400)) << "EXTD without EN";
  EXPECT_TRUE(set(kX2));
  EXPECT_FALSE(set(kX)) << "x2APIC back to xAPIC";
  EXPECT_FALSE(apic.claims(PA{kApicDefaultBase}));
  EXPECT_TRUE(set(kX2));
  EXPECT_TRUE(set(kOff));
  EXPECT_FALSE(set(kX2)) << "disabled to x2APIC";
  EXPECT_TRUE(set(kX));
  EXPECT_FALSE(set(kX | 1)) << "reserved";
  EXPECT_FALSE(set(kX | 1U << 9));
  EXPECT_FALSE(set(kX | 1ULL << 46)) << "above the physical address bits";
  EXPECT_EQ(apic.read_msr(kMsrApicBase), kX | 0x100) << "the bootstrap flag stays";
  EXPECT_EQ(read(0, kApicSvr), 0xFFU) << "disabling forgot the state";
}

TEST_F(ApicTest, X2ApicAbsentMakesItsBitReserved) {
  ApicBus other;
  LocalApic apic{
      {.id = 0, .bootstrap = true, .x2apic = false, .tsc_deadline = false}, other, clock, clock};
  EXPECT_FALSE(apic.write_msr(kMsrApicBase, kApicDefaultBase | 0xC00));
  EXPECT_FALSE(apic.read_msr(kMsrTscDeadline));
  EXPECT_FALSE(apic.write_msr(kMsrTscDeadline, 1));
}

TEST_F(ApicTest, X2ApicMsrsOnlyInX2ApicMode) {
  EXPECT_FALSE(apics[0]->read_msr(0x802));
  EXPECT_FALSE(apics[0]->write_msr(0x808, 0));
  to_x2apic(0);
  EXPECT_EQ(apics[0]->read_msr(0x802), 0U);
  EXPECT_TRUE(apics[0]->write_msr(0x808, 0x20));
  EXPECT_EQ(apics[0]->read_msr(0x808), 0x20U);
  EXPECT_FALSE(apics[0]->read_msr(0x1234));
  EXPECT_FALSE(apics[0]->write_msr(0x1234, 0));
  EXPECT_FALSE(LocalApic::owns_msr(0x7FF));
  EXPECT_FALSE(LocalApic::owns_msr(0x900));
  EXPECT_TRUE(LocalApic::owns_msr(0x8FF));
}

TEST_F(ApicTest, X2ApicFaultsOnReservedRegistersAndBits) {
  to_x2apic(0);
  LocalApic& apic = *apics[0];
  for (const std::uint32_t msr :
       {0x800U, 0x809U, 0x80BU, 0x80EU, 0x82FU, 0x831U, 0x83FU, 0x840U, 0x8FFU}) {
    EXPECT_FALSE(apic.read_msr(msr)) << std::hex << msr;
  }
  for (const std::uint32_t msr :
       {0x802U, 0x803U, 0x80AU, 0x80DU, 0x80EU, 0x810U, 0x820U, 0x82FU, 0x831U, 0x839U, 0x840U}) {
    EXPECT_FALSE(apic.write_msr(msr, 0)) << std::hex << msr;
  }
  EXPECT_FALSE(apic.write_msr(0x80B, 1)) << "EOI takes 0 only";
  EXPECT_FALSE(apic.write_msr(0x828, 1)) << "ESR takes 0 only";
  EXPECT_FALSE(apic.write_msr(0x808, 0x100));
  EXPECT_FALSE(apic.write_msr(0x80F, 1ULL << 32));
  EXPECT_FALSE(apic.write_msr(0x832, 1U << 20));
  EXPECT_FALSE(apic.write_msr(0x838, 1ULL << 32));
  EXPECT_FALSE(apic.write_msr(0x83E, 4));
  EXPECT_FALSE(apic.write_msr(0x83F, 0x100));
  EXPECT_FALSE(apic.write_msr(0x830, 1U << 20));
  EXPECT_TRUE(apic.write_msr(0x835, 0x10700));
  EXPECT_EQ(apic.read_msr(0x835), 0x10700U);
}

TEST_F(ApicTest, X2ApicLogicalIdAndIcr) {
  ApicBus other;
  LocalApic far{{0x25, true}, other, clock, clock};
  ASSERT_TRUE(far.write_msr(kMsrApicBase, kApicDefaultBase | 0xD00));
  EXPECT_EQ(far.read_msr(0x80D), 0x00020020U);
  ASSERT_TRUE(far.write_msr(0x80F, 0x1FF));
  const auto pending = [&](std::uint32_t v) {
    return (*far.read_msr(0x820 + v / 32) >> (v % 32) & 1) != 0;
  };
  EXPECT_TRUE(far.write_msr(0x830, 0x0002'0020'0000'0851));
  EXPECT_TRUE(pending(0x51)) << "logical";
  EXPECT_EQ(far.read_msr(0x830), 0x0002'0020'0000'0851U) << "64 bits, no busy bit";
  EXPECT_TRUE(far.write_msr(0x830, 0x0003'0020'0000'0852));
  EXPECT_FALSE(pending(0x52)) << "another cluster";
  EXPECT_TRUE(far.write_msr(0x830, 0xFFFF'FFFF'0000'0053));
  EXPECT_TRUE(pending(0x53)) << "broadcast";
  EXPECT_TRUE(far.write_msr(0x830, 0x0000'00FF'0000'0054));
  EXPECT_FALSE(pending(0x54)) << "FFh is an ID among others here";
  EXPECT_TRUE(far.write_msr(0x83F, 0x55));
  EXPECT_TRUE(pending(0x55)) << "SELF IPI";
}

TEST_F(ApicTest, StatsCount) {
  raise(0, 0x50);
  (void)apics[0]->acknowledge();
  write(0, kApicIcr, 1U << 18 | 0x45);
  EXPECT_EQ(apics[0]->stats().accepted, 2U);
  EXPECT_EQ(apics[0]->stats().acknowledged, 1U);
  EXPECT_EQ(apics[0]->stats().ipis_sent, 1U);
  EXPECT_GE(apics[0]->stats().register_writes, 2U);
}

}  // namespace
}  // namespace strata::devices
