#include "devices/kvmclock.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "devices/manual_clock.hpp"

namespace strata::devices {
namespace {

__extension__ using Wide = unsigned __int128;

/// 4 KiB of RAM at 1000h that remembers the version fields it was given.
class Ram final : public MemoryWriter {
 public:
  bool write(PA pa, std::span<const std::byte> bytes) override {
    if (pa.value() < 0x1000 || pa.value() + bytes.size() > 0x2000) return false;
    std::memcpy(bytes_.data() + (pa.value() - 0x1000), bytes.data(), bytes.size());
    if (bytes.size() == 4) versions.push_back(at<std::uint32_t>(pa.value()));
    return true;
  }
  template <class T>
  T at(std::uint64_t pa) const {
    T value{};
    std::memcpy(&value, bytes_.data() + (pa - 0x1000), sizeof value);
    return value;
  }
  std::vector<std::uint32_t> versions;

 private:
  std::vector<std::byte> bytes_ = std::vector<std::byte>(4096);
};

/// The guest's side: pvclock_read of Linux.
std::uint64_t guest_ns(const Ram& ram, std::uint64_t pa, std::uint64_t tsc) {
  std::uint64_t delta = tsc - ram.at<std::uint64_t>(pa + 8);
  const auto shift = ram.at<std::int8_t>(pa + 28);
  delta = shift >= 0 ? delta << shift : delta >> -shift;
  return ram.at<std::uint64_t>(pa + 16) +
         static_cast<std::uint64_t>(Wide{delta} * ram.at<std::uint32_t>(pa + 24) >> 32);
}

TEST(ClockScale, IsExactToTheLastBit) {
  for (const std::uint64_t khz : {1ULL, 999ULL, 1'000ULL, 999'999ULL, 1'000'000ULL, 1'000'001ULL,
                                  2'445'406ULL, 2'499'998ULL, 3'700'000ULL, 10'000'000ULL}) {
    const ClockScale s = clock_scale(khz);
    EXPECT_GE(s.multiplier, 1U << 31) << khz;
    // multiplier <= 10^6 * 2^(32 - shift) / khz < multiplier + 1
    const Wide exact = Wide{1'000'000} << (32 - s.shift);
    EXPECT_LE(Wide{s.multiplier} * khz, exact) << khz;
    EXPECT_GT((Wide{s.multiplier} + 1) * khz, exact) << khz;
  }
}

class KvmClockTest : public ::testing::Test {
 protected:
  ManualClock clock{2'445'406, 12345};
  Ram ram;
};

TEST_F(KvmClockTest, GuestComputesGuestTime) {
  clock.jump(5'000'000);
  KvmClock kvm{clock, ram, 2};
  clock.jump(7'000'000'000);
  ASSERT_TRUE(kvm.write_msr(0, kMsrKvmSystemTime, 0x1040 | 1));
  ASSERT_TRUE(kvm.write_msr(1, kMsrKvmSystemTimeOld, 0x1080 | 1));
  EXPECT_EQ(ram.at<std::uint8_t>(0x1040 + 29), 1) << "TSC stable";
  for (int i = 0; i < 5; ++i) {
    const std::uint64_t ns = guest_ns(ram, 0x1040, clock.tsc());
    EXPECT_NEAR(static_cast<double>(ns), static_cast<double>(clock.now()), 30.0);
    EXPECT_EQ(ns, guest_ns(ram, 0x1080, clock.tsc())) << "the same on every vCPU";
    clock.jump(10'000'000'000);
  }
}

TEST_F(KvmClockTest, VersionIsOddDuringTheUpdateAndEvenAfter) {
  KvmClock kvm{clock, ram, 1};
  ASSERT_TRUE(kvm.write_msr(0, kMsrKvmSystemTime, 0x1041));
  EXPECT_EQ(ram.versions, (std::vector<std::uint32_t>{1, 2}));
  ASSERT_TRUE(kvm.write_msr(0, kMsrKvmSystemTime, 0x1041));
  EXPECT_EQ(ram.versions, (std::vector<std::uint32_t>{1, 2, 3, 4}));
}

TEST_F(KvmClockTest, DisabledWritesNothing) {
  KvmClock kvm{clock, ram, 1};
  EXPECT_TRUE(kvm.write_msr(0, kMsrKvmSystemTime, 0x1040));
  EXPECT_TRUE(ram.versions.empty());
  EXPECT_EQ(kvm.read_msr(0, kMsrKvmSystemTime), 0x1040U);
}

TEST_F(KvmClockTest, WallClockIsTheTimeOfPowerOn) {
  clock.set_epoch(1'795'341'211'250'000'000);
  clock.jump(3'000'000'000);
  KvmClock kvm{clock, ram, 1};
  ASSERT_TRUE(kvm.write_msr(0, kMsrKvmWallClock, 0x1100));
  EXPECT_EQ(ram.at<std::uint32_t>(0x1100), 2U);
  EXPECT_EQ(ram.at<std::uint32_t>(0x1104), 1'795'341'211U);
  EXPECT_EQ(ram.at<std::uint32_t>(0x1108), 250'000'000U);
  EXPECT_EQ(kvm.read_msr(0, kMsrKvmWallClockOld), 0x1100U);
}

TEST_F(KvmClockTest, BadAddressesAndVcpusAreHarmless) {
  KvmClock kvm{clock, ram, 1};
  EXPECT_TRUE(kvm.write_msr(0, kMsrKvmSystemTime, ~0ULL));
  EXPECT_TRUE(kvm.write_msr(0, kMsrKvmSystemTime, 0x1FF0 | 1));
  EXPECT_TRUE(kvm.write_msr(0, kMsrKvmWallClock, ~0ULL));
  EXPECT_FALSE(kvm.write_msr(1, kMsrKvmSystemTime, 0x1041));
  EXPECT_FALSE(kvm.write_msr(0, 0x4B564D02, 0));
  EXPECT_FALSE(kvm.read_msr(1, kMsrKvmWallClock));
  EXPECT_FALSE(kvm.read_msr(0, 0x13));
}

}  // namespace
}  // namespace strata::devices
