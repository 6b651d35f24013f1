// A guest that writes random values to random registers of a whole machine: nothing may crash,
// hang, or leave a controller unusable. Under the sanitizers this is where races would show.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "devices/acpi_pm.hpp"
#include "devices/ioapic.hpp"
#include "devices/kvmclock.hpp"
#include "devices/local_apic.hpp"
#include "devices/manual_clock.hpp"
#include "devices/pci_host.hpp"
#include "devices/pit8254.hpp"
#include "devices/rtc_cmos.hpp"
#include "devices/serial8250.hpp"
#include "devices/system_ports.hpp"
#include "support.hpp"

namespace strata::devices {
namespace {

class CountingSink final : public CharSink {
 public:
  void put(std::span<const std::uint8_t> bytes) override { count += bytes.size(); }
  std::atomic<std::size_t> count{0};
};

class NoMemory final : public MemoryWriter {
 public:
  bool write(PA pa, std::span<const std::byte> bytes) override {
    return pa.value() <= ~0ULL - bytes.size() && pa.value() < 1U << 20;
  }
};

/// Everything composed as the VMM does it.
struct Machine {
  static constexpr unsigned kVcpus = 3;

  Machine(Clock& clock, Timers& timers)
      : apics{make_apics(clock, timers)},
        pic{apics[0]->lint0()},
        ioapic{apic_bus, 0},
        router{pic, ioapic},
        pit{clock, timers, router.isa(0)},
        rtc{clock, timers, router.isa(8)},
        serial{sink, router.isa(4)},
        pm{{}, clock, timers, router.isa(9), control},
        system{{.keyboard_controller = true, .debug_exit_port = std::uint16_t{0xF4}}, control},
        pci{control},
        kvm{clock, memory, kVcpus} {
    apics[0]->connect_pic(pic);
    apics[0]->enter_virtual_wire_mode();
    for (auto& apic : apics) {
      apic->set_callbacks(
          {[this] { ++wakes; }, [this] { ++wakes; }, [this](std::uint8_t) { ++wakes; }});
    }
    const bool attached = pic.attach(ports) && pit.attach(ports) && rtc.attach(ports) &&
                          serial.attach(ports) && pm.attach(ports) && system.attach(ports) &&
                          pci.attach(ports) && ioapic.attach(mmio) && pci.add(0, bridge);
    EXPECT_TRUE(attached);
  }
  std::vector<std::unique_ptr<LocalApic>> make_apics(Clock& clock, Timers& timers) {
    std::vector<std::unique_ptr<LocalApic>> made;
    for (std::uint32_t id = 0; id < kVcpus; ++id) {
      made.push_back(
          std::make_unique<LocalApic>(LocalApic::Config{id, id == 0}, apic_bus, clock, timers));
    }
    return made;
  }

  Bus ports{16}, mmio{64};
  ApicBus apic_bus;
  testing::Control control;
  CountingSink sink;
  NoMemory memory;
  std::atomic<int> wakes{0};
  std::vector<std::unique_ptr<LocalApic>> apics;
  Pic8259 pic;
  IoApic ioapic;
  IrqRouter router;
  Pit8254 pit;
  RtcCmos rtc;
  Serial8250 serial;
  AcpiPm pm;
  SystemPorts system;
  PciHost pci;
  PciHostBridge bridge;
  KvmClock kvm;
};

constexpr std::array<std::uint16_t, 14> kPorts{0x20,  0xA0,  0x4D0, 0x40, 0x61, 0x70, 0x60,
                                               0x3F8, 0x600, 0xCF8, 0x92, 0x80, 0xF4, 0xFFF8};

class Guest {
 public:
  Guest(Machine& machine, unsigned vcpu, unsigned seed)
      : machine_{machine}, vcpu_{vcpu}, random_{seed} {}

  void step() {
    LocalApic& apic = *machine_.apics[vcpu_];
    const unsigned size = 1U << pick(4);
    const std::uint64_t value = pick(3) == 0 ? random_() : pick(256);
    switch (pick(10)) {
      case 0:
      case 1:
      case 2:
        machine_.ports.write(port(), size, value);
        break;
      case 3:
      case 4:
        (void)machine_.ports.read(port(), size);
        break;
      case 5:
        access_apic(apic, size, value);
        break;
      case 6:
        access_msr(apic, value);
        break;
      case 7:
        access_ioapic(size, value);
        break;
      case 8:
        take_interrupts(apic);
        break;
      default:
        from_outside(value);
        break;
    }
  }

 private:
  std::uint64_t pick(std::uint64_t n) { return random_() % n; }
  std::uint16_t port() {
    return static_cast<std::uint16_t>(kPorts[pick(kPorts.size())] + pick(0x28));
  }
  void access_apic(LocalApic& apic, unsigned size, std::uint64_t value) {
    const PA pa{kApicDefaultBase + (pick(4) == 0 ? pick(4096) : pick(64) * 16)};
    if (pick(2) == 0) {
      (void)apic.mmio_read(pa, size);
    } else {
      apic.mmio_write(pa, pick(4) == 0 ? size : 4, value);
    }
  }
  void access_msr(LocalApic& apic, std::uint64_t value) {
    static constexpr std::array<std::uint32_t, 6> kOthers{
        kMsrApicBase, kMsrTscDeadline, kMsrKvmWallClock, kMsrKvmSystemTime, 0x11, 0x12};
    const auto msr = pick(3) == 0 ? kOthers[pick(kOthers.size())]
                                  : static_cast<std::uint32_t>(0x800 + pick(0x42));
    const std::uint64_t base = kApicDefaultBase | pick(4) << 10;
    const std::uint64_t written = msr == kMsrApicBase && pick(2) == 0 ? base : value;
    if (LocalApic::owns_msr(msr)) {
      if (apic.write_msr(msr, written)) (void)apic.read_msr(msr);
    } else if (machine_.kvm.write_msr(static_cast<unsigned>(pick(4)), msr, written)) {
      (void)machine_.kvm.read_msr(vcpu_, msr);
    }
  }
  void access_ioapic(unsigned size, std::uint64_t value) {
    machine_.mmio.write(IoApic::kBase, 1, pick(0x48));
    machine_.mmio.write(IoApic::kBase + 0x10, size, value & ~0x700ULL);
    (void)machine_.mmio.read(IoApic::kBase + pick(0x50), size);
  }
  void take_interrupts(LocalApic& apic) {
    for (int i = 0; i < 8 && apic.pending(); ++i) {
      if (!apic.acknowledge()) break;
      if (pick(2) == 0) apic.mmio_write(PA{kApicDefaultBase + kApicEoi}, 4, 0);
    }
    (void)apic.take_nmi();
    apic.set_cr8(pick(16));
  }
  void from_outside(std::uint64_t value) {
    std::array<std::uint8_t, 64> typed{};
    (void)machine_.serial.receive(typed);
    machine_.router.isa(static_cast<unsigned>(pick(18))).set((value & 1) != 0);
    machine_.router.gsi(static_cast<unsigned>(pick(26))).set((value & 2) != 0);
    (void)machine_.apic_bus.deliver_msi(0xFEE00000 | pick(1 << 20),
                                        static_cast<std::uint32_t>(value));
    machine_.pm.raise_gpe(static_cast<unsigned>(pick(20)));
    machine_.pm.press_power_button();
  }

  Machine& machine_;
  const unsigned vcpu_;
  std::mt19937_64 random_;
};

/// After all that, a guest that sets things up properly gets its timer interrupt.
void expect_usable(Machine& machine, ManualClock& clock) {
  LocalApic& apic = *machine.apics[0];
  ASSERT_TRUE(apic.write_msr(kMsrApicBase, kApicDefaultBase));
  ASSERT_TRUE(apic.write_msr(kMsrApicBase, kApicDefaultBase | 0x800));
  const auto put = [&](std::uint32_t reg, std::uint32_t v) {
    apic.mmio_write(PA{kApicDefaultBase + reg}, 4, v);
  };
  put(kApicSvr, 0x1FF);
  put(kApicDivide, 0xB);
  put(kApicLvtTimer, 0xEE);
  put(kApicInitialCount, 1'000'000);
  for (unsigned i = 0; i < 10'000 && apic.pending(); ++i) (void)apic.acknowledge();
  clock.advance(1'000'000);
  EXPECT_EQ(apic.acknowledge(), 0xEE);
}

TEST(Hammer, OneVcpuOnManualTime) {
  for (unsigned seed = 1; seed <= 8; ++seed) {
    ManualClock clock;
    Machine machine{clock, clock};
    Guest guest{machine, 0, seed};
    for (int i = 0; i < 20'000; ++i) {
      guest.step();
      if (i % 8 == 0) clock.advance(static_cast<Nanoseconds>(i) * 7 % 100'000);
    }
    expect_usable(machine, clock);
  }
}

TEST(Hammer, TimeThatLeapsByHours) {
  for (unsigned seed = 100; seed < 104; ++seed) {
    ManualClock clock;
    Machine machine{clock, clock};
    Guest guest{machine, 0, seed};
    for (int i = 0; i < 5'000; ++i) {
      guest.step();
      if (i % 100 == 0) {
        clock.jump(3600 * kNanosecondsPerSecond);
        clock.run_due();
      }
    }
    expect_usable(machine, clock);
  }
}

TEST(Hammer, ThreeVcpusAndATimerThread) {
  GuestClock clock;
  TimerService timers{clock};
  timers.start();
  Machine machine{clock, timers};
  std::vector<std::thread> threads;
  for (unsigned vcpu = 0; vcpu < Machine::kVcpus; ++vcpu) {
    threads.emplace_back([&machine, vcpu] {
      Guest guest{machine, vcpu, 1000 + vcpu};
      for (int i = 0; i < 20'000; ++i) guest.step();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(machine.wakes, 0);
  EXPECT_GT(machine.ports.counts().size(), 8U);
}

}  // namespace
}  // namespace strata::devices
