// Devices that reach guest memory themselves, as disks do: what they store while they answer is
// part of the answer, once and in order.
#include <gtest/gtest.h>

#include "machine/test_support.hpp"
#include "test_support.hpp"
#include "vmm/replay/recorder.hpp"

namespace strata::replay {
namespace {

constexpr PA kHere{0x4321}, kThere{0x10000};

class Kept final : public EventSink {
 public:
  void write(const Event& event) override { events.push_back(event); }
  std::vector<Event> events;
};

/// A write to it stores in three ways.
class Device final : public vmm::ExitHandler, public devices::MemoryWriter {
 public:
  explicit Device(machine::GuestMemory& memory) : memory_{memory} {}
  std::uint64_t port_read(VcpuId, std::uint16_t, unsigned) override { return 0; }
  void port_write(VcpuId, std::uint16_t, unsigned, std::uint64_t) override {}
  std::uint64_t mmio_read(VcpuId, PA, unsigned) override { return 0; }
  void mmio_write(VcpuId, PA, unsigned, std::uint64_t) override {
    const std::array<std::byte, 2> bytes{std::byte{0x11}, std::byte{0x22}};
    machine::test::must(memory_.write(machine::kIdentitySpace, kHere, bytes));
    {
      auto pin = machine::test::must(
          memory_.pin(machine::kIdentitySpace, kThere, kLong, AccessKind::write));
      std::memset(pin.chunks()[0].data(), 0x33, kLong);
    }
    (void)recorder->write(kHere, bytes);
  }
  std::optional<std::uint64_t> msr_read(VcpuId, std::uint32_t) override { return 0; }
  bool msr_write(VcpuId, std::uint32_t, std::uint64_t) override { return true; }
  std::uint64_t hypercall(VcpuId, const cpu::VcpuState&) override { return 0; }
  bool write(PA pa, std::span<const std::byte> bytes) override {
    return memory_.write(machine::kIdentitySpace, pa, bytes).has_value();
  }
  static constexpr std::size_t kLong = 100'000;
  Recorder* recorder = nullptr;

 private:
  machine::GuestMemory& memory_;
};

TEST(RecorderMemory, LogsEachStoreOnceAndBeforeTheAnswer) {
  machine::test::TestMachine memory{8};
  interp::test::Machine vcpu;
  interp::test::FakeTsc tsc;
  HostRandom random;
  Kept log;
  Recorder recorder{log, 1, tsc, random};
  Device device{memory.guest};
  device.recorder = &recorder;
  recorder.connect(device, device);
  recorder.connect(0, *vcpu.core);
  memory.store<std::uint32_t>(kHere, 0);
  EXPECT_TRUE(log.events.empty()) << "nobody watches yet";
  recorder.watch(memory.guest);
  recorder.mmio_write(0, PA{0xD0000000}, 4, 0);

  const std::vector<Event>& e = log.events;
  ASSERT_EQ(e.size(), 5U);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(e[i].kind, EventKind::memory) << i;
  EXPECT_EQ(e[0].address, kHere.value());
  EXPECT_EQ(e[0].bytes, (std::vector{std::byte{0x11}, std::byte{0x22}}));
  EXPECT_EQ(e[1].address, kThere.value());
  EXPECT_EQ(e[2].address, kThere.value() + e[1].bytes.size());
  EXPECT_EQ(e[1].bytes.size() + e[2].bytes.size(), Device::kLong);
  EXPECT_EQ(e[2].bytes.back(), std::byte{0x33});
  EXPECT_EQ(e[3].address, kHere.value()) << "write() logs its own store, and nobody else does";
  EXPECT_EQ(e[4].kind, EventKind::mmio_write);
}

}  // namespace
}  // namespace strata::replay
