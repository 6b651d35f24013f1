#include "machine/machine_memory.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "machine/test_support.hpp"

namespace strata::machine {
namespace {

using test::must;

HostLayout small_layout() {
  HostLayout l;
  l.window_bytes = 1ULL << 34;
  l.system_pool_bytes = 1ULL << 30;
  return l;
}

class MachineMemoryTest : public ::testing::Test {
 protected:
  std::unique_ptr<MachineMemory> memory_ = must(MachineMemory::create(small_layout()));
};

TEST_F(MachineMemoryTest, the_default_layout_works) {
  const auto memory = MachineMemory::create();
  ASSERT_TRUE(memory);
  EXPECT_GE((*memory)->window_bytes(), 16ULL << 30);
}

TEST_F(MachineMemoryTest, a_taken_address_falls_back_to_another) {
  const auto second = must(MachineMemory::create(small_layout()));
  EXPECT_NE(second->window().host(MA{0}), memory_->window().host(MA{0}));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(second->window().host(MA{0})) % kHugePageSize, 0U);
}

TEST_F(MachineMemoryTest, segments_lie_at_gigabyte_multiples_and_apart) {
  const auto a = must(memory_->create_segment(5 << 20, "a"));
  const auto b = must(memory_->create_segment(1 << 20, "b"));
  EXPECT_EQ(memory_->system_pool()->base(), MA{0});
  EXPECT_EQ(a->base().value() % kHugePageSize, 0U);
  EXPECT_EQ(b->base().value() % kHugePageSize, 0U);
  EXPECT_GE(a->base().value(), memory_->system_pool()->bytes());
  EXPECT_GE(b->base() - a->base(), a->bytes());
}

TEST_F(MachineMemoryTest, machine_addresses_are_used_again) {
  MA first{};
  {
    const auto a = must(memory_->create_segment(1 << 20, "a"));
    first = a->base();
    *memory_->window().host(first) = std::byte{7};
  }
  const auto b = must(memory_->create_segment(1 << 20, "b"));
  EXPECT_EQ(b->base(), first);
  EXPECT_EQ(*memory_->window().host(first), std::byte{0});
}

TEST_F(MachineMemoryTest, impossible_sizes_are_errors) {
  for (const std::uint64_t bytes : {0ULL, 1ULL << 60, ~0ULL, 1ULL << 35}) {
    const auto s = memory_->create_segment(bytes, "x");
    ASSERT_FALSE(s) << bytes;
    EXPECT_EQ(s.error().kind, MachineErrorKind::invalid_size);
  }
  const auto full = memory_->create_segment(memory_->window_bytes(), "x");
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().kind, MachineErrorKind::no_address_space);
  HostLayout huge = small_layout();
  huge.system_pool_bytes = 1ULL << 60;
  EXPECT_FALSE(MachineMemory::create(huge));
  huge = small_layout();
  huge.system_pool_bytes = 0;
  EXPECT_FALSE(MachineMemory::create(huge));
}

TEST_F(MachineMemoryTest, untouched_memory_costs_nothing) {
  const auto s = must(memory_->create_segment(64 << 20, "s"));
  EXPECT_EQ(s->resident_bytes(), 0U);
}

TEST_F(MachineMemoryTest, populate_gives_and_punch_takes_blocks) {
  const auto s = must(memory_->create_segment(16 << 20, "s"));
  must(s->populate({1 << 20, 2 << 20}));
  EXPECT_EQ(s->resident_bytes(), 2U << 20);
  std::memset(memory_->window().host(s->base() + (1 << 20)), 0x5A, 2 << 20);
  must(s->punch({1 << 20, 1 << 20}));
  EXPECT_EQ(s->resident_bytes(), 1U << 20);
  EXPECT_EQ(*memory_->window().host(s->base() + (2 << 20)), std::byte{0x5A});
  EXPECT_EQ(*memory_->window().host(s->base() + (1 << 20)), std::byte{0});
}

TEST_F(MachineMemoryTest, punch_takes_whole_pages_only) {
  const auto s = must(memory_->create_segment(1 << 20, "s"));
  must(s->touch({0, 3 * kPageSize}));
  std::memset(memory_->window().host(s->base()), 1, 3 * kPageSize);
  must(s->punch({100, 2 * kPageSize}));
  EXPECT_EQ(s->resident_bytes(), 2 * kPageSize);
  EXPECT_EQ(*memory_->window().host(s->base() + 100), std::byte{1});
  EXPECT_EQ(*memory_->window().host(s->base() + kPageSize), std::byte{0});
  EXPECT_EQ(*memory_->window().host(s->base() + 2 * kPageSize), std::byte{1});
}

TEST_F(MachineMemoryTest, ranges_outside_are_errors) {
  const auto s = must(memory_->create_segment(1 << 20, "s"));
  for (const ByteRange range : {ByteRange{0, (1 << 20) + 1}, ByteRange{1 << 20, 1},
                                ByteRange{~0ULL, 2}, ByteRange{kPageSize, ~0ULL}}) {
    EXPECT_FALSE(s->populate(range));
    EXPECT_FALSE(s->touch(range));
    EXPECT_FALSE(s->punch(range));
    EXPECT_FALSE(s->collapse(range));
  }
  EXPECT_EQ(s->resident_bytes(), 0U);
}

TEST_F(MachineMemoryTest, the_file_can_not_be_resized_under_us) {
  const auto s = must(memory_->create_segment(1 << 20, "s"));
  EXPECT_NE(::ftruncate(s->fd(), 4096), 0);
  EXPECT_NE(::ftruncate(s->fd(), 1 << 21), 0);
}

TEST_F(MachineMemoryTest, an_adopted_segment_is_the_same_memory) {
  const auto s = must(memory_->create_segment(1 << 20, "s"));
  const auto view =
      must(memory_->adopt_segment(FileDescriptor{::dup(s->fd())}, 1 << 20, "view", false));
  *memory_->window().host(s->base() + 5) = std::byte{9};
  EXPECT_EQ(*memory_->window().host(view->base() + 5), std::byte{9});
  EXPECT_DEATH(*memory_->window().host(view->base() + 5) = std::byte{1}, "");
}

TEST_F(MachineMemoryTest, a_file_that_is_too_short_is_not_adopted) {
  FileDescriptor fd{::memfd_create("short", MFD_CLOEXEC)};
  ASSERT_EQ(::ftruncate(fd.get(), 4096), 0);
  EXPECT_FALSE(memory_->adopt_segment(std::move(fd), 8192, "short", true));
  EXPECT_FALSE(memory_->adopt_segment(FileDescriptor{}, 8192, "none", true));
}

TEST_F(MachineMemoryTest, memory_that_is_not_there_is_an_error_not_a_signal) {
  // Not sealed: shrunk after the mapping, it has addresses without memory, as a full host would.
  FileDescriptor fd{::memfd_create("shrunk", MFD_CLOEXEC)};
  ASSERT_EQ(::ftruncate(fd.get(), 1 << 20), 0);
  const int raw = ::dup(fd.get());
  const auto s = must(memory_->adopt_segment(std::move(fd), 1 << 20, "shrunk", true));
  ASSERT_EQ(::ftruncate(raw, 4096), 0);
  const auto touched = s->touch({8192, 4096});
  ASSERT_FALSE(touched);
  EXPECT_EQ(touched.error().kind, MachineErrorKind::no_memory);
  EXPECT_TRUE(s->touch({0, 4096}));
  ::close(raw);
}

TEST_F(MachineMemoryTest, collapse_says_whether_it_did) {
  const auto s = must(memory_->create_segment(4 << 20, "s"));
  std::memset(memory_->window().host(s->base()), 3, 4 << 20);
  const bool done = s->collapse({0, 4 << 20});  // the host may have no huge pages: both are fine
  RecordProperty("collapsed", done ? 1 : 0);
  EXPECT_EQ(*memory_->window().host(s->base() + (3 << 20)), std::byte{3});
  EXPECT_FALSE(s->collapse({0, 4096})) << "less than a huge page";
}

TEST_F(MachineMemoryTest, the_window_translates_both_ways) {
  const auto s = must(memory_->create_segment(1 << 20, "s"));
  const MachineWindow w = memory_->window();
  EXPECT_EQ(w.machine(w.host(s->base() + 77)), s->base() + 77);
  EXPECT_TRUE(s->contains(s->base() + 77));
  EXPECT_FALSE(s->contains(s->base() + (1 << 20)));
  EXPECT_FALSE(s->contains(MA{0}));
}

TEST_F(MachineMemoryTest, a_segment_may_outlive_the_memory_object) {
  const auto s = must(memory_->create_segment(1 << 20, "s"));
  std::byte* at = memory_->window().host(s->base());
  memory_.reset();
  *at = std::byte{4};
  EXPECT_EQ(s->resident_bytes(), kPageSize);
}

}  // namespace
}  // namespace strata::machine
