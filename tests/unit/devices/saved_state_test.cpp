// Devices out and in again: what was loaded behaves as what was saved, and nonsense is refused.
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "devices/acpi_pm.hpp"
#include "devices/ioapic.hpp"
#include "devices/kvmclock.hpp"
#include "devices/local_apic.hpp"
#include "devices/manual_clock.hpp"
#include "devices/pci_host.hpp"
#include "devices/pic8259.hpp"
#include "devices/pit8254.hpp"
#include "devices/rtc_cmos.hpp"
#include "devices/serial8250.hpp"
#include "support.hpp"

namespace strata::devices {
namespace {

using nlohmann::json;

class Sink final : public CharSink {
 public:
  void put(std::span<const std::uint8_t> bytes) override {
    text.insert(text.end(), bytes.begin(), bytes.end());
  }
  std::string text;
};

class Memory final : public MemoryWriter {
 public:
  bool write(PA, std::span<const std::byte>) override { return true; }
};

/// A machine's worth of devices on one bus and one clock.
struct Board {
  ManualClock clock;
  testing::Control control;
  Sink sink;
  Memory memory;
  Bus ports{16};
  ApicBus apic_bus;
  LocalApic apic{{.id = 0, .bootstrap = true}, apic_bus, clock, clock};
  Pic8259 pic{apic.lint0()};
  IoApic ioapic{apic_bus, 1};
  IrqRouter irqs{pic, ioapic};
  Pit8254 pit{clock, clock, irqs.isa(0)};
  RtcCmos rtc{clock, clock, irqs.isa(8)};
  AcpiPm acpi{{.base = 0x600, .s5_sleep_type = 5}, clock, clock, irqs.isa(9), control};
  Serial8250 serial{sink, irqs.isa(4)};
  PciHost pci{control};
  KvmClock kvmclock{clock, memory, 2};

  Board() {
    apic.connect_pic(pic);
    apic.enter_virtual_wire_mode();
    EXPECT_TRUE(pic.attach(ports) && pit.attach(ports) && rtc.attach(ports) && acpi.attach(ports) &&
                serial.attach(ports) && pci.attach(ports));
  }
  [[nodiscard]] json save() {
    return {{"apic", apic.save()},     {"pic", pic.save()},          {"ioapic", ioapic.save()},
            {"pit", pit.save()},       {"rtc", rtc.save()},          {"acpi", acpi.save()},
            {"serial", serial.save()}, {"pci", pci.save()},          {"kvmclock", kvmclock.save()},
            {"now", clock.now()},      {"timers", clock.deadlines()}};
  }
  void load(const json& state) {
    clock.jump(state["now"].get<Nanoseconds>());
    ASSERT_TRUE(apic.load(state["apic"]));
    ASSERT_TRUE(pic.load(state["pic"]));
    ASSERT_TRUE(ioapic.load(state["ioapic"]));
    ASSERT_TRUE(pit.load(state["pit"]));
    ASSERT_TRUE(rtc.load(state["rtc"]));
    ASSERT_TRUE(acpi.load(state["acpi"]));
    ASSERT_TRUE(serial.load(state["serial"]));
    ASSERT_TRUE(pci.load(state["pci"]));
    ASSERT_TRUE(kvmclock.load(state["kvmclock"]));
    const auto deadlines = state["timers"].get<std::vector<Nanoseconds>>();
    for (std::size_t i = 0; i < deadlines.size(); ++i) {
      clock.arm(static_cast<Timers::Id>(i), deadlines[i]);
    }
  }

  /// One step of a hostile driver; what it saw.
  std::uint64_t step(std::mt19937& rng) {
    constexpr std::array<std::uint16_t, 24> kPorts{
        0x20,  0x21,  0xA0,  0xA1,  0x4D0, 0x40,  0x41,  0x42,  0x43,  0x61,  0x70,  0x71,
        0x3F8, 0x3F9, 0x3FA, 0x3FB, 0x3FC, 0x3FD, 0x3FE, 0x3FF, 0x600, 0x602, 0x608, 0xCF8};
    const std::uint16_t port = kPorts[rng() % kPorts.size()];
    const std::uint64_t value = rng();
    const auto msr = static_cast<std::uint32_t>(0x800 + rng() % 0x40);
    switch (rng() % 8) {
      case 0:
      case 1:
        return ports.read(port, 1);
      case 2:
      case 3:
        ports.write(port, 1, value & 0xFF);
        return 0;
      case 4:
        clock.advance(value % 3'000'000);
        return pending();
      case 5:
        if (rng() % 2 == 0) return apic.acknowledge().value_or(0x1FF);
        return apic.mmio_read(PA{kApicDefaultBase + (msr & 0x3F) * 16}, 4);
      case 6: {
        const std::array<std::uint8_t, 2> typed{static_cast<std::uint8_t>(value), 7};
        return serial.receive(typed);
      }
      default:
        apic.mmio_write(PA{kApicDefaultBase + (msr & 0x3F) * 16}, 4, value & 0x000507FF);
        ioapic.write(rng() % 2 * 0x10, 4, value & 0x1FFFF);
        return ioapic.read(0x10, 4);
    }
  }
  [[nodiscard]] std::uint64_t pending() {
    return (apic.pending() ? 1U : 0U) | (apic.nmi_pending() ? 2U : 0U);
  }
};

/// After any history, a loaded board answers every later access as the one it was saved from.
TEST(SavedState, LoadedDevicesGoOnAsTheSavedOnes) {
  for (unsigned seed = 1; seed <= 40; ++seed) {
    Board first;
    std::mt19937 history{seed};
    for (int i = 0; i < 300; ++i) first.step(history);
    const json state = json::from_cbor(json::to_cbor(first.save()));
    Board second;
    second.load(state);
    ASSERT_EQ(second.save(), state) << seed;
    std::mt19937 a{seed + 1000};
    std::mt19937 b{seed + 1000};
    for (int i = 0; i < 300; ++i) {
      ASSERT_EQ(first.step(a), second.step(b)) << "seed " << seed << " step " << i;
      ASSERT_EQ(first.pending(), second.pending()) << "seed " << seed << " step " << i;
    }
    ASSERT_EQ(first.save(), second.save()) << seed;
  }
}

/// Two APICs that are equal to a lowest-priority message.
struct Pair {
  ManualClock clock;
  ApicBus bus;
  LocalApic first{{.id = 0, .bootstrap = true}, bus, clock, clock};
  LocalApic second{{.id = 1}, bus, clock, clock};
  Pair() {
    take_part(first);
    take_part(second);
  }
  static void take_part(LocalApic& apic) {
    apic.mmio_write(PA{0xFEE000F0}, 4, 0x1FF);
    apic.mmio_write(PA{0xFEE000D0}, 4, 0x0300'0000);
  }
  /// Which one takes the next message.
  unsigned next() {
    ApicMessage message;
    message.destination = 3;
    message.logical = true;
    message.mode = DeliveryMode::lowest_priority;
    message.vector = 0x55;
    const std::uint64_t before = second.stats().accepted;
    EXPECT_EQ(bus.deliver(message), 1U);
    return second.stats().accepted == before ? 0 : 1;
  }
};

/// Where the next of equal APICs is in the rotation is state too.
TEST(SavedState, LowestPriorityGoesOnWhereItWas) {
  for (unsigned sent = 0; sent < 4; ++sent) {
    Pair saved, loaded;
    for (unsigned i = 0; i < sent; ++i) saved.next();
    ASSERT_TRUE(loaded.bus.load(json::from_cbor(json::to_cbor(saved.bus.save()))));
    EXPECT_EQ(loaded.next(), saved.next()) << sent;
  }
}

/// Each field in turn missing, of the wrong type, out of range or huge: an error or a state that
/// works, never a crash.
TEST(SavedState, NonsenseIsRefusedOrWorks) {
  Board board;
  const json whole = board.save();
  const auto try_one = [](const std::string& device, const json& state) {
    Board target;
    const std::map<std::string, std::function<StateResult()>> loads{
        {"apic", [&] { return target.apic.load(state); }},
        {"pic", [&] { return target.pic.load(state); }},
        {"ioapic", [&] { return target.ioapic.load(state); }},
        {"pit", [&] { return target.pit.load(state); }},
        {"rtc", [&] { return target.rtc.load(state); }},
        {"acpi", [&] { return target.acpi.load(state); }},
        {"serial", [&] { return target.serial.load(state); }},
        {"pci", [&] { return target.pci.load(state); }},
        {"kvmclock", [&] { return target.kvmclock.load(state); }}};
    const StateResult done = loads.at(device)();
    if (!done) {
      EXPECT_FALSE(done.error().message.empty());
      return false;
    }
    std::mt19937 rng{1};
    for (int i = 0; i < 60; ++i) (void)target.step(rng);
    return true;
  };
  for (const auto& [device, state] : whole.items()) {
    if (!state.is_object()) continue;
    EXPECT_TRUE(try_one(device, state)) << device;
    EXPECT_FALSE(try_one(device, json::array())) << device;
    for (const auto& [key, value] : state.items()) {
      json changed = state;
      changed.erase(key);
      (void)try_one(device, changed);  // an optional may be absent
      changed[key] = "text";
      EXPECT_FALSE(try_one(device, changed)) << device << '.' << key;
      for (const std::uint64_t n : {0ULL, 1ULL, 0xFFULL, 0x10000ULL, ~0ULL, 1ULL << 63}) {
        if (value.is_number()) changed[key] = n;
        if (value.is_array()) changed[key] = json(value.size(), n);
        (void)try_one(device, changed);
      }
      if (!value.is_object()) continue;
      for (const auto& [inner, ignored] : value.items()) {
        changed = state;
        for (const std::uint64_t n : {0ULL, 3ULL, 0xFFULL, 0x10001ULL, ~0ULL, 1ULL << 63}) {
          changed[key][inner] = n;
          (void)try_one(device, changed);
        }
      }
    }
  }
}

TEST(SavedState, AnErrorNamesTheField) {
  Board board;
  json state = board.apic.save();
  state["timer_running"] = 1U;  // with a period of nothing
  state["initial_count"] = 0U;
  auto done = board.apic.load(state);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().message, "apic.timer_running does not go with the rest");
  state = board.pit.save();
  state["counter0"]["reload"] = 0x10001U;
  done = board.pit.load(state);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().message, "pit.counter0.reload is out of range");
}

}  // namespace
}  // namespace strata::devices
