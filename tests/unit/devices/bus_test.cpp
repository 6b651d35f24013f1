#include "devices/bus.hpp"

#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace strata::devices {
namespace {

/// Answers with the offset in every byte and remembers the last write.
class Probe final : public Device {
 public:
  explicit Probe(std::string name) : name_{std::move(name)} {}
  std::string_view name() const noexcept override { return name_; }
  std::uint64_t read(std::uint64_t offset, unsigned size) override {
    last_size = size;
    std::uint64_t value = 0;
    for (unsigned i = 0; i < size; ++i) value |= ((offset + i) & 0xFF) << (8 * i);
    return value | (size < 8 ? ~0ULL << (8 * size) : 0);  // dirt above, for the bus to mask
  }
  void write(std::uint64_t offset, unsigned size, std::uint64_t value) override {
    ++writes;
    last_offset = offset;
    last_size = size;
    last_value = value;
  }
  int writes = 0;
  std::uint64_t last_offset = 0, last_value = 0;
  unsigned last_size = 0;

 private:
  std::string name_;
};

TEST(Bus, FindsTheRangeAndPassesOffsets) {
  Bus bus{16};
  Probe a{"a"}, b{"b"};
  ASSERT_TRUE(bus.add(0x100, 8, a));
  ASSERT_TRUE(bus.add(0x40, 4, b));
  EXPECT_EQ(bus.read(0x104, 4), 0x07060504U);
  EXPECT_EQ(bus.read(0x42, 2), 0x0302U);
  bus.write(0x107, 1, 0xFFF1);
  EXPECT_EQ(a.last_offset, 7U);
  EXPECT_EQ(a.last_value, 0xF1U);
  EXPECT_TRUE(bus.claims(0x107));
  EXPECT_FALSE(bus.claims(0x108));
  EXPECT_FALSE(bus.claims(0xFF));
}

TEST(Bus, RejectsOverlapEmptyAndOutOfSpace) {
  Bus bus{16};
  Probe a{"a"};
  ASSERT_TRUE(bus.add(0x100, 8, a));
  EXPECT_EQ(bus.add(0x107, 1, a).error(), BusError::overlap);
  EXPECT_EQ(bus.add(0xF9, 8, a).error(), BusError::overlap);
  EXPECT_EQ(bus.add(0xF0, 0x100, a).error(), BusError::overlap);
  EXPECT_TRUE(bus.add(0xF8, 8, a));
  EXPECT_TRUE(bus.add(0x108, 8, a));
  EXPECT_EQ(bus.add(0x200, 0, a).error(), BusError::empty);
  EXPECT_EQ(bus.add(0xFFFF, 2, a).error(), BusError::out_of_space);
  EXPECT_EQ(bus.add(0x10000, 1, a).error(), BusError::out_of_space);
  EXPECT_TRUE(bus.add(0xFFFF, 1, a));
}

TEST(Bus, UnclaimedReadsAllOnesAndDropsWrites) {
  Bus bus{64};
  EXPECT_EQ(bus.read(0xFEC00000, 1), 0xFFU);
  EXPECT_EQ(bus.read(0xFEC00000, 4), 0xFFFFFFFFU);
  EXPECT_EQ(bus.read(~0ULL, 8), ~0ULL);
  bus.write(~0ULL, 8, 1);
  EXPECT_EQ(bus.unclaimed(), 4U);
  EXPECT_EQ(bus.read(0, 3), ~0ULL) << "not a size an access has";
}

TEST(Bus, SplitsAccessesAcrossAnEnd) {
  Bus bus{16};
  Probe a{"a"}, b{"b"};
  ASSERT_TRUE(bus.add(0x10, 2, a));
  ASSERT_TRUE(bus.add(0x12, 1, b));
  EXPECT_EQ(bus.read(0x11, 4), 0xFFFF0001U) << "a's byte 1, b's byte 0, nobody twice";
  EXPECT_EQ(bus.read(0xF, 2), 0x00FFU) << "starts before the range";
  bus.write(0x11, 2, 0xBBAA);
  EXPECT_EQ(a.last_value, 0xAAU);
  EXPECT_EQ(a.last_offset, 1U);
  EXPECT_EQ(b.last_value, 0xBBU);
  EXPECT_EQ(b.last_size, 1U);
}

TEST(Bus, TheLastAddressesOfBothSpaces) {
  Bus ports{16}, memory{64};
  Probe a{"a"};
  ASSERT_TRUE(ports.add(0xFFFE, 2, a));
  ASSERT_TRUE(memory.add(~0ULL - 1, 2, a));
  EXPECT_EQ(ports.read(0xFFFF, 2), 0xFF01U);
  EXPECT_EQ(memory.read(~0ULL, 2), 0xFF01U);
  EXPECT_EQ(memory.read(~0ULL - 1, 2), 0x0100U);
  EXPECT_EQ(ports.read(0x10000, 1), ~0ULL);
}

TEST(Bus, CountsByNameAndForgetsRemovedRanges) {
  Bus bus{16};
  Probe a{"a"}, other_a{"a"};
  ASSERT_TRUE(bus.add(0x10, 1, a));
  ASSERT_TRUE(bus.add(0x20, 1, other_a));
  (void)bus.read(0x10, 1);
  (void)bus.read(0x20, 1);
  bus.write(0x20, 1, 0);
  ASSERT_EQ(bus.counts().size(), 1U);
  EXPECT_EQ(bus.counts()[0].name, "a");
  EXPECT_EQ(bus.counts()[0].reads, 2U);
  EXPECT_EQ(bus.counts()[0].writes, 1U);
  EXPECT_FALSE(bus.remove(0x11));
  EXPECT_TRUE(bus.remove(0x10));
  EXPECT_EQ(bus.read(0x10, 1), 0xFFU);
  EXPECT_EQ(bus.counts()[0].reads, 2U);
}

/// A device that moves its own range in the middle of a write, as a PCI BAR does.
class Mover final : public Device {
 public:
  explicit Mover(Bus& bus) : bus_{bus} {}
  std::string_view name() const noexcept override { return "mover"; }
  std::uint64_t read(std::uint64_t, unsigned) override { return 7; }
  void write(std::uint64_t, unsigned, std::uint64_t value) override {
    bus_.remove(0x1000);
    moved = bus_.add(value, 16, *this).has_value();
  }
  bool moved = false;

 private:
  Bus& bus_;
};

TEST(Bus, DevicesMayMoveThemselvesDuringAnAccess) {
  Bus bus{64};
  Mover mover{bus};
  ASSERT_TRUE(bus.add(0x1000, 16, mover));
  bus.write(0x1000, 8, 0x2000);
  EXPECT_TRUE(mover.moved);
  EXPECT_EQ(bus.read(0x1000, 1), 0xFFU);
  EXPECT_EQ(bus.read(0x2000, 1), 7U);
}

}  // namespace
}  // namespace strata::devices
