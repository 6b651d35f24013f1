#include "machine/guest_memory.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>
#include <vector>

#include "machine/test_support.hpp"

namespace strata::machine {
namespace {

using test::must;
using test::TestMachine;

class Listener final : public WriteListener {
 public:
  void memory_written(PA pa, std::uint64_t length) override { heard.emplace_back(pa, length); }
  std::vector<std::pair<PA, std::uint64_t>> heard;
};

std::vector<std::byte> pattern(std::size_t n) {
  std::vector<std::byte> bytes(n);
  for (std::size_t i = 0; i < n; ++i) bytes[i] = static_cast<std::byte>(i * 7 + 1);
  return bytes;
}

class GuestMemoryTest : public ::testing::Test {
 protected:
  GuestMemory& guest() { return m_.guest; }
  TestMachine m_{8};
  static constexpr std::uint64_t kEnd = 8 << 20;
};

TEST_F(GuestMemoryTest, what_is_written_across_pages_is_read_back) {
  const auto in = pattern(3 * kPageSize + 17);
  must(guest().write(kIdentitySpace, PA{0x1FF3}, in));
  std::vector<std::byte> out(in.size());
  must(guest().read(kIdentitySpace, PA{0x1FF3}, out));
  EXPECT_EQ(in, out);
  EXPECT_EQ(m_.home->resident_bytes(), 5 * kPageSize);
  EXPECT_EQ(m_.load<std::uint8_t>(PA{0x1FF2}), 0U);
}

TEST_F(GuestMemoryTest, reading_never_gives_memory) {
  std::vector<std::byte> out(1 << 20, std::byte{1});
  must(guest().read(kIdentitySpace, PA{100}, out));
  EXPECT_EQ(out, std::vector<std::byte>(1 << 20));
  const auto pin = must(guest().pin(kIdentitySpace, PA{0}, 1 << 20, AccessKind::read));
  EXPECT_EQ(pin.chunks().size(), 256U) << "the zero frame, again and again";
  EXPECT_EQ(m_.home->resident_bytes(), 0U);
  EXPECT_EQ(m_.p2m.table_bytes().leaves, 0U);
}

TEST_F(GuestMemoryTest, filling_untouched_pages_with_zeroes_gives_no_memory) {
  must(guest().fill(kIdentitySpace, PA{0}, kEnd, std::byte{0}));
  EXPECT_EQ(m_.home->resident_bytes(), 0U);
  must(guest().fill(kIdentitySpace, PA{0x800}, kPageSize, std::byte{0x11}));
  EXPECT_EQ(m_.load<std::uint8_t>(PA{0x7FF}), 0U);
  EXPECT_EQ(m_.load<std::uint8_t>(PA{0x800}), 0x11U);
  EXPECT_EQ(m_.load<std::uint8_t>(PA{0x17FF}), 0x11U);
  EXPECT_EQ(m_.load<std::uint8_t>(PA{0x1800}), 0U);
  must(guest().fill(kIdentitySpace, PA{0}, 2 * kPageSize, std::byte{0}));
  EXPECT_EQ(m_.load<std::uint8_t>(PA{0x900}), 0U);
}

TEST_F(GuestMemoryTest, a_range_beyond_memory_faults_at_its_first_byte_outside) {
  const auto in = pattern(2 * kPageSize);
  const auto r = guest().write(kIdentitySpace, PA{kEnd - kPageSize}, in);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, FaultKind::mmio);
  EXPECT_EQ(r.error().pa, PA{kEnd});
  EXPECT_EQ(m_.load<std::uint8_t>(PA{kEnd - kPageSize}), 1U) << "what came before is done";
  EXPECT_FALSE(guest().pin(kIdentitySpace, PA{kEnd - 1}, 2, AccessKind::read));
  EXPECT_TRUE(guest().pin(kIdentitySpace, PA{kEnd - 1}, 1, AccessKind::read));
}

TEST_F(GuestMemoryTest, hostile_addresses_and_lengths_are_refused) {
  for (const PA pa : {PA{~0ULL}, PA{~0ULL - 5}, PA{1ULL << 52}, PA{1ULL << 48}, PA{1ULL << 63}}) {
    std::vector<std::byte> bytes(64);
    EXPECT_FALSE(guest().read(kIdentitySpace, pa, bytes));
    EXPECT_FALSE(guest().write(kIdentitySpace, pa, bytes));
    EXPECT_FALSE(guest().pin(kIdentitySpace, pa, 64, AccessKind::write));
    EXPECT_FALSE(guest().fill(kIdentitySpace, pa, 64, std::byte{1}));
  }
  for (const std::uint64_t length :
       {~std::uint64_t{0}, std::uint64_t{1} << 63, GuestMemory::kMaxPinBytes + 1}) {
    EXPECT_FALSE(guest().pin(kIdentitySpace, PA{0x1000}, length, AccessKind::read));
  }
  const auto r = guest().fill(kIdentitySpace, PA{0x1000}, ~0ULL, std::byte{0});
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().pa, PA{kEnd});
  EXPECT_EQ(m_.home->resident_bytes(), 0U);
}

TEST_F(GuestMemoryTest, an_unknown_space_is_refused) {
  std::vector<std::byte> bytes(4);
  const auto r = guest().read(AddressSpaceId{1}, PA{0}, bytes);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().stage, Stage::engine);
}

TEST_F(GuestMemoryTest, nothing_at_all_is_fine) {
  must(guest().read(kIdentitySpace, PA{0}, {}));
  must(guest().write(kIdentitySpace, PA{kEnd + 5}, {}));
  const auto pin = must(guest().pin(kIdentitySpace, PA{0}, 0, AccessKind::write));
  EXPECT_TRUE(pin.chunks().empty());
}

TEST_F(GuestMemoryTest, a_pin_of_neighbours_is_one_chunk_and_holds_them) {
  auto pin = must(guest().pin(kIdentitySpace, PA{0x1800}, 2 * kPageSize, AccessKind::write));
  ASSERT_EQ(pin.chunks().size(), 1U);
  EXPECT_EQ(pin.chunks()[0].size(), 2 * kPageSize);
  Flush flush{m_.domain};
  EXPECT_EQ(m_.p2m.discard({PPN{1}, 1}, flush).error(), EditError::pinned);
  Pin moved = std::move(pin);
  EXPECT_EQ(m_.p2m.discard({PPN{3}, 1}, flush).error(), EditError::pinned);
  moved.release();
  EXPECT_TRUE(m_.p2m.discard({PPN{1}, 3}, flush));
  flush.commit();
}

TEST_F(GuestMemoryTest, assigning_a_pin_lets_go_of_the_old_one) {
  Pin pin = must(guest().pin(kIdentitySpace, PA{0x1000}, 8, AccessKind::write));
  pin = must(guest().pin(kIdentitySpace, PA{0x2000}, 8, AccessKind::write));
  EXPECT_EQ(m_.p2m.lookup(PPN{1}).entry.pins(), 0U);
  EXPECT_EQ(m_.p2m.lookup(PPN{2}).entry.pins(), 1U);
}

TEST_F(GuestMemoryTest, a_pin_that_fails_half_way_holds_nothing) {
  Listener listener;
  guest().add_listener(listener);
  EXPECT_FALSE(
      guest().pin(kIdentitySpace, PA{kEnd - 3 * kPageSize}, 4 * kPageSize, AccessKind::write));
  for (std::uint64_t p = 1; p <= 3; ++p) {
    EXPECT_EQ(m_.p2m.lookup(PPN{(kEnd >> kPageShift) - p}).entry.pins(), 0U);
  }
  EXPECT_TRUE(listener.heard.empty());
  guest().remove_listener(listener);
}

TEST_F(GuestMemoryTest, bytes_go_in_and_out_of_pins_across_chunks) {
  // Two chunks: an untouched page's zero frame is not a neighbour of a private one.
  m_.store<std::uint8_t>(PA{0x1FFF}, 0xAA);
  const auto reader = must(guest().pin(kIdentitySpace, PA{0x1FF0}, 32, AccessKind::read));
  ASSERT_EQ(reader.chunks().size(), 2U);
  std::vector<std::byte> out(4, std::byte{9});
  EXPECT_TRUE(reader.copy_out(14, out));
  EXPECT_EQ(out,
            (std::vector<std::byte>{std::byte{0}, std::byte{0xAA}, std::byte{0}, std::byte{0}}));
  EXPECT_FALSE(reader.copy_out(29, out));
  EXPECT_FALSE(reader.copy_out(~0ULL, out));
  auto writer = must(guest().pin(kIdentitySpace, PA{0x1FF0}, 32, AccessKind::write));
  EXPECT_TRUE(writer.copy_in(14, pattern(4)));
  EXPECT_FALSE(writer.copy_in(30, pattern(4)));
  EXPECT_EQ(m_.load<std::uint32_t>(PA{0x1FFE}), 0x160F0801U);
}

TEST_F(GuestMemoryTest, a_read_pin_takes_no_bytes) {
  auto pin = must(guest().pin(kIdentitySpace, PA{0x1000}, 32, AccessKind::read));
  EXPECT_FALSE(pin.copy_in(0, pattern(4)));
}

TEST_F(GuestMemoryTest, listeners_hear_of_stores_only) {
  Listener listener;
  guest().add_listener(listener);
  must(guest().write(kIdentitySpace, PA{0x1FFE}, pattern(4)));
  std::vector<std::byte> out(4);
  must(guest().read(kIdentitySpace, PA{0x1FFE}, out));
  {
    const auto r = must(guest().pin(kIdentitySpace, PA{0x5000}, 8, AccessKind::read));
    const auto w = must(guest().pin(kIdentitySpace, PA{0x6000}, 8, AccessKind::write));
    EXPECT_EQ(listener.heard.size(), 2U) << "a pin's store is announced when it ends";
  }
  const std::vector<std::pair<PA, std::uint64_t>> expected{
      {PA{0x1FFE}, 2}, {PA{0x2000}, 2}, {PA{0x6000}, 8}};
  EXPECT_EQ(listener.heard, expected);
  guest().remove_listener(listener);
  must(guest().write(kIdentitySpace, PA{0x1FFE}, pattern(4)));
  EXPECT_EQ(listener.heard.size(), 3U);
}

TEST_F(GuestMemoryTest, rom_takes_no_writes) {
  Flush flush{m_.domain};
  (void)must(m_.p2m.remove({PPN{16}, 1}, flush));
  flush.commit();
  must(m_.p2m.add_rom({PPN{16}, 1}, pattern(16)));
  const auto r = guest().write(kIdentitySpace, PA{0x10008}, pattern(1));
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().kind, FaultKind::rom_write);
  EXPECT_EQ(r.error().pa, PA{0x10008});
  EXPECT_EQ(m_.load<std::uint8_t>(PA{0x10001}), 8U);
}

TEST_F(GuestMemoryTest, writes_are_dirty) {
  Flush flush{m_.domain};
  must(m_.p2m.log_dirty({PPN{0}, 16}, flush));
  flush.commit();
  must(guest().write(kIdentitySpace, PA{0x3FFF}, pattern(2)));
  const auto dirty = m_.p2m.collect_dirty({PPN{0}, 16});
  ASSERT_EQ(dirty.size(), 1U);
  EXPECT_EQ(dirty[0].first, PPN{3});
  EXPECT_EQ(dirty[0].count, 2U);
}

}  // namespace
}  // namespace strata::machine
