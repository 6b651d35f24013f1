#include "devices/virtio/block.hpp"

#include <gtest/gtest.h>

#include "memory_disk.hpp"
#include "pci_driver.hpp"

namespace strata::devices::virtio::test {
namespace {

constexpr PA kQueue{0x1000}, kHeader{0x8000}, kStatus{0x8100}, kData{0x10000};
constexpr std::uint64_t kSizeMax = 1 << 1, kSegMax = 1 << 2, kReadOnly = 1 << 5, kFlush = 1 << 9,
                        kDiscard = 1 << 13, kWriteZeroes = 1 << 14;
constexpr std::uint32_t kIn = 0, kOut = 1, kFlushType = 4, kGetId = 8, kDiscardType = 11,
                        kWriteZeroesType = 13;
constexpr std::size_t kDiskBytes = 1 << 20;
constexpr std::uint64_t kRamEnd = 8 << 20;

class BlockTest : public testing::Test {
 protected:
  explicit BlockTest(DiskKind kind = {}) : disk{new MemoryDisk{kDiskBytes, kind}} {
    for (std::size_t i = 0; i < kDiskBytes; ++i) disk->content[i] = std::byte(i / 512 + 1);
    start(kVersion1 | kFlush | kDiscard | kWriteZeroes);
  }
  void start(std::uint64_t features) {
    driver.start(features & driver.offered(), kQueue);
    queue = std::make_unique<DriverQueue>(machine.memory, kQueue);
    machine.memory.store<std::uint64_t>(kQueue + 0x100, 0);
    machine.memory.store<std::uint64_t>(kQueue + 0x200, 0);
  }
  void offer(std::uint32_t type, std::uint64_t sector, const std::vector<Buffer>& data) {
    machine.memory.store<std::uint32_t>(kHeader, type);
    machine.memory.store<std::uint64_t>(kHeader + 8, sector);
    machine.memory.store<std::uint8_t>(kStatus, 0xEE);
    std::vector<Buffer> buffers{{kHeader, 16, false}};
    buffers.insert(buffers.end(), data.begin(), data.end());
    buffers.push_back({kStatus, 1, true});
    queue->add(buffers);
  }
  /// The status byte of one request, with `written` as the used ring says.
  int ask(std::uint32_t type, std::uint64_t sector, const std::vector<Buffer>& data = {}) {
    offer(type, sector, data);
    driver.notify(0);
    const auto used = queue->take_used();
    if (used.size() != 1) return -1;
    written = used[0].written;
    return machine.memory.load<std::uint8_t>(kStatus);
  }

  MemoryDisk* disk;
  PciMachine machine{std::make_unique<Block>(std::unique_ptr<storage::Disk>{disk}, "serial")};
  PciDriver driver{machine};
  std::unique_ptr<DriverQueue> queue;
  std::uint32_t written = 0;
};

TEST_F(BlockTest, Configuration) {
  EXPECT_EQ(driver.device_config(0, 8), kDiskBytes / 512);
  EXPECT_EQ(driver.device_config(12, 4), 254U) << "segments";
  EXPECT_EQ(driver.device_config(20, 4), 512U);
  EXPECT_EQ(driver.device_config(40, 4), 1U) << "ranges of a discard";
  EXPECT_EQ(driver.device_config(52, 4), 1U);
  EXPECT_EQ(driver.device_config(56, 1), 1U);
  EXPECT_EQ(driver.device_config(0xFF8, 8), 0U);
  EXPECT_EQ(driver.offered() & 0xFFFFFF & ~(1U << 6),
            kSizeMax | kSegMax | kFlush | kDiscard | kWriteZeroes);
}

TEST_F(BlockTest, ReadsAndWrites) {
  EXPECT_EQ(ask(kIn, 3, {{kData, 512, true}, {kData + 0x2000, 1024, true}}), 0);
  EXPECT_EQ(written, 512U + 1024 + 1);
  EXPECT_EQ(machine.memory.load<std::uint8_t>(kData + 511), 4);
  EXPECT_EQ(machine.memory.load<std::uint8_t>(kData + 0x2000 + 1023), 6);
  machine.memory.store<std::uint64_t>(kData, 0x1122334455667788);
  EXPECT_EQ(ask(kOut, 9, {{kData, 512, false}}), 0);
  EXPECT_EQ(written, 1U);
  EXPECT_EQ(disk->content[9 * 512], std::byte{0x88});
  EXPECT_EQ(disk->content[10 * 512], std::byte{11});
  EXPECT_EQ(disk->operations.size(), 2U) << "no flush where the driver asks for its own";
  EXPECT_TRUE(machine.intx.level);
}

TEST_F(BlockTest, FlushIdAndRanges) {
  EXPECT_EQ(ask(kFlushType, 0), 0);
  EXPECT_EQ(disk->operations.back(), storage::Operation::flush);
  EXPECT_EQ(ask(kGetId, 0, {{kData, 20, true}}), 0);
  EXPECT_EQ(written, 21U);
  EXPECT_EQ(text_at(machine.memory, kData, 7), std::string("serial\0", 7));
  EXPECT_EQ(ask(kGetId, 0, {{kData, 19, true}}), 1);
  const auto range = [&](std::uint64_t sector, std::uint32_t sectors, std::uint32_t flags) {
    machine.memory.store<std::uint64_t>(kData, sector);
    machine.memory.store<std::uint32_t>(kData + 8, sectors);
    machine.memory.store<std::uint32_t>(kData + 12, flags);
  };
  range(5, 2, 0);
  EXPECT_EQ(ask(kDiscardType, 0, {{kData, 16, false}}), 0);
  EXPECT_EQ(disk->content[6 * 512], std::byte{0});
  EXPECT_EQ(disk->content[7 * 512], std::byte{8});
  range(7, 1, 1);
  EXPECT_EQ(ask(kDiscardType, 0, {{kData, 16, false}}), 2) << "a discard has no unmap flag";
  EXPECT_EQ(ask(kWriteZeroesType, 0, {{kData, 16, false}}), 0);
  EXPECT_EQ(disk->content[7 * 512], std::byte{0});
  EXPECT_EQ(ask(kWriteZeroesType, 0, {{kData, 15, false}}), 1);
  EXPECT_EQ(ask(kWriteZeroesType, 0, {{kData, 32, false}}), 1) << "more than one range";
  range(~0ULL / 512 + 1, 1, 0);
  EXPECT_EQ(ask(kWriteZeroesType, 0, {{kData, 16, false}}), 1);
  range(0, 0xFFFFFFFF, 0);
  EXPECT_EQ(ask(kDiscardType, 0, {{kData, 16, false}}), 1);
  EXPECT_EQ(ask(99, 0), 2);
}

TEST_F(BlockTest, ErrorsAreTheRequests) {
  EXPECT_EQ(ask(kIn, kDiskBytes / 512, {{kData, 512, true}}), 1);
  EXPECT_EQ(ask(kIn, ~0ULL, {{kData, 512, true}}), 1);
  EXPECT_EQ(ask(kIn, (1ULL << 55) + 1, {{kData, 512, true}}), 1) << "whose bytes wrap around";
  EXPECT_EQ(ask(kIn, 0, {{kData, 511, true}}), 1);
  EXPECT_EQ(ask(kOut, 0, {{PA{kRamEnd}, 512, false}}), 1) << "not memory";
  EXPECT_EQ(ask(kIn, 0, {{PA{kRamEnd - 256}, 512, true}}), 1);
  EXPECT_EQ(ask(kIn, 0, {{PA{0}, 65U << 20, true}}), 1) << "longer than a transfer can be";
  EXPECT_EQ(written, 1U);
  EXPECT_EQ(driver.status() & 0x40, 0);
}

TEST_F(BlockTest, WithoutAStatusByteTheDeviceNeedsAReset) {
  queue->add({{kHeader, 16, false}});
  driver.notify(0);
  EXPECT_EQ(driver.status() & 0x40, 0x40);
  start(kVersion1);
  queue->add({{kHeader, 15, false}, {kStatus, 1, true}});
  driver.notify(0);
  EXPECT_EQ(driver.status() & 0x40, 0x40);
  start(kVersion1);
  queue->add({{kHeader, 16, false}, {PA{kRamEnd}, 1, true}});
  driver.notify(0);
  EXPECT_EQ(driver.status() & 0x40, 0x40);
  start(kVersion1);
  EXPECT_EQ(ask(kIn, 0, {{kData, 512, true}}), 0) << "and works after it";
}

TEST_F(BlockTest, WithoutFlushWritesLast) {
  start(kVersion1);
  disk->operations.clear();
  EXPECT_EQ(ask(kOut, 9, {{kData, 512, false}}), 0);
  EXPECT_EQ(disk->operations.size(), 2U);
  EXPECT_EQ(disk->operations.back(), storage::Operation::flush);
  EXPECT_EQ(ask(kDiscardType, 0, {{kData, 16, false}}), 2) << "not negotiated";
}

/// A page of zeroes that is written over and over has no room for so many pins.
TEST_F(BlockTest, ManyBuffersInOnePage) {
  constexpr PA kTable{0x20000}, kPage{0x30000};
  constexpr unsigned kBuffers = 100;
  start(kVersion1 | kRingIndirectDesc);
  for (const std::uint32_t type : {kOut, kIn}) {
    machine.memory.store<std::uint32_t>(kPage, 0xA5A5A5A5);
    machine.memory.store<std::uint32_t>(kHeader, type);
    machine.memory.store<std::uint64_t>(kHeader + 8, 16);
    const auto put = [&](unsigned i, PA pa, std::uint32_t length, unsigned flags) {
      machine.memory.store<std::uint64_t>(kTable + 16 * i, pa.value());
      machine.memory.store<std::uint32_t>(kTable + 16 * i + 8, length);
      machine.memory.store<std::uint32_t>(kTable + 16 * i + 12, flags | (i + 1) << 16);
    };
    put(0, kHeader, 16, 1);
    for (unsigned i = 1; i <= kBuffers; ++i) put(i, kPage, 512, type == kIn ? 3 : 1);
    put(kBuffers + 1, kStatus, 1, 2);
    machine.memory.store<std::uint64_t>(kQueue, kTable.value());
    machine.memory.store<std::uint32_t>(kQueue + 8, 16 * (kBuffers + 2));
    machine.memory.store<std::uint16_t>(kQueue + 12, 4);
    machine.memory.store<std::uint8_t>(kStatus, 0xEE);
    queue->make_available(0);
    driver.notify(0);
    ASSERT_EQ(queue->take_used().size(), 1U);
    EXPECT_EQ(machine.memory.load<std::uint8_t>(kStatus), 0);
  }
  EXPECT_EQ(disk->content[(16 + 99) * 512], std::byte{0xA5});
}

class SlowBlockTest : public BlockTest {
 protected:
  SlowBlockTest() : BlockTest{{.deferred = true}} {}
};

TEST_F(SlowBlockTest, RequestsOverlapAndComeBackInAnyOrder) {
  offer(kIn, 0, {{kData, 512, true}});
  offer(kIn, 1, {{kData + 0x1000, 512, true}});
  driver.notify(0);
  EXPECT_EQ(disk->waiting.size(), 2U);
  EXPECT_EQ(disk->kicks, 1);
  EXPECT_TRUE(queue->take_used().empty());
  EXPECT_FALSE(machine.intx.level);
  disk->complete();
  const auto used = queue->take_used();
  ASSERT_EQ(used.size(), 2U);
  EXPECT_EQ(used[0].head, 3U) << "the later one first";
  EXPECT_TRUE(machine.intx.level);
}

TEST_F(SlowBlockTest, ResetWaitsForWhatIsInFlight) {
  offer(kIn, 0, {{kData, 512, true}});
  driver.notify(0);
  driver.set_status(0);
  EXPECT_TRUE(disk->waiting.empty());
  machine.memory.store<std::uint32_t>(kData, 0);
  disk->complete();
  EXPECT_EQ(machine.memory.load<std::uint32_t>(kData), 0U);
}

TEST_F(SlowBlockTest, QuiescedThenSavedThenLoaded) {
  offer(kIn, 0, {{kData, 512, true}});
  driver.notify(0);
  machine.function->quiesce();
  EXPECT_EQ(queue->take_used().size(), 1U);
  const nlohmann::json state = machine.function->save();
  const auto loads = [&](std::size_t bytes, DiskKind kind) {
    PciMachine other{std::make_unique<Block>(std::make_unique<MemoryDisk>(bytes, kind), "x")};
    return other.function->load(state).has_value();
  };
  EXPECT_TRUE(loads(kDiskBytes, {}));
  EXPECT_FALSE(loads(2 * kDiskBytes, {})) << "another disk";
  EXPECT_FALSE(loads(kDiskBytes, {.read_only = true}));
}

TEST_F(SlowBlockTest, NoMoreInFlightThanTheQueueHolds) {
  machine.memory.store<std::uint32_t>(kHeader, kFlushType);
  queue->add({{kHeader, 16, false}, {kStatus, 1, true}});
  driver.notify(0);
  // The same chain over and over, none of them answered.
  for (unsigned i = 0; i < 300; ++i) {
    queue->make_available(0);
    driver.notify(0);
  }
  EXPECT_EQ(disk->waiting.size(), 256U);
  EXPECT_EQ(driver.status() & 0x40, 0x40);
}

class ReadOnlyBlockTest : public BlockTest {
 protected:
  ReadOnlyBlockTest() : BlockTest{{.read_only = true}} {}
};

TEST_F(ReadOnlyBlockTest, TakesNoChanges) {
  EXPECT_EQ(driver.offered() & (kReadOnly | kDiscard | kWriteZeroes), kReadOnly);
  EXPECT_EQ(ask(kOut, 0, {{kData, 512, false}}), 1);
  EXPECT_EQ(ask(kIn, 0, {{kData, 512, true}}), 0);
}

}  // namespace
}  // namespace strata::devices::virtio::test
