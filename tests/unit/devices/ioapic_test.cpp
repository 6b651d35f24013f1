#include "devices/ioapic.hpp"

#include <gtest/gtest.h>

#include "devices/local_apic.hpp"
#include "devices/manual_clock.hpp"
#include "support.hpp"

namespace strata::devices {
namespace {

class IoApicTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(ioapic.attach(mmio));
    ASSERT_TRUE(pic.attach(ports));
    apic.mmio_write(PA{kApicDefaultBase + kApicSvr}, 4, 0x1FF);
  }
  std::uint32_t read(unsigned index) {
    mmio.write(IoApic::kBase, 4, index);
    return static_cast<std::uint32_t>(mmio.read(IoApic::kBase + 0x10, 4));
  }
  void write(unsigned index, std::uint32_t value) {
    mmio.write(IoApic::kBase, 4, index);
    mmio.write(IoApic::kBase + 0x10, 4, value);
  }
  void program(unsigned pin, std::uint32_t low, std::uint32_t destination = 0) {
    write(0x11 + 2 * pin, destination << 24);
    write(0x10 + 2 * pin, low);
  }
  std::uint32_t entry(unsigned pin) { return read(0x10 + 2 * pin); }
  unsigned take() { return apic.acknowledge().value_or(0); }
  void eoi() { apic.mmio_write(PA{kApicDefaultBase + kApicEoi}, 4, 0); }
  static constexpr std::uint32_t kLevel = 1U << 15, kMasked = 1U << 16, kRemoteIrr = 1U << 14;

  ManualClock clock;
  Bus ports{16}, mmio{64};
  ApicBus bus;
  LocalApic apic{{0, true}, bus, clock, clock};
  testing::Line intr;
  Pic8259 pic{intr};
  IoApic ioapic{bus, 7};
  IrqRouter router{pic, ioapic};
};

TEST_F(IoApicTest, IdentifiesItself) {
  EXPECT_EQ(read(0), 7U << 24);
  EXPECT_EQ(read(1), 0x00170020U);
  for (unsigned pin = 0; pin < 24; ++pin) EXPECT_EQ(entry(pin), kMasked);
  EXPECT_EQ(read(0x40), 0xFFFFFFFFU) << "past the last entry";
  EXPECT_EQ(read(0x05), 0xFFFFFFFFU);
}

TEST_F(IoApicTest, IdHasFourBitsAndSetsTheArbitrationId) {
  write(0, 0xFFFFFFFF);
  EXPECT_EQ(read(0), 0x0F000000U);
  EXPECT_EQ(read(2), 0x0F000000U);
  write(2, 0);
  EXPECT_EQ(read(2), 0x0F000000U);
}

TEST_F(IoApicTest, EdgeDeliversOncePerEdge) {
  program(5, 0x55);
  ioapic.set_pin(5, true);
  ioapic.set_pin(5, true);
  EXPECT_EQ(take(), 0x55U);
  eoi();
  EXPECT_EQ(take(), 0U);
  EXPECT_EQ(entry(5) & kRemoteIrr, 0U);
  ioapic.set_pin(5, false);
  ioapic.set_pin(5, true);
  EXPECT_EQ(take(), 0x55U);
}

TEST_F(IoApicTest, LevelWaitsForItsEoiAndComesAgain) {
  program(9, kLevel | 0x59);
  ioapic.set_pin(9, true);
  EXPECT_EQ(entry(9) & kRemoteIrr, kRemoteIrr);
  EXPECT_EQ(take(), 0x59U);
  ioapic.set_pin(9, false);
  ioapic.set_pin(9, true);
  EXPECT_EQ(apic.mmio_read(PA{kApicDefaultBase + kApicIrr + 0x20}, 4), 0U)
      << "remote IRR holds it back";
  eoi();
  EXPECT_EQ(entry(9) & kRemoteIrr, kRemoteIrr) << "still asserted: sent again";
  EXPECT_EQ(take(), 0x59U);
  ioapic.set_pin(9, false);
  eoi();
  EXPECT_EQ(entry(9) & kRemoteIrr, 0U);
  EXPECT_EQ(take(), 0U);
}

TEST_F(IoApicTest, MaskedLevelIsSentWhenUnmaskedAndMaskedEdgeIsLost) {
  program(9, kMasked | kLevel | 0x59);
  program(5, kMasked | 0x55);
  ioapic.set_pin(9, true);
  ioapic.set_pin(5, true);
  EXPECT_EQ(take(), 0U);
  program(5, 0x55);
  EXPECT_EQ(take(), 0U);
  program(9, kLevel | 0x59);
  EXPECT_EQ(take(), 0x59U);
}

TEST_F(IoApicTest, EoiOfAnotherVectorChangesNothing) {
  program(9, kLevel | 0x59);
  ioapic.set_pin(9, true);
  ioapic.end_of_interrupt(0x58);
  EXPECT_EQ(entry(9) & kRemoteIrr, kRemoteIrr);
  ioapic.set_pin(9, false);
  mmio.write(IoApic::kBase + 0x40, 4, 0x59);
  EXPECT_EQ(entry(9) & kRemoteIrr, 0U) << "the EOI register";
}

TEST_F(IoApicTest, RemoteIrrIsReadOnlyAndGoesWithTheEdge) {
  program(9, kLevel | kRemoteIrr | 0x59);
  EXPECT_EQ(entry(9), kLevel | 0x59U);
  ioapic.set_pin(9, true);
  program(9, kMasked | kLevel | 0x59);
  EXPECT_EQ(entry(9) & kRemoteIrr, kRemoteIrr);
  program(9, kMasked | 0x59);
  EXPECT_EQ(entry(9) & kRemoteIrr, 0U);
}

TEST_F(IoApicTest, ALevelNobodyTakesDoesNotHang) {
  program(9, kLevel | 0x59, 99);
  ioapic.set_pin(9, true);
  EXPECT_EQ(entry(9) & kRemoteIrr, 0U);
  program(9, kLevel | 0x59, 0);
  EXPECT_EQ(take(), 0x59U);
}

TEST_F(IoApicTest, DeliveryModesAndLogicalDestination) {
  program(3, 0x400);
  ioapic.set_pin(3, true);
  EXPECT_TRUE(apic.take_nmi());
  apic.mmio_write(PA{kApicDefaultBase + kApicLdr}, 4, 0x04000000);
  program(4, 0x800 | 0x100 | 0x54, 0x04);
  ioapic.set_pin(4, true);
  EXPECT_EQ(take(), 0x54U);
  apic.connect_pic(pic);
  program(0, 0x700);
  ioapic.set_pin(0, true);
  EXPECT_TRUE(apic.pending()) << "ExtINT through the I/O APIC asks the PIC";
  EXPECT_EQ(apic.acknowledge(), 0x07) << "which has nothing: spurious, vector base 0";
}

TEST_F(IoApicTest, OddAccessesAndPinsAreHarmless) {
  ioapic.set_pin(24, true);
  ioapic.set_pin(~0U, true);
  write(0x10, 0x00000055);
  mmio.write(IoApic::kBase + 0x10, 1, 0xFF);
  EXPECT_EQ(entry(0), 0x55U) << "the window is written whole";
  EXPECT_EQ(mmio.read(IoApic::kBase + 0x20, 4), 0U);
  EXPECT_EQ(mmio.read(IoApic::kBase + 0x11, 1), 0U);
  write(0, 0x0A000000);
  EXPECT_EQ(read(0), 0x0A000000U);
}

TEST_F(IoApicTest, RouterDrivesBothControllers) {
  for (unsigned irq = 0; irq < 16; ++irq) {
    if (irq == 2) continue;
    const unsigned pin = irq == 0 ? 2 : irq;
    program(pin, 0x60 + irq);
    router.isa(irq).set(true);
    EXPECT_EQ(take(), 0x60 + irq);
    eoi();
    program(pin, kMasked);
    router.isa(irq).set(false);
  }
  for (const unsigned port : {0x20U, 0x21U, 0x21U, 0x21U, 0x21U}) {
    static constexpr unsigned kSequence[] = {0x11, 0x20, 0x04, 0x01, 0x00};
    static unsigned step = 0;
    ports.write(port, 1, kSequence[step++ % 5]);
  }
  router.isa(0).set(true);
  EXPECT_TRUE(intr.level());
  EXPECT_EQ(pic.acknowledge_ext_int(), 0x20);
}

TEST_F(IoApicTest, RouterLinesThatGoNowhere) {
  for (unsigned pin = 0; pin < 24; ++pin) program(pin, 0x60 + pin);
  router.isa(2).set(true);
  router.isa(16).set(true);
  router.gsi(24).set(true);
  EXPECT_EQ(take(), 0U);
  EXPECT_FALSE(intr.level());
  router.gsi(20).pulse();
  EXPECT_EQ(take(), 0x60U + 20);
  EXPECT_FALSE(intr.level()) << "not wired to the PIC";
}

}  // namespace
}  // namespace strata::devices
